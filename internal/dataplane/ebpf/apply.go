package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// transition is the difference between what the kernel holds and what it is to hold in the next generation. Making
// one touches nothing.
type transition struct {
	gen      uint32
	policy   *hostpolicy.Policy
	users    users
	sets     map[hostpolicy.PolicySetID]*heldSet // all that the next generation names
	newSets  []*heldSet
	subjects []heldSubject
	nextFree int
	levels   []uint8
	rules    map[uint64]model.RuleID
	newRules []uint64

	addresses   []change[address]
	prefixes    []change[netKey]
	ports       []change[portKey]
	controllers []change[portKey]
	localSets   []change[localKey]
	localIDs    []change[localKey]
	cgroups     []change[uint64]
	units       []change[uint64]
	processes   hostpolicy.Processes
	identities  bool         // the identity of a subject changes
	changed     map[int]bool // subjects whose own policy changes
}

// concernsAll reports whether a change may touch the verdicts of every subject.
func (t *transition) concernsAll() bool {
	return len(t.addresses)+len(t.prefixes)+len(t.ports)+len(t.controllers)+len(t.localSets)+len(t.localIDs)+len(t.cgroups)+len(t.units) > 0 || t.identities
}

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
		d.held.policy = t.policy
		d.count(&stats)
		if d.unfinished {
			stats.Reset, err = d.settle()
		}
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

