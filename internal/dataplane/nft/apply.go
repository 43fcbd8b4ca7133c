package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// Apply makes state the one that judges.
func (d *Dataplane) Apply(ctx context.Context, st *dataplane.State) (dataplane.ApplyStats, error) {
	start := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return dataplane.ApplyStats{}, err
	}
	c, err := plan(st, d.record.subjects, d.content, d.Capabilities())
	if err != nil {
		return dataplane.ApplyStats{}, fmt.Errorf("%w: %w", dataplane.ErrRefused, err)
	}
	c.beaten, c.glass = d.record.flags&flagBeaten != 0, d.record.flags&flagGlass != 0
	var stats dataplane.ApplyStats
	digest := c.digest(d.layout, d.cfg.LogGroup, d.can)
	if d.record.flags&flagPolicy != 0 && d.record.flags&flagUnfinished == 0 && d.record.digest == digest {
		if d.content == nil { // an earlier agent has applied it
			d.content, d.table = c, d.build(c, &d.record)
			d.rows = d.table.rows()
			d.flows.judges.add(d.record.gen, c)
		} else {
			d.content.policy.Revision = st.Policy.Revision
		}
	} else {
		if err := d.switchTo(c, func(r *record) {
			r.flags |= flagPolicy
			r.digest = digest
			r.subjects = numbers{}
			for _, s := range c.subjects {
				r.subjects[s.Workload] = numbered{s.number, s.isolated}
			}
		}); err != nil {
			return dataplane.ApplyStats{}, fmt.Errorf("%w: %w", dataplane.ErrRefused, err)
		}
		stats.Changed = true
		stats.RowsWritten = d.written
		d.unfinished = true
	}
	stats.Rows = d.rows
	stats.Addresses = c.addresses.hosts4.all + c.addresses.hosts6.all + c.addresses.prefixes
	if d.unfinished {
		stats.Reset, err = d.settle()
	}
	stats.Took = time.Since(start)
	if err != nil {
		return stats, fmt.Errorf("policy is in force, but: %w", err)
	}
	return stats, nil
}

// prepare writes the sets and chains that next has and the table does not, where no packet comes. It returns what the
// table holds then. Without it a packet that is on its way at the moment of the switch could enter a chain that is still
// empty for it.
func (d *Dataplane) prepare(next *table) (*table, error) {
	r := d.record
	r.flags |= flagUnfinished
	mid := &table{chains: maps.Clone(d.table.chains), sets: maps.Clone(d.table.sets), counters: d.table.counters}
	added := false
	for name, c := range next.chains {
		if mid.chains[name] == nil {
			mid.chains[name], added = c, true
		}
	}
	for name, s := range next.sets {
		if mid.sets[name] == nil {
			mid.sets[name], added = s, true
		}
	}
	if !added {
		return d.table, nil
	}
	mid.chains[stateChain] = &chain{rules: r.rules()} // who finds it so writes the table anew
	var b batch
	d.table.change(mid, &b)
	if err := d.ns.commit(&b); err != nil {
		return nil, err
	}
	d.table = mid
	return mid, nil
}

// switchTo puts the content in force in the next generation: what differs is written in one transaction. Before it goes
// one with what no packet meets yet, and after it one that takes away what none meets any more.
//
// Where the table turns out not to be what it is believed to be, all of it is written anew.
func (d *Dataplane) switchTo(c *content, change func(*record)) error {
	err := d.try(c, change)
	if believed := d.table; err != nil && believed != nil {
		d.log.Warn("writing all of the table anew", "because", err)
		d.table = nil
		if again := d.try(c, change); again != nil {
			d.table = believed // which Repair goes on to look at
			return again
		}
		return nil
	}
	return err
}

func (d *Dataplane) try(c *content, change func(*record)) (err error) {
	r := d.record
	r.subjects = maps.Clone(r.subjects)
	r.version = tableVersion
	if r.gen++; r.gen == 0 {
		r.gen = 1
	}
	change(&r)
	r.flags &^= flagUnfinished
	next := d.build(c, &r)
	var b, rest batch
	before := d.table
	kept := before.rowsIn(next)
	if before == nil {
		if err := d.rewrite(next, &b); err != nil {
			return err
		}
	} else if before, err = d.prepare(next); err != nil {
		return err
	} else {
		if before.remove(next, &rest); !rest.empty() {
			clean := r
			r.flags |= flagUnfinished
			next.chains[stateChain] = &chain{rules: r.rules()}
			rest.replace(stateChain, clean.rules())
			r = clean
		}
		before.change(next, &b)
	}
	d.flows.judges.add(r.gen, c) // before the kernel tells of anything that it has judged
	if err := d.ns.commit(&b); err != nil && !d.inForce(&r, err) {
		return err
	}
	d.record, d.content, d.table, d.looked = r, c, next, nil
	d.rows, d.written = next.rows(), next.rows()-kept
	d.disinherit(c)
	if r.gen%64 == 0 {
		// A generation's number comes again after 254 others: by then no connection may have it.
		gens := d.layout.generation()
		if err := d.ns.forget(gens, func(m uint32) bool { return m&gens != 0 && m&gens != d.layout.gen(r.gen) }); err != nil {
			d.log.Error("forgetting old generations", "error", err)
		}
	}
	if err := d.ns.commit(&rest); err != nil {
		// It judges nothing, so it only takes room: the next look, or change, writes all of the table anew.
		d.log.Error("removing what is not needed any more", "error", err)
		d.table = nil
		return nil
	}
	next.chains[stateChain] = &chain{rules: r.rules()}
	return nil
}

