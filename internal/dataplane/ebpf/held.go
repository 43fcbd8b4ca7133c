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
)

// held is what the kernel holds, in the generation in force.
type held struct {
	addresses   table[address]
	prefixes    table[netKey]
	ports       table[portKey]
	controllers table[portKey]
	localSets   table[localKey]
	localIDs    table[localKey]
	cgroups     table[uint64]
	units       table[uint64] // of processes
	domains     table[domainKey]
	resolvers   table[uint64]

	sets     map[uint64]*heldSet // by content
	size     budget.Cost         // of all sets
	subjects []heldSubject       // by number
	words    []uint64            // their states, as the programs read them
	users    users               // as they were when policy was applied
	next     int                 // where to look for an unused number
	spoiled  map[uint32]bool     // numbers of sets of which rows may be left, because deleting them failed
	rules    map[uint64]model.RuleID
	retired  []map[uint64]model.RuleID // names that the last policies have left behind, the oldest first
	levels   []uint8
	patterns []string // of host names, by number
	epoch    uint32   // in which they are numbered; 0: there are none
	numbers  map[patternKey]uint32
	glass    bool               // it may be broken
	policy   *hostpolicy.Policy // last applied by this process; nil before
}

// keepRetired is of how many policies the names of rules are kept: events that tell of them may lie in the buffer for
// as long as it takes to read it.
const keepRetired = 16

// forget takes names off the list of those that are in use, but keeps them for a while.
func (h *held) forget(names map[uint64]model.RuleID) {
	if len(names) == 0 {
		return
	}
	h.retired = append(slices.Clone(h.retired), names) // readers may have the old one
	h.retired = h.retired[max(0, len(h.retired)-keepRetired):]
}

// heldSet is a policy set whose rows are all in the kernel.
type heldSet struct {
	number  uint32
	content uint64
	size    budget.Cost
	from    *hostpolicy.PolicySet // what it was made of; nil: by an earlier agent
	sums    [budget.Resources]struct {
		known bool
		sum   uint64 // of the hashes of its entries; see rowMirror
	}
}

// heldSubject is a subject as subject_info describes it.
type heldSubject struct {
	used           bool
	name           string
	identity       uint64
	set, isolation uint32
	flags          uint8 // without subjectIsolated
	isolated       bool
	glass          bool // its state says that the glass may be broken
}

func (s *heldSubject) state(gen uint32) uint64 {
	var glass uint8
	if s.glass {
		glass = subjectGlass
	}
	if s.isolated { // and stays so while the agent is lost
		return state(gen, s.isolation, s.flags&subjectLocalIdentities|subjectIsolated|glass)
	}
	return state(gen, s.set, s.flags|glass)
}

