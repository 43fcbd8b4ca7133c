// Package fake is a dataplane in memory, for tests of what stands on the port. It judges by hostpolicy.Judge, the
// reference, and keeps the flows it was told of, so that a change of policy judges live ones again.
package fake

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// Flow is the first packet of a flow, with what else an event says about it.
type Flow struct {
	hostpolicy.Packet
	LocalPort, RemotePort uint16
	RemoteIdentity        model.IdentityID // filled in by the dataplane
	Process               dataplane.Process
}

// Dataplane implements dataplane.Dataplane. Its methods may be called from several goroutines.
type Dataplane struct {
	k      *kernel
	closed bool // guarded by k.mu
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// kernel is what outlives an agent.
type kernel struct {
	mu       sync.Mutex
	state    *dataplane.State
	isolated map[string]bool
	judge    *hostpolicy.Judge // nil: everything passes
	live     []*liveFlow
	counters dataplane.Counters
	refuse   error
	removed  bool
	glass    time.Time // until when everything passes
	events   []dataplane.Event
	arrived  chan struct{} // closed when there is an event
}

type liveFlow struct {
	Flow
	verdict model.EndVerdict
}

// New returns a dataplane that lets everything pass until the first Apply.
func New() *Dataplane {
	return &Dataplane{k: &kernel{isolated: map[string]bool{}, arrived: make(chan struct{})}}
}

// Reopen returns the dataplane as the next agent finds it. The one before should be closed.
func (d *Dataplane) Reopen() *Dataplane { return &Dataplane{k: d.k} }

var capabilities = dataplane.Capabilities{Kind: "fake", Kernel: "none", ResetTCP: true, ConnectErr: true, Errno: "EPERM", ProcessInfo: true, LiveBytes: true}

// Capabilities says that everything is possible.
func (d *Dataplane) Capabilities() dataplane.Capabilities {
	return capabilities
}

// RefuseNext makes the next Apply fail with an error that wraps dataplane.ErrRefused and reason.
func (d *Dataplane) RefuseNext(reason error) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.k.refuse = reason
}

// State returns what was last applied, or nil.
func (d *Dataplane) State() *dataplane.State {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return d.k.state
}

// Isolated returns the workloads that are isolated, sorted.
func (d *Dataplane) Isolated() []string {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return slices.Sorted(maps.Keys(d.k.isolated))
}

// Removed reports whether Remove was called.
func (d *Dataplane) Removed() bool {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return d.k.removed
}

func (d *Dataplane) usable() error {
	if d.closed || d.k.removed {
		return fmt.Errorf("dataplane: %w", os.ErrClosed)
	}
	return nil
}

// Apply makes state the one that judges.
func (d *Dataplane) Apply(ctx context.Context, state *dataplane.State) (dataplane.ApplyStats, error) {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := d.usable(); err != nil {
		return dataplane.ApplyStats{}, err
	}
	if err := ctx.Err(); err != nil {
		return dataplane.ApplyStats{}, err
	}
	if err := k.accept(state); err != nil {
		return dataplane.ApplyStats{}, fmt.Errorf("%w: %w", dataplane.ErrRefused, err)
	}
	stats := dataplane.ApplyStats{Addresses: len(state.Policy.Addresses)}
	for i := range state.Policy.Sets {
		stats.Rows += rows(&state.Policy.Sets[i])
	}
	if k.state != nil && k.state.Policy.Hash() == state.Policy.Hash() && maps.EqualFunc(k.state.Units, state.Units, slices.Equal) {
		k.state = state
		return stats, nil
	}
	stats.Changed, stats.RowsWritten = true, stats.Rows
	k.state = state
	for w := range k.isolated {
		if !has(state.Policy, w) {
			delete(k.isolated, w)
		}
	}
	stats.Reset = k.rejudge()
	return stats, nil
}

func (k *kernel) accept(state *dataplane.State) error {
	if err := k.refuse; err != nil {
		k.refuse = nil
		return err
	}
	if state.Policy == nil {
		return fmt.Errorf("there is no policy")
	}
	if err := state.Policy.Check(); err != nil {
		return err
	}
	if err := capabilities.Check(state.Policy); err != nil {
		return err
	}
	if s := state.Policy.Subjects; len(s) == 0 || s[0].Unit != "" || len(s) > 1 && s[1].Unit == "" {
		return fmt.Errorf("the policy must have one subject that is the host itself")
	}
	return nil
}

func rows(s *hostpolicy.PolicySet) int {
	n := 0
	for _, d := range model.Directions {
		t := s.Table(d)
		n += len(t.Funcs[0])
		for _, p := range t.Peers {
			n += len(t.Funcs[p.Func])
		}
	}
	return n
}

func has(p *hostpolicy.Policy, workload string) bool {
	return slices.ContainsFunc(p.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == workload })
}

// Isolate judges the workload by its isolation set, or by its normal one again.
func (d *Dataplane) Isolate(ctx context.Context, workload string, on bool) error {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.state == nil || !has(k.state.Policy, workload) {
		return fmt.Errorf("isolate %q: no such workload on this host", workload)
	}
	if k.isolated[workload] == on {
		return nil
	}
	if on {
		k.isolated[workload] = true
	} else {
		delete(k.isolated, workload)
	}
	k.rejudge()
	return nil
}

