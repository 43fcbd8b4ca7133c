package compile

import (
	"slices"

	"bulkhead/internal/core/model"
)

// A Live world numbers label sets, terms and matches by slots that stay while they are in use, and knows both ways
// which term means which identity, so that a new label set finds its rules and a new rule its label sets.

// liveLabels is a label set in use.
type liveLabels struct {
	labels     model.Labels
	key        string
	refs       int     // workloads and identities
	workloads  int     // that have it
	identities []int32 // owned ones
	terms      []int32 // whose selectors select it
	profile    *profile
}

// liveTerm is a distinct term of the rules.
type liveTerm struct {
	Term
	key     string
	pivot   pivot
	members []int32 // identities, sorted
	matches []int32 // that have the term
}

// liveMatch is what a Live world knows of a match beside the lists in matches.
type liveMatch struct {
	key   string
	terms []int32
	refs  int
	// subject, by direction: some rule in force has the match as its subject.
	subject [2]bool
	// subjects, by direction: the subjects of the rules in force that have the match as their peer.
	subjects [2][]int32
	// tables, by direction: those of subjects that the match means.
	tables [2][]*liveTable
}

// slots hands out numbers that are free.
type slots struct{ free []int32 }

func (s *slots) take(next int) int32 {
	if n := len(s.free); n > 0 {
		at := s.free[n-1]
		s.free = s.free[:n-1]
		return at
	}
	return int32(next)
}

func insert(list []int32, x int32) []int32 {
	if n := len(list); n == 0 || list[n-1] < x {
		return append(list, x)
	}
	at, found := slices.BinarySearch(list, x)
	if found {
		return list
	}
	return slices.Insert(list, at, x)
}

func remove(list []int32, x int32) []int32 {
	if at, found := slices.BinarySearch(list, x); found {
		return slices.Delete(list, at, at+1)
	}
	return list
}

func has(list []int32, x int32) bool {
	_, found := slices.BinarySearch(list, x)
	return found
}

// add indexes a label set.
func (x *labelIndex) add(i int32, l model.Labels) {
	for int(i) >= len(x.sets) {
		x.sets = append(x.sets, nil)
	}
	x.sets[i] = l
	x.all = insert(x.all, i)
	for k, v := range l {
		x.byKey[k] = insert(x.byKey[k], i)
		x.byValue[labelPair{k, v}] = insert(x.byValue[labelPair{k, v}], i)
	}
}

func (x *labelIndex) drop(i int32) {
	x.all = remove(x.all, i)
	for k, v := range x.sets[i] {
		x.byKey[k] = remove(x.byKey[k], i)
		if p := (labelPair{k, v}); len(x.byValue[p]) > 1 {
			x.byValue[p] = remove(x.byValue[p], i)
		} else {
			delete(x.byValue, p)
		}
	}
	x.sets[i] = nil
}

// pivot is the condition of a selector under which selectorIndex keeps it: every label set that the selector selects
// has one of the pairs, or else the key; without either it may select any.
type pivot struct {
	pairs []labelPair
	key   string
}

// selectorIndex finds the selectors that may select a label set without looking at all of them.
type selectorIndex struct {
	byPair map[labelPair][]int32
	byKey  map[string][]int32
	others []int32
}

// pivotOf picks the condition that the fewest label sets meet.
func (x *labelIndex) pivotOf(s *model.Selector) pivot {
	var best pivot
	least := -1
	for i := range s.Requirements {
		r := &s.Requirements[i]
		c, ok := x.candidates(r)
		if !ok || least >= 0 && len(c) >= least {
			continue
		}
		least = len(c)
		best = pivot{key: r.Key}
		for _, v := range r.Values {
			best.pairs = append(best.pairs, labelPair{r.Key, v})
		}
	}
	return best
}

func (x *selectorIndex) each(p pivot, change func([]int32) []int32) {
	switch {
	case p.pairs != nil:
		for _, pair := range p.pairs {
			if list := change(x.byPair[pair]); len(list) > 0 {
				x.byPair[pair] = list
			} else {
				delete(x.byPair, pair)
			}
		}
	case p.key != "":
		x.byKey[p.key] = change(x.byKey[p.key])
	default:
		x.others = change(x.others)
	}
}

func (x *selectorIndex) add(term int32, p pivot) {
	x.each(p, func(l []int32) []int32 { return insert(l, term) })
}

func (x *selectorIndex) drop(term int32, p pivot) {
	x.each(p, func(l []int32) []int32 { return remove(l, term) })
}

// labelSet returns the slot of a label set, with one more reference to it.
func (l *Live) labelSet(labels model.Labels) int32 {
	l.buf, l.keys = labelKey(l.buf[:0], l.keys, labels)
	if at, ok := l.labelsByKey[string(l.buf)]; ok {
		l.labelSets[at].refs++
		return at
	}
	at := l.labelSlots.take(len(l.labelSets))
	if int(at) == len(l.labelSets) {
		l.labelSets = append(l.labelSets, liveLabels{})
	}
	s := &l.labelSets[at]
	*s = liveLabels{labels: labels, key: string(l.buf), refs: 1}
	l.labelsByKey[s.key] = at
	l.index.add(at, labels)
	find := func(terms []int32) {
		for _, t := range terms {
			if l.terms[t].Selector.Matches(labels) {
				s.terms = append(s.terms, t)
			}
		}
	}
	for k, v := range labels {
		find(l.selectors.byPair[labelPair{k, v}])
		find(l.selectors.byKey[k])
	}
	find(l.selectors.others)
	slices.Sort(s.terms)
	s.profile = l.profileOf(labels)
	return at
}

