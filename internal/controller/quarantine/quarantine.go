// Package quarantine keeps the leases that hold workloads: it puts them in force, ahead of all bookkeeping, stores
// and audits them, ends them when their time is over, and brings them back after a restart.
//
// A store that fails does not stop an isolation: the lease holds in memory and is stored as soon as that works. It
// does stop the lifting of one, so that nothing is opened that the log does not tell of.
package quarantine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/fleet"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/metrics"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
)

// Limits on leases.
const (
	DefaultTTL  = time.Hour
	MaxTTL      = 90 * 24 * time.Hour
	DefaultWait = 2 * time.Second
	MaxWait     = time.Minute
	// InUse is how far back QuarantineRestrict looks for connections to keep.
	InUse = 24 * time.Hour
)

// Errors of requests. Their texts are for the caller.
var (
	ErrNoWorkload = errors.New("there is no such workload")
	ErrNotHeld    = errors.New("the workload is not in quarantine")
	ErrMalformed  = errors.New("the request makes no sense")
)

// Manager keeps the leases. Its methods may be called from any goroutine.
type Manager struct {
	store   store.Store
	world   *world.World
	fleet   *fleet.Fleet
	flows   *flows.Ingester
	metrics *metrics.Metrics
	log     *slog.Logger
	now     func() time.Time
	wake    chan struct{}

	changing sync.Mutex // one change at a time

	mu      sync.Mutex
	leases  map[string]store.Lease
	unsaved map[string]store.AuditEntry // leases that could not be stored yet
	ended   map[string]store.AuditEntry // leases that have ended, and that could not be removed from the store yet
}

// New returns a manager without leases.
func New(s store.Store, w *world.World, f *fleet.Fleet, fl *flows.Ingester, m *metrics.Metrics, log *slog.Logger, now func() time.Time) *Manager {
	return &Manager{
		store: s, world: w, fleet: f, flows: fl, metrics: m, log: log, now: now, wake: make(chan struct{}, 1),
		leases: map[string]store.Lease{}, unsaved: map[string]store.AuditEntry{}, ended: map[string]store.AuditEntry{},
	}
}

// Load takes the stored leases, and returns those in force for the world. Those that have run out meanwhile end as
// soon as Run begins.
func (m *Manager) Load(stored []store.Lease) []inventory.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []inventory.Lease
	for _, l := range stored {
		m.leases[l.Workload] = l
		if m.now().Before(l.Until) {
			out = append(out, effect(l))
		}
	}
	return out
}

func effect(l store.Lease) inventory.Lease {
	return inventory.Lease{Workload: l.Workload, Level: l.Level, InUse: l.InUse}
}

// Request asks for a quarantine.
type Request struct {
	Workload string
	Level    model.QuarantineLevel
	TTL      time.Duration // 0: DefaultTTL
	Reason   string
	By       string
	Wait     time.Duration // for the agent; 0: DefaultWait
}

// Result says what became of a request.
type Result struct {
	Held   bool // the agent has said that its kernel holds the workload
	Took   time.Duration
	Detail string
	Until  time.Time
}

// Set puts a workload in quarantine, or changes the level of the one it is in. It returns when the agent has said
// that it is done, or after the time to wait. Errors: ErrNoWorkload, ErrMalformed, and those of the stores for
// QuarantineRestrict, which needs to know what is in use.
func (m *Manager) Set(ctx context.Context, r Request) (*Result, error) {
	start := time.Now()
	if err := check(&r); err != nil {
		return nil, err
	}
	s := m.world.Snapshot()
	inst := s.Instance(r.Workload)
	if inst == nil {
		return nil, fmt.Errorf("%w as %s; `bulkhead get workloads` lists those there are", ErrNoWorkload, r.Workload)
	}
	lease := store.Lease{
		Workload: r.Workload, Level: r.Level, Reason: r.Reason, By: r.By,
		Since: store.Millis(m.now()), Until: store.Millis(m.now().Add(r.TTL)),
	}
	if r.Level == model.QuarantineRestrict {
		var err error
		if lease.InUse, err = m.flows.InUse(ctx, r.Workload, m.now().Add(-InUse), s); err != nil {
			return nil, fmt.Errorf("find the connections in use: %w", err)
		}
	}
	saved := m.hold(lease, inst.Host)
	result := &Result{Until: lease.Until}
	result.Held, result.Detail = m.wait(ctx, inst, r)
	result.Took = time.Since(start)
	if result.Held {
		m.metrics.IsolateSeconds.Observe(result.Took.Seconds())
	}
	if err := <-saved; err != nil {
		result.Detail += "; the lease could not be stored yet and ends if the controller is restarted before it is"
	}
	return result, nil
}

