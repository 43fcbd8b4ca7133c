// Package fake keeps the controller's state in memory, for tests of what stands on the store. It can be told to fail.
package fake

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
)

// Store is a store.Store in memory. The zero value is empty and ready.
type Store struct {
	mu    sync.RWMutex
	state state
	fail  error
}

var _ store.Store = (*Store)(nil)

type state struct {
	revisions   []store.Revision
	agents      map[string]store.Agent
	tokens      map[string]store.Token
	leases      map[string]store.Lease
	credentials map[string]store.Credential
	audit       []store.AuditEntry
}

// Fail makes every later Update return err; nil ends that.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	t := &tx{s.state}
	s.mu.RUnlock()
	return fn(t)
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	t := &tx{s.state.clone()}
	if err := fn(t); err != nil {
		return err
	}
	s.state = t.state
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error { return nil }

// clone copies what a transaction changes in place. Readers keep the maps that they began with.
func (s *state) clone() state {
	return state{
		revisions:   slices.Clip(s.revisions),
		agents:      copied(s.agents),
		tokens:      copied(s.tokens),
		leases:      copied(s.leases),
		credentials: copied(s.credentials),
		audit:       slices.Clip(s.audit),
	}
}

func copied[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

type tx struct{ state }

func (t *tx) Revision(number uint64) (*store.Revision, error) {
	n := uint64(len(t.revisions))
	if number == 0 {
		number = n
	}
	if number == 0 || number > n {
		return nil, store.ErrNotFound
	}
	r := t.revisions[number-1]
	return &r, nil
}

func (t *tx) Revisions(limit int) ([]store.Revision, error) {
	var list []store.Revision
	for _, r := range slices.Backward(t.revisions) {
		if limit != 0 && len(list) == limit {
			break
		}
		r.Documents = ""
		list = append(list, r)
	}
	return list, nil
}

func (t *tx) AppendRevision(base uint64, r store.Revision) (uint64, error) {
	if base != uint64(len(t.revisions)) {
		return 0, store.ErrConflict
	}
	r.Number, r.Time = base+1, store.Millis(r.Time)
	t.revisions = append(t.revisions, r)
	return r.Number, nil
}

func (t *tx) Agent(host string) (*store.Agent, error) { return get(t.agents, host, cloneAgent) }

func (t *tx) Agents() ([]store.Agent, error) {
	return sorted(t.agents, cloneAgent, func(a, b store.Agent) int { return cmp.Compare(a.Host, b.Host) }), nil
}

func (t *tx) PutAgent(a store.Agent) error {
	t.agents[a.Host] = cloneAgent(a)
	return nil
}

func (t *tx) Token(id string) (*store.Token, error) { return get(t.tokens, id, cloneToken) }

func (t *tx) Tokens() ([]store.Token, error) {
	return sorted(t.tokens, cloneToken, func(a, b store.Token) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	}), nil
}

func (t *tx) PutToken(k store.Token) error {
	t.tokens[k.ID] = cloneToken(k)
	return nil
}

func (t *tx) Leases() ([]store.Lease, error) {
	return sorted(t.leases, cloneLease, func(a, b store.Lease) int { return cmp.Compare(a.Workload, b.Workload) }), nil
}

func (t *tx) PutLease(l store.Lease) error {
	t.leases[l.Workload] = cloneLease(l)
	return nil
}

func (t *tx) DropLease(workload string) error {
	if _, ok := t.leases[workload]; !ok {
		return store.ErrNotFound
	}
	delete(t.leases, workload)
	return nil
}

func (t *tx) Credential(name string) (*store.Credential, error) {
	return get(t.credentials, name, cloneCredential)
}

func (t *tx) Credentials() ([]store.Credential, error) {
	return sorted(t.credentials, cloneCredential, func(a, b store.Credential) int { return cmp.Compare(a.Name, b.Name) }), nil
}

func (t *tx) PutCredential(c store.Credential) error {
	t.credentials[c.Name] = cloneCredential(c)
	return nil
}

func (t *tx) Audit(fn func(*store.AuditEntry) error) error {
	for _, e := range t.audit {
		if err := fn(&e); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) AuditHead() (store.AuditHead, error) {
	if len(t.audit) == 0 {
		return store.AuditHead{}, nil
	}
	last := t.audit[len(t.audit)-1]
	return store.AuditHead{Number: last.Number, Hash: last.Hash}, nil
}

func (t *tx) AppendAudit(e store.AuditEntry) (store.AuditEntry, error) {
	head, err := t.AuditHead()
	if err != nil {
		return e, err
	}
	e = store.Chain(head, e)
	t.audit = append(t.audit, e)
	return e, nil
}

func get[V any](m map[string]V, key string, clone func(V) V) (*V, error) {
	v, ok := m[key]
	if !ok {
		return nil, store.ErrNotFound
	}
	v = clone(v)
	return &v, nil
}

func sorted[V any](m map[string]V, clone func(V) V, order func(a, b V) int) []V {
	var list []V
	for _, v := range m {
		list = append(list, clone(v))
	}
	slices.SortFunc(list, order)
	return list
}

func cloneAgent(a store.Agent) store.Agent {
	a.Labels, a.Limits, a.Inventory = cloneLabels(a.Labels), slices.Clone(a.Limits), slices.Clone(a.Inventory)
	a.EnrolledAt, a.RevokedAt = store.Millis(a.EnrolledAt), store.Millis(a.RevokedAt)
	a.LastSeen, a.Expires = store.Millis(a.LastSeen), store.Millis(a.Expires)
	return a
}

func cloneToken(k store.Token) store.Token {
	k.Labels, k.SecretHash = cloneLabels(k.Labels), slices.Clone(k.SecretHash)
	k.Created, k.Expires, k.RevokedAt = store.Millis(k.Created), store.Millis(k.Expires), store.Millis(k.RevokedAt)
	return k
}

func cloneLease(l store.Lease) store.Lease {
	l.InUse = slices.Clone(l.InUse)
	l.Since, l.Until = store.Millis(l.Since), store.Millis(l.Until)
	return l
}

func cloneCredential(c store.Credential) store.Credential {
	c.Hash, c.Created = slices.Clone(c.Hash), store.Millis(c.Created)
	return c
}

func cloneLabels(l model.Labels) model.Labels {
	if len(l) == 0 {
		return nil
	}
	return maps.Clone(l)
}
