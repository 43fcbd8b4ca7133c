package apply

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"bulkhead/internal/core/hostpolicy"
)

// Origin says who isolated a workload.
type Origin string

// The origins.
const (
	// ByController is the fast path of a quarantine: it holds until the policy that says the same has arrived.
	ByController Origin = "controller"
	// ByHost was asked for on this host; it holds until it is lifted, here or by the controller.
	ByHost Origin = "host"
)

// isolated is which workloads were isolated by a call, not by policy. They are wishes: one may be for a workload that
// is not on this host at present.
type isolated struct {
	mu sync.Mutex
	by map[string]Origin
}

func (i *isolated) all() map[string]Origin {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.by)
}

func (i *isolated) add(workload string, by Origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.by == nil {
		i.by = map[string]Origin{}
	}
	if i.by[workload] != ByHost { // the controller does not shorten what was asked for here
		i.by[workload] = by
	}
}

func (i *isolated) set(by map[string]Origin) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.by = by
}

func (i *isolated) remove(workload string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.by, workload)
}

// Isolate judges the workload by its isolation set (on), or by its policy again. It holds over a restart of the agent.
// To isolate a workload that is not on this host is an error; to end that is done with. As soon as the kernel has it,
// and before it is on disk for good, done is called.
func (a *Applier) Isolate(ctx context.Context, workload string, on bool, by Origin, done func()) error {
	a.mu.Lock()
	err := a.isolate(ctx, workload, on, by)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	done()
	a.log.Warn("isolation", "workload", workload, "on", on, "by", by)
	a.keepWishes()
	return nil
}

// isolate writes the wish down before the kernel hears of it: an agent that dies in between must not leave behind an
// isolation that nobody knows of. The caller holds mu.
func (a *Applier) isolate(ctx context.Context, workload string, on bool, by Origin) error {
	now := a.current.Load()
	here := now != nil && subject(now.Policy, workload) != nil
	if !here && on {
		return fmt.Errorf("isolate %s: no such workload on this host", workload)
	}
	before := a.isolated.all()
	if on {
		a.isolated.add(workload, by)
		a.writeWishes()
	}
	if here {
		err := a.dp.Isolate(ctx, workload, on)
		if err != nil {
			// It may be in force and only the cutting of connections have failed; a second call tells.
			a.log.Error("isolation", "workload", workload, "on", on, "error", err)
			err = a.dp.Isolate(ctx, workload, on)
		}
		if err != nil {
			a.isolated.set(before)
			a.writeWishes()
			return fmt.Errorf("isolate %s: %w", workload, err)
		}
	}
	if !on {
		a.isolated.remove(workload)
		a.writeWishes()
	}
	return nil
}

// Isolated returns the workloads that are contained at this moment, sorted: by a call or by the policy itself.
func (a *Applier) Isolated() []string {
	names := map[string]bool{}
	now := a.current.Load()
	for w := range a.isolated.all() {
		names[w] = now != nil && subject(now.Policy, w) != nil
	}
	if now != nil {
		for i := range now.Policy.Subjects {
			if s := &now.Policy.Subjects[i]; isolatedByPolicy(s) {
				names[s.Workload] = true
			}
		}
	}
	maps.DeleteFunc(names, func(_ string, here bool) bool { return !here })
	return slices.Sorted(maps.Keys(names))
}

// settleIsolation runs after each Apply. It isolates again what has come back, and lets go of the controller's fast
// path where the policy now says the same, so that lifting the quarantine needs no second message. The caller holds
// mu.
func (a *Applier) settleIsolation(ctx context.Context, before *Applied, p *hostpolicy.Policy) {
	wishes, changed := a.isolated.all(), false
	for _, w := range slices.Sorted(maps.Keys(wishes)) {
		s := subject(p, w)
		key := "isolate " + w
		switch {
		case s == nil:
			continue // not here at present; the wish is kept
		case wishes[w] == ByController && isolatedByPolicy(s):
			if err := a.dp.Isolate(ctx, w, false); err != nil {
				a.report(key, fmt.Sprintf("hand the isolation of %s over to policy: %v", w, err))
				continue
			}
			a.isolated.remove(w)
			changed = true
		case before == nil || subject(before.Policy, w) == nil:
			if err := a.dp.Isolate(ctx, w, true); err != nil {
				a.report(key, fmt.Sprintf("%s should be isolated and is not: %v", w, err))
				continue
			}
		}
		a.report(key, "")
	}
	if changed {
		a.writeWishes()
	}
}

const isolatedFile = "isolated.json"

// loadIsolated takes the wishes from disk. A file that cannot be read is reported; the kernel holds what it holds.
func (a *Applier) loadIsolated() {
	wishes, err := a.disk.wishes()
	if err != nil {
		a.log.Error("the list of isolated workloads cannot be read", "error", err)
		a.report(isolatedFile, fmt.Sprintf("the list of isolated workloads cannot be read: %v; isolate them again", err))
		return
	}
	for w, by := range wishes {
		a.isolated.add(w, by)
	}
}
