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
	functions *functions
	tables    *tableBuilder
	matched   [2][][]int32 // by direction and identity: the matches that mean it as a subject
	always    [2][]int32   // by direction: the matches that mean everybody

	byTable map[string]builtTable // by what a table is built from
	byHash  map[hostpolicy.Hash]builtTable
	bySet   map[[2]int32]*hostpolicy.PolicySet
	byID    map[hostpolicy.PolicySetID]*hostpolicy.PolicySet
	byIdent map[int32]*hostpolicy.PolicySet // of subjects that nothing but their identity tells apart
	profile map[*profile]uint32
	key     []byte
}

type builtTable struct {
	index int32
	hash  hostpolicy.Hash
	table hostpolicy.Table
}

// compileSets gives every point its policy set.
func (w *World) compileSets(r *termResolver) error {
	b := w.newSetBuilder(r)
	for i := range w.workloads {
		wl := &w.workloads[i]
		for k := range wl.Points {
			set, err := b.of(wl, &wl.Points[k])
			if err != nil {
				return err
			}
			wl.Points[k].Set = set
		}
	}
	w.isolation = map[purposes]*hostpolicy.PolicySet{}
	for i := range w.workloads {
		own := w.ownPurposes(&w.workloads[i])
		if w.isolation[own] != nil {
			continue
		}
		set, err := b.set(&subject{own: own, level: model.QuarantineIsolate})
		if err != nil {
			return err
		}
		w.isolation[own] = set
	}
	for _, s := range b.byID {
		w.sets = append(w.sets, s)
	}
	slices.SortFunc(w.sets, hostpolicy.CompareSets)
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

func (w *World) newSetBuilder(r *termResolver) *setBuilder {
	b := &setBuilder{
		w:         w,
		functions: newFunctions(),
		byTable:   map[string]builtTable{},
		byHash:    map[hostpolicy.Hash]builtTable{},
		bySet:     map[[2]int32]*hostpolicy.PolicySet{},
		byID:      map[hostpolicy.PolicySetID]*hostpolicy.PolicySet{},
		byIdent:   map[int32]*hostpolicy.PolicySet{},
		profile:   map[*profile]uint32{},
	}
	m := &matches{byKey: map[string]int32{}, terms: map[string][]int32{}}
	groups := [2]map[int32][]int32{{}, {}}
	for d := range w.rules {
		for i := range w.rules[d] {
			rule := &w.rules[d][i]
			if rule.Expired {
				continue
			}
			rule.name = b.functions.name(rule.ID)
			rule.subject, rule.peer = m.add(r, &rule.Subject), m.add(r, &rule.Peer)
			groups[d][rule.subject] = append(groups[d][rule.subject], int32(i))
		}
		b.matched[d] = make([][]int32, len(w.ids.ids))
		subjects := make([]int32, 0, len(groups[d]))
		for subject := range groups[d] {
			subjects = append(subjects, subject)
		}
		slices.Sort(subjects)
		for _, subject := range subjects {
			if m.any[subject] {
				b.always[d] = append(b.always[d], subject)
				continue
			}
			for _, id := range m.members[subject] {
				b.matched[d][id] = append(b.matched[d][id], subject)
			}
		}
	}
	b.tables = newTableBuilder(w, m, groups, b.functions)
	return b
}

// of returns the policy set of a workload at one of its points.
func (b *setBuilder) of(wl *Workload, at *Point) (*hostpolicy.PolicySet, error) {
	if !wl.Managed {
		return b.unmanaged(), nil
	}
	held := wl.Quarantine.Level == model.QuarantineRestrict || wl.Quarantine.Level == model.QuarantineIsolate
	if set := b.byIdent[at.exact]; set != nil && !held {
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
	var out [2][]restriction
	for d := range out {
		ports := map[int32][]model.PortRange{}
		for _, edge := range q.InUse {
			if int(edge.Direction) != d {
				continue
			}
			peer := b.w.Workload(edge.Peer)
			if peer == nil {
				continue
			}
			seen := map[int32]bool{}
			for i := range peer.Points {
				if id := peer.Points[i].exact; !seen[id] {
					seen[id] = true
					ports[id] = append(ports[id], edge.Ports)
				}
			}
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

func (b *setBuilder) set(s *subject) (*hostpolicy.PolicySet, error) {
	var built [2]builtTable
	for _, d := range model.Directions {
		t, err := b.table(s, d)
		if err != nil {
			return nil, err
		}
		built[d] = t
	}
	return b.seal(built), nil
}

func (b *setBuilder) seal(built [2]builtTable) *hostpolicy.PolicySet {
	key := [2]int32{built[0].index, built[1].index}
	if set := b.bySet[key]; set != nil {
		return set
	}
	in, out := &built[model.Ingress], &built[model.Egress]
	set := &hostpolicy.PolicySet{ID: hostpolicy.SetID(in.hash, out.hash), Ingress: in.table, Egress: out.table}
	b.byID[set.ID] = set
	b.bySet[key] = set
	return set
}

// keep numbers a table. Tables of equal content get one number, whatever they were built from.
func (b *setBuilder) keep(t hostpolicy.Table) builtTable {
	hash := t.Hash()
	if same, ok := b.byHash[hash]; ok {
		return same
	}
	built := builtTable{int32(len(b.byHash)), hash, t}
	b.byHash[hash] = built
	return built
}

// table returns the table of a subject in one direction; subjects that differ in nothing that counts share it.
func (b *setBuilder) table(s *subject, d model.Direction) (builtTable, error) {
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
	t, err := b.tables.build(s, d)
	if err != nil {
		return builtTable{}, err
	}
	built := b.keep(t)
	b.byTable[string(b.key)] = built
	return built, nil
}

// unmanaged returns the set of workloads that nothing enforces on: they have no say.
func (b *setBuilder) unmanaged() *hostpolicy.PolicySet {
	const key = "unmanaged"
	t, ok := b.byTable[key]
	if !ok {
		f := hostpolicy.Func{{Ports: model.AnyPort, Verdict: model.Allow, Rule: model.RuleUnmanaged}}
		t = b.keep(hostpolicy.Table{Funcs: []hostpolicy.Func{f}})
		b.byTable[key] = t
	}
	return b.seal([2]builtTable{t, t})
}