func (l *Live) dropLabelSet(at int32) {
	s := &l.labelSets[at]
	if s.refs--; s.refs > 0 {
		return
	}
	delete(l.labelsByKey, s.key)
	l.index.drop(at)
	*s = liveLabels{}
	l.labelSlots.free = append(l.labelSlots.free, at)
}

// term returns the slot of a term.
func (l *Live) term(t Term) int32 {
	key := t.Key()
	if at, ok := l.termsByKey[key]; ok {
		return at
	}
	at := l.termSlots.take(len(l.terms))
	if int(at) == len(l.terms) {
		l.terms = append(l.terms, liveTerm{})
	}
	n := &l.terms[at]
	*n = liveTerm{Term: t, key: key}
	l.termsByKey[key] = at
	if t.Selector == nil {
		for i := range l.netsets {
			if s := &l.netsets[i]; slices.Contains(s.names, t.Network) {
				n.members = append(n.members, s.identities...)
			}
		}
		slices.Sort(n.members)
		return at
	}
	n.pivot = l.index.pivotOf(t.Selector)
	l.selectors.add(at, n.pivot)
	for _, s := range l.index.find(t.Selector) {
		set := &l.labelSets[s]
		set.terms = insert(set.terms, at)
		n.members = append(n.members, set.identities...)
	}
	slices.Sort(n.members)
	return at
}

func (l *Live) dropTerm(at int32) {
	t := &l.terms[at]
	delete(l.termsByKey, t.key)
	if t.Selector != nil {
		l.selectors.drop(at, t.pivot)
		for _, s := range l.index.find(t.Selector) {
			l.labelSets[s].terms = remove(l.labelSets[s].terms, at)
		}
	}
	*t = liveTerm{}
	l.termSlots.free = append(l.termSlots.free, at)
}

// match returns the slot of a match.
func (l *Live) match(m *Match) int32 {
	key := m.key()
	if at, ok := l.matches.byKey[key]; ok {
		return at
	}
	at := l.matchSlots.take(len(l.matchInfo))
	if int(at) == len(l.matchInfo) {
		l.matchInfo = append(l.matchInfo, liveMatch{})
		l.matches.any = append(l.matches.any, false)
		l.matches.members = append(l.matches.members, nil)
	}
	n := &l.matchInfo[at]
	*n = liveMatch{key: key}
	l.matches.byKey[key] = at
	l.matches.any[at] = m.Any
	var members []int32
	for _, t := range m.Terms {
		slot := l.term(t)
		n.terms = append(n.terms, slot)
		l.terms[slot].matches = insert(l.terms[slot].matches, at)
		if members == nil {
			members = slices.Clone(l.terms[slot].members)
		} else {
			members = union(members, l.terms[slot].members)
		}
	}
	l.matches.members[at] = members
	for _, i := range members {
		l.meant[i] = insert(l.meant[i], at)
	}
	return at
}

func (l *Live) dropMatch(at int32) {
	n := &l.matchInfo[at]
	for _, i := range l.matches.members[at] {
		l.meant[i] = remove(l.meant[i], at)
	}
	for _, t := range n.terms {
		l.terms[t].matches = remove(l.terms[t].matches, at)
		if len(l.terms[t].matches) == 0 {
			l.dropTerm(t)
		}
	}
	delete(l.matches.byKey, n.key)
	l.matches.members[at] = nil
	*n = liveMatch{}
	l.matchSlots.free = append(l.matchSlots.free, at)
}

// profileOf returns how the segments keep a label set. Label sets that are kept alike share one.
func (l *Live) profileOf(labels model.Labels) *profile {
	var in []int32
	for _, s := range l.segments {
		if l.docs.Segments[s].Selector.Matches(labels) {
			in = append(in, s)
		}
	}
	return l.internProfile(newProfile(l.docs, in, l.services))
}

func (l *Live) internProfile(p *profile) *profile {
	l.buf = p.appendKey(l.buf[:0])
	if known, ok := l.profiles[string(l.buf)]; ok {
		return known
	}
	l.profiles[string(l.buf)] = p
	l.profileNumber[p] = uint32(len(l.profileNumber))
	return p
}

// appendKey appends what makes two profiles judge alike.
func (p *profile) appendKey(dst []byte) []byte {
	flag := func(b bool) {
		if b {
			dst = append(dst, 1)
		} else {
			dst = append(dst, 0)
		}
	}
	flag(p.denyDrops)
	dst = append(dst, byte(p.onLoss))
	for d := range p.defaults {
		def := &p.defaults[d]
		flag(def.closed)
		flag(def.drops)
		dst = append(dst, byte(len(def.selective)), byte(len(def.selective)>>8))
		for _, r := range def.selective {
			dst = append(dst, byte(r.Proto), byte(r.Lo), byte(r.Lo>>8), byte(r.Hi), byte(r.Hi>>8))
		}
	}
	return dst
}