// Beat has nothing to do: this agent is never lost.
func (d *Dataplane) Beat(ctx context.Context) error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	return ctx.Err()
}

// Repair has nothing to find: nobody else changes this dataplane.
func (d *Dataplane) Repair(ctx context.Context) ([]string, error) { return nil, d.Beat(ctx) }

// BreakGlass lets everything pass until then.
func (d *Dataplane) BreakGlass(ctx context.Context, until time.Time) error {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	k.glass = until
	if k.state != nil {
		k.rejudge()
	}
	return nil
}

// Glass returns until when everything passes.
func (d *Dataplane) Glass() time.Time {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if time.Now().After(d.k.glass) {
		return time.Time{}
	}
	return d.k.glass
}

// rejudge judges live flows anew and cuts those that are denied; it returns how many TCP connections it cut.
func (k *kernel) rejudge() int {
	k.judge = hostpolicy.NewJudge(k.state.Policy.Isolated(slices.Sorted(maps.Keys(k.isolated))...))
	cut := 0
	k.live = slices.DeleteFunc(k.live, func(f *liveFlow) bool {
		v := k.verdict(&f.Flow)
		if v == f.verdict {
			return false
		}
		f.verdict = v
		e := event(&f.Flow, v)
		e.Rejudged = true
		k.tell(e)
		if v.Verdict != model.Deny {
			return false
		}
		if f.Proto == model.ProtoTCP {
			cut++
		}
		e.Kind, e.Count, e.Rejudged = dataplane.EventClose, 0, false
		k.tell(e)
		return true
	})
	return cut
}

func (k *kernel) verdict(f *Flow) model.EndVerdict {
	if k.judge == nil {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleOpen}
	}
	v, peer := k.judge.Judge(&f.Packet)
	f.RemoteIdentity = peer
	if time.Now().Before(k.glass) {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleBreakGlass}
	}
	return v
}

func event(f *Flow, v model.EndVerdict) dataplane.Event {
	e := dataplane.Event{
		Kind: dataplane.EventOpen, Time: time.Now(), Workload: f.Workload, Dir: f.Dir, Proto: f.Proto, Port: f.Port,
		Local:          netip.AddrPortFrom(f.Local, f.LocalPort),
		Remote:         netip.AddrPortFrom(f.Remote, f.RemotePort),
		RemoteWorkload: f.RemoteWorkload, RemoteIdentity: f.RemoteIdentity,
		Verdict: v.Verdict, Rule: v.Rule, Process: f.Process,
	}
	if v.Verdict == model.Deny {
		e.Kind, e.Count = dataplane.EventDeny, 1
	}
	return e
}

// Begin judges a flow as a packet would and tells about it. A flow that may go on is live until End.
func (d *Dataplane) Begin(f Flow) model.EndVerdict {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.verdict(&f)
	k.counters.Judged++
	switch v.Verdict {
	case model.Allow:
		k.counters.Allowed++
	case model.WouldDeny:
		k.counters.WouldDenied++
	case model.Deny:
		k.counters.Denied++
		k.counters.DroppedPkts++
	}
	k.tell(event(&f, v))
	if v.Verdict != model.Deny {
		k.live = append(k.live, &liveFlow{f, v})
	}
	return v
}

// End ends the live flows between the two ports and tells what they carried.
func (d *Dataplane) End(local, remote netip.AddrPort, sent, received uint64) {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	k.live = slices.DeleteFunc(k.live, func(f *liveFlow) bool {
		e := event(&f.Flow, f.verdict)
		if e.Local != local || e.Remote != remote {
			return false
		}
		e.Kind, e.BytesSent, e.BytesReceived = dataplane.EventClose, sent, received
		k.tell(e)
		return true
	})
}

// Live returns how many flows are open.
func (d *Dataplane) Live() int {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	return len(d.k.live)
}

// Inject delivers an event as it is.
func (d *Dataplane) Inject(e dataplane.Event) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.k.tell(e)
}

// Lose counts n events as lost.
func (d *Dataplane) Lose(n uint64) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.k.counters.EventsLost += n
}

func (k *kernel) tell(e dataplane.Event) {
	k.events = append(k.events, e)
	if len(k.events) == 1 {
		close(k.arrived)
	}
}

// Events calls fn for each event until ctx ends.
func (d *Dataplane) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	for {
		d.k.mu.Lock()
		if err := d.usable(); err != nil {
			d.k.mu.Unlock()
			return err
		}
		events, arrived := d.k.events, d.k.arrived
		if len(events) > 0 {
			d.k.events, d.k.arrived = nil, make(chan struct{})
		}
		d.k.mu.Unlock()
		for i := range events {
			fn(&events[i])
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-arrived:
		}
	}
}

// Counters returns totals.
func (d *Dataplane) Counters() (dataplane.Counters, error) {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	if err := d.usable(); err != nil {
		return dataplane.Counters{}, err
	}
	return d.k.counters, nil
}

// Close lets go of the dataplane; Reopen goes on with it.
func (d *Dataplane) Close() error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.closed = true
	return nil
}

// Remove makes everything pass and forgets all state.
func (d *Dataplane) Remove() error {
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	d.k.state, d.k.judge, d.k.live, d.k.removed = nil, nil, nil, true
	clear(d.k.isolated)
	return nil
}
