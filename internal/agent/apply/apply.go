// Package apply keeps the policy of this host in force: it brings the policy and the cgroups of its units together,
// hands them to the dataplane, and keeps the last policy on disk so that it is enforced again at the next start,
// before anybody has been asked.
//
// Nothing in here ever opens anything by itself. What cannot be read or applied is reported, and what the kernel
// enforces already stays.
package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// Applied is what is in force. It does not change.
type Applied struct {
	Policy *hostpolicy.Policy
	Hash   hostpolicy.Hash
	Stats  dataplane.ApplyStats // of the call that brought this policy
}

// Config says where things are kept and for whom policy is taken.
type Config struct {
	Host string        // policy of another host is refused
	Dir  string        // holds policy.state and isolated.json
	Keep time.Duration // before what could not be kept on disk is tried again; default 5 s
}

// Applier owns the dataplane's writing side. Its methods may be called from several goroutines.
type Applier struct {
	cfg Config
	dp  dataplane.Dataplane
	log *slog.Logger
	// report says what is wrong under a key, and with an empty text that it is well again.
	report func(key, text string)

	current  atomic.Pointer[Applied]
	isolated isolated
	glass    atomic.Pointer[Glass] // as it was broken by this agent

	disk disk

	mu     sync.Mutex // orders the calls to dp
	units  map[string][]inventory.Cgroup
	users  map[string]uint32 // that the policy in force names, as they were when it was applied
	loaded []stored          // read from disk and not yet in force, the one to try first first
}

// New returns an applier that has applied nothing.
func New(cfg Config, dp dataplane.Dataplane, log *slog.Logger, report func(key, text string)) *Applier {
	cfg.Keep = cmp.Or(cfg.Keep, 5*time.Second)
	return &Applier{cfg: cfg, dp: dp, log: log, report: report, disk: disk{dir: cfg.Dir}}
}

// Keys under which the applier reports.
const (
	problemState = "state"
	problemApply = "apply"
	problemStore = "store"
)

// Load reads the policy on disk and returns the units that it names; Restore enforces it. Without one, or with one
// that cannot be read, there is nothing to restore: what the kernel enforces goes on.
func (a *Applier) Load() ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loadIsolated()
	found, err := a.disk.load(a.cfg.Host)
	if err != nil && len(found) > 0 {
		a.log.Warn("one of the policies on disk cannot be used; there is another", "error", err)
	} else if err != nil {
		err = fmt.Errorf("the policy on disk cannot be used: %w; what the kernel enforces goes on", err)
		a.report(problemState, err.Error())
		return nil, err
	}
	a.loaded = found
	var units []string
	for _, p := range found {
		units = append(units, UnitsOf(p.Policy)...)
	}
	slices.Sort(units)
	return slices.Compact(units), nil
}

// Restore enforces what Load has read, with the units that run now. An agent that died while it applied a policy has left
// two: the kernel enforces one of them, and the newer is to be enforced unless it is refused.
func (a *Applier) Restore(ctx context.Context, units map[string][]inventory.Cgroup) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.units = units
	loaded := a.loaded
	a.loaded = nil
	var refused error
	for _, p := range loaded {
		if _, err := a.apply(ctx, p.Policy, p.Hash()); err != nil {
			a.log.Error("a policy on disk cannot be enforced", "revision", p.Revision, "error", err)
			refused = errors.Join(refused, err)
			continue
		}
		a.log.Info("policy restored from disk", "revision", p.Revision, "hash", a.current.Load().Hash.Short())
		a.tellKept(p.Policy, a.disk.settle(p))
		return nil
	}
	if refused == nil {
		return nil
	}
	err := fmt.Errorf("the policy on disk cannot be enforced: %w; what the kernel enforces goes on", refused)
	a.report(problemState, err.Error())
	return err
}

// Current returns what is in force, or nil if this agent has applied nothing yet.
func (a *Applier) Current() *Applied { return a.current.Load() }

// Set puts the policy in force and on disk. On an error that wraps dataplane.ErrRefused what was in force before still
// is.
func (a *Applier) Set(ctx context.Context, p *hostpolicy.Policy) (dataplane.ApplyStats, error) {
	if p.Host != a.cfg.Host {
		return dataplane.ApplyStats{}, fmt.Errorf("%w: it is for host %q, this is %q", dataplane.ErrRefused, p.Host, a.cfg.Host)
	}
	stats, w, err := a.set(ctx, p)
	if w != nil { // nobody who isolates waits for the disk
		a.keep(w)
	}
	if err != nil {
		a.report(problemApply, fmt.Sprintf("revision %d is not enforced: %v", p.Revision, err))
		return stats, err
	}
	a.report(problemApply, "")
	a.report(problemState, "")
	return stats, nil
}

