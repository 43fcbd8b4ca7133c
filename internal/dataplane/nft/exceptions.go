package nft

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// What ends by itself is a member of a set with a time, which the rules look for: the kernel takes it out.

// Beat says that the agent is there.
func (d *Dataplane) Beat(ctx context.Context) error {
	wasLost, err := d.refresh(ctx)
	if err != nil {
		return err
	}
	if !d.mu.TryLock() { // Apply is at work: the next Beat does what is left to do
		if wasLost {
			d.returned.Store(true)
		}
		return nil
	}
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	if d.record.flags&flagBeaten == 0 && d.content != nil {
		c := *d.content
		c.beaten = true
		if err := d.switchTo(&c, func(r *record) { r.flags |= flagBeaten }); err != nil {
			return err
		}
	}
	if wasLost || d.returned.Swap(false) {
		d.unfinished = true
	}
	return d.afterwards()
}

// refresh has the kernel wait for the next Beat from now on. It reports whether the last one was too long ago.
func (d *Dataplane) refresh(ctx context.Context) (wasLost bool, err error) {
	d.beat.Lock()
	defer d.beat.Unlock()
	if err := ctx.Err(); err != nil {
		return false, err
	}
	since := time.Since(d.lastBeat)
	if since < d.cfg.AgentLoss/16 { // it lasts long enough
		return false, nil
	}
	if err := d.ns.renew(setAlive, d.cfg.AgentLoss); err != nil {
		return false, err
	}
	wasLost = !d.lastBeat.IsZero() && since > d.cfg.AgentLoss
	d.lastBeat = time.Now()
	return wasLost, nil
}

// renew puts the one member into a set that ends by itself, for so long; 0: it takes it out.
func (n *namespace) renew(name string, lasts time.Duration) error {
	s := &set{fields: []field{typeNumber}, timeouts: true}
	for try := 0; ; try++ {
		ms, err := n.left(name)
		if err != nil {
			return err
		}
		var b batch
		if ms > 0 {
			b.elements(unix.NFT_MSG_DELSETELEM, name, s, []element{{key: string(theKey)}})
		}
		if lasts > 0 {
			b.elements(unix.NFT_MSG_NEWSETELEM, name, s, []element{{key: string(theKey), timeout: uint64(max(lasts.Milliseconds(), 1))}})
		}
		err = n.commit(&b)
		if errors.Is(err, unix.ENOENT) && try < 3 {
			continue // it has ended in between
		}
		return err
	}
}

// afterwards does what is to be done when the glass is whole again, or the agent back: what passed meanwhile and is denied
// is reset.
func (d *Dataplane) afterwards() error {
	if !d.glassUntil.IsZero() && !time.Now().Before(d.glassUntil) {
		if err := d.mend(); err != nil {
			return err
		}
	}
	if !d.unfinished {
		return nil
	}
	_, err := d.settle()
	return err
}

// mend takes the rules out that let everything pass.
func (d *Dataplane) mend() error {
	d.glassUntil = time.Time{}
	d.unfinished = true
	if d.content == nil {
		d.record.flags &^= flagGlass // the next policy writes the table anew
		return nil
	}
	c := *d.content
	c.glass = false
	return d.switchTo(&c, func(r *record) { r.flags &^= flagGlass })
}

// BreakGlass lets everything pass until then.
func (d *Dataplane) BreakGlass(ctx context.Context, until time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	long := max(time.Until(until), 0)
	if err := d.ns.renew(setGlass, long); err != nil {
		return err
	}
	if long == 0 {
		if d.record.flags&flagGlass != 0 {
			if err := d.mend(); err != nil {
				return err
			}
		}
		return d.afterwards()
	}
	d.glassUntil = until
	if d.record.flags&flagGlass != 0 {
		return nil
	}
	if d.content == nil {
		return d.breakUnknown()
	}
	c := *d.content
	c.glass = true
	return d.switchTo(&c, func(r *record) { r.flags |= flagGlass })
}

// breakUnknown adds the rules to a table that an earlier agent has made: before all others.
func (d *Dataplane) breakUnknown() error {
	if d.record.flags&flagPolicy == 0 {
		d.record.flags |= flagGlass
		return nil // before any policy everything passes, and the first one will know
	}
	r := d.record
	r.flags |= flagGlass
	w := writer{table: newTable(), content: &content{glass: true, addresses: &addressMaps{}}, layout: d.layout, gen: r.gen, group: d.cfg.LogGroup}
	w.underGlass()
	var b batch
	for _, name := range sorted(w.chains) {
		b.newChain(name, w.chains[name])
		b.flush(name)
		for i := range w.chains[name].rules {
			b.rule(name, &w.chains[name].rules[i])
		}
	}
	for chain, to := range map[string]string{"input": "glass-in", "output": "glass-out"} {
		b.ruleFirst(chain, &rule{steps: []expression{loadValue(theKey, scratch), find(setGlass, scratch), goTo(to).expression()}})
	}
	b.replace(stateChain, r.rules())
	if err := d.ns.commit(&b); err != nil {
		return err
	}
	d.record = r
	return nil
}

// Glass returns until when everything passes.
func (d *Dataplane) Glass() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.glassUntil.IsZero() || !time.Now().Before(d.glassUntil) {
		return time.Time{}
	}
	return d.glassUntil
}

// readGlass asks the kernel, for an agent before this one may have broken it.
func (d *Dataplane) readGlass() error {
	ms, err := d.ns.left(setGlass)
	if err != nil {
		return err
	}
	if ms > 0 || d.record.flags&flagGlass != 0 {
		d.glassUntil = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	return nil
}
