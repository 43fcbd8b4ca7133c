package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/model"
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
	t, err := d.plan(st)
	if err != nil {
		return dataplane.ApplyStats{}, fmt.Errorf("%w: %w", dataplane.ErrRefused, err)
	}
	stats := dataplane.ApplyStats{}
	if !t.concernsAll() && len(t.changed) == 0 && len(t.newSets) == 0 && len(t.newRules) == 0 &&
		len(t.sets) == len(d.held.sets) && slices.Equal(t.subjects, d.held.subjects) {
		d.held.policy, d.held.users = t.policy, t.users
		t.nameSets()
		d.count(&stats)
		if d.unfinished {
			stats.Reset, err = d.settle()
		}
		err = errors.Join(err, d.findUnits(st.Units))
		stats.Took = time.Since(start)
		return stats, inForceBut(err)
	}
	written, err := d.write(t)
	if err != nil {
		if undo := d.undo(t); undo != nil {
			d.log.Error("taking back a policy that could not be written", "error", undo)
		}
		return dataplane.ApplyStats{}, fmt.Errorf("%w: %w", dataplane.ErrRefused, err)
	}
	d.publishNames(t)
	d.switchTo(t)
	stats.Changed, stats.RowsWritten = true, written
	stats.Reset, err = d.settle()
	err = errors.Join(err, d.finish(t))
	d.publishNames(nil)
	err = errors.Join(err, d.findUnits(st.Units))
	d.count(&stats)
	stats.Took = time.Since(start)
	return stats, inForceBut(err)
}

func inForceBut(err error) error {
	if err != nil {
		return fmt.Errorf("policy is in force, but: %w", err)
	}
	return nil
}

// settle does what remains when a generation is in force: it resets connections that are no longer allowed and removes
// other layouts, which may judge otherwise. What fails is tried again by the next call.
func (d *Dataplane) settle() (reset int, err error) {
	d.unfinished = true
	reset, err = d.sweep()
	if err = errors.Join(err, d.removeOtherLayouts()); err == nil {
		d.unfinished = false
	}
	return reset, err
}

func (d *Dataplane) usable(ctx context.Context) error {
	if d.closed {
		return fmt.Errorf("dataplane: %w", os.ErrClosed)
	}
	return ctx.Err()
}

func (d *Dataplane) count(s *dataplane.ApplyStats) {
	s.Rows = d.held.rows()
	s.Addresses = len(d.held.addresses.held) + len(d.held.prefixes.held)
}

// write puts everything the next generation needs beside what is in force. It returns the number of policy rows.
func (d *Dataplane) write(t *transition) (int, error) {
	names := make([]ruleName, len(t.newRules))
	for i, n := range t.newRules {
		setText(names[i][:], string(t.rules[n]))
	}
	if err := putAll(d.maps.Rules, t.newRules, names); err != nil {
		return 0, fmt.Errorf("write rules: %w", err)
	}
	written := 0
	for _, s := range t.newSets {
		n, err := d.writeSet(s, t.users)
		if err != nil {
			return 0, err
		}
		written += n
	}
	h := d.held
	for _, err := range []error{
		h.addresses.write(t.addresses, t.gen), h.prefixes.write(t.prefixes, t.gen), h.ports.write(t.ports, t.gen),
		h.controllers.write(t.controllers, t.gen), h.localSets.write(t.localSets, t.gen), h.localIDs.write(t.localIDs, t.gen), h.cgroups.write(t.cgroups, t.gen),
		h.units.write(t.units, t.gen), h.domains.write(t.domains, t.gen), h.resolvers.write(t.resolvers, t.gen), d.writeInfo(t), d.writeLevels(t), d.writeProcesses(t), d.writeNames(t),
	} {
		if err != nil {
			return 0, err
		}
	}
	return written, nil
}

func (d *Dataplane) writeSet(s *heldSet, u users) (int, error) {
	l := lower(s.from, s.number)
	if err := putAll(d.maps.Alternatives, l.alternatives(s.number), d.alternatives(&l.lists, u)); err != nil {
		return 0, fmt.Errorf("write policy rows for processes: %w", err)
	}
	if err := putRows(d.maps.Rows, l.rows); err != nil {
		return 0, fmt.Errorf("write policy rows: %w", err)
	}
	if err := putRows(d.maps.Ranges, l.ranges); err != nil {
		return 0, fmt.Errorf("write policy rows for ranges: %w", err)
	}
	if err := d.maps.PolicySets.Put(s.number, s.content); err != nil {
		return 0, fmt.Errorf("write policy set: %w", err)
	}
	return len(l.rows) + len(l.ranges) + l.lists.Size(), nil
}