// set writes the policy ahead and puts it in force. It returns what is to be kept on disk; nil: nothing.
func (a *Applier) set(ctx context.Context, p *hostpolicy.Policy) (dataplane.ApplyStats, *draft, error) {
	hash := p.Hash()
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.current.Load()
	var w *draft
	if stale, _ := a.disk.stale(); stale || before == nil || before.Hash != hash || before.Policy.Revision != p.Revision {
		w = a.disk.ahead(p)
	}
	stats, err := a.apply(ctx, p, hash)
	switch {
	case err == nil || w == nil:
		return stats, w, err
	case !errors.Is(err, dataplane.ErrRefused):
		return stats, nil, err // it may be in force: the next agent tries it, and then the one before
	case before != nil:
		return stats, a.disk.ahead(before.Policy), err // the turn of p has perhaps overtaken one that was not kept yet
	}
	return stats, nil, errors.Join(err, a.disk.drop(w))
}

// keep waits until a policy in force is on disk. Where that fails only a restart would miss it.
func (a *Applier) keep(w *draft) {
	a.tellKept(w.policy, a.disk.keep(w))
}

func (a *Applier) tellKept(p *hostpolicy.Policy, err error) {
	if err != nil {
		a.log.Error("policy is in force but not on disk", "revision", p.Revision, "error", err)
		a.report(problemStore, fmt.Sprintf("revision %d is in force but could not be kept on disk: %v", p.Revision, err))
		return
	}
	a.report(problemStore, "")
}

// Run tries again to keep on disk what could not be kept when it came in force, until ctx ends: a disk that was full
// may have room by now. It also looks whether the users that rules name are still the same.
func (a *Applier) Run(ctx context.Context) error {
	ticker := time.NewTicker(a.cfg.Keep)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			a.catchUp()
			a.checkUsers(ctx)
		}
	}
}

func (a *Applier) catchUp() {
	policy, isolated := a.disk.stale()
	if !policy && !isolated {
		return
	}
	var w *draft
	a.mu.Lock()
	if now := a.current.Load(); policy && now != nil {
		w = a.disk.ahead(now.Policy)
	}
	if isolated {
		a.writeWishes()
	}
	a.mu.Unlock()
	if w != nil {
		a.keep(w)
	}
	if isolated {
		a.keepWishes()
	}
}

// SetUnits says which cgroups the units are now. The policy is applied again if that matters to it.
func (a *Applier) SetUnits(ctx context.Context, units map[string][]inventory.Cgroup) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.units
	a.units = units
	now := a.current.Load()
	if now == nil || !matters(now.Policy, before, units) {
		return nil
	}
	if _, err := a.apply(ctx, now.Policy, now.Hash); err != nil {
		a.units = before // so that the next report of the same units tries again
		a.report(problemApply, fmt.Sprintf("units that came or went are not judged as such yet: %v", err))
		return err
	}
	a.report(problemApply, "")
	return nil
}

// matters reports whether a unit that the policy names has other cgroups than before.
func matters(p *hostpolicy.Policy, before, now map[string][]inventory.Cgroup) bool {
	return slices.ContainsFunc(UnitsOf(p), func(u string) bool { return !slices.Equal(before[u], now[u]) })
}

// apply hands the policy of that hash to the dataplane. The caller holds mu.
func (a *Applier) apply(ctx context.Context, p *hostpolicy.Policy, hash hostpolicy.Hash) (dataplane.ApplyStats, error) {
	users := usersOf(p)
	stats, err := a.dp.Apply(ctx, &dataplane.State{Policy: p, Units: a.paths(p), Users: users})
	if err != nil {
		return stats, err
	}
	a.users = users
	before := a.current.Load()
	next := &Applied{Policy: p, Hash: hash, Stats: stats}
	if before != nil && before.Hash == next.Hash {
		next.Stats = before.Stats
	}
	a.current.Store(next)
	a.settleIsolation(ctx, before, p)
	return stats, nil
}

// paths returns the cgroups of the units that the policy names.
func (a *Applier) paths(p *hostpolicy.Policy) map[string][]string {
	out := map[string][]string{}
	for _, u := range UnitsOf(p) {
		for _, c := range a.units[u] {
			out[u] = append(out[u], c.Path)
		}
	}
	return out
}

// UnitsOf returns the units that the policy names, as subjects and as those of processes, sorted.
func UnitsOf(p *hostpolicy.Policy) []string {
	names := p.Processes().Units
	for i := range p.Subjects {
		if u := p.Subjects[i].Unit; u != "" {
			names = append(names, u)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// subject returns the subject of that workload, or nil.
func subject(p *hostpolicy.Policy, workload string) *hostpolicy.Subject {
	i := slices.IndexFunc(p.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == workload })
	if i < 0 {
		return nil
	}
	return &p.Subjects[i]
}

// isolatedByPolicy reports whether the policy itself holds the workload isolated.
func isolatedByPolicy(s *hostpolicy.Subject) bool { return s.Quarantine == model.QuarantineIsolate }
