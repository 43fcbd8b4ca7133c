// Package world holds what the controller knows, in memory: the newest documents, what agents report and the
// quarantines in force; and the policy compiled from it. Changes are gathered for some milliseconds and take effect together.
//
// Policy follows them one by one (ADR 0005): a change costs as much as it concerns, and what it means for a host is drawn when
// the stream of that host's agent asks (agents). Readers get an immutable Snapshot of everything else; a world that judges
// is compiled from it, from scratch, for those who want to judge. Documents are tried from scratch too, before they are adopted.
package world

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
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

// World takes changes and publishes snapshots. Its methods may be called from any goroutine. Those that say what agents should
// have wait while changes are compiled; no other does.
type World struct {
	cfg      Config
	log      *slog.Logger
	snapshot atomic.Pointer[Snapshot]
	wake     chan struct{} // holds one token when inputs have changed

	compiling sync.Mutex // taken before mu; held from the reading of changes to the publication of what was made of them
	compiler  *compiler
	agents    *agents

	mu         sync.Mutex
	docs       *Documents
	hosts      map[string]*host
	leases     map[string]inventory.Lease
	touched    changes // hosts and leases that the compiler has to look at, by name; their values do not count
	generation uint64  // of the inputs
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
	c := newCompiler(log, cfg.Controllers)
	return &World{
		cfg: cfg, log: log, wake: make(chan struct{}, 1), compiler: c,
		agents: &agents{compiler: c, feeds: map[string]*feed{}, expecting: map[string]bool{}, sets: map[hostpolicy.PolicySetID]hostpolicy.PolicySet{}},
		docs:   &Documents{Parsed: &model.Documents{}}, hosts: map[string]*host{}, leases: map[string]inventory.Lease{},
		touched: changes{hosts: map[string]*host{}, leases: map[string]*inventory.Lease{}},
	}
}

// Load sets the world to what was stored, and compiles it. It is called once, before Run.
func (w *World) Load(docs *Documents, reports []inventory.Report, leases []inventory.Lease) error {
	w.mu.Lock()
	if docs != nil {
		w.docs = docs
	}
	for _, r := range reports {
		w.hosts[r.Host] = w.hosts[r.Host].with(r, w.cfg.Now())
		w.touched.hosts[r.Host] = nil
	}
	for _, l := range leases {
		w.leases[l.Workload] = l
		w.touched.leases[l.Workload] = nil
	}
	w.mu.Unlock()
	return w.Flush()
}

// Snapshot returns the newest snapshot; nil before Load.
func (w *World) Snapshot() *Snapshot { return w.snapshot.Load() }

// Run compiles each burst of changes, and whenever a rule expires, until ctx ends.
func (w *World) Run(ctx context.Context) error {
	var rested time.Time // agents should not be kept busier with changes than with their work
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
		if err := w.Flush(); err != nil {
			// What was compiled last stays in force; the next change tries again.
			w.log.Error("the world cannot be compiled", "error", err)
		}
		rested = time.Now().Add(max(w.cfg.Rest, 2*time.Since(start)))
	}
}

const forever = 365 * 24 * time.Hour

func (w *World) untilExpiry() time.Duration {
	s := w.Snapshot()
	if s == nil || s.nextExpiry.IsZero() {
		return forever
	}
	return min(max(s.nextExpiry.Sub(w.cfg.Now()), time.Millisecond), forever)
}

// changed notes that inputs are not what they were. The caller holds mu.
func (w *World) changed() {
	w.generation++
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Flush compiles and publishes what has changed, now.
func (w *World) Flush() error {
	w.compiling.Lock()
	in := w.changes()
	if s := w.snapshot.Load(); s != nil && s.generation == in.generation && !s.expired(in.now) {
		w.putBack(in)
		w.compiling.Unlock()
		return nil
	}
	err := w.advance(in, nil)
	w.compiling.Unlock()
	w.spread()
	return err
}

// advance compiles and publishes changes. Judge is the same as a world that judges, if it is there already. The caller holds
// compiling, and then calls spread.
func (w *World) advance(in *changes, judge *compile.World) error {
	w.agents.finish()
	w.compiler.renew()
	w.agents.expect(in.hosts)
	start := time.Now()
	made, err := w.compiler.advance(in)
	w.cfg.Compiled(time.Since(start), err)
	if err != nil {
		return err
	}
	s := w.compiler.snapshot(in)
	s.judge = judge
	w.snapshot.Store(s)
	w.agents.begin(made)
	return nil
}

// atOnce is how many hosts are told of a change while streams wait for what they should have.
const atOnce = 64

// spread tells the streams of all hosts that the latest changes concern. Those that were told may draw meanwhile.
func (w *World) spread() {
	for more := true; more; {
		w.compiling.Lock()
		more = w.agents.spread(atOnce)
		w.compiling.Unlock()
	}
}

// changes returns what has changed since it was called last. The caller holds compiling.
func (w *World) changes() *changes {
	w.mu.Lock()
	defer w.mu.Unlock()
	in := w.touched
	w.touched = changes{hosts: map[string]*host{}, leases: map[string]*inventory.Lease{}}
	for name := range in.hosts {
		in.hosts[name] = w.hosts[name]
	}
	for workload := range in.leases {
		if l, ok := w.leases[workload]; ok {
			in.leases[workload] = &l
		}
	}
	in.docs, in.now, in.generation = w.docs, w.cfg.Now(), w.generation
	return &in
}

// putBack leaves changes that are none for the next time.
func (w *World) putBack(in *changes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range in.hosts {
		w.touched.hosts[name] = nil
	}
	for workload := range in.leases {
		w.touched.leases[workload] = nil
	}
}

// SetLease puts a quarantine in force.
func (w *World) SetLease(l inventory.Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.leases[l.Workload]; ok && reflect.DeepEqual(old, l) {
		return
	}
	w.leases[l.Workload] = l
	w.touched.leases[l.Workload] = nil
	w.changed()
}

// DropLease ends a quarantine.
func (w *World) DropLease(workload string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.leases[workload]; ok {
		delete(w.leases, workload)
		w.touched.leases[workload] = nil
		w.changed()
	}
}

// SetReport takes what an agent says about its host in place of what it said before. It returns the first generation of the
// world that has it, for Snapshot.Has; whoever watches the host is poked when there is a snapshot of that.
func (w *World) SetReport(r inventory.Report) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.hosts[r.Host]
	if h == nil || !reflect.DeepEqual(h.report, r) {
		w.changed()
		h = h.with(r, w.cfg.Now())
		h.generation = w.generation
		w.hosts[r.Host] = h
		w.touched.hosts[r.Host] = nil
	}
	return h.generation
}

// DropReport forgets a host.
func (w *World) DropReport(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts[name] != nil {
		delete(w.hosts, name)
		w.touched.hosts[name] = nil
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
	now := *h
	now.connected = connected
	w.hosts[name] = &now
	w.touched.hosts[name] = nil
	// Whether it claims an address that another one claims is known but of what has been compiled.
	if s := w.snapshot.Load(); s != nil && (s.disputed[name] || !s.Has(w.generation)) {
		w.changed()
	}
}
