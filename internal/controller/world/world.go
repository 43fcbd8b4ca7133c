// Package world holds what the controller knows, in memory: the newest documents, what agents report and the
// quarantines in force; and the policy compiled from it. Readers get an immutable Snapshot; changes are gathered for
// some milliseconds and become the next one.
//
// How a snapshot comes about is behind the type compiler: it compiles everything from scratch, and an incremental one
// can take its place.
package world

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// Config says how a world behaves. Zero fields take the defaults.
type Config struct {
	Controllers []netip.AddrPort // where the controllers answer
	Coalesce    time.Duration    // how long to gather changes; default 5 ms
	Rest        time.Duration    // how long to leave a snapshot be before the next, if changes do not end; default 100 ms
	Now         func() time.Time // default time.Now
	// Compiled is called after each compilation, if set.
	Compiled func(took time.Duration, err error)
}

// Documents are the documents of one revision, in every form that is needed of them.
type Documents struct {
	Revision  uint64 // 0: none has been applied yet
	Hash      string
	Canonical string // YAML
	Parsed    *model.Documents
}

// NewDocuments parses canonical YAML as the store keeps it.
func NewDocuments(revision uint64, hash, canonical string) (*Documents, error) {
	parsed, err := policy.Parse([]policy.File{{Name: fmt.Sprintf("revision-%d.yaml", revision), Data: []byte(canonical)}})
	if err != nil {
		return nil, err
	}
	return &Documents{Revision: revision, Hash: hash, Canonical: canonical, Parsed: parsed}, nil
}

// World takes changes and publishes snapshots. Its methods may be called from any goroutine.
type World struct {
	cfg      Config
	log      *slog.Logger
	compiler compiler
	snapshot atomic.Pointer[Snapshot]
	wake     chan struct{} // holds one token when inputs have changed

	building sync.Mutex // held from the reading of inputs to the publication of what was made of them

	mu         sync.Mutex
	docs       *Documents
	hosts      map[string]*host
	leases     map[string]inventory.Lease
	generation uint64        // of the inputs
	published  chan struct{} // closed and replaced at each publication
}

// New returns a world that is empty and has no snapshot; Load gives it one.
func New(cfg Config, log *slog.Logger) *World {
	if cfg.Coalesce == 0 {
		cfg.Coalesce = 5 * time.Millisecond
	}
	if cfg.Rest == 0 {
		cfg.Rest = 100 * time.Millisecond
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Compiled == nil {
		cfg.Compiled = func(time.Duration, error) {}
	}
	return &World{
		cfg: cfg, log: log, wake: make(chan struct{}, 1),
		docs: &Documents{Parsed: &model.Documents{}}, hosts: map[string]*host{}, leases: map[string]inventory.Lease{},
		published: make(chan struct{}),
	}
}

// Load sets the world to what was stored, and compiles it. It is called once, before Run.
func (w *World) Load(docs *Documents, reports []inventory.Report, leases []inventory.Lease) error {
	w.mu.Lock()
	if docs != nil {
		w.docs = docs
	}
	for _, r := range reports {
		w.hosts[r.Host] = newHost(r, w.cfg.Now())
	}
	for _, l := range leases {
		w.leases[l.Workload] = l
	}
	w.mu.Unlock()
	return w.rebuild()
}

// Snapshot returns the newest snapshot; nil before Load.
func (w *World) Snapshot() *Snapshot { return w.snapshot.Load() }

// Next returns a channel that is closed when a snapshot newer than the present one is published. Take it before the
// snapshot, so as to miss none.
func (w *World) Next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.published
}

// Run makes a snapshot of each burst of changes, and one whenever a rule expires, until ctx ends.
func (w *World) Run(ctx context.Context) error {
	var rested time.Time // agents should not be kept busier with snapshots than with their work
	for {
		timer := time.NewTimer(w.untilExpiry())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-w.wake:
			timer.Stop()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(w.cfg.Coalesce, time.Until(rested))):
			}
		}
		start := time.Now()
		if err := w.rebuild(); err != nil {
			// The last snapshot stays in force; the next change tries again.
			w.log.Error("the world cannot be compiled", "error", err)
		}
		rested = time.Now().Add(max(w.cfg.Rest, 2*time.Since(start)))
	}
}

const forever = 365 * 24 * time.Hour

func (w *World) untilExpiry() time.Duration {
	s := w.Snapshot()
	if s == nil {
		return forever
	}
	at, ok := s.Compiled.NextExpiry()
	if !ok {
		return forever
	}
	return min(max(at.Sub(w.cfg.Now()), time.Millisecond), forever)
}

