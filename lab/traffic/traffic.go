// Package traffic is the program that plays the services and clients of a lab: real processes with real sockets.
//
// A process gets a Spec. It serves its listeners, makes its calls and writes every request, connection and outcome
// into its ledger, so that the runner knows all traffic there was. A runner steers it over its control socket: pause,
// resume, probe. Some listeners have a way in: a message that starts the lab's worm in the process. It works on
// addresses of the lab only, and only for who knows the token of this run.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/lab/scenario"
)

// Spec is all that one process knows.
type Spec struct {
	ID      string         // "host/unit" or "host"
	Process string         // the name it runs under
	Lab     []netip.Prefix // the addresses of the lab
	Addrs   []netip.Addr   // of its host
	Listen  []Listen
	Calls   []Call
	// UDPPorts are the source ports of its UDP requests, used one after the other: no two requests of a run share
	// one, so that each is a flow of its own to whoever watches.
	UDPPorts [2]uint16
	Ledger   string // file that it appends to
	Control  string // path of its control socket
	Worm     Worm
}

// Listen is a port that the process serves.
type Listen struct {
	Port  scenario.Port
	Speak scenario.Speak
	WayIn bool
}

// Call is what the process does again and again.
type Call struct {
	To     string // as the scenario names it
	Port   scenario.Port
	Target netip.AddrPort
	Every  time.Duration
	Kind   scenario.Kind
	Speak  scenario.Speak
	Bytes  int
}

// Worm says how the way in starts the worm.
type Worm struct {
	Token   string // what the takeover message must hold
	Program string // path to execute
	Args    []string
	Markers string // directory with a file for each workload taken
}

// workload is a running process.
type workload struct {
	spec   *Spec
	ledger *Ledger
	calls  []*caller
	worm   wormHost

	serial  atomic.Uint64 // numbers of requests
	udpNext atomic.Uint64

	// Both gates are held for reading by whoever makes a request and for writing while paused. New connections wait
	// at opening too, so that a process can keep what it has open without making more.
	requests gate
	opening  gate
}

// gate lets through or holds back.
type gate struct {
	mu     sync.RWMutex
	closed bool // by the control socket; only it writes
}

// pass waits until the gate is open and keeps it so until the returned function is called.
func (g *gate) pass() func() {
	g.mu.RLock()
	return g.mu.RUnlock
}

// shut waits until nobody is inside and keeps everybody out.
func (g *gate) shut() {
	if !g.closed {
		g.mu.Lock()
		g.closed = true
	}
}

func (g *gate) open() {
	if g.closed {
		g.closed = false
		g.mu.Unlock()
	}
}

// Run plays the process until ctx ends. It begins with its long-lived connections only; Resume over the control
// socket starts the rest.
func Run(ctx context.Context, spec *Spec) error {
	ledger, err := OpenLedger(spec.Ledger)
	if err != nil {
		return err
	}
	w := &workload{spec: spec, ledger: ledger}
	w.worm.workload = w
	w.opening.shut()

	group, ctx := errgroup.WithContext(ctx)
	for _, l := range spec.Listen {
		if err := w.serve(ctx, group, l); err != nil {
			return fmt.Errorf("listen on %s: %w", l.Port, err)
		}
	}
	for i := range spec.Calls {
		w.calls = append(w.calls, newCaller(w, &spec.Calls[i]))
	}
	if err := w.control(ctx, group); err != nil {
		return err
	}
	for _, c := range w.calls {
		group.Go(func() error { return c.run(ctx) })
	}
	// Not group.Wait: a caller may stand at a closed gate. What it would have done is not wanted any more.
	<-ctx.Done()
	return errors.Join(context.Cause(ctx), ledger.Close())
}

// id names a request. It is unique in the lab, also when the process has been restarted.
func (w *workload) id() string {
	return fmt.Sprintf("%s#%d.%d", w.spec.ID, os.Getpid(), w.serial.Add(1))
}

// nextUDPPort returns the source port of the next UDP request.
func (w *workload) nextUDPPort() uint16 {
	lo, hi := uint64(w.spec.UDPPorts[0]), uint64(w.spec.UDPPorts[1])
	return uint16(lo + (w.udpNext.Add(1)-1)%(hi-lo+1))
}

// local returns the address of this host that reaches target.
func (w *workload) local(target netip.Addr) netip.Addr {
	for _, a := range w.spec.Addrs {
		if a.Is4() == target.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// inLab reports whether the address belongs to the lab.
func (s *Spec) inLab(a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range s.Lab {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