// plan works out the transition. Everything that can be refused is refused here.
func (d *Dataplane) plan(st *dataplane.State) (*transition, error) {
	p := st.Policy
	if p == nil {
		return nil, errors.New("there is no policy")
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	caps := d.Capabilities()
	if err := caps.Check(p); err != nil {
		return nil, err
	}
	gen, err := d.nextGeneration()
	if err != nil {
		return nil, err
	}
	t := &transition{gen: gen, policy: p, users: st.Users, processes: p.Processes(), changed: map[int]bool{}}
	if err := t.planSets(d.held); err != nil {
		return nil, err
	}
	if err := t.planRooms(d); err != nil {
		return nil, err
	}
	if err := t.planSubjects(d.held, len(d.subjects)); err != nil {
		return nil, err
	}
	if err := t.planRules(d); err != nil {
		return nil, err
	}
	t.planAddresses(d.held)
	if err := t.planUnits(d, st.Units); err != nil {
		return nil, err
	}
	if err := t.planProcesses(d, st.Units); err != nil {
		return nil, err
	}
	if err := t.planLevels(); err != nil {
		return nil, err
	}
	h := d.held
	return t, errors.Join(
		h.addresses.room(t.addresses), h.prefixes.room(t.prefixes), h.ports.room(t.ports),
		h.controllers.room(t.controllers), h.localSets.room(t.localSets), h.localIDs.room(t.localIDs), h.cgroups.room(t.cgroups),
		h.units.room(t.units),
	)
}

// planSets numbers the policy sets; those whose content is there already keep their number.
func (t *transition) planSets(h *held) error {
	t.sets = map[hostpolicy.PolicySetID]*heldSet{}
	used := maps.Clone(h.spoiled)
	for _, s := range h.sets {
		used[s.number] = true // also those that go: they are in force until the switch
	}
	next := uint32(1)
	for i := range t.policy.Sets {
		set := &t.policy.Sets[i]
		content := t.users.contentOf(set)
		if s := h.sets[content]; s != nil {
			t.sets[set.ID] = s
			continue
		}
		if err := checkProcesses(set); err != nil {
			return err
		}
		for _, dir := range model.Directions {
			if peers := set.Table(dir).Peers; len(peers) > 0 && peers[0].Peer == 0 {
				return fmt.Errorf("policy set %016x lists identity 0, which is what no entry matches", uint64(set.ID))
			}
		}
		for used[next] {
			next++
		}
		if next > maxSets {
			return fmt.Errorf("more than %d policy sets", maxSets)
		}
		used[next] = true
		s := &heldSet{number: next, content: content, size: budget.OfSet(set), from: set}
		t.sets[set.ID] = s
		t.newSets = append(t.newSets, s)
	}
	return nil
}

// planRooms compares what is there and what comes with what fits. Old and new sets are there together for a moment.
func (t *transition) planRooms(d *Dataplane) error {
	total := d.held.size
	for _, s := range t.newSets {
		total.Add(s.size)
	}
	for _, room := range []struct {
		of     budget.Resource
		in     *ebpf.Map
		remedy string
	}{
		{budget.Rows, d.maps.Rows, "widen or merge rules"},
		{budget.Ranges, d.maps.Ranges, "use fewer ranges"},
		{budget.Alternatives, d.maps.Alternatives, "use fewer rules with a process"},
	} {
		if limit := int(room.in.MaxEntries()); total[room.of] > limit {
			return fmt.Errorf("%s do not fit into %d; %s", room.of.Text(total[room.of]), limit, room.remedy)
		}
	}
	if n, limit := len(d.held.sets)+len(t.newSets), int(d.maps.PolicySets.MaxEntries()); n > limit {
		return fmt.Errorf("%d policy sets do not fit into %d", n, limit)
	}
	return nil
}

// planSubjects numbers the subjects. The host is number 0; a unit keeps its number by its name.
func (t *transition) planSubjects(h *held, limit int) error {
	t.subjects = make([]heldSubject, len(h.subjects))
	t.nextFree = h.next
	numbers := map[string]int{}
	for i := range h.subjects {
		if h.subjects[i].used && i != hostSubject {
			numbers[h.subjects[i].name] = i
		}
	}
	sets, identities := map[localKey]value{}, map[localKey]value{}
	hosts := 0
	var fresh []*hostpolicy.Subject
	place := func(s *hostpolicy.Subject, number int) {
		next := heldSubject{
			used: true, name: s.Workload, identity: uint64(s.Identity),
			set: t.sets[s.Set].number, isolation: t.sets[s.Isolation].number,
			isolated: h.subjects[number].used && h.subjects[number].isolated, glass: h.glass,
		}
		switch s.OnAgentLoss {
		case model.LossOpen:
			next.flags |= subjectLossOpen
		case model.LossClosed:
			next.flags |= subjectLossClosed
		}
		for _, l := range s.Local {
			key := localKey{Addr: addressOf(l.Addr), Subject: uint32(number)}
			next.flags |= subjectLocalSets | subjectLocalIdentities
			sets[key] = value{id: uint64(t.sets[l.Set].number)}
			identities[key] = value{id: uint64(l.Identity)}
		}
		t.subjects[number] = next
	}
	for i := range t.policy.Subjects {
		s := &t.policy.Subjects[i]
		if len(s.Workload) >= len(subjectInfo{}.Name) {
			return fmt.Errorf("workload %q: the name is longer than %d bytes", s.Workload, len(subjectInfo{}.Name)-1)
		}
		if s.Unit == "" {
			hosts++
			place(s, hostSubject)
		} else if n, ok := numbers[s.Workload]; ok {
			place(s, n)
		} else {
			fresh = append(fresh, s)
		}
	}
	if hosts != 1 {
		return fmt.Errorf("the policy has %d subjects that are the host itself; it must have one", hosts)
	}
	for _, s := range fresh {
		number := 0
		for i := range limit {
			n := (t.nextFree + i) % limit
			if n != hostSubject && !t.subjects[n].used && !h.subjects[n].used {
				number = n
				break
			}
		}
		if number == 0 {
			return fmt.Errorf("%d subjects do not fit into %d", len(t.policy.Subjects), limit)
		}
		t.nextFree = number + 1
		place(s, number)
	}
	for i := range t.subjects {
		if t.subjects[i].identity != h.subjects[i].identity {
			t.identities = true
		}
		if t.subjects[i].state(0) != h.subjects[i].state(0) || t.subjects[i].used != h.subjects[i].used {
			t.changed[i] = true
		}
	}
	t.localSets = h.localSets.diff(maps.All(sets), nil, nil)
	t.localIDs = h.localIDs.diff(maps.All(identities), nil, nil)
	return nil
}

// planRules collects the names of rules. Those of the policy before stay for one more, since events may still name
// them.
func (t *transition) planRules(d *Dataplane) error {
	if err := t.nameRules(); err != nil {
		return err
	}
	for n := range t.rules {
		if _, ok := d.held.rules[n]; !ok {
			t.newRules = append(t.newRules, n)
		}
	}
	slices.Sort(t.newRules)
	if n, limit := len(d.held.rules)+len(t.newRules), int(d.maps.Rules.MaxEntries()); n > limit {
		return fmt.Errorf("%d rules do not fit into %d", n, limit)
	}
	return nil
}

// nameRules numbers the rules of the policy, but for those that programs know by themselves.
func (t *transition) nameRules() error {
	t.rules = map[uint64]model.RuleID{}
	for i := range t.policy.Sets {
		for _, dir := range model.Directions {
			for _, f := range t.policy.Sets[i].Table(dir).Funcs {
				for _, c := range f {
					if err := t.nameRule(c.Rule); err != nil {
						return err
					}
					for _, a := range c.When {
						if err := t.nameRule(a.Rule); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}

func (t *transition) nameRule(r model.RuleID) error {
	n := ruleNumber(r)
	if n < uint64(len(fixedRules)) {
		return nil
	}
	if other, ok := t.rules[n]; ok && other != r {
		return fmt.Errorf("rules %s and %s have the same number; rename one of them", r, other)
	}
	if len(r) >= len(ruleName{}) {
		return fmt.Errorf("rule %s: the name is longer than %d bytes", r, len(ruleName{})-1)
	}
	t.rules[n] = r
	return nil
}

// mapped4 is the prefix of every IPv4 address. It always has an entry, or ::/0 would hold for IPv4.
var mapped4 = netKeyOf(netip.MustParsePrefix("0.0.0.0/0"))

// planAddresses compares addresses, port owners and controllers.
func (t *transition) planAddresses(h *held) {
	prefixes := map[netKey]value{mapped4: {}}
	for _, a := range t.policy.Addresses {
		if !a.Prefix.IsSingleIP() {
			prefixes[netKeyOf(a.Prefix)] = valueOf(&a)
		}
	}
	addresses := func(yield func(address, value) bool) { // there may be very many
		for i := range t.policy.Addresses {
			a := &t.policy.Addresses[i]
			if a.Prefix.IsSingleIP() && !yield(addressOf(a.Prefix.Addr()), valueOf(a)) {
				return
			}
		}
	}
	before, after := newCover(h.prefixes.held), newCover(prefixes)
	t.addresses = h.addresses.diff(addresses,
		func(a address) value { return before.find(netKey{Bits: 129, Addr: a}) },
		func(a address) value { return after.find(netKey{Bits: 129, Addr: a}) })
	t.prefixes = h.prefixes.diff(maps.All(prefixes), before.find, after.find)

	ports := map[portKey]value{}
	for _, o := range t.policy.Ports {
		ports[portKey{Addr: addressOf(o.Addr), Port: o.Port, Proto: uint8(o.Proto)}] = value{id: uint64(o.Identity)}
	}
	t.ports = h.ports.diff(maps.All(ports), nil, nil)
	controllers := map[portKey]value{}
	for _, c := range t.policy.Controllers {
		controllers[portKey{Addr: addressOf(c.Addr()), Port: c.Port(), Proto: uint8(model.ProtoTCP)}] = value{id: 1}
	}
	t.controllers = h.controllers.diff(maps.All(controllers), nil, nil)
}

func valueOf(a *hostpolicy.Address) value { return value{id: uint64(a.Identity), shared: a.Shared} }

// cover finds the longest prefix that covers a key and is shorter than it.
type cover struct {
	prefixes map[netKey]value
	lengths  []uint32 // longest first
}

func newCover(prefixes map[netKey]value) *cover {
	c := &cover{prefixes: prefixes}
	for k := range prefixes {
		if !slices.Contains(c.lengths, k.Bits) {
			c.lengths = append(c.lengths, k.Bits)
		}
	}
	slices.Sort(c.lengths)
	slices.Reverse(c.lengths)
	return c
}

func (c *cover) find(k netKey) value {
	for _, n := range c.lengths {
		if n >= k.Bits {
			continue
		}
		if v, ok := c.prefixes[masked(k.Addr, n)]; ok {
			return v
		}
	}
	return value{}
}

func masked(a address, bits uint32) netKey {
	for i := range a {
		switch keep := int(bits) - 32*i; {
		case keep <= 0:
			a[i] = 0
		case keep < 32:
			a[i] &= networkOrder32(^uint32(0) << (32 - keep))
		}
	}
	return netKey{Bits: bits, Addr: a}
}

// planUnits maps cgroups to subjects.
func (t *transition) planUnits(d *Dataplane, units map[string][]string) error {
	numbers := map[string]int{}
	for i := range t.subjects {
		if t.subjects[i].used {
			numbers[t.subjects[i].name] = i
		}
	}
	cgroups := map[uint64]value{}
	for i := range t.policy.Subjects {
		s := &t.policy.Subjects[i]
		if s.Unit == "" {
			continue
		}
		for _, dir := range units[s.Unit] {
			id, level, err := d.unitCgroup(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return fmt.Errorf("unit %s: %w", s.Unit, err)
			}
			subject := value{id: uint64(numbers[s.Workload]) + 1}
			if other, ok := cgroups[id]; ok && other != subject {
				return fmt.Errorf("unit %s: cgroup %s belongs to another unit too", s.Unit, dir)
			}
			cgroups[id] = subject
			t.addLevels(level)
		}
	}
	t.cgroups = d.held.cgroups.diff(maps.All(cgroups), nil, nil)
	return nil
}

// addLevels notes at which depths a unit's cgroup may be.
func (t *transition) addLevels(levels func(func(int) bool)) {
	for l := range levels {
		if l := uint8(l); !slices.Contains(t.levels, l) {
			t.levels = append(t.levels, l)
		}
	}
}

func (t *transition) planLevels() error {
	slices.Sort(t.levels)
	slices.Reverse(t.levels)
	if len(t.levels) > maxLevels {
		return tooManyLevels(len(t.levels))
	}
	return nil
}

// unitCgroup returns the id of a unit's cgroup and the depths at which it may be.
func (d *Dataplane) unitCgroup(dir string) (id uint64, levels func(func(int) bool), err error) {
	id, depth, err := findCgroup(dir)
	if err != nil {
		return 0, nil, err
	}
	root, err := filepath.EvalSymlinks(d.cfg.CgroupRoot)
	if err != nil {
		return 0, nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return 0, nil, err
	}
	if dir == root || !isBelow(dir, root) {
		return 0, nil, fmt.Errorf("cgroup %s is not below %s", dir, root)
	}
	return id, func(yield func(int) bool) {
		if depth != anyLevel {
			yield(depth)
			return
		}
		for l := 1; l <= maxLevels && yield(l); l++ {
		}
	}, nil
}

func tooManyLevels(n int) error {
	return fmt.Errorf("the cgroups of the units are at %d depths; at most %d are possible", n, maxLevels)
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
		h.units.write(t.units, t.gen), d.writeInfo(t), d.writeLevels(t), d.writeProcesses(t),
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
	d.settings.Levels.Store(packLevels(levels))
	if len(t.cgroups) > 0 {
		d.settings.UnitsSince.Store(t.gen)
	}
	return nil
}

// undo takes back what write has written of a transition that does not take place.
func (d *Dataplane) undo(t *transition) error {
	h, gen := d.held, d.generation()
	errs := []error{
		h.addresses.undo(t.addresses, gen), h.prefixes.undo(t.prefixes, gen), h.ports.undo(t.ports, gen),
		h.controllers.undo(t.controllers, gen), h.localSets.undo(t.localSets, gen), h.localIDs.undo(t.localIDs, gen), h.cgroups.undo(t.cgroups, gen),
		h.units.undo(t.units, gen),
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
	d.settings.Levels.Store(packLevels(h.levels))
	if h.policy != nil {
		d.settleProcesses(h.policy.Processes())
	}
	return errors.Join(errs...)
}

// switchTo puts the next generation in force: first the bank that nobody reads, then the one word.
func (d *Dataplane) switchTo(t *transition) {
	now, next := d.generation()&1, t.gen&1
	all := t.concernsAll()
	for i := range t.subjects {
		s, word := &t.subjects[i], uint64(0)
		switch {
		case !s.used: // it has no state: what was its is the host's
		case all || t.changed[i]:
			word = s.state(t.gen)
		default:
			word = d.subjects[i].State[now].Load()
		}
		if d.subjects[i].State[next].Load() != word {
			d.subjects[i].State[next].Store(word)
		}
		if sets := s.sets(); d.subjects[i].Sets[next].Load() != sets {
			d.subjects[i].Sets[next].Store(sets)
		}
	}
	d.active.Store(uint64(t.gen))
}

// finish removes what the generation before needed. It must not be called before the switch.
func (d *Dataplane) finish(t *transition) error {
	h := d.held
	errs := []error{
		h.addresses.finish(t.addresses), h.prefixes.finish(t.prefixes), h.ports.finish(t.ports),
		h.controllers.finish(t.controllers), h.localSets.finish(t.localSets), h.localIDs.finish(t.localIDs), h.cgroups.finish(t.cgroups),
		h.units.finish(t.units),
		d.dropSets(t), d.dropRules(t),
	}
	d.settings.Levels.Store(packLevels(t.levels))
	d.settleProcesses(t.processes)
	h.subjects, h.next, h.levels = t.subjects, t.nextFree, t.levels
	h.policy = t.policy
	return errors.Join(errs...)
}

// dropSets deletes the policy sets that no subject names any more.
func (d *Dataplane) dropSets(t *transition) error {
	h := d.held
	next := map[uint64]*heldSet{}
	for i := range t.policy.Sets {
		s := t.sets[t.policy.Sets[i].ID]
		s.from = &t.policy.Sets[i] // an earlier agent may have written it
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
	values := make([]row, len(rows))
	for i := range rows {
		values[i] = rows[i].row
	}
	return putAll(m, keysOf(rows), values)
}

func keysOf[K any](rows []entry[K]) []K {
	keys := make([]K, len(rows))
	for i := range rows {
		keys[i] = rows[i].key
	}
	return keys
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
		t := &transition{gen: gen, subjects: slices.Clone(d.held.subjects), changed: map[int]bool{i: true}}
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
