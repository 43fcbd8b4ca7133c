// Package uplink keeps the one stream between this host and its controller: policy comes down and is applied, flows,
// inventory and status go up. It reconnects for as long as it runs; what this host enforces does not depend on it.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/flows"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
)

// Config says how patient the link is.
type Config struct {
	StatusEvery time.Duration // between two reports of status
	RetryMin    time.Duration // the first wait after a lost connection is up to this long, each further up to twice as long
	RetryMax    time.Duration
	InFlight    int // batches of flows that may wait for an acknowledgement
}

// DefaultConfig returns what suits one controller with ten thousand agents.
func DefaultConfig() Config {
	return Config{StatusEvery: 5 * time.Second, RetryMin: 500 * time.Millisecond, RetryMax: 30 * time.Second, InFlight: 4}
}

// Policy is what is in force on this host.
type Policy interface {
	Current() *apply.Applied
	Set(ctx context.Context, p *hostpolicy.Policy) (dataplane.ApplyStats, error)
	Isolate(ctx context.Context, workload string, on bool, by apply.Origin, done func()) error
}

// Deps is what the link works with.
type Deps struct {
	// Admit is called before each connection and returns when the keeper has an identity to connect with. refused is
	// the controller's word, "" if it has not refused the present identity. What Admit reports under ProblemIdentity is
	// over when the controller takes the identity. An error ends Run.
	Admit     func(ctx context.Context, refused string) error
	Keeper    *enroll.Keeper
	Policy    Policy
	Spool     *flows.Spool
	Hello     func() *pb.Hello         // the revision and the hash are filled in
	Inventory func() *pb.HostInventory // nil as long as nobody has looked
	Status    func() *pb.AgentStatus
	Log       *slog.Logger
	Report    func(key, text string) // says what is wrong, or with an empty text that it is well
}

// Link is the stream and what brings it back. Its methods may be called from several goroutines.
type Link struct {
	cfg       Config
	deps      Deps
	connected atomic.Bool
	sessions  atomic.Uint64
	inventory atomic.Bool   // is to be sent
	status    atomic.Bool   // is to be sent
	wake      chan struct{} // there may be something to send
}

// New returns a link that is not connected.
func New(cfg Config, deps Deps) *Link {
	return &Link{cfg: cfg, deps: deps, wake: make(chan struct{}, 1)}
}

// Connected reports whether the controller has welcomed this agent on the present stream.
func (l *Link) Connected() bool { return l.connected.Load() }

// Sessions returns how often the controller has welcomed this agent.
func (l *Link) Sessions() uint64 { return l.sessions.Load() }

// InventoryChanged has the inventory sent.
func (l *Link) InventoryChanged() {
	l.inventory.Store(true)
	l.rouse()
}

// StatusChanged has the status sent at once.
func (l *Link) StatusChanged() {
	l.status.Store(true)
	l.rouse()
}

func (l *Link) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ProblemIdentity is the key of what is wrong with the identity of this agent.
const ProblemIdentity = "identity"

const (
	problem = "controller"
	// steady is how long a stream must have held for the next attempt to come soon: two agents of one name that throw
	// each other out should not do it twice a second.
	steady = 5 * time.Second
)

// Run connects, and connects again, until ctx ends or Admit says that it makes no sense.
func (l *Link) Run(ctx context.Context) error {
	wait := backoff{min: l.cfg.RetryMin, max: l.cfg.RetryMax}
	var refused, said string
	for {
		if err := l.deps.Admit(ctx, refused); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		before, began := l.sessions.Load(), time.Now()
		err := l.session(ctx)
		l.connected.Store(false)
		if ctx.Err() != nil {
			return nil
		}
		if l.sessions.Load() != before {
			said = ""
			if time.Since(began) > steady {
				wait.reset()
			}
		}
		var text string
		if refused, text = l.explain(err); text != said {
			l.deps.Log.Warn("no connection to the controller", "reason", text)
			said = text
		}
		l.deps.Report(problem, text)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.next()):
		}
	}
}

// explain returns the controller's word if it refuses this agent, and a line for people.
func (l *Link) explain(err error) (refused, text string) {
	switch e := (*connect.Error)(nil); {
	case !enroll.IsRefused(err):
	case enroll.IsUntrusted(err):
		return err.Error(), fmt.Sprintf("agent and controller do not trust each other: %v; policy stays in force", err)
	case errors.As(err, &e):
		return e.Message(), fmt.Sprintf("the controller refuses this agent: %s; policy stays in force", e.Message())
	}
	return "", fmt.Sprintf("not connected, policy stays in force: %v", err)
}

// backoff waits a random time, up to a bound that doubles: agents that lost their controller together come back one
// after the other.
type backoff struct {
	min, max, bound time.Duration
}

func (b *backoff) reset() { b.bound = 0 }

func (b *backoff) next() time.Duration {
	b.bound = min(max(2*b.bound, b.min), b.max)
	return time.Duration(rand.Int64N(int64(b.bound))) + time.Millisecond
}
