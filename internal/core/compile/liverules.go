package compile

import (
	"maps"
	"slices"

	"bulkhead/internal/core/model"
)

// portValuesOf returns the numbers of the ports that the documents name.
func (l *Live) portValuesOf(docs *model.Documents) portValues {
	named := namedPorts(docs)
	for key := range named {
		for _, set := range l.index.byKey[key] {
			if s := &l.labelSets[set]; s.workloads > 0 {
				named.add(model.Labels{key: s.labels[key]})
			}
		}
	}
	named.sort()
	return named
}

func (p portValues) equal(o portValues) bool { return maps.EqualFunc(p, o, slices.Equal) }

// documentsPlan is what lowered documents ask for in the world of the moment.
type documentsPlan struct {
	*lowered
	old, new [2][]int32 // rules of the present ones and of the lowered ones that differ
	nets     *partition // nil: as it is
	segments bool       // segments, or services that they name, may differ
	index    []*profile // if segments: by label set in use
	services map[int32][]model.PortRange
	byName   []int32
}

// sameList reports whether two lists are one in memory: documents of one generation share what did not change.
func sameList[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// plan compares lowered documents with the present ones.
func (l *Live) plan(x *lowered) *documentsPlan {
	p := &documentsPlan{lowered: x}
	docs := x.docs
	for d := range p.rules {
		p.old[d], p.new[d] = compareRules(l.rules[d], p.rules[d])
	}
	if !sameList(docs.Networks, l.docs.Networks) || p.otherNetworks(l) {
		if nets := newPartition(docs, &p.rules); !nets.equal(l.nets) {
			p.nets = nets
		}
	}
	if !sameList(docs.Segments, l.docs.Segments) || !sameList(docs.Services, l.docs.Services) {
		p.segments = true
		p.index = profiles(docs, x.lowering, l.index)
		p.services = map[int32][]model.PortRange{}
		for i := range docs.Segments {
			p.byName = append(p.byName, int32(i))
			if s := &docs.Segments[i]; s.Mode == model.ModeSelective {
				p.services[int32(i)] = x.ports("", s.Services)
			}
		}
		slices.SortStableFunc(p.byName, func(a, b int32) int { return compareNames(docs.Segments[a].Name, docs.Segments[b].Name) })
	}
	return p
}

// otherNetworks reports whether the rules may name networks that those of before do not, or the reverse.
func (p *documentsPlan) otherNetworks(l *Live) bool {
	named := map[string]bool{}
	other := false
	for d := range p.rules {
		for _, i := range p.new[d] {
			p.rules[d][i].eachNetwork(func(name string) {
				named[name] = true
				_, known := slices.BinarySearch(l.nets.names, name)
				other = other || !known
			})
		}
	}
	for d := range p.rules {
		for _, i := range p.old[d] {
			l.rules[d][i].eachNetwork(func(name string) { other = other || !named[name] })
		}
	}
	return other
}

// equal reports whether two partitions give every address the same networks, for the same purposes.
func (p *partition) equal(o *partition) bool {
	if !slices.Equal(p.names, o.names) || !slices.Equal(p.purposes, o.purposes) || len(p.cells) != len(o.cells) {
		return false
	}
	for i := range p.cells {
		a, b := &p.cells[i], &o.cells[i]
		if a.prefix != b.prefix || !slices.Equal(p.netsets[a.netset].networks, o.netsets[b.netset].networks) {
			return false
		}
	}
	return slices.EqualFunc(p.classes, o.classes, func(a, b *domainClass) bool {
		return a.pattern == b.pattern && slices.Equal(a.networks, b.networks)
	})
}

// same reports whether two rules judge alike.
func (r *Rule) same(o *Rule) bool {
	return r.ID == o.ID && r.Stage == o.Stage && r.Priority == o.Priority && r.Action == o.Action && r.Drops == o.Drops && r.Expired == o.Expired &&
		sameProcess(r.SubjectProcess, o.SubjectProcess) &&
		slices.Equal(r.Ports, o.Ports) && r.Subject.same(&o.Subject) && r.Peer.same(&o.Peer)
}

func sameProcess(a, b *model.Process) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (m *Match) same(o *Match) bool {
	return m.Any == o.Any && slices.EqualFunc(m.Terms, o.Terms, func(a, b Term) bool {
		switch {
		case (a.Selector == nil) != (b.Selector == nil):
			return false
		case a.Selector == nil || a.Selector == b.Selector:
			return a.Network == b.Network
		}
		return slices.EqualFunc(a.Selector.Requirements, b.Selector.Requirements, func(x, y model.Requirement) bool {
			return x.Key == y.Key && x.Op == y.Op && slices.Equal(x.Values, y.Values)
		})
	})
}

// compareRules returns which of the old rules are gone and which of the new ones are new, so that all others are the
// same in the same order, and lets those of the new have the numbers of the old.
func compareRules(old, now []*Rule) (gone, added []int32) {
	keep := func(o, n *Rule) bool {
		if o == n {
			return true
		}
		if !o.same(n) {
			return false
		}
		n.name, n.subject, n.peer = o.name, o.subject, o.peer
		return true
	}
	begin := 0
	for begin < len(old) && begin < len(now) && keep(old[begin], now[begin]) {
		begin++
	}
	end := 0
	for end < len(old)-begin && end < len(now)-begin && keep(old[len(old)-1-end], now[len(now)-1-end]) {
		end++
	}
	left := map[model.RuleID][]int32{}
	for i := begin; i < len(old)-end; i++ {
		left[old[i].ID] = append(left[old[i].ID], int32(i))
	}
	kept := make(map[int32]bool)
	last := int32(-1)
	for i := begin; i < len(now)-end; i++ {
		found := false
		for _, o := range left[now[i].ID] {
			if o > last && keep(old[o], now[i]) {
				kept[o], found, last = true, true, o
				break
			}
		}
		if !found {
			added = append(added, int32(i))
		}
	}
	for i := begin; i < len(old)-end; i++ {
		if !kept[int32(i)] {
			gone = append(gone, int32(i))
		}
	}
	return gone, added
}

// dirtyPeers are the peers that changed rules of one subject speak about.
type dirtyPeers struct {
	all   bool
	peers []int32
}

// adopt puts the rules of a plan in force and notes whom they concern. Joining and leaving workloads are there and gone
// already.
func (b *batch) adopt(p *documentsPlan) {
	l := b.Live
	concern := func(d int, r *Rule) {
		if r.Expired {
			return
		}
		of := b.dirtyPeers[d][r.subject]
		if of == nil {
			of = &dirtyPeers{}
			b.dirtyPeers[d][r.subject] = of
		}
		if l.matches.any[r.peer] {
			of.all = true
		} else {
			of.peers = append(of.peers, l.matches.members[r.peer]...)
		}
	}
	for d := range p.rules {
		for _, i := range p.old[d] {
			concern(d, l.rules[d][i])
		}
		for _, i := range p.new[d] {
			r := p.rules[d][i]
			if r.Expired {
				continue
			}
			r.name = l.functions.name(r.ID)
			r.subject, r.peer = l.match(&r.Subject), l.match(&r.Peer)
			concern(d, r)
		}
	}
	for d, bySubject := range b.dirtyPeers {
		for m := range bySubject {
			for _, t := range l.matchInfo[m].tables[d] {
				b.catchUp(t) // by the rules of before
			}
		}
	}
	b.regroup(p)
	for d, bySubject := range b.dirtyPeers {
		for m, dirty := range bySubject {
			for _, t := range l.matchInfo[m].tables[d] {
				t.rebuild = t.rebuild || dirty.all
				t.pending = append(t.pending, dirty.peers...)
				b.queue(t)
			}
		}
	}
}

// regroup puts the rules of a plan in force and brings up to date what is known of matches from them.
func (b *batch) regroup(p *documentsPlan) {
	l := b.Live
	before := l.rules
	l.rules, l.builder.rules = p.rules, p.rules
	l.memo = p.memo
	var judged [2][]int32 // matches of which rules are the subject, or were
	for d := range l.rules {
		l.builder.groups[d] = groupRules(len(l.matchInfo), l.rules[d])
		for _, i := range p.old[d] {
			r := before[d][i]
			if r.Expired {
				continue
			}
			l.matchInfo[r.subject].refs--
			l.matchInfo[r.peer].refs--
			judged[d] = append(judged[d], r.subject)
			b.unruled = append(b.unruled, r.subject, r.peer)
			still := slices.ContainsFunc(l.builder.groups[d][r.subject], func(at int32) bool { return l.rules[d][at].peer == r.peer })
			if peer := &l.matchInfo[r.peer]; !still {
				peer.subjects[d] = remove(peer.subjects[d], r.subject)
			}
		}
		for _, i := range p.new[d] {
			r := l.rules[d][i]
			if r.Expired {
				continue
			}
			l.matchInfo[r.subject].refs++
			l.matchInfo[r.peer].refs++
			judged[d] = append(judged[d], r.subject)
			if !l.matches.any[r.peer] {
				peer := &l.matchInfo[r.peer]
				peer.subjects[d] = insert(peer.subjects[d], r.subject)
			}
		}
	}
	for d, list := range judged {
		for _, m := range list {
			b.subjectOfRules(m, d)
		}
	}
}

// subjectOfRules notes whether some rule has the match as its subject, and whom it concerns if that is new.
func (b *batch) subjectOfRules(m int32, d int) {
	l := b.Live
	is := len(l.builder.groups[d][m]) > 0
	if l.matchInfo[m].subject[d] == is {
		return
	}
	l.matchInfo[m].subject[d] = is
	if l.matches.any[m] {
		for _, j := range l.judges {
			if j.identity >= 0 {
				b.doubtJudge(j)
			}
		}
		return
	}
	for _, at := range l.matches.members[m] {
		for _, j := range l.judgeOf[at] {
			b.doubtJudge(j)
		}
	}
}

// resegment gives label sets the profiles of other segments.
func (b *batch) resegment(p *documentsPlan) {
	l := b.Live
	l.segments, l.services = p.byName, p.services
	interned := map[*profile]*profile{}
	changed := map[int32]bool{}
	for at := range l.labelSets {
		s := &l.labelSets[at]
		if s.refs == 0 || at >= len(p.index) {
			continue
		}
		now, ok := interned[p.index[at]]
		if !ok {
			now = l.internProfile(p.index[at])
			interned[p.index[at]] = now
		}
		if s.profile == now {
			continue
		}
		s.profile = now
		changed[int32(at)] = true
		for _, i := range s.identities {
			for _, j := range l.judgeOf[i] {
				b.doubtJudge(j)
			}
		}
	}
	if len(changed) == 0 {
		return
	}
	for _, g := range l.groups {
		if slices.ContainsFunc(g.subjects, func(s groupSubject) bool { return changed[s.labels] }) {
			b.alter(g)
		}
	}
}
