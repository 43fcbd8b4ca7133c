package agenttest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
)

// Dataplane remembers what it was told and judges nothing. It stands for what is pinned in a kernel: one value given to
// several agents, one after the other, is a host on which the agent restarts. Its methods may be called from several
// goroutines.
type Dataplane struct {
	events chan *dataplane.Event

	mu       sync.Mutex
	refuse   func(*hostpolicy.Policy) error
	isolate  func() error
	slow     time.Duration
	state    *dataplane.State
	applies  int
	isolated map[string]bool
	beats    int
	tampered []string
	broken   error
	glass    time.Time
	closed   int
	busy     bool
	misuse   error
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// NewDataplane returns a dataplane that holds nothing.
func NewDataplane() *Dataplane {
	return &Dataplane{events: make(chan *dataplane.Event, 1024), isolated: map[string]bool{}}
}

// Refuse makes Apply fail with the error, which nil ends.
func (d *Dataplane) Refuse(err error) {
	d.RefuseIf(func(*hostpolicy.Policy) error { return err })
}

// RefuseIf makes Apply fail with what the function says of a policy.
func (d *Dataplane) RefuseIf(refuse func(*hostpolicy.Policy) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = refuse
}

// OnIsolate is called by Isolate before it does anything; an error of it is that of Isolate.
func (d *Dataplane) OnIsolate(fn func() error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isolate = fn
}

// Slow makes Apply take that long.
func (d *Dataplane) Slow(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = t
}

// Policy returns what is in force, or nil.
func (d *Dataplane) Policy() *hostpolicy.Policy {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == nil {
		return nil
	}
	return d.state.Policy
}

// Hash returns the hash of what is in force, zero if there is nothing.
func (d *Dataplane) Hash() hostpolicy.Hash {
	if p := d.Policy(); p != nil {
		return p.Hash()
	}
	return hostpolicy.Hash{}
}

// Units returns the cgroups that were applied last.
func (d *Dataplane) Units() map[string][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == nil {
		return nil
	}
	return d.state.Units
}

// Applies returns how often Apply was called.
func (d *Dataplane) Applies() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.applies
}

// IsIsolated reports whether the workload is isolated by a call.
func (d *Dataplane) IsIsolated(workload string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isolated[workload]
}

// Misuse returns an error if calls that must come one after the other have overlapped.
func (d *Dataplane) Misuse() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.misuse
}

// Emit has Events deliver the event.
func (d *Dataplane) Emit(e *dataplane.Event) { d.events <- e }

// enter guards what must not be called from two goroutines at a time.
func (d *Dataplane) enter(what string) (leave func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy {
		d.misuse = fmt.Errorf("%s overlaps another call", what)
	}
	d.busy = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.busy = false
	}
}

// Capabilities implements the port.
func (d *Dataplane) Capabilities() dataplane.Capabilities {
	return dataplane.Capabilities{Kind: "fake", Kernel: "0.0", Limits: []string{"Nothing is judged."}}
}

// Apply implements the port.
func (d *Dataplane) Apply(_ context.Context, state *dataplane.State) (dataplane.ApplyStats, error) {
	defer d.enter("Apply")()
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	time.Sleep(slow)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.applies++
	if d.refuse != nil {
		if err := d.refuse(state.Policy); err != nil {
			return dataplane.ApplyStats{}, err
		}
	}
	d.state = state
	return dataplane.ApplyStats{Changed: true, Rows: 7, Addresses: len(state.Policy.Addresses), Took: time.Millisecond}, nil
}

// Isolate implements the port.
func (d *Dataplane) Isolate(_ context.Context, workload string, on bool) error {
	defer d.enter("Isolate")()
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.state != nil && slices.ContainsFunc(d.state.Policy.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == workload })
	if d.isolate != nil {
		if err := d.isolate(); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("workload %q is not known", workload)
	}
	d.isolated[workload] = on
	return nil
}

// Beat implements the port.
func (d *Dataplane) Beat(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.beats++
	return nil
}

// Repair implements the port: it finds what Tamper said, once.
func (d *Dataplane) Repair(context.Context) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := d.tampered
	d.tampered = nil
	return found, d.broken
}

// Tamper has the next Repair find something, and this one and those after it fail with the error, which nil ends.
func (d *Dataplane) Tamper(found string, broken error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = broken
	if found != "" {
		d.tampered = append(d.tampered, found)
	}
}

// Beats returns how often the agent has said that it is there.
func (d *Dataplane) Beats() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.beats
}

// BreakGlass implements the port.
func (d *Dataplane) BreakGlass(_ context.Context, until time.Time) error {
	defer d.enter("BreakGlass")()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.glass = until
	return nil
}

// Glass implements the port.
func (d *Dataplane) Glass() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().After(d.glass) {
		return time.Time{}
	}
	return d.glass
}

// Events implements the port.
func (d *Dataplane) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	for {
		select {
		case e := <-d.events:
			fn(e)
		case <-ctx.Done():
			return nil
		}
	}
}

// Counters implements the port.
func (d *Dataplane) Counters() (dataplane.Counters, error) {
	return dataplane.Counters{Judged: 11, Denied: 2}, nil
}

// Close implements the port.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	return nil
}

// Remove implements the port.
func (d *Dataplane) Remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.isolated = nil, map[string]bool{}
	return nil
}
