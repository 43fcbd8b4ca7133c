package standalone

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
)

// try puts a version in force for as long as there is to confirm it. That it is on trial is on disk before it is in force: a
// restart comes back to what was accepted.
func (k *Keeper) try(ctx context.Context, v *version, w *compile.World, p *hostpolicy.Policy, closes []string, sum string) error {
	before := k.trial
	if k.accepted == nil { // what a controller put in force is no version: there is nothing to come back to but nothing
		k.accepted = nothing()
	}
	v.since = time.Now()
	k.trial, k.given = &trial{version: v, until: time.Now().Add(k.cfg.Confirm), closes: closes}, sum
	k.save()
	if err := k.set(ctx, w, p); err != nil {
		k.trial, k.given = before, ""
		if before != nil { // what it was is on trial still
			k.given = sumOf(before.files, nil)
		}
		k.save()
		return k.refuse([]string{err.Error()})
	}
	k.good()
	k.rouse()
	k.deps.Log.Warn("documents are on trial", "version", v.number, "closes", closes, "until", k.trial.until)
	k.deps.Report(problemTrial, fmt.Sprintf("version %d is on trial: `bulkhead-agent confirm`, or it is rolled back at %s",
		v.number, k.trial.until.Format(time.TimeOnly)))
	return nil
}

const problemTrial = "documents on trial"

func (k *Keeper) notConfirmed() string {
	return fmt.Sprintf("it was not confirmed within %s and was rolled back; change it, or try it again with `bulkhead-agent reload`", k.cfg.Confirm)
}

// Confirm implements status.Documents.
func (k *Keeper) Confirm(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trial == nil {
		return errors.New("nothing is on trial")
	}
	refused := k.refused // what is in the directory by now
	k.accept(k.trial.version)
	if refused != nil {
		_ = k.refuse(refused.Errors) // which is known already
	}
	return nil
}

// Reload implements status.Documents.
func (k *Keeper) Reload(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trial == nil {
		k.given = ""
	}
	k.read = ""
	return k.reload(ctx)
}

// Stop rolls back what is on trial: there will be nobody who could when its time is over. It is called after Run.
func (k *Keeper) Stop(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trial != nil {
		k.rollBack(ctx)
	}
}

// rollBack ends a trial that nobody has confirmed. The caller holds mu.
func (k *Keeper) rollBack(ctx context.Context) {
	failed := k.trial
	k.trial = nil
	w, p, err := k.compile(k.accepted)
	if err == nil {
		err = k.set(ctx, w, p)
	}
	if err != nil {
		failed.until = time.Now().Add(k.cfg.Retry)
		k.trial = failed
		k.deps.Log.Error("a trial was not rolled back", "version", failed.number, "error", err)
		k.deps.Report(problemTrial, fmt.Sprintf("version %d was not confirmed and could not be rolled back: %v; open the host with `bulkhead-agent break-glass`", failed.number, err))
		return
	}
	k.deps.Report(problemTrial, "")
	k.deps.Log.Error("documents were not confirmed and are rolled back", "version", failed.number, "to", k.accepted.number)
	_ = k.refuse([]string{k.notConfirmed()}) // it is logged already
	k.save()
}
