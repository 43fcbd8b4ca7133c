package compile

import (
	"slices"

	"bulkhead/internal/core/model"
)

// labelIndex finds the label sets that a selector selects without looking at all of them.
type labelIndex struct {
	sets    []model.Labels
	all     []int32
	byKey   map[string][]int32
	byValue map[labelPair][]int32
}

type labelPair struct{ key, value string }

func newLabelIndex(sets []model.Labels) *labelIndex {
	x := &labelIndex{
		sets:    sets,
		all:     make([]int32, len(sets)),
		byKey:   map[string][]int32{},
		byValue: map[labelPair][]int32{},
	}
	for i, l := range sets {
		x.all[i] = int32(i)
		for k, v := range l {
			x.byKey[k] = append(x.byKey[k], int32(i))
			x.byValue[labelPair{k, v}] = append(x.byValue[labelPair{k, v}], int32(i))
		}
	}
	return x
}

// find returns the label sets that the selector selects, sorted.
func (x *labelIndex) find(s *model.Selector) []int32 {
	if s.Empty() {
		return x.all
	}
	candidates, by := x.all, -1
	for i := range s.Requirements {
		if c, ok := x.candidates(&s.Requirements[i]); ok && (by < 0 || len(c) < len(candidates)) {
			candidates, by = c, i
		}
	}
	if by >= 0 && len(s.Requirements) == 1 {
		return candidates
	}
	var out []int32
	for _, c := range candidates {
		if x.meets(s, by, x.sets[c]) {
			out = append(out, c)
		}
	}
	return out
}

// candidates returns exactly the label sets that meet one requirement, where an index tells.
func (x *labelIndex) candidates(r *model.Requirement) ([]int32, bool) {
	switch r.Op {
	case model.OpExists:
		return x.byKey[r.Key], true
	case model.OpIn:
		if len(r.Values) == 1 {
			return x.byValue[labelPair{r.Key, r.Values[0]}], true
		}
		var out []int32
		for _, v := range r.Values {
			out = append(out, x.byValue[labelPair{r.Key, v}]...)
		}
		slices.Sort(out)
		return slices.Compact(out), true
	}
	return nil, false
}

// meets reports whether the labels meet every requirement but the one that is known to be met.
func (x *labelIndex) meets(s *model.Selector, known int, l model.Labels) bool {
	for i := range s.Requirements {
		if i != known && !s.Requirements[i].Matches(l) {
			return false
		}
	}
	return true
}

// matches numbers the distinct matches of the rules and knows the identities that each means.
type matches struct {
	byKey map[string]int32
	terms map[string][]int32 // identities of one term, by its key
	any   []bool
	// members lists the identities of a match, sorted; nil for any.
	members [][]int32
}

// resolver of terms into identities.
type termResolver struct {
	index  *labelIndex
	ids    *identities
	byName map[string][]int32 // network to the identities of addresses in it
}

func newTermResolver(ids *identities, nets *partition) *termResolver {
	r := &termResolver{index: newLabelIndex(ids.labels), ids: ids, byName: make(map[string][]int32, len(nets.names))}
	for i, s := range nets.netsets {
		for _, name := range s.names {
			r.byName[name] = append(r.byName[name], ids.byNetset[i]...)
		}
	}
	for _, list := range r.byName {
		slices.Sort(list)
	}
	return r
}

func (r *termResolver) resolve(t Term) []int32 {
	if t.Selector == nil {
		return r.byName[t.Network]
	}
	var out []int32
	for _, set := range r.index.find(t.Selector) {
		out = append(out, r.ids.byLabels[set]...)
	}
	slices.Sort(out)
	return out
}

// add numbers a match.
func (m *matches) add(r *termResolver, match *Match) int32 {
	key := match.key()
	if i, ok := m.byKey[key]; ok {
		return i
	}
	i := int32(len(m.members))
	m.byKey[key] = i
	m.any = append(m.any, match.Any)
	var list []int32
	for k, t := range match.Terms {
		termKey := t.Key()
		found, ok := m.terms[termKey]
		if !ok {
			found = r.resolve(t)
			m.terms[termKey] = found
		}
		if k == 0 {
			list = found
		} else {
			list = union(list, found)
		}
	}
	m.members = append(m.members, list)
	return i
}