// nextGeneration is never 0, which is "never judged", and always of the other parity.
func (d *Dataplane) nextGeneration() (uint32, error) {
	gen := d.gen
	next := gen + 1
	if next == 0 {
		next = 2
	}
	if gen/maxAge != next/maxAge {
		if err := d.held.renew(d, gen); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// maxAge is how many generations an entry may be old before it is written again. Generations are compared by their
// distance, which has a sign: an entry from too long ago would seem to be of one that is to come.
const maxAge = 1 << 29

// renew writes everything that knows its generation as if it held since the one in force.
func (h *held) renew(d *Dataplane, gen uint32) error {
	errs := []error{
		h.addresses.renew(gen), h.prefixes.renew(gen), h.ports.renew(gen), h.controllers.renew(gen), h.localSets.renew(gen),
		h.localIDs.renew(gen), h.cgroups.renew(gen), h.units.renew(gen), h.domains.renew(gen), h.resolvers.renew(gen),
	}
	for i := range h.subjects {
		if s := &h.subjects[i]; s.used {
			errs = append(errs, d.writeSubject(i, s.name, s.identity, s.identity, gen))
		}
	}
	d.settings.put32(&d.settings.own.UnitsSince, gen)
	return errors.Join(errs...)
}

// readHeld reads back what the kernel holds and cleans up after an agent that died while it was changing it.
func (d *Dataplane) readHeld() (*held, error) {
	d.gen = uint32(d.active.Load())
	gen := d.gen
	h := &held{
		addresses:   table[address]{name: "addresses", m: d.maps.Addresses},
		prefixes:    table[netKey]{name: "prefixes", m: d.maps.Prefixes},
		ports:       table[portKey]{name: "port owners", m: d.maps.Ports},
		controllers: table[portKey]{name: "controllers", m: d.maps.Controllers},
		localSets:   table[localKey]{name: "local policy sets", m: d.maps.LocalSets},
		localIDs:    table[localKey]{name: "local identities", m: d.maps.LocalIdentities},
		cgroups:     table[uint64]{name: "cgroups", m: d.maps.Cgroups},
		units:       table[uint64]{name: "units of processes", m: d.maps.Units},
		domains:     table[domainKey]{name: "host names", m: d.maps.Domains},
		resolvers:   table[uint64]{name: "resolvers", m: d.maps.Resolvers},
		sets:        map[uint64]*heldSet{},
		spoiled:     map[uint32]bool{},
		rules:       map[uint64]model.RuleID{},
		next:        1,
	}
	for _, read := range []func(uint32) error{
		h.addresses.read, h.prefixes.read, h.ports.read, h.controllers.read, h.localSets.read, h.localIDs.read, h.cgroups.read, h.units.read,
		h.domains.read, h.resolvers.read, h.readSubjects(d), h.readSets(d), h.readRules(d), h.readNames(d),
	} {
		if err := read(gen); err != nil {
			return nil, err
		}
	}
	h.levels = unpackLevels(d.settings.Levels.Load())
	return h, nil
}

// sets packs what Isolate changes between, as struct subject keeps it.
func (s *heldSubject) sets() uint64 {
	return uint64(s.isolation)<<32 | uint64(s.set)<<8 | uint64(s.flags)
}

func (h *held) readSubjects(d *Dataplane) func(uint32) error {
	return func(gen uint32) error {
		h.subjects, h.words = make([]heldSubject, len(d.subjects)), make([]uint64, len(d.subjects))
		now, other := gen&1, (gen+1)&1
		for i := range h.subjects {
			s := &d.subjects[i]
			word, sets := s.State[now].Load(), s.Sets[now].Load()
			s.State[other].Store(word) // over what a dead agent may have prepared
			s.Sets[other].Store(sets)
			h.words[i] = word
			if word == 0 {
				continue
			}
			var info subjectInfo
			if err := d.maps.SubjectInfo.Lookup(uint32(i), &info); err != nil {
				return fmt.Errorf("read subject %d: %w", i, err)
			}
			h.subjects[i] = heldSubject{
				used: true, name: text(info.Name[:]), identity: info.Identity.at(gen).id,
				set: uint32(sets) >> 8, flags: uint8(sets), isolation: uint32(sets >> 32),
				isolated: stateFlags(word)&subjectIsolated != 0,
				glass:    stateFlags(word)&subjectGlass != 0,
			}
			h.glass = h.glass || h.subjects[i].glass
		}
		return nil
	}
}

// readSets counts the rows of each policy set that a subject names, and deletes all others: those that an agent had
// not finished writing, and those that it had not finished deleting.
func (h *held) readSets(d *Dataplane) func(uint32) error {
	return func(uint32) error {
		named := map[uint32]bool{}
		for i := range h.subjects {
			named[h.subjects[i].set], named[h.subjects[i].isolation] = true, true
		}
		for _, v := range h.localSets.held {
			named[uint32(v.id)] = true
		}
		byNumber := map[uint32]*heldSet{}
		var orphans []uint32
		var number uint32
		var id uint64
		it := d.maps.PolicySets.Iterate()
		for it.Next(&number, &id) {
			if !named[number] {
				orphans = append(orphans, number)
				continue
			}
			s := &heldSet{number: number, content: id, size: budget.Cost{budget.Sets: 1}}
			h.size[budget.Sets]++
			byNumber[number] = s
			h.sets[id] = s
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("read policy sets: %w", err)
		}
		if err := deleteAll(d.maps.PolicySets, orphans); err != nil {
			return fmt.Errorf("delete policy sets: %w", err)
		}
		left, err := d.eachRow(func(pset uint32, of budget.Resource) bool {
			s := byNumber[pset]
			if s != nil {
				s.size[of]++
				h.size[of]++
			}
			return s != nil
		})
		if err != nil {
			return err
		}
		if left > 0 {
			d.log.Info("removed policy rows that an earlier agent had left", "rows", left)
		}
		return nil
	}
}

// eachRow calls known for everything that policy sets consist of, with the set's number and what it is, and deletes what
// is not known; it returns how many.
func (d *Dataplane) eachRow(known func(pset uint32, of budget.Resource) bool) (int, error) {
	rows, err1 := countRows[rowKey, row](d.maps.Rows, func(k rowKey) bool { return known(k.Pset, budget.Rows) })
	ranges, err2 := countRows[rangeKey, row](d.maps.Ranges, func(k rangeKey) bool { return known(k.Pset, budget.Ranges) })
	alternatives, err3 := countRows[alternativeKey, alternative](d.maps.Alternatives, func(k alternativeKey) bool {
		return known(k.Pset, budget.Alternatives)
	})
	return rows + ranges + alternatives, errors.Join(err1, err2, err3)
}

// rows returns how many rows of policy there are.
func (h *held) rows() int {
	return h.size[budget.Rows] + h.size[budget.Ranges] + h.size[budget.Alternatives]
}

// countRows calls known for every row and deletes those that are not; it returns how many.
func countRows[K, V any](m *ebpf.Map, known func(K) bool) (int, error) {
	var orphans []K
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if !known(k) {
			orphans = append(orphans, k)
		}
	}
	if err := it.Err(); err != nil {
		return 0, fmt.Errorf("read policy rows: %w", err)
	}
	if err := deleteAll(m, orphans); err != nil {
		return 0, fmt.Errorf("delete policy rows: %w", err)
	}
	return len(orphans), nil
}

func (h *held) readRules(d *Dataplane) func(uint32) error {
	return func(uint32) error {
		var number uint64
		var name ruleName
		it := d.maps.Rules.Iterate()
		for it.Next(&number, &name) {
			h.rules[number] = model.RuleID(text(name[:]))
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("read rules: %w", err)
		}
		return nil
	}
}

// ruleName is the value of the map rules.
type ruleName [256]int8

// text returns a C string.
func text(c []int8) string {
	b := make([]byte, 0, len(c))
	for _, x := range c {
		if x == 0 {
			break
		}
		b = append(b, byte(x))
	}
	return string(b)
}

// setText stores a C string; it reports false if it does not fit.
func setText(c []int8, s string) bool {
	if len(s) >= len(c) {
		return false
	}
	for i := range c {
		c[i] = 0
		if i < len(s) {
			c[i] = int8(s[i])
		}
	}
	return true
}

// names is what events are decoded with.
type names struct {
	rules    map[uint64]model.RuleID
	retired  []map[uint64]model.RuleID
	subjects []string
}

func (n *names) rule(number uint64) model.RuleID {
	if number < uint64(len(fixedRules)) {
		return fixedRules[number]
	}
	if r, ok := n.rules[number]; ok {
		return r
	}
	for _, rules := range slices.Backward(n.retired) {
		if r, ok := rules[number]; ok {
			return r
		}
	}
	return model.RuleID(fmt.Sprintf("dataplane/rule-%016x", number)) // of a policy that is gone
}

func (n *names) subject(number uint16) string {
	if int(number) < len(n.subjects) {
		return n.subjects[number]
	}
	return ""
}

// publishNames makes names of what is held and of what is to be held next, if anything: events of the next generation
// come before anybody can say that it is in force. Names of subjects that are gone stay until their number is used
// again, for events may still speak of them.
func (d *Dataplane) publishNames(next *transition) {
	before := d.names.Load()
	n := &names{rules: maps.Clone(d.held.rules), retired: d.held.retired}
	subjects := d.held.subjects
	if next != nil {
		maps.Copy(n.rules, next.rules)
		subjects = next.subjects
	}
	for i, s := range subjects {
		name := s.name
		if !s.used && before != nil {
			name = before.subject(uint16(i))
		}
		if name != "" {
			for len(n.subjects) <= i {
				n.subjects = append(n.subjects, "")
			}
			n.subjects[i] = name
		}
	}
	d.names.Store(n)
}
