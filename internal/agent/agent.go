// Package agent looks after one host: it enrols with a controller, tells it what there is and who talks to whom, and
// keeps the host's policy in force, with the controller or without it. It can also stand alone, with a directory of documents in
// place of the controller.
//
// The work is done by its sub-packages, which know little of each other: enroll (who we are), inventory (what there
// is), apply (what is in force), flows (what was seen), uplink (the stream to the controller), standalone (policy from a
// directory), status (what we tell on this host). This package wires them together.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/agent/durable"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/flows"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/standalone"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/agent/uplink"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/notify"
	"bulkhead/internal/version"
	"bulkhead/internal/wire"
)

// Deps is what the agent works with. The dataplane stays the caller's, who closes it after Run.
type Deps struct {
	Dataplane dataplane.Dataplane
	Log       *slog.Logger
}

// Agent looks after one host.
type Agent struct {
	cfg       Config
	dp        dataplane.Dataplane
	log       *slog.Logger
	started   time.Time
	problems  status.Problems
	watcher   *inventory.Watcher
	applier   *apply.Applier
	alone     *standalone.Keeper // nil: there is a controller, and
	keeper    *enroll.Keeper     // these are not nil
	link      *uplink.Link       // made by Run, like what follows
	spool     *flows.Spool
	guard     guard
	namesLost growth
	// Made by Run.
	collector *flows.Collector
	watching  bool // the watcher runs, or is about to
}

// New returns an agent that does nothing until Run. Host and CgroupRoot of the configuration must be set.
func New(cfg Config, deps Deps) *Agent {
	a := &Agent{cfg: cfg, dp: deps.Dataplane, log: deps.Log}
	found := inventory.DefaultConfig()
	found.CgroupRoot, found.Units = cfg.CgroupRoot, cfg.Units
	a.watcher = inventory.New(found, a.problems.Report)
	a.guard.dp, a.guard.log, a.guard.report, a.guard.tell = a.dp, a.log, a.problems.Report, a.statusChanged
	a.applier = apply.New(apply.Config{Host: cfg.Host, Dir: cfg.Data}, a.dp, a.log, a.problems.Report)
	if cfg.Standalone != "" {
		a.alone = a.standAlone()
	} else {
		a.keeper = enroll.New(enroll.Config{Host: cfg.Host, Dir: cfg.Data, Controller: cfg.Controller}, a.log)
	}
	return a
}

// Run enforces the policy on disk, tells the service manager that it is ready, and looks after the host until ctx
// ends. What is in force stays in force afterwards. An *enroll.RefusedError says that only a person can help.
func (a *Agent) Run(ctx context.Context) (err error) {
	a.started = time.Now()
	if err := os.MkdirAll(a.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := durable.Lock(a.cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	if err := a.restore(ctx); err != nil {
		return err
	}
	if a.alone == nil {
		if a.spool, err = flows.OpenSpool(filepath.Join(a.cfg.Data, "flows"), a.cfg.SpoolBytes); err != nil {
			return fmt.Errorf("flow spool: %w", err)
		}
		defer func() { err = errors.Join(err, a.spool.Close()) }()
	}
	a.wire()
	if a.alone != nil {
		a.alone.Start(ctx)
	}
	listener, err := status.Listen(a.cfg.Socket)
	if err != nil {
		return err
	}

	a.watching = true
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return status.Serve(ctx, listener, a) })
	group.Go(func() error { return a.watcher.Run(ctx, func(f *inventory.Found) { a.found(ctx, f) }) })
	group.Go(func() error { return a.applier.Run(ctx) })
	group.Go(func() error { return a.beat(ctx) })
	group.Go(func() error { return a.guard.run(ctx) })
	group.Go(func() error { return a.collector.Run(ctx) })
	if a.alone != nil {
		group.Go(func() error { return a.alone.Run(ctx) })
	} else {
		group.Go(func() error { return a.link.Run(ctx) })
	}
	group.Go(func() error {
		notify.Watchdog(ctx, a.alive, func(err error) { a.log.Warn("the service manager was not told", "error", err) })
		return nil
	})
	a.tellManager(notify.Ready, notify.Status("enforcing revision "+strconv.FormatUint(a.revision(), 10)))
	err = group.Wait()
	a.tellManager(notify.Stopping)
	if a.alone != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		a.alone.Stop(ctx)
	}
	return err
}

