package traffic

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/lab/scenario"
)

// Verb is what the runner can ask of a process.
type Verb string

// The verbs.
const (
	Stats  Verb = "stats"  // how it is
	Pause  Verb = "pause"  // no new request; the answer comes when none is under way. Open connections stay open
	Resume Verb = "resume" // go on, with everything
	Pace   Verb = "pace"   // change how often a long-lived call makes a request; every 0: as the spec says
	Try    Verb = "probe"  // make one request and say what became of it
	Infect Verb = "infect" // start the worm here
)

// Order is one request over the control socket.
type Order struct {
	Verb   Verb
	To     string         // Pace, Try
	Port   scenario.Port  // Pace, Try
	Every  time.Duration  // Pace
	Target netip.AddrPort // Try
	Speak  scenario.Speak // Try
	// Timeout of a probe. It ends what is dropped silently, so it should be short but not shorter than a busy machine
	// takes to answer.
	Timeout time.Duration
}

// Answer is what comes back.
type Answer struct {
	Err   string
	Calls int    // Stats: calls it makes
	Long  int    // Stats: of them long-lived
	Alive int    // Stats: long-lived ones whose last request was answered
	Entry *Entry // Try
}

// Ask sends one order to the process behind the control socket and returns its answer.
func Ask(ctx context.Context, path string, o *Order) (*Answer, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return nil, err
	}
	var a Answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	if a.Err != "" {
		return nil, errors.New(a.Err)
	}
	return &a, nil
}

// control serves the control socket. It takes one order at a time.
func (w *workload) control(ctx context.Context, group *errgroup.Group) error {
	// A process that was killed leaves its socket; the lab's directory is this lab's own.
	if err := os.Remove(w.spec.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", w.spec.Control)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	group.Go(func() error {
		for {
			conn, err := l.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("control socket: %w", err)
			}
			if err := w.take(ctx, conn); err != nil {
				fmt.Fprintf(os.Stderr, "control: %v\n", err) // the runner went away; its business
			}
		}
	})
	return nil
}

func (w *workload) take(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	var o Order
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&o); err != nil {
		return err
	}
	a, err := w.obey(ctx, &o)
	if err != nil {
		a = &Answer{Err: err.Error()}
	}
	return json.NewEncoder(conn).Encode(a)
}

func (w *workload) obey(ctx context.Context, o *Order) (*Answer, error) {
	switch o.Verb {
	case Stats:
		return w.stats(), nil
	case Pause:
		w.opening.shut()
		w.requests.shut()
		return &Answer{}, nil
	case Resume:
		for _, c := range w.calls {
			c.alive.Store(false) // until it has been answered again
		}
		w.requests.open()
		w.opening.open()
		return &Answer{}, nil
	case Pace:
		for _, c := range w.calls {
			if c.call.To == o.To && c.call.Port == o.Port && c.call.Kind == scenario.Long {
				every := o.Every
				if every == 0 {
					every = c.call.Every
				}
				c.every.Store(int64(every))
				return &Answer{}, nil
			}
		}
		return nil, fmt.Errorf("%s has no long-lived call to %s on %s", w.spec.ID, o.To, o.Port)
	case Try:
		c := newCaller(w, &Call{To: o.To, Port: o.Port, Target: o.Target, Speak: o.Speak, Bytes: 64})
		e := c.once(ctx, RoleProbe, o.Timeout)
		return &Answer{Entry: e}, w.ledger.Write(e)
	case Infect:
		return &Answer{}, w.worm.start("", "")
	}
	return nil, fmt.Errorf("unknown order %q", o.Verb)
}

func (w *workload) stats() *Answer {
	a := &Answer{Calls: len(w.calls)}
	for _, c := range w.calls {
		if c.call.Kind == scenario.Long {
			a.Long++
			if c.alive.Load() {
				a.Alive++
			}
		}
	}
	return a
}