// writeInfo says who the subjects are.
func (d *Dataplane) writeInfo(t *transition) error {
	for i := range t.subjects {
		now, next := &d.held.subjects[i], &t.subjects[i]
		if !next.used || now.used && now.name == next.name && now.identity == next.identity {
			continue
		}
		if err := d.writeSubject(i, next.name, now.identity, next.identity, t.gen); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dataplane) writeSubject(number int, name string, before, after uint64, gen uint32) error {
	info := subjectInfo{Identity: version(value{id: before}, value{id: after}, gen)}
	setText(info.Name[:], name)
	if err := d.maps.SubjectInfo.Put(uint32(number), &info); err != nil {
		return fmt.Errorf("write subject %s: %w", name, err)
	}
	return nil
}

// writeLevels says at which depths units' cgroups are, those of now and those of the next generation.
func (d *Dataplane) writeLevels(t *transition) error {
	levels := append(slices.Clone(t.levels), d.held.levels...)
	slices.Sort(levels)
	levels = slices.Compact(levels)
	slices.Reverse(levels)
	if len(levels) > maxLevels {
		return tooManyLevels(len(levels))
	}
	d.settings.put64(&d.settings.own.Levels, packLevels(levels))
	if len(t.cgroups) > 0 {
		d.settings.put32(&d.settings.own.UnitsSince, t.gen)
	}
	return nil
}

// undo takes back what write has written of a transition that does not take place.
func (d *Dataplane) undo(t *transition) error {
	h, gen := d.held, d.gen
	errs := []error{
		h.addresses.undo(t.addresses, gen), h.prefixes.undo(t.prefixes, gen), h.ports.undo(t.ports, gen),
		h.controllers.undo(t.controllers, gen), h.localSets.undo(t.localSets, gen), h.localIDs.undo(t.localIDs, gen), h.cgroups.undo(t.cgroups, gen),
		h.units.undo(t.units, gen), h.domains.undo(t.domains, gen), h.resolvers.undo(t.resolvers, gen), d.undoNames(t),
		deleteAll(d.maps.Rules, t.newRules),
	}
	for i := range t.subjects {
		if now := &h.subjects[i]; now.used && t.subjects[i].used {
			errs = append(errs, d.writeSubject(i, now.name, now.identity, now.identity, gen))
		}
	}
	for _, s := range t.newSets {
		if err := d.deleteSet(s); err != nil {
			h.spoiled[s.number] = true
			errs = append(errs, err)
		}
	}
	d.settings.put64(&d.settings.own.Levels, packLevels(h.levels))
	if h.policy != nil {
		d.settleProcesses(h.policy.Processes())
	}
	return errors.Join(errs...)
}

// switchTo puts the next generation in force: first the bank that nobody reads, then the one word.
func (d *Dataplane) switchTo(t *transition) {
	next := t.gen & 1
	all := t.concernsAll()
	for i := range t.subjects {
		s, word := &t.subjects[i], uint64(0)
		switch {
		case !s.used: // it has no state: what was its is the host's
		case all || t.changed[i]:
			word = s.state(t.gen)
		default:
			word = d.held.words[i]
		}
		if d.subjects[i].State[next].Load() != word {
			d.subjects[i].State[next].Store(word)
		}
		if sets := s.sets(); d.subjects[i].Sets[next].Load() != sets {
			d.subjects[i].Sets[next].Store(sets)
		}
		d.held.words[i] = word
	}
	d.settings.put64(&d.settings.own.Epochs[next], uint64(t.epoch))
	d.gen = t.gen
	d.active.Store(uint64(t.gen))
}

// finish removes what the generation before needed. It must not be called before the switch.
func (d *Dataplane) finish(t *transition) error {
	h := d.held
	errs := []error{
		h.addresses.finish(t.addresses), h.prefixes.finish(t.prefixes), h.ports.finish(t.ports),
		h.controllers.finish(t.controllers), h.localSets.finish(t.localSets), h.localIDs.finish(t.localIDs), h.cgroups.finish(t.cgroups),
		h.units.finish(t.units), h.domains.finish(t.domains), h.resolvers.finish(t.resolvers), d.finishNames(t),
		d.dropSets(t), d.dropRules(t),
	}
	d.settings.put64(&d.settings.own.Levels, packLevels(t.levels))
	d.settleProcesses(t.processes)
	h.subjects, h.next, h.levels = t.subjects, t.nextFree, t.levels
	h.policy, h.users = t.policy, t.users
	return errors.Join(errs...)
}

// nameSets says what the policy sets are made of: an earlier agent may have written them.
func (t *transition) nameSets() {
	for i := range t.policy.Sets {
		t.sets[t.policy.Sets[i].ID].from = &t.policy.Sets[i]
	}
}

// dropSets deletes the policy sets that no subject names any more.
func (d *Dataplane) dropSets(t *transition) error {
	h := d.held
	next := map[uint64]*heldSet{}
	t.nameSets()
	for _, s := range t.sets {
		next[s.content] = s
	}
	var errs []error
	unknown := false
	for content, s := range h.sets {
		if next[content] != nil {
			continue
		}
		if err := d.deleteSet(s); err != nil {
			h.spoiled[s.number] = true
			errs = append(errs, err)
			continue
		}
		unknown = unknown || s.from == nil
		h.size.Take(s.size)
	}
	for _, s := range t.newSets {
		h.size.Add(s.size)
	}
	h.sets = next
	if unknown { // applied by an earlier agent: only the kernel knows its rows
		live := map[uint32]bool{}
		for _, s := range h.sets {
			live[s.number] = true
		}
		_, err := d.eachRow(func(pset uint32, _ budget.Resource) bool { return live[pset] })
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// deleteSet deletes the policy set, and its rows if it is known what they are.
func (d *Dataplane) deleteSet(s *heldSet) error {
	err := deleteAll(d.maps.PolicySets, []uint32{s.number})
	if s.from == nil {
		return err
	}
	l := lower(s.from, s.number)
	return errors.Join(err, deleteAll(d.maps.Rows, keysOf(l.rows)), deleteAll(d.maps.Ranges, keysOf(l.ranges)),
		deleteAll(d.maps.Alternatives, l.alternatives(s.number)))
}

// dropRules forgets the names of rules that neither this policy nor the one before has.
func (d *Dataplane) dropRules(t *transition) error {
	keep := map[uint64]bool{}
	if d.held.policy != nil {
		for i := range d.held.policy.Sets {
			for _, dir := range model.Directions {
				for _, f := range d.held.policy.Sets[i].Table(dir).Funcs {
					for _, c := range f {
						keep[ruleNumber(c.Rule)] = true
						for _, a := range c.When {
							keep[ruleNumber(a.Rule)] = true
						}
					}
				}
			}
		}
	}
	var gone []uint64
	dropped := map[uint64]model.RuleID{}
	for n, r := range d.held.rules {
		if t.rules[n] == "" && !keep[n] {
			gone = append(gone, n)
			dropped[n] = r
			delete(d.held.rules, n)
		}
	}
	d.held.forget(dropped)
	for n, r := range t.rules {
		d.held.rules[n] = r
	}
	return deleteAll(d.maps.Rules, gone)
}

func putRows[K any](m *ebpf.Map, rows []entry[K]) error {
	return putAll(m, keysOf(rows), valuesOf(rows))
}

func keysOf[K any](rows []entry[K]) []K {
	keys := make([]K, len(rows))
	for i := range rows {
		keys[i] = rows[i].key
	}
	return keys
}

func valuesOf[K any](rows []entry[K]) []row {
	values := make([]row, len(rows))
	for i := range rows {
		values[i] = rows[i].row
	}
	return values
}

// Isolate judges the workload by its isolation set, or by its normal one again.
func (d *Dataplane) Isolate(ctx context.Context, workload string, on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return err
	}
	i := slices.IndexFunc(d.held.subjects, func(s heldSubject) bool { return s.used && s.name == workload })
	if i < 0 || d.held.subjects[i].isolation == 0 {
		return fmt.Errorf("isolate %q: no such workload on this host", workload)
	}
	if d.held.subjects[i].isolated != on {
		gen, err := d.nextGeneration()
		if err != nil {
			return fmt.Errorf("isolate %q: %w", workload, err)
		}
		t := &transition{gen: gen, subjects: slices.Clone(d.held.subjects), changed: map[int]bool{i: true}, epoch: d.held.epoch}
		t.subjects[i].isolated = on
		d.unfinished = true
		d.switchTo(t)
		d.held.subjects = t.subjects
	}
	if !d.unfinished {
		return nil
	}
	if _, err := d.settle(); err != nil {
		return fmt.Errorf("isolate %q: it is in force, but: %w", workload, err)
	}
	return nil
}
