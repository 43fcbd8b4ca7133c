package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Beat says that the agent is there. It also ends what has lasted as long as it may: where the agent was lost until now, or
// the glass was broken, connections are judged again.
func (d *Dataplane) Beat(ctx context.Context) error {
	ended, err := d.beat()
	if err != nil {
		return err
	}
	if !ended && !d.overdue.Load() {
		return nil
	}
	// Whoever holds the dataplane may do so for longer than the next beat can wait.
	if !d.mu.TryLock() {
		d.overdue.Store(true)
		return nil
	}
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	d.overdue.Store(false)
	if d.held.glass && d.settings.GlassUntil.Load() <= sinceBoot() {
		err = d.setGlass(time.Time{})
	}
	if _, err1 := d.settle(); err1 != nil {
		err = errors.Join(err, err1)
	}
	if err != nil {
		d.overdue.Store(true)
		return fmt.Errorf("after an exception: %w", err)
	}
	return nil
}

// beat stores the time, and reports whether an exception has ended.
func (d *Dataplane) beat() (ended bool, err error) {
	d.open.RLock()
	defer d.open.RUnlock()
	if d.settings.settings == nil {
		return false, fmt.Errorf("dataplane: %w", os.ErrClosed)
	}
	at := now()
	before := d.settings.Beat.Swap(at)
	until := d.settings.GlassUntil.Load()
	return before != 0 && at-before > uint64(d.cfg.AgentLoss) || until != 0 && until <= sinceBoot(), nil
}

// BreakGlass lets everything pass until then, also what is isolated; a time that is past ends it.
func (d *Dataplane) BreakGlass(ctx context.Context, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	if err := d.setGlass(until); err != nil {
		return fmt.Errorf("break glass: %w", err)
	}
	if _, err := d.settle(); err != nil {
		return fmt.Errorf("break glass: it is in force, but: %w", err)
	}
	return nil
}

// Glass returns until when everything passes, and the zero time if policy is in force.
func (d *Dataplane) Glass() time.Time {
	d.open.RLock()
	defer d.open.RUnlock()
	if d.settings.settings == nil {
		return time.Time{}
	}
	until, at := d.settings.GlassUntil.Load(), sinceBoot()
	if until <= at {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(until - at))
}

// setGlass stores until when it is broken, and has the subjects' states say so.
func (d *Dataplane) setGlass(until time.Time) error {
	left, before := time.Until(until), d.settings.own.GlassUntil.Load()
	if left > 0 {
		d.settings.put64(&d.settings.own.GlassUntil, sinceBoot()+uint64(left))
	} else {
		d.settings.put64(&d.settings.own.GlassUntil, 0)
	}
	if err := d.judgeAnew(func(s *heldSubject) { s.glass = left > 0 }); err != nil {
		d.settings.put64(&d.settings.own.GlassUntil, before)
		return err
	}
	d.held.glass = left > 0
	return nil
}

// judgeAnew changes every subject, which has all its connections judged again. What is denied now is to be reset.
func (d *Dataplane) judgeAnew(change func(*heldSubject)) error {
	gen, err := d.nextGeneration()
	if err != nil {
		return err
	}
	t := &transition{gen: gen, subjects: slices.Clone(d.held.subjects), changed: map[int]bool{}, epoch: d.held.epoch}
	for i := range t.subjects {
		if s := &t.subjects[i]; s.used {
			change(s)
			t.changed[i] = true
		}
	}
	d.unfinished = true
	d.switchTo(t)
	d.held.subjects = t.subjects
	return nil
}

// sinceBoot returns the time as the programs' bpf_ktime_get_boot_ns does.
func sinceBoot() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // which no kernel of ours does: the glass is broken until the end of its time then
	}
	return uint64(ts.Nano())
}
