package prove

import (
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// labelClasses returns one label set of each class of label sets that the selectors cannot tell apart: those that exactly the
// same selectors select. ok is false if there are more than most classes, or if finding them takes too much.
//
// Keys are looked at one after the other. All that counts of the values chosen so far is which selectors may still be met, so
// choices that agree about that are one.
func (s *space) labelClasses(selectors []*model.Selector, most int) (sets []model.Labels, ok bool) {
	keys := s.keysOf(selectors)
	states := []choiceOf{{alive: make([]uint64, (len(selectors)+63)/64)}}
	for i := range selectors {
		states[0].alive[i/64] |= 1 << (i % 64)
	}
	for _, k := range keys {
		seen := map[string]bool{}
		var next []choiceOf
		for _, st := range states {
			for _, v := range k.values {
				to := choiceOf{alive: slices.Clone(st.alive), before: &st}
				for w := range to.alive {
					to.alive[w] &^= v.kills[w]
				}
				text := bitsKey(to.alive)
				if seen[text] {
					continue
				}
				seen[text] = true
				to.key, to.value, to.absent = k.name, v.text, v.absent
				if next = append(next, to); len(next) > most {
					return nil, false
				}
			}
		}
		states = next
	}
	for i := range states {
		labels := model.Labels{}
		for at := &states[i]; at.before != nil; at = at.before {
			if !at.absent {
				labels[at.key] = at.value
			}
		}
		sets = append(sets, labels)
	}
	return sets, true
}

// choiceOf is a choice of values for some keys, as the list of its choices.
type choiceOf struct {
	alive      []uint64 // the selectors that may still be met
	before     *choiceOf
	key, value string
	absent     bool
}

// keyValues are the values of a key, or none, that selectors tell apart.
type keyValues struct {
	name   string
	values []keyValue
}

type keyValue struct {
	text   string
	absent bool
	kills  []uint64 // the selectors that are not met
}

func bitsKey(set []uint64) string {
	var b strings.Builder
	for _, w := range set {
		for i := range 8 {
			b.WriteByte(byte(w >> (8 * i)))
		}
	}
	return b.String()
}

// keysOf lists the keys that selectors ask for, those that most of them ask for first, with one value for each set of selectors
// that it fails.
func (s *space) keysOf(selectors []*model.Selector) []keyValues {
	asked := make([][]struct {
		selector int
		literal
	}, s.labels)
	for i, sel := range selectors {
		for r := range sel.Requirements {
			l := s.requirement(0, &sel.Requirements[r])
			asked[l.variable] = append(asked[l.variable], struct {
				selector int
				literal
			}{i, l})
		}
	}
	var order []int
	for n := range asked {
		if len(asked[n]) > 0 {
			order = append(order, n)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(asked[b]) - len(asked[a]) })
	var out []keyValues
	for _, n := range order {
		k := &s.keys[n]
		kv := keyValues{name: k.name}
		seen := map[string]bool{}
		for i := range k.size {
			v := k.size - 1 - i // none at all is the simplest
			if !k.possible(v) {
				continue
			}
			value := keyValue{absent: v == k.absent, kills: make([]uint64, (len(selectors)+63)/64)}
			for i := range asked[n] {
				if a := &asked[n][i]; !a.met(v) {
					value.kills[a.selector/64] |= 1 << (a.selector % 64)
				}
			}
			text := bitsKey(value.kills)
			if seen[text] {
				continue
			}
			seen[text] = true
			if !value.absent {
				value.text = k.value(v)
			}
			kv.values = append(kv.values, value)
		}
		out = append(out, kv)
	}
	return out
}

// possible reports whether a workload that an agent enforces on may have the value.
func (k *keyDomain) possible(v int32) bool {
	switch {
	case strings.HasPrefix(k.name, model.PortLabelPrefix):
		return v != k.other // numbers of ports are all there is
	case k.name == unmanagedLabel:
		return v == k.absent
	}
	return true
}

// unmanagedLabel is the key by which compiled rules tell workloads apart that nothing enforces on.
const unmanagedLabel = model.SystemLabelPrefix + "unmanaged"