// stopWithin is how long the end of a trial may take when the agent stops.
const stopWithin = 5 * time.Second

// beatEvery is how often the kernel is told that the agent is there.
const beatEvery = time.Second

// beat tells the kernel that the agent is there, as long as the dataplane answers.
func (a *Agent) beat(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	broken := false
	for {
		if a.alive() {
			if err := a.dp.Beat(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("the kernel was not told that the agent is there", "error", err)
			}
		}
		g := a.applier.Glass()
		if now := !g.Until.IsZero(); now != broken {
			broken = now
			a.tellGlass(g)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tellGlass says that the glass is broken, or that it is not any more.
func (a *Agent) tellGlass(g apply.Glass) {
	if g.Until.IsZero() {
		a.log.Warn("policy is in force again")
		a.problems.Report("break-glass", "")
		return
	}
	a.log.Warn("the glass is broken: everything passes", "until", g.Until, "reason", g.Reason)
	a.problems.Report("break-glass", fmt.Sprintf("everything passes until %s, whatever policy says: root broke the glass (%s)",
		g.Until.UTC().Format(time.RFC3339), g.Reason))
}

// restore puts the policy on disk in force. That it cannot is reported; only a host without cgroups ends the agent.
func (a *Agent) restore(ctx context.Context) error {
	units, err := a.applier.Load()
	if err != nil {
		a.log.Error("no policy was restored", "error", err)
	}
	a.watcher.Name(ctx, units)
	if err := a.watcher.Scan(); err != nil {
		return err
	}
	if err := a.applier.Restore(ctx, a.watcher.Current().Units); err != nil {
		a.log.Error("no policy was restored", "error", err)
	}
	return nil
}

// wire makes what takes flows and, where there is a controller, the link to it.
func (a *Agent) wire() {
	var sink flows.Sink = flows.Nowhere{}
	if a.spool != nil {
		sink = a.spool
	}
	collect := flows.DefaultConfig()
	collect.Host, collect.Window = a.cfg.Host, a.cfg.FlowWindow
	a.collector = flows.New(collect, a.dp, sink, a.revision, a.log, a.problems.Report)
	if a.alone != nil {
		return
	}

	admission := &admission{
		keeper: a.keeper, cfg: &a.cfg, host: a.cfg.Host, log: a.log, report: a.problems.Report,
		inForce: func() bool { return a.applier.Current() != nil }, retry: a.cfg.RetryMin,
	}
	up := uplink.DefaultConfig()
	up.StatusEvery, up.RetryMin, up.RetryMax = a.cfg.StatusEvery, a.cfg.RetryMin, a.cfg.RetryMax
	a.link = uplink.New(up, uplink.Deps{
		Admit: admission.admit, Keeper: a.keeper, Policy: policy{a.applier, a.watcher}, Spool: a.spool,
		Hello: a.hello, Inventory: a.inventory, Status: a.agentStatus, Log: a.log, Report: a.problems.Report,
	})
}

// policy finds the cgroups of units that a policy names before that policy is applied, so that they are judged as what
// they are from the first moment.
type policy struct {
	*apply.Applier
	found *inventory.Watcher
}

func (p policy) Set(ctx context.Context, next *hostpolicy.Policy) (dataplane.ApplyStats, error) {
	p.found.Name(ctx, apply.UnitsOf(next))
	stats, err := p.Applier.Set(ctx, next)
	if err != nil {
		var names []string
		if now := p.Current(); now != nil {
			names = apply.UnitsOf(now.Policy)
		}
		p.found.Name(ctx, names)
	}
	return stats, err
}

// found passes on what the inventory has seen.
func (a *Agent) found(ctx context.Context, f *inventory.Found) {
	if err := a.applier.SetUnits(ctx, f.Units); err != nil && ctx.Err() == nil {
		a.log.Error("units changed and policy was not applied again", "error", err)
	}
	if a.alone != nil {
		a.alone.InventoryChanged()
	} else {
		a.link.InventoryChanged()
	}
}

// statusChanged has the controller, if there is one, told at once.
func (a *Agent) statusChanged() {
	if a.link != nil {
		a.link.StatusChanged()
	}
}

func (a *Agent) revision() uint64 {
	if now := a.applier.Current(); now != nil {
		return now.Policy.Revision
	}
	return 0
}

// alive is asked before each sign of life to the service manager: an agent whose dataplane does not answer is not.
func (a *Agent) alive() bool {
	_, err := a.dp.Counters()
	if err != nil {
		a.log.Error("the dataplane does not answer", "error", err)
	}
	return err == nil
}

func (a *Agent) tellManager(messages ...string) {
	if err := notify.Send(messages...); err != nil {
		a.log.Warn("the service manager was not told", "error", err)
	}
}

func (a *Agent) hello() *pb.Hello {
	c := a.dp.Capabilities()
	return &pb.Hello{AgentVersion: version.String(), Kernel: c.Kernel, Dataplane: c.Kind, Limits: c.Limits, BootId: bootID()}
}

// bootID names this boot of the kernel, or nothing where the kernel does not tell.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// What the controller takes from one host. A host that has more is told of in part.
const (
	maxAddresses = 4096
	maxUnits     = 20_000
	maxListeners = 20_000
)

func (a *Agent) inventory() *pb.HostInventory {
	f := a.watcher.Current()
	inv := &pb.HostInventory{Units: unitInfos(f.Units, a.cfg.CgroupRoot)}
	for _, addr := range f.Addresses {
		inv.Addresses = append(inv.Addresses, wire.AddrToProto(addr))
	}
	for _, l := range f.Listeners {
		inv.Listeners = append(inv.Listeners, &pb.ListenerInfo{
			Unit: l.Unit, Addr: wire.AddrToProto(l.Addr), Proto: uint32(l.Proto), Port: uint32(l.Port),
			Process: l.Process, Path: l.Path,
		})
	}
	text := ""
	if len(inv.Addresses) > maxAddresses || len(inv.Units) > maxUnits || len(inv.Listeners) > maxListeners {
		text = fmt.Sprintf("this host has %d addresses, %d units and %d listening sockets; only %d, %d and %d are reported",
			len(inv.Addresses), len(inv.Units), len(inv.Listeners), maxAddresses, maxUnits, maxListeners)
		inv.Addresses = inv.Addresses[:min(len(inv.Addresses), maxAddresses)]
		inv.Units = inv.Units[:min(len(inv.Units), maxUnits)]
		inv.Listeners = inv.Listeners[:min(len(inv.Listeners), maxListeners)]
	}
	a.problems.Report("inventory", text)
	return inv
}

// resident returns the resident memory of this process in bytes, or zero where the kernel does not tell.
func resident() uint64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// MaxProcs bounds the threads that run the agent's code: it must not take a big machine's cores.
const MaxProcs = 4

// gcPercent is GOGC if the environment does not say: the agent makes little garbage, and the memory is its host's.
const gcPercent = 50

// LimitResources bounds what this process takes of its host: MaxProcs threads, and memory for garbage.
func LimitResources() {
	if runtime.GOMAXPROCS(0) > MaxProcs {
		runtime.GOMAXPROCS(MaxProcs)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// BreakGlass implements status.Agent.
func (a *Agent) BreakGlass(ctx context.Context, g status.Glass) error {
	if err := a.applier.BreakGlass(ctx, apply.Glass{Until: g.Until, Reason: g.Reason}); err != nil {
		return err
	}
	a.statusChanged()
	return nil
}
