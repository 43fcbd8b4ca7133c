package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"

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
	domains     []change[domainKey]
	resolvers   []change[uint64]
	processes   hostpolicy.Processes
	patterns    []string     // of host names
	epoch       uint32       // in which they are numbered; 0: there are none
	renames     bool         // they differ
	identities  bool         // the identity of a subject changes
	changed     map[int]bool // subjects whose own policy changes
}

// concernsAll reports whether a change may touch the verdicts of every subject.
func (t *transition) concernsAll() bool {
	return len(t.addresses)+len(t.prefixes)+len(t.ports)+len(t.controllers)+len(t.localSets)+len(t.localIDs)+len(t.cgroups)+len(t.units)+len(t.domains)+len(t.resolvers) > 0 || t.identities || t.renames
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
	if err := t.planDomains(d.held, uint32(d.settings.LastEpoch.Load())); err != nil {
		return nil, err
	}
	if n, limit := len(d.held.patterns)+len(t.patterns), int(d.maps.Patterns.MaxEntries()); t.renames && n > limit {
		return nil, fmt.Errorf("%d patterns of host names do not fit into %d", n, limit)
	}
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
		h.units.room(t.units), h.domains.room(t.domains), h.resolvers.room(t.resolvers),
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
