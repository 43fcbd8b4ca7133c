// Package inventory finds what there is on this host: its addresses, the cgroups of its units, and the sockets that
// listen with the processes that hold them. It watches, and tells of changes only.
//
// It looks at the network namespace it runs in and at the cgroups below one root, so that several agents can share a
// machine without seeing each other's workloads.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/internal/core/model"
)

// Config says where to look.
type Config struct {
	CgroupRoot string        // absolute path of a cgroup of version 2
	Units      []string      // patterns (path.Match) for the names of cgroups that are units
	Poll       time.Duration // between looks at listening sockets
	Resync     time.Duration // between looks at everything, whether or not something was heard of
}

// DefaultConfig returns the intervals that suit a server.
func DefaultConfig() Config {
	return Config{Poll: time.Second, Resync: 30 * time.Second}
}

// Found is what there is. It does not change.
type Found struct {
	Addresses []netip.Addr        // of this host, sorted; neither loopback nor link-local
	Units     map[string][]Cgroup // by name of the unit; cgroups sorted by path
	Listeners []Listener          // sorted
}

// Cgroup is one cgroup of a unit. A cgroup that was made again under its old path has another ID.
type Cgroup struct {
	Path string // absolute
	ID   uint64
}

// Listener is a socket that accepts traffic.
type Listener struct {
	Unit    string     // "" for the host
	Addr    netip.Addr // invalid: every address
	Proto   model.Proto
	Port    uint16
	Process string // name and path of the process; "" if it is not below the cgroup root
	Path    string
}

func (f *Found) equal(g *Found) bool {
	return slices.Equal(f.Addresses, g.Addresses) && slices.Equal(f.Listeners, g.Listeners) &&
		maps.EqualFunc(f.Units, g.Units, slices.Equal[[]Cgroup])
}

// Watcher keeps Found up to date.
type Watcher struct {
	cfg     Config
	report  func(key, text string)
	current atomic.Pointer[Found]
	named   atomic.Pointer[map[string]bool]
	running atomic.Bool
	wake    chan chan<- struct{} // the set of named units has changed; closed when that has been looked at

	// Only the goroutine of Scan or Run uses what follows.
	tree    *tree
	sockets *sockets
	self    string // the agent's own cgroup, as an absolute path; "" if it is not known
}

// New returns a watcher that has seen nothing. Problems are reported under a key; an empty text says that one is over.
func New(cfg Config, report func(key, text string)) *Watcher {
	w := &Watcher{cfg: cfg, report: report, wake: make(chan chan<- struct{}), tree: newTree(cfg.CgroupRoot)}
	w.sockets = newSockets(procRoot)
	w.current.Store(&Found{})
	w.named.Store(&map[string]bool{})
	return w
}

// Current returns what was found last.
func (w *Watcher) Current() *Found { return w.current.Load() }

// Name says which units policy names: their cgroups are units even if no pattern matches them. While Run runs, it
// returns when the next Found says so, or when ctx ends.
func (w *Watcher) Name(ctx context.Context, units []string) {
	next := make(map[string]bool, len(units))
	for _, u := range units {
		next[u] = true
	}
	if maps.Equal(next, *w.named.Load()) {
		return
	}
	w.named.Store(&next)
	if !w.running.Load() {
		return
	}
	looked := make(chan struct{})
	select {
	case w.wake <- looked:
	case <-ctx.Done():
		return
	}
	select {
	case <-looked:
	case <-ctx.Done():
	}
}

// Scan looks at everything once. It must not run beside Run.
func (w *Watcher) Scan() error {
	w.self = ownCgroup()
	if err := w.tree.walk(); err != nil {
		return err
	}
	w.look(true)
	return nil
}

// Run watches until ctx ends. It calls changed, from one goroutine, whenever something differs.
func (w *Watcher) Run(ctx context.Context, changed func(*Found)) error {
	w.self = ownCgroup()
	group, ctx := errgroup.WithContext(ctx)
	addresses, cgroups := make(chan struct{}, 1), make(chan []dirEvent, 64)
	if err := watchAddresses(ctx, group, addresses); err != nil {
		w.report("addresses", fmt.Sprintf("changes of addresses are noticed late: %v", err))
	}
	resync := w.cfg.Resync
	if err := w.tree.watch(ctx, group, cgroups); err != nil {
		w.report("cgroups", fmt.Sprintf("new cgroups are noticed late: %v", err))
		resync = w.cfg.Poll
	}
	group.Go(func() error { return w.run(ctx, resync, addresses, cgroups, changed) })
	w.running.Store(true)
	defer w.running.Store(false)
	return group.Wait()
}

func (w *Watcher) run(ctx context.Context, resync time.Duration, addresses <-chan struct{}, cgroups <-chan []dirEvent, changed func(*Found)) error {
	w.walk()
	if w.look(true) {
		changed(w.Current())
	}
	poll, full := time.NewTicker(w.cfg.Poll), time.NewTicker(resync)
	defer poll.Stop()
	defer full.Stop()
	for {
		everything := false
		var looked chan<- struct{}
		select {
		case <-ctx.Done():
			return nil
		case <-addresses:
		case looked = <-w.wake:
			w.walk() // what was made a moment ago may not have been told of yet
		case events := <-cgroups:
			if w.tree.follow(events) {
				w.walk()
			}
		case <-poll.C:
		case <-full.C:
			everything = true
			w.walk()
		}
		if w.look(everything) {
			changed(w.Current())
		}
		if looked != nil {
			close(looked)
		}
	}
}

// walk looks at every cgroup. What was seen before stands where it cannot.
func (w *Watcher) walk() {
	err := w.tree.walk()
	text := ""
	if limit := (*watchLimitError)(nil); errors.As(err, &limit) {
		text = fmt.Sprintf("some new cgroups are noticed late: %v", limit)
	} else if err != nil {
		text = fmt.Sprintf("cgroups cannot be read: %v", err)
	}
	w.report("cgroup tree", text)
}

// look makes a new Found and reports whether it differs from the last one. Processes that are known already are
// looked at again only if everything is asked for.
func (w *Watcher) look(everything bool) bool {
	before := w.Current()
	next := &Found{Units: w.tree.units(w.isUnit)}
	var err error
	if next.Addresses, err = hostAddresses(); err != nil {
		next.Addresses = before.Addresses
	}
	w.say("host addresses", "addresses of this host cannot be read", err)
	next.Listeners, err = w.sockets.listening(w.tree, unitsByPath(next.Units), everything)
	if err != nil {
		next.Listeners = before.Listeners
	}
	w.say("listeners", "listening sockets cannot be read", err)
	if next.equal(before) {
		return false
	}
	w.current.Store(next)
	return true
}

// say reports an error, or that there is none any more.
func (w *Watcher) say(key, what string, err error) {
	if err == nil {
		w.report(key, "")
		return
	}
	w.report(key, fmt.Sprintf("%s: %v", what, err))
}

// isUnit reports whether the cgroup is a unit. The agent's own never is: it must stay the host's, which may always
// reach its controller.
func (w *Watcher) isUnit(path, name string) bool {
	if w.self != "" && within(w.self, path) {
		return false
	}
	return (*w.named.Load())[name] || matches(w.cfg.Units, name)
}