// disinherit takes the numbers that have been given to somebody else out of the connections of those who had them. The next packet
// tells whose a connection is; one that is half open at this moment may be taken for the other's until then.
func (d *Dataplane) disinherit(c *content) {
	if len(c.inherited) == 0 {
		return
	}
	has := func(number uint32) bool { return slices.Contains(c.inherited, uint8(number)) }
	l := d.layout
	if err := d.ns.forget(l.all(), func(m uint32) bool {
		return has(m&l.client()>>(l.shift+8)) || has(m&l.server()>>(l.shift+16))
	}); err != nil {
		d.log.Error("forgetting whose connections were", "error", err)
		return // the next change tries again
	}
	c.inherited = nil
}

// inForce reports whether a transaction with the record has happened although its answer was lost.
func (d *Dataplane) inForce(r *record, err error) bool {
	if !errors.Is(err, errUnanswered) {
		return false
	}
	there, ok, err := d.ns.readRecord()
	return err == nil && ok && there.gen == r.gen && there.digest == r.digest
}

// rewrite makes a transaction that replaces the table, of which only the counters and what ends by itself stay.
func (d *Dataplane) rewrite(next *table, b *batch) error {
	counters, err := d.ns.readCounters()
	if err != nil {
		return err
	}
	there, err := d.ns.isThere()
	if err != nil {
		return err
	}
	lasting := map[string]uint64{}
	if lasting[setAlive], err = d.ns.left(setAlive); err != nil {
		return err
	}
	if d.record.flags&flagBeaten != 0 && lasting[setAlive] == 0 { // we are here, whoever has deleted that
		lasting[setAlive] = uint64(d.cfg.AgentLoss.Milliseconds())
	}
	if left := time.Until(d.glassUntil); !d.glassUntil.IsZero() && left > 0 {
		lasting[setGlass] = uint64(max(left.Milliseconds(), 1))
	}
	if there {
		b.table(unix.NFT_MSG_DELTABLE)
	}
	b.table(unix.NFT_MSG_NEWTABLE)
	for _, name := range next.counters {
		b.counter(name, counters[name])
	}
	(&table{counters: next.counters}).change(next, b)
	for set, ms := range lasting {
		if ms > 0 {
			b.elements(unix.NFT_MSG_NEWSETELEM, set, next.sets[set], []element{{key: string(theKey), timeout: ms}})
		}
	}
	return nil
}

// settle judges live connections again and resets those that are denied. What fails is tried again by the next call.
func (d *Dataplane) settle() (reset int, err error) {
	d.unfinished = true
	if reset, err = d.sweep(); err == nil {
		d.unfinished = false
	}
	return reset, err
}

// Isolate judges the workload by its isolation set, or by its normal one again.
func (d *Dataplane) Isolate(ctx context.Context, workload string, on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	n, ok := d.record.subjects[workload]
	if !ok || d.record.flags&flagPolicy == 0 {
		return fmt.Errorf("isolate %q: no such workload on this host", workload)
	}
	if n.isolated != on {
		if err := d.isolate(workload, n.number, on); err != nil {
			return fmt.Errorf("isolate %q: %w", workload, err)
		}
		d.unfinished = true
	}
	if !d.unfinished {
		return nil
	}
	if _, err := d.settle(); err != nil {
		return fmt.Errorf("isolate %q: it is in force, but: %w", workload, err)
	}
	return nil
}

func (d *Dataplane) isolate(workload string, number uint8, on bool) error {
	if d.content == nil {
		return d.isolateUnknown(workload, number, on)
	}
	c := *d.content
	c.subjects = nil
	for _, s := range d.content.subjects {
		next := *s
		if s.Workload == workload {
			next.isolated = on
		}
		c.subjects = append(c.subjects, &next)
	}
	return d.switchTo(&c, func(r *record) { r.subjects[workload] = numbered{number, on} })
}

// isolateUnknown switches a subject of a policy that an earlier agent has applied. Chains for both cases are there. Every
// connection is forgotten, so that the next packet of each is judged.
func (d *Dataplane) isolateUnknown(workload string, number uint8, on bool) error {
	r := d.record
	r.subjects = maps.Clone(r.subjects)
	r.subjects[workload] = numbered{number, on}
	kind := "policy"
	if on {
		kind = "isolation"
	}
	var b batch
	for _, e := range ends {
		name := fmt.Sprintf("switch-%s%d", e, number)
		b.flush(name)
		b.rule(name, &rule{steps: one(goTo(fmt.Sprintf("%s-%s%d", kind, e, number)).expression())})
	}
	b.replace(stateChain, r.rules())
	if err := d.ns.commit(&b); err != nil {
		return err
	}
	d.record = r
	gens := d.layout.generation()
	return d.ns.forget(gens, func(m uint32) bool { return m&gens != 0 })
}

// Counters returns totals since the dataplane was installed.
func (d *Dataplane) Counters() (dataplane.Counters, error) {
	all, err := d.ns.readCounters()
	if err != nil {
		return dataplane.Counters{}, err
	}
	if _, ok := all[counterJudged]; !ok {
		return dataplane.Counters{}, errors.New("read counters: the table is not there")
	}
	return dataplane.Counters{
		Judged: all[counterJudged], Allowed: all[counterAllowed], WouldDenied: all[counterWould], Denied: all[counterDenied],
		DroppedPkts: all[counterDropped], EventsLost: all[counterSuppressed] + d.flows.lost.Load(), Errors: d.flows.errors.Load(),
	}, nil
}