func check(r *Request) error {
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	if r.Wait == 0 {
		r.Wait = DefaultWait
	}
	switch {
	case r.Workload == "":
		return fmt.Errorf("%w: no workload is named", ErrMalformed)
	case r.Level == model.QuarantineNone || r.Level > model.QuarantineIsolate:
		return fmt.Errorf("%w: the level must be watch, restrict or isolate", ErrMalformed)
	case r.TTL < time.Second || r.TTL > MaxTTL:
		return fmt.Errorf("%w: a quarantine lasts between a second and %d days", ErrMalformed, MaxTTL/(24*time.Hour))
	case r.Wait < 0 || r.Wait > MaxWait:
		return fmt.Errorf("%w: the time to wait is at most %v", ErrMalformed, MaxWait)
	}
	return nil
}

// hold puts the lease in force, the agent first, and stores it meanwhile. The channel gives the error of that.
func (m *Manager) hold(lease store.Lease, host string) <-chan error {
	m.changing.Lock()
	isolate := lease.Level == model.QuarantineIsolate
	if isolate {
		m.fleet.Isolate(host, lease.Workload, true)
	}
	m.world.SetLease(effect(lease))
	m.mu.Lock()
	before := m.leases[lease.Workload]
	m.leases[lease.Workload] = lease
	delete(m.ended, lease.Workload)
	m.mu.Unlock()
	if !isolate && before.Level == model.QuarantineIsolate {
		m.fleet.Isolate(host, lease.Workload, false)
	}
	entry := store.AuditEntry{
		Time: lease.Since, Actor: lease.By, Action: audit.SetQuarantine, Subject: lease.Workload,
		Detail: fmt.Sprintf("%s until %s: %s", lease.Level, lease.Until.Format(time.RFC3339), lease.Reason),
	}
	saved := make(chan error, 1)
	go func() {
		defer m.changing.Unlock()
		err := m.save(lease, entry)
		if err != nil {
			m.metrics.StoreFailures.Inc()
			m.log.Error("quarantine is in force and could not be stored; it will be tried again", "workload", lease.Workload, "error", err)
			m.mu.Lock()
			m.unsaved[lease.Workload] = entry
			m.mu.Unlock()
		}
		m.poke()
		saved <- err
	}()
	return saved
}

const storeTimeout = 10 * time.Second

func (m *Manager) save(lease store.Lease, entry store.AuditEntry) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	err := m.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.PutLease(lease); err != nil {
			return err
		}
		_, err := tx.AppendAudit(entry)
		return err
	})
	if err == nil {
		m.mu.Lock()
		delete(m.unsaved, lease.Workload)
		m.mu.Unlock()
	}
	return err
}

// wait waits for the agent, and says in words what is the case.
func (m *Manager) wait(ctx context.Context, inst *model.Instance, r Request) (held bool, detail string) {
	if !inst.Managed || inst.Host == "" {
		return false, fmt.Sprintf("no agent enforces anything on %s; its label is set, and policy of other workloads that names it follows", r.Workload)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	err := m.fleet.WaitQuarantine(ctx, inst.Host, r.Workload, r.Level)
	var refused *fleet.RefusedError
	switch {
	case err == nil:
		return true, fmt.Sprintf("the agent of %s holds it", inst.Host)
	case errors.Is(err, fleet.ErrAway):
		return false, fmt.Sprintf("the agent of %s is not connected; it will be told as soon as it is", inst.Host)
	case errors.As(err, &refused):
		return false, fmt.Sprintf("the agent of %s refuses its policy: %s", inst.Host, refused.Why)
	}
	return false, fmt.Sprintf("the agent of %s has not answered within %v; it has been told", inst.Host, r.Wait)
}

// Lift ends a quarantine before its time. Errors: ErrNotHeld, and those of the store.
func (m *Manager) Lift(ctx context.Context, workload, reason, by string) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.mu.Lock()
	_, held := m.leases[workload]
	m.mu.Unlock()
	if !held {
		return fmt.Errorf("%w: %s", ErrNotHeld, workload)
	}
	if err := m.remove(context.WithoutCancel(ctx), workload, store.AuditEntry{
		Time: m.now(), Actor: by, Action: audit.LiftQuarantine, Subject: workload, Detail: reason,
	}); err != nil {
		return err
	}
	m.release(workload)
	return nil
}

