// Package fleet knows every agent: whether it is connected, what it reports, and which policy it has and should have.
// It serves the agents' streams and brings each agent from what it has to what it should have.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/metrics"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
	"bulkhead/internal/wire"
)

// Config says how a fleet behaves. Zero fields take the defaults.
type Config struct {
	Version string           // of the controller, for agents
	Hello   time.Duration    // how long an agent may take to say hello; default 10 s
	Save    time.Duration    // how often what agents report is saved; default 1 s
	Now     func() time.Time // default time.Now
}

// Fleet is every agent. Its methods may be called from any goroutine.
type Fleet struct {
	cfg     Config
	store   store.Store
	world   *world.World
	flows   *flows.Ingester
	metrics *metrics.Metrics
	log     *slog.Logger

	// computing has one slot for each policy that may be computed at a time. Without a bound, thousands of streams
	// that a new snapshot wakes would keep an isolation waiting for a processor.
	computing chan struct{}

	mu     sync.RWMutex
	agents map[string]*agent // every host that has ever enrolled
}

// agent is one host that has enrolled.
type agent struct {
	host string

	mu      sync.Mutex // taken before that of the session, and never while Fleet.mu is held
	stored  store.Agent
	unsaved bool

	session    *session        // nil: not connected
	has        hostpolicy.Hash // what it acknowledged last
	policy     *world.Outline  // with that hash; nil: not one that we know
	refused    string          // why the policy that it should have is not enforced
	refusedSum hostpolicy.Hash // of that policy
	status     *pb.AgentStatus // nil: nothing yet since it connected
	isolates   map[string]bool // workloads to be told about, on or off
	glass      uint64          // Unix milliseconds until which the glass is broken, as audited
	tampered   uint64          // Unix milliseconds at which somebody changed the dataplane, as audited
	changed    chan struct{}   // closed and replaced whenever the agent says something about its policy
}

// New returns a fleet that knows no agent; Load makes it know those that are stored.
func New(cfg Config, s store.Store, w *world.World, f *flows.Ingester, m *metrics.Metrics, log *slog.Logger) *Fleet {
	cfg.Hello = cmp.Or(cfg.Hello, 10*time.Second)
	cfg.Save = cmp.Or(cfg.Save, time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Fleet{
		cfg: cfg, store: s, world: w, flows: f, metrics: m, log: log, agents: map[string]*agent{},
		computing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1)),
	}
}

// Load takes the stored agents and returns what they reported last, for the world.
func (f *Fleet) Load(stored []store.Agent) ([]inventory.Report, error) {
	var reports []inventory.Report
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range stored {
		f.agents[s.Host] = newAgent(s)
		if !s.Enrolled() {
			continue
		}
		var said pb.HostInventory
		if err := proto.Unmarshal(s.Inventory, &said); err != nil {
			return nil, fmt.Errorf("inventory of host %s: %w: %w", s.Host, store.ErrCorrupt, err)
		}
		r, err := report(&s, &said)
		if err != nil {
			return nil, fmt.Errorf("inventory of host %s: %w: %w", s.Host, store.ErrCorrupt, err)
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func newAgent(s store.Agent) *agent {
	return &agent{host: s.Host, stored: s, isolates: map[string]bool{}, changed: make(chan struct{})}
}

// tell wakes those who wait for the agent to say something. The caller holds mu.
func (a *agent) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Run saves what agents report, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	tick := time.NewTicker(f.cfg.Save)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.save(ctx)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
			defer cancel()
			f.save(ctx)
			return nil
		}
	}
}

