package compile

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// setBuilder makes the policy sets of a world, each distinct one once.
type setBuilder struct {
	w         *World
	functions *functionBuilder
	tables    *tableBuilder
	matched   [2][][]int32 // by direction and identity: the matches that mean it as a subject
	always    [2][]int32   // by direction: the matches that mean everybody

	byTable map[string]int32          // what a table is built from, to the table
	byHash  map[hostpolicy.Hash]int32 // its content, to the table
	hashes  []hostpolicy.Hash         // table to its content
	bySet   map[[2]int32]int32        // its tables, to the policy set
	byIdent map[int32]int32           // identity to the policy set of those that nothing else tells apart
	profile map[*profile]uint32
	key     []byte

	families []int32          // of the tables
	byFamily map[string]int32 // what most of the rows of a table come from, to its family
}

// compileSets gives every point its policy set.
func (w *World) compileSets(r *termResolver, rules [2][]*Rule) error {
	b := w.newSetBuilder(r, rules)
	for i := range w.workloads {
		wl := &w.workloads[i]
		for k := range wl.Points {
			set, err := b.of(wl, &wl.Points[k])
			if err != nil {
				return err
			}
			wl.Points[k].set = set
		}
	}
	w.isolation = map[purposes]int32{}
	for i := range w.workloads {
		own := w.ownPurposes(&w.workloads[i])
		if _, ok := w.isolation[own]; ok {
			continue
		}
		set, err := b.set(&subject{own: own, level: model.QuarantineIsolate})
		if err != nil {
			return err
		}
		w.isolation[own] = set
	}
	w.lookup = newLookup(w.tables, b.families, len(w.ids.ids))
	w.functions = b.functions.functions
	var starts []int32
	w.judges, starts = newJudges(w.functions)
	w.functions.cells, w.functions.start = nil, nil // nobody makes functions of them any more
	w.lookup.begin(starts)
	w.sit()
	return nil
}

// ownPurposes returns what the networks of any of the workload's addresses are for. The isolation set, of which a
// workload has one, must leave open what is essential at each of them.
func (w *World) ownPurposes(wl *Workload) purposes {
	var own purposes
	for i := range wl.Points {
		own |= w.nets.netsets[w.nets.netsetOf(wl.Points[i].cell)].purposes
	}
	return own
}

func (w *World) newSetBuilder(r *termResolver, rules [2][]*Rule) *setBuilder {
	b := &setBuilder{
		w:         w,
		functions: newFunctionBuilder(),
		byTable:   map[string]int32{},
		byHash:    map[hostpolicy.Hash]int32{},
		bySet:     map[[2]int32]int32{},
		byIdent:   map[int32]int32{},
		profile:   map[*profile]uint32{},
		byFamily:  map[string]int32{},
	}
	m := &matches{byKey: map[string]int32{}, terms: map[string][]int32{}}
	var groups [2][][]int32
	for d := range w.rules {
		for _, rule := range rules[d] {
			if rule.Expired {
				continue
			}
			rule.name = b.functions.name(rule.ID)
			rule.subject, rule.peer = m.add(r, &rule.Subject), m.add(r, &rule.Peer)
		}
		groups[d] = groupRules(len(m.members), rules[d])
		b.matched[d] = make([][]int32, len(w.ids.ids))
		for subject := range int32(len(groups[d])) {
			if len(groups[d][subject]) == 0 {
				continue
			}
			if m.any[subject] {
				b.always[d] = append(b.always[d], subject)
				continue
			}
			for _, id := range m.members[subject] {
				b.matched[d][id] = append(b.matched[d][id], subject)
			}
		}
	}
	b.tables = newTableBuilder(w, rules, m, groups, b.functions)
	return b
}

// groupRules lists, by match, the rules in force that it is the subject of.
func groupRules(matches int, rules []*Rule) [][]int32 {
	groups, sizes, n := make([][]int32, matches), make([]int32, matches), 0
	for _, r := range rules {
		if !r.Expired {
			sizes[r.subject]++
			n++
		}
	}
	all := make([]int32, n)
	for m, size := range sizes {
		groups[m], all = all[:0:size], all[size:]
	}
	for i, r := range rules {
		if !r.Expired {
			groups[r.subject] = append(groups[r.subject], int32(i))
		}
	}
	return groups
}

// of returns the policy set of a workload at one of its points.
func (b *setBuilder) of(wl *Workload, at *Point) (int32, error) {
	if !wl.Managed {
		return b.unmanaged(), nil
	}
	held := wl.Quarantine.Level == model.QuarantineRestrict || wl.Quarantine.Level == model.QuarantineIsolate
	if set, ok := b.byIdent[at.exact]; ok && !held {
		return set, nil
	}
	s := subject{
		profile: b.w.profiles[wl.labels],
		own:     b.w.nets.netsets[b.w.nets.netsetOf(at.cell)].purposes,
	}
	if held {
		s.level = wl.Quarantine.Level
	}
	for d := range s.matched {
		s.matched[d] = slices.Concat(b.always[d], b.matched[d][at.exact])
	}
	if s.level == model.QuarantineRestrict {
		s.inUse = b.inUse(&wl.Quarantine)
	}
	set, err := b.set(&s)
	if err == nil && !held {
		b.byIdent[at.exact] = set
	}
	return set, err
}