// remove removes the lease from the store.
func (m *Manager) remove(ctx context.Context, workload string, entry store.AuditEntry) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return m.store.Update(ctx, func(tx store.Tx) error {
		if err := tx.DropLease(workload); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, err := tx.AppendAudit(entry)
		return err
	})
}

// release takes the lease out of force.
func (m *Manager) release(workload string) {
	m.mu.Lock()
	lease := m.leases[workload]
	delete(m.leases, workload)
	delete(m.unsaved, workload)
	m.mu.Unlock()
	m.world.DropLease(workload)
	if inst := m.world.Snapshot().Instance(workload); inst != nil && lease.Level == model.QuarantineIsolate {
		m.fleet.Isolate(inst.Host, workload, false)
	}
	m.poke()
}

// List returns the leases in force, sorted by workload.
func (m *Manager) List() []store.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []store.Lease
	for _, w := range slices.Sorted(maps.Keys(m.leases)) {
		if l := m.leases[w]; m.now().Before(l.Until) {
			out = append(out, l)
		}
	}
	return out
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

const retry = 2 * time.Second

// Run ends leases when their time is over, and stores what could not be stored at first, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	for {
		timer := time.NewTimer(m.settle())
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// settle does what is due, and returns how long nothing will be.
func (m *Manager) settle() time.Duration {
	m.changing.Lock()
	defer m.changing.Unlock()
	now := m.now()
	for _, l := range m.due(now) {
		m.release(l.Workload)
		m.log.Info("quarantine has run out", "workload", l.Workload)
		m.mu.Lock()
		m.ended[l.Workload] = store.AuditEntry{
			Time: now, Actor: audit.System, Action: audit.ExpireQuarantine, Subject: l.Workload,
			Detail: fmt.Sprintf("%s since %s by %s", l.Level, l.Since.Format(time.RFC3339), l.By),
		}
		m.mu.Unlock()
	}
	m.catchUp()
	m.mu.Lock()
	defer m.mu.Unlock()
	wait := time.Hour
	if len(m.unsaved) > 0 || len(m.ended) > 0 {
		wait = retry
	}
	for _, l := range m.leases {
		wait = min(wait, l.Until.Sub(now))
	}
	return max(wait, time.Millisecond)
}

func (m *Manager) due(now time.Time) []store.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []store.Lease
	for _, w := range slices.Sorted(maps.Keys(m.leases)) {
		if l := m.leases[w]; !now.Before(l.Until) {
			out = append(out, l)
		}
	}
	return out
}

// catchUp brings the store to what is in force.
func (m *Manager) catchUp() {
	m.mu.Lock()
	unsaved, ended, leases := maps.Clone(m.unsaved), maps.Clone(m.ended), maps.Clone(m.leases)
	m.mu.Unlock()
	failed := func(workload string, err error) {
		m.metrics.StoreFailures.Inc()
		m.log.Error("quarantine could not be stored; it will be tried again", "workload", workload, "error", err)
	}
	for w, entry := range unsaved {
		if err := m.save(leases[w], entry); err != nil {
			failed(w, err)
		}
	}
	for w, entry := range ended {
		if err := m.remove(context.Background(), w, entry); err != nil {
			failed(w, err)
			continue
		}
		m.mu.Lock()
		delete(m.ended, w)
		m.mu.Unlock()
	}
}