// save writes what has changed about agents. Losing it does no harm: agents report again when they connect.
func (f *Fleet) save(ctx context.Context) {
	var saving []*agent
	var list []store.Agent
	for _, a := range f.all() {
		a.mu.Lock()
		if a.unsaved {
			a.unsaved = false
			saving, list = append(saving, a), append(list, a.stored)
		}
		a.mu.Unlock()
	}
	if len(list) == 0 {
		return
	}
	err := f.store.Update(ctx, func(tx store.Tx) error {
		for _, now := range list {
			a, err := tx.Agent(now.Host)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			// Enrolment, labels and token are changed by their own transactions only.
			a.LastSeen, a.Expires, a.Version, a.Kernel = now.LastSeen, now.Expires, now.Version, now.Kernel
			a.Dataplane, a.Limits, a.Inventory = now.Dataplane, now.Limits, now.Inventory
			if err := tx.PutAgent(*a); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return
	}
	f.metrics.StoreFailures.Inc()
	f.log.Error("what agents report could not be saved", "error", err)
	for _, a := range saving {
		a.mu.Lock()
		a.unsaved = true
		a.mu.Unlock()
	}
}

// agent returns the agent of the host, nil if it has never enrolled.
func (f *Fleet) agent(host string) *agent {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.agents[host]
}

// all returns every agent, sorted by host.
func (f *Fleet) all() []*agent {
	f.mu.RLock()
	defer f.mu.RUnlock()
	list := make([]*agent, 0, len(f.agents))
	for _, host := range slices.Sorted(maps.Keys(f.agents)) {
		list = append(list, f.agents[host])
	}
	return list
}

// Enrolled takes note of an enrolment that has been stored. A stream of an earlier enrolment ends.
func (f *Fleet) Enrolled(s store.Agent) {
	f.mu.Lock()
	a := f.agents[s.Host]
	if a == nil {
		a = newAgent(s)
		f.agents[s.Host] = a
	}
	f.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stored.Revoked() && !a.stored.RevokedAt.Before(s.EnrolledAt) {
		return // it was revoked since, and that came here first
	}
	a.stored.Enrollment, a.stored.EnrolledAt, a.stored.RevokedAt = s.Enrollment, s.EnrolledAt, time.Time{}
	a.stored.Labels, a.stored.Token, a.stored.Expires, a.unsaved = s.Labels, s.Token, s.Expires, true
	if a.session != nil {
		a.session.end(errReplaced)
	}
	var said pb.HostInventory
	r := inventory.Report{Host: s.Host, Labels: s.Labels}
	if err := proto.Unmarshal(a.stored.Inventory, &said); err == nil { // a host that is back
		if was, err := report(&a.stored, &said); err == nil {
			r = was
		}
	}
	// With the lock held, so that a revocation in between is not undone.
	f.world.SetReport(r)
}

// Revoked takes note of a revocation that has been stored: the stream ends and the host's report is forgotten.
func (f *Fleet) Revoked(host string, at time.Time) {
	a := f.agent(host)
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if at.Before(a.stored.EnrolledAt) {
		return // it was allowed and has enrolled again since, and that came here first
	}
	a.stored.Enrollment, a.stored.RevokedAt = 0, at
	if a.session != nil {
		a.session.end(refusal(trust.Revoked(host)))
	}
	f.world.DropReport(host)
}

// Allowed takes note that a revocation has been lifted, and that this has been stored: the host may enrol again.
func (f *Fleet) Allowed(host string) {
	if a := f.agent(host); a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.stored.RevokedAt = time.Time{}
	}
}

// Renewed takes note of a new certificate.
func (f *Fleet) Renewed(host string, notAfter time.Time) {
	if a := f.agent(host); a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.stored.Expires, a.unsaved = notAfter, true
	}
}