// inUse finds the peers that a restricted workload may still talk to. Workloads of one identity are one peer.
func (b *setBuilder) inUse(q *model.Quarantine) [2][]restriction {
	return restrictions(q, func(name string, each func(int32)) {
		if peer := b.w.Workload(name); peer != nil {
			for i := range peer.Points {
				each(peer.Points[i].exact)
			}
		}
	})
}

// restrictions groups the edges in use by identity of the peer; identities calls each for those of a workload.
func restrictions(q *model.Quarantine, identities func(workload string, each func(identity int32))) [2][]restriction {
	var out [2][]restriction
	for d := range out {
		ports := map[int32][]model.PortRange{}
		for _, edge := range q.InUse {
			if int(edge.Direction) != d {
				continue
			}
			seen := map[int32]bool{}
			identities(edge.Peer, func(id int32) {
				if !seen[id] {
					seen[id] = true
					ports[id] = append(ports[id], edge.Ports)
				}
			})
		}
		for id, list := range ports {
			slices.SortFunc(list, comparePorts)
			out[d] = append(out[d], restriction{id, slices.Compact(list)})
		}
		slices.SortFunc(out[d], func(x, y restriction) int { return int(x.peer) - int(y.peer) })
	}
	return out
}

func comparePorts(a, b model.PortRange) int {
	if a.Proto != b.Proto {
		return int(a.Proto) - int(b.Proto)
	}
	if a.Lo != b.Lo {
		return int(a.Lo) - int(b.Lo)
	}
	return int(a.Hi) - int(b.Hi)
}

func (b *setBuilder) set(s *subject) (int32, error) {
	var tables [2]int32
	for _, d := range model.Directions {
		t, err := b.table(s, d)
		if err != nil {
			return 0, err
		}
		tables[d] = t
	}
	return b.seal(tables), nil
}

// seal returns the policy set of two tables. Sets of equal content are one, whatever they were built from.
func (b *setBuilder) seal(tables [2]int32) int32 {
	if at, ok := b.bySet[tables]; ok {
		return at
	}
	w := b.w
	at := int32(len(w.sets))
	id := hostpolicy.SetID(b.hashes[tables[model.Ingress]], b.hashes[tables[model.Egress]])
	w.sets = append(w.sets, policySet{id, tables})
	b.bySet[tables] = at
	return at
}

// keep numbers a table. Tables of equal content are one.
func (b *setBuilder) keep(t table, hash hostpolicy.Hash) int32 {
	if same, ok := b.byHash[hash]; ok {
		return same
	}
	at := int32(len(b.w.tables))
	b.w.tables = append(b.w.tables, t)
	b.hashes = append(b.hashes, hash)
	b.families = append(b.families, None)
	b.byHash[hash] = at
	return at
}

// table returns the table of a subject in one direction; subjects that differ in nothing that counts share it.
func (b *setBuilder) table(s *subject, d model.Direction) (int32, error) {
	b.key = append(b.key[:0], byte(d), byte(s.own), byte(s.level))
	if s.level != model.QuarantineIsolate {
		p, ok := b.profile[s.profile]
		if !ok {
			p = uint32(len(b.profile))
			b.profile[s.profile] = p
		}
		b.key = binary.LittleEndian.AppendUint32(b.key, p)
		b.key = binary.LittleEndian.AppendUint32(b.key, uint32(len(s.matched[d])))
		for _, m := range s.matched[d] {
			b.key = binary.LittleEndian.AppendUint32(b.key, uint32(m))
		}
	}
	for _, r := range s.inUse[d] {
		b.key = binary.LittleEndian.AppendUint32(b.key, uint32(r.peer))
		b.key = binary.LittleEndian.AppendUint32(b.key, uint32(len(r.ports)))
		for _, p := range r.ports {
			b.key = append(b.key, byte(p.Proto), byte(p.Lo), byte(p.Lo>>8), byte(p.Hi), byte(p.Hi>>8))
		}
	}
	if t, ok := b.byTable[string(b.key)]; ok {
		return t, nil
	}
	t, hash, err := b.tables.build(s, d)
	if err != nil {
		return 0, err
	}
	at := b.keep(t, hash)
	b.byTable[string(b.key)] = at
	if b.families[at] == None && s.level == model.QuarantineNone {
		b.families[at] = b.family(s, d)
	}
	return at, nil
}

// manyIdentities is how many a rule's subject must mean for it to be one that families of tables have in common.
const manyIdentities = 64

// family returns the number of the tables that judge by the same default and the same rules for many.
func (b *setBuilder) family(s *subject, d model.Direction) int32 {
	b.key = s.profile.appendKey(append(b.key[:0], byte(d), byte(s.own)))
	for _, m := range s.matched[d] {
		if b.tables.matches.any[m] || len(b.tables.matches.members[m]) >= manyIdentities {
			b.key = binary.LittleEndian.AppendUint32(b.key, uint32(m))
		}
	}
	n, ok := b.byFamily[string(b.key)]
	if !ok {
		n = int32(len(b.byFamily))
		b.byFamily[string(b.key)] = n
	}
	return n
}

// unmanaged returns the set of workloads that nothing enforces on: they have no say.
func (b *setBuilder) unmanaged() int32 {
	const key = "unmanaged"
	t, ok := b.byTable[key]
	if !ok {
		t = b.keep(b.tables.constant(model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged}))
		b.byTable[key] = t
	}
	return b.seal([2]int32{t, t})
}
