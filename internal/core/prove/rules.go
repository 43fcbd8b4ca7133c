package prove

import (
	"slices"
	"strconv"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// rule is a compiled rule with its numbers.
type rule struct {
	*compile.Rule
	subject, peer int32 // matches
	ports         int32 // sets of cuts
	twin          int32 // the rule of the other direction that says the same of the same flows; unset if there is none
}

// namePorts returns the inventory with workloads beside that give every port name a number in each piece of the ports, for
// a workload that could exist may give it any; nil if no rule names a port. A piece is told apart by no rule, so one number
// of it stands for all.
func (s *space) namePorts() *model.Inventory {
	named := map[model.NamedPort]bool{}
	for i := range s.docs.OneSided {
		for k := range s.docs.OneSided[i].Rules {
			for _, n := range s.docs.OneSided[i].Rules[k].Named {
				named[n] = true
			}
		}
	}
	if len(named) == 0 {
		return nil
	}
	inv := &model.Inventory{Instances: slices.Clone(s.world.Inventory().Instances)}
	for n := range named {
		number := func(port uint16) {
			inv.Instances = append(inv.Instances, model.Instance{Labels: model.Labels{n.PortLabel(): strconv.Itoa(int(port))}})
		}
		cut := false
		for _, p := range s.cuts.pieces {
			if p.Proto == n.Proto {
				cut = true
				number(p.Hi)
			}
		}
		if !cut {
			number(1)
		}
	}
	return inv
}

func (s *space) readRules(all [2][]compile.Rule) {
	for _, d := range model.Directions {
		compiled := all[d]
		for i := range compiled {
			if r := &compiled[i]; !r.Expired {
				s.rules[d] = append(s.rules[d], rule{Rule: r, subject: s.number(&r.Subject), peer: s.number(&r.Peer), twin: unset})
			}
		}
	}
}

// number interns a match.
func (s *space) number(m *compile.Match) int32 {
	var b strings.Builder
	if m.Any {
		b.WriteString("any")
	}
	for _, t := range m.Terms {
		b.WriteString(t.Key())
		b.WriteByte(0)
	}
	n, ok := s.matchIndex[b.String()]
	if !ok {
		n = int32(len(s.matches))
		s.matchIndex[b.String()] = n
		s.matches = append(s.matches, m)
	}
	return n
}

// findTwins pairs the rules that say the same at both ends. Of those, one that allows at one end allows at the other, and
// one that denies need be looked at once.
func (s *space) findTwins() {
	named := map[model.RuleID]int32{}
	for i := range s.rules[model.Ingress] {
		id := s.rules[model.Ingress][i].ID
		if _, twice := named[id]; twice {
			named[id] = unset
		} else {
			named[id] = int32(i)
		}
	}
	count := map[model.RuleID]int{}
	for i := range s.rules[model.Egress] {
		count[s.rules[model.Egress][i].ID]++
	}
	for i := range s.rules[model.Egress] {
		out := &s.rules[model.Egress][i]
		n, ok := named[out.ID]
		if !ok || n == unset || count[out.ID] > 1 {
			continue
		}
		in := &s.rules[model.Ingress][n]
		if out.Stage == in.Stage && out.Priority == in.Priority && out.Action == in.Action && out.ports == in.ports &&
			out.subject == in.peer && out.peer == in.subject && plain(out.Rule) && plain(in.Rule) {
			out.twin, in.twin = n, int32(i)
		}
	}
}

// plain reports whether a rule asks for nothing but labels, addresses and ports.
func plain(r *compile.Rule) bool { return r.SubjectProcess == nil }