// Check reports whether the certificate is of the present enrolment of its host. The error is a *trust.Refusal.
func (f *Fleet) Check(p *trust.Peer) error {
	a := f.agent(p.Host)
	if a == nil {
		return trust.CheckEnrollment(p, nil)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return trust.CheckEnrollment(p, &a.stored)
}

// Isolate tells the agent of a host to judge the workload by its isolation set, ahead of everything else (on), or to
// end that. It reports whether the agent is connected; one that is not is told to end it when it comes back.
func (f *Fleet) Isolate(host, workload string, on bool) bool {
	a := f.agent(host)
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == nil && on {
		return false // the policy that it gets when it connects says the same
	}
	a.isolates[workload] = on
	if a.session == nil {
		return false
	}
	if on && a.status != nil { // only what the agent says from now on counts
		a.status.Isolated = slices.DeleteFunc(a.status.Isolated, func(w string) bool { return w == workload })
	}
	a.session.poke()
	return true
}

// ErrAway says that the agent is not connected.
var ErrAway = errors.New("the agent is not connected")

// RefusedError says that an agent does not enforce what it should.
type RefusedError struct{ Why string }

// Error returns why.
func (e *RefusedError) Error() string { return e.Why }

// WaitQuarantine returns when the agent of the host has said that the workload is held at the level at least. Errors:
// ErrAway, *RefusedError, those of ctx.
func (f *Fleet) WaitQuarantine(ctx context.Context, host, workload string, level model.QuarantineLevel) error {
	a := f.agent(host)
	if a == nil {
		return ErrAway
	}
	for {
		a.mu.Lock()
		held, refused, away, changed := a.holds(workload, level), a.refused, a.session == nil, a.changed
		a.mu.Unlock()
		switch {
		case away:
			return ErrAway
		case held:
			return nil
		case refused != "" && level != model.QuarantineIsolate: // an isolation does not need the policy
			return &RefusedError{Why: refused}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// holds reports whether the agent has said that it holds the workload at the level.
func (a *agent) holds(workload string, level model.QuarantineLevel) bool {
	if level == model.QuarantineIsolate && slices.Contains(a.status.GetIsolated(), workload) {
		return true
	}
	if a.policy == nil {
		return false
	}
	for i := range a.policy.Subjects {
		if s := &a.policy.Subjects[i]; s.Workload == workload {
			return s.Quarantine >= level
		}
	}
	return false
}

// Connected returns the names of the hosts whose agents are connected.
func (f *Fleet) Connected() map[string]bool {
	out := map[string]bool{}
	for _, a := range f.all() {
		a.mu.Lock()
		if a.session != nil {
			out[a.host] = true
		}
		a.mu.Unlock()
	}
	return out
}

// Target says what the dataplane of the host can hold, by what its agent has said last. It is a budget.Targets.
func (f *Fleet) Target(host string) (t budget.Target, known bool) {
	kind := ""
	if a := f.agent(host); a != nil {
		a.mu.Lock()
		if !a.stored.Revoked() {
			kind = a.stored.Dataplane
		}
		a.mu.Unlock()
	}
	return budget.OfKind(kind)
}

// Totals counts agents.
type Totals struct {
	Known, Connected, Current int
}

// Totals counts the agents: those that have enrolled and not been revoked, those that are connected, and those of
// them that have acknowledged what they should have.
func (f *Fleet) Totals() Totals {
	var t Totals
	for _, a := range f.all() {
		a.mu.Lock()
		known, connected, has := a.stored.Enrolled(), a.session != nil, a.has
		a.mu.Unlock()
		if known {
			t.Known++
		}
		if connected {
			t.Connected++
			if want := f.world.Wanted(a.host); want != nil && want.Sum == has {
				t.Current++
			}
		}
	}
	return t
}

// List returns every agent, sorted by host.
func (f *Fleet) List() []*pb.Agent {
	s := f.world.Snapshot()
	all := f.all()
	list := make([]*pb.Agent, len(all))
	for i, a := range all {
		list[i] = a.describe(f.world.Wanted(a.host), s.Problems[a.host])
	}
	return list
}

func (a *agent) describe(want *world.Outline, problems []string) *pb.Agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &pb.Agent{
		Host: a.host, Connected: a.session != nil, Version: a.stored.Version, Kernel: a.stored.Kernel,
		Dataplane: a.stored.Dataplane, Limits: a.stored.Limits, Revoked: a.stored.Revoked(),
		LastSeenMs: millis(a.stored.LastSeen), CertificateExpiresMs: millis(a.stored.Expires),
		EventsLost: a.status.GetEventsLost(), RecordsLost: a.status.GetRecordsLost(), ResidentBytes: a.status.GetResidentBytes(),
		Problems: slices.Concat(problems, a.status.GetProblems()),
	}
	if want != nil {
		out.Workloads = uint32(len(want.Subjects))
		if want.Sum == a.refusedSum { // and not one that has been replaced since
			out.Refused = a.refused
		}
	}
	if a.has != (hostpolicy.Hash{}) {
		out.Hash = a.has.String()
	}
	if a.policy != nil {
		out.Revision = a.policy.Revision
	}
	if want != nil && want.Sum == a.has {
		out.Current = out.Connected
		out.Revision = want.Revision // an older revision with the same policy for this host is as good
	}
	return out
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Limits on what an agent may report.
const (
	maxAddresses = 4096
	maxUnits     = 20_000
	maxListeners = 50_000
	maxUnitName  = 500
)

// report turns what an agent says into a report. The host and its labels are ours; nothing of them is the agent's
// word.
func report(s *store.Agent, said *pb.HostInventory) (inventory.Report, error) {
	r := inventory.Report{Host: s.Host, Labels: s.Labels}
	if n := len(said.GetAddresses()); n > maxAddresses {
		return r, fmt.Errorf("%d addresses; at most %d are taken", n, maxAddresses)
	}
	if n := len(said.GetUnits()); n > maxUnits {
		return r, fmt.Errorf("%d units; at most %d are taken", n, maxUnits)
	}
	if n := len(said.GetListeners()); n > maxListeners {
		return r, fmt.Errorf("%d listening sockets; at most %d are taken", n, maxListeners)
	}
	for _, b := range said.GetAddresses() {
		a, err := wire.AddrFromProto(b)
		if err != nil {
			return r, err
		}
		if a.IsUnspecified() || a.IsMulticast() || slices.Contains(r.Addresses, a) {
			continue
		}
		r.Addresses = append(r.Addresses, a)
	}
	for _, u := range said.GetUnits() {
		if err := checkUnit(u.GetName()); err != nil {
			return r, err
		}
		r.Units = append(r.Units, inventory.UnitReport{Name: u.GetName()})
	}
	for _, l := range said.GetListeners() {
		addr, err := wire.OptionalAddrFromProto(l.GetAddr())
		if err != nil {
			return r, err
		}
		protocol, port, err := wire.PortFromProto(l.GetProto(), l.GetPort())
		if err != nil {
			return r, err
		}
		r.Listeners = append(r.Listeners, inventory.ListenerReport{Unit: l.GetUnit(), Listener: model.Listener{
			Addr: addr, Proto: protocol, Port: port, Process: l.GetProcess(),
		}})
	}
	return r, nil
}

// checkUnit reports why the text cannot name a unit.
func checkUnit(name string) error {
	if name == "" || len(name) > maxUnitName {
		return fmt.Errorf("a unit's name has %d bytes; it must have 1 to %d", len(name), maxUnitName)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c == 0x7f {
			return fmt.Errorf("unit %q: the name holds a space or a control character", name)
		}
	}
	return nil
}
