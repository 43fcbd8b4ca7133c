package prove

import (
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// of returns what a match means at an end where something of the kind stands: alternatives, none if it means nothing there.
func (s *space) of(end int, k kind, match int32) []conjunction {
	if list := s.conjunctions[end][k]; int(match) >= len(list) {
		s.conjunctions[end][k] = append(list, make([]knownMatch, len(s.matches)-len(list))...)
	}
	known := &s.conjunctions[end][k][match]
	if !known.known {
		known.known = true
		m := s.matches[match]
		if m.Any {
			known.conjunctions = []conjunction{nil}
		}
		for i := range m.Terms {
			known.conjunctions = append(known.conjunctions, s.term(end, k, &m.Terms[i])...)
		}
	}
	return known.conjunctions
}

func (s *space) term(end int, k kind, t *compile.Term) []conjunction {
	switch {
	case k == device:
		return []conjunction{{inBits(s.device(end), s.devicesOf(t))}}
	case t.Selector == nil:
		return []conjunction{{inBits(s.place(end), s.cellsOf(t.Network))}}
	case k == address:
		return nil
	}
	out := make(conjunction, 0, len(t.Selector.Requirements))
	for i := range t.Selector.Requirements {
		out = append(out, s.requirement(end, &t.Selector.Requirements[i]))
	}
	return []conjunction{out}
}

func (s *space) requirement(end int, r *model.Requirement) literal {
	n := s.keyIndex[r.Key]
	k := &s.keys[n]
	l := literal{variable: s.variable(end, int(n))}
	switch r.Op {
	case model.OpIn, model.OpNotIn:
		l.not = r.Op == model.OpNotIn
		for _, v := range r.Values {
			if i, ok := slices.BinarySearch(k.values, v); ok {
				l.values = append(l.values, int32(i))
			}
		}
	case model.OpExists, model.OpNotExists:
		l.not = r.Op == model.OpExists
		l.values = []int32{k.absent}
	}
	return l
}

func (s *space) cellsOf(network string) []uint64 {
	set, ok := s.networkBits[network]
	if !ok {
		set = make([]uint64, (len(s.cells)+64)/64)
		for i := range s.cells {
			if slices.Contains(s.cells[i].Networks, network) {
				set[i/64] |= 1 << (i % 64)
			}
		}
		s.networkBits[network] = set
	}
	return set
}

// devicesOf returns the devices that a term means.
func (s *space) devicesOf(t *compile.Term) []uint64 {
	if t.Selector == nil {
		return s.devicesWhere("n"+t.Network, func(id *model.Identity) bool { return slices.Contains(id.Networks, t.Network) })
	}
	set := slices.Clone(s.devicesWhere("", func(*model.Identity) bool { return true }))
	for i := range t.Selector.Requirements {
		r := &t.Selector.Requirements[i]
		for w, word := range s.devicesMeeting(r) {
			set[w] &= word
		}
	}
	return set
}

// devicesMeeting returns the devices whose labels meet the requirement.
func (s *space) devicesMeeting(r *model.Requirement) []uint64 {
	return s.devicesWhere("r"+r.String(), func(id *model.Identity) bool { return r.Matches(id.Labels) })
}

// devicesWhere returns the devices for which a condition holds, once for each key.
func (s *space) devicesWhere(key string, holds func(*model.Identity) bool) []uint64 {
	set, ok := s.deviceBits[key]
	if !ok {
		set = make([]uint64, (max(1, len(s.devices))+63)/64)
		for i, id := range s.devices {
			if holds(id) {
				set[i/64] |= 1 << (i % 64)
			}
		}
		s.deviceBits[key] = set
	}
	return set
}

// serving returns where, at an end, the networks of that purpose are; ok is false if they are nowhere.
func (s *space) serving(end int, k kind, purpose model.Purpose) (l literal, ok bool) {
	for i := range s.docs.Networks {
		n := &s.docs.Networks[i]
		if n.Purpose != purpose {
			continue
		}
		var next literal
		if k == device {
			next = inBits(s.device(end), s.devicesOf(&compile.Term{Network: n.Name}))
		} else {
			next = inBits(s.place(end), s.cellsOf(n.Name))
		}
		if ok {
			both := slices.Clone(l.bits)
			for w := range both {
				both[w] |= next.bits[w]
			}
			next = inBits(next.variable, both)
		}
		l, ok = next, true
	}
	return l, ok && l.count > 0
}

// knownMatch is what a match means, once it is known: any of the conjunctions.
type knownMatch struct {
	conjunctions []conjunction
	known        bool
}