// changed notes that inputs are not what they were. The caller holds mu.
func (w *World) changed() {
	w.generation++
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Flush publishes what has changed, now.
func (w *World) Flush() error { return w.rebuild() }

// rebuild compiles the present inputs and publishes the result, if they have changed since the last time.
func (w *World) rebuild() error {
	w.building.Lock()
	defer w.building.Unlock()
	in := w.inputs(nil)
	if s := w.snapshot.Load(); s != nil && s.generation == in.generation {
		if at, ok := s.Compiled.NextExpiry(); !ok || in.now.Before(at) {
			return nil
		}
	}
	s, err := w.compile(in)
	if err != nil {
		return err
	}
	w.publish(s)
	return nil
}

func (w *World) compile(in *inputs) (*Snapshot, error) {
	start := time.Now()
	s, err := w.compiler.compile(in)
	w.cfg.Compiled(time.Since(start), err)
	return s, err
}

// publish makes the snapshot the newest one. The caller holds building.
func (w *World) publish(s *Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.snapshot.Store(s)
	close(w.published)
	w.published = make(chan struct{})
}

// inputs returns a copy of what a snapshot is made of, with other documents in place of the present ones if given.
func (w *World) inputs(docs *Documents) *inputs {
	w.mu.Lock()
	defer w.mu.Unlock()
	if docs == nil {
		docs = w.docs
	}
	in := &inputs{
		docs: docs, generation: w.generation, now: w.cfg.Now(), controllers: w.cfg.Controllers,
		hosts: make([]host, 0, len(w.hosts)), leases: make([]inventory.Lease, 0, len(w.leases)),
	}
	for _, name := range slices.Sorted(maps.Keys(w.hosts)) {
		in.hosts = append(in.hosts, *w.hosts[name])
	}
	for _, name := range slices.Sorted(maps.Keys(w.leases)) {
		in.leases = append(in.leases, w.leases[name])
	}
	return in
}

// Candidate is a world with other documents, compiled and not published.
type Candidate struct {
	*Snapshot
}

// Try compiles the documents with everything else as it is, and changes nothing.
func (w *World) Try(docs *Documents) (*Candidate, error) {
	w.building.Lock()
	defer w.building.Unlock()
	s, err := w.compile(w.inputs(docs))
	if err != nil {
		return nil, err
	}
	return &Candidate{s}, nil
}

// Adopt publishes the candidate under its revision number. What has changed since Try is compiled in.
func (w *World) Adopt(c *Candidate, revision uint64) error {
	docs := *c.docs
	docs.Revision = revision
	w.building.Lock()
	defer w.building.Unlock()
	w.mu.Lock()
	w.docs = &docs
	fresh := w.generation == c.generation
	w.generation++
	generation := w.generation
	w.mu.Unlock()
	if fresh {
		w.publish(c.as(&docs, generation))
		return nil
	}
	s, err := w.compile(w.inputs(nil))
	if err != nil {
		return err
	}
	w.publish(s)
	return nil
}

// SetLease puts a quarantine in force.
func (w *World) SetLease(l inventory.Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.leases[l.Workload]; ok && reflect.DeepEqual(old, l) {
		return
	}
	w.leases[l.Workload] = l
	w.changed()
}

// DropLease ends a quarantine.
func (w *World) DropLease(workload string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.leases[workload]; ok {
		delete(w.leases, workload)
		w.changed()
	}
}

// SetReport takes what an agent says about its host in place of what it said before. It returns the generation of the
// world that has it, for Snapshot.Has.
func (w *World) SetReport(r inventory.Report) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[r.Host]
	if h == nil {
		w.hosts[r.Host] = newHost(r, w.cfg.Now())
		w.changed()
	} else if !reflect.DeepEqual(h.report, r) {
		h.update(r, w.cfg.Now())
		w.changed()
	}
	return w.generation
}

// DropReport forgets a host.
func (w *World) DropReport(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts[name] != nil {
		delete(w.hosts, name)
		w.changed()
	}
}

// SetConnected says whether the agent of the host is there. It decides between hosts that claim one address.
func (w *World) SetConnected(name string, connected bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[name]
	if h == nil || h.connected == connected {
		return
	}
	h.connected = connected
	if s := w.snapshot.Load(); s != nil && s.disputed[name] {
		w.changed()
	}
}
