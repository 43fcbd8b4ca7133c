package budget

import (
	"cmp"
	"fmt"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

// shares returns which policy sets and which rules take most of a resource.
func shares(p *hostpolicy.Policy, w *compile.World, r Resource) ([]SetShare, []RuleShare) {
	switch r {
	case Rows, Ranges:
		return setShares(p, w, r), largest(written(ruleRows(p, r), w))
	case Addresses, Prefixes:
		return nil, largest(written(ruleAddresses(p, r), w))
	}
	return nil, nil
}

// written leaves out the rules that no document has: nobody can change those.
func written(takes map[model.RuleID]int, w *compile.World) map[model.RuleID]int {
	out := map[model.RuleID]int{}
	for _, d := range model.Directions {
		rules := w.Rules(d)
		for i := range rules {
			if n := takes[rules[i].ID]; n > 0 {
				out[rules[i].ID] = n
			}
		}
	}
	return out
}

func setShares(p *hostpolicy.Policy, w *compile.World, r Resource) []SetShare {
	var out []SetShare
	for i := range p.Sets {
		s := &p.Sets[i]
		if n := OfSet(s)[r]; n > 0 {
			share := judgedBy(p, w, s.ID)
			share.Set, share.Takes = fmt.Sprintf("%016x", uint64(s.ID)), n
			out = append(out, share)
		}
	}
	slices.SortFunc(out, func(a, b SetShare) int { return cmp.Or(cmp.Compare(b.Takes, a.Takes), cmp.Compare(a.Set, b.Set)) })
	return out[:min(len(out), namedSets)]
}

// judgedBy says whom a policy set judges: the first subject that it judges everywhere, or else at some addresses, or
// else while isolated.
func judgedBy(p *hostpolicy.Policy, w *compile.World, id hostpolicy.PolicySetID) SetShare {
	of := func(s *hostpolicy.Subject) SetShare {
		share := SetShare{Of: s.Workload}
		if wl := w.Workload(s.Workload); wl != nil {
			share.Labels = wl.Labels.String()
		}
		return share
	}
	var local, alone *hostpolicy.Subject
	for i := range p.Subjects {
		s := &p.Subjects[i]
		switch {
		case s.Set == id:
			return of(s)
		case local == nil && slices.ContainsFunc(s.Local, func(l hostpolicy.LocalSet) bool { return l.Set == id }):
			local = s
		case alone == nil && s.Isolation == id:
			alone = s
		}
	}
	if local != nil {
		share := of(local)
		share.Local = true
		return share
	}
	share := of(alone) // Check accepts no set that nobody names
	share.Alone = true
	return share
}

// ruleRows counts, for each rule, the entries of functions that name it, and for Rows also the peers whose function names
// it while the function of everybody else does not.
func ruleRows(p *hostpolicy.Policy, r Resource) map[model.RuleID]int {
	out := map[model.RuleID]int{}
	for i := range p.Sets {
		for _, d := range model.Directions {
			t := p.Sets[i].Table(d)
			own := ownRules(t)
			for _, f := range t.Funcs {
				for _, e := range portmap.Lower(f) {
					if e.IsRange() == (r == Ranges) {
						out[e.Cell.Rule]++
					}
				}
			}
			for _, peer := range t.Peers {
				for _, id := range own[peer.Func] {
					if r == Rows {
						out[id]++
					}
				}
			}
		}
	}
	return out
}

// ownRules returns, for each function of a table, the rules that it names and the default function does not.
func ownRules(t *hostpolicy.Table) [][]model.RuleID {
	out := make([][]model.RuleID, len(t.Funcs))
	common := named(t.Funcs[0])
	for i, f := range t.Funcs {
		for id := range named(f) {
			if !common[id] {
				out[i] = append(out[i], id)
			}
		}
	}
	return out
}

// ruleAddresses counts, for each rule, the addresses or prefixes that are listed because of peers whose function names it.
func ruleAddresses(p *hostpolicy.Policy, r Resource) map[model.RuleID]int {
	listed := map[model.IdentityID]int{}
	for i := range p.Addresses {
		if a := &p.Addresses[i]; a.Prefix.IsSingleIP() == (r == Addresses) {
			listed[a.Identity]++
		}
	}
	type pair struct {
		rule model.RuleID
		peer model.IdentityID
	}
	seen := map[pair]bool{}
	out := map[model.RuleID]int{}
	for i := range p.Sets {
		for _, d := range model.Directions {
			t := p.Sets[i].Table(d)
			own := ownRules(t)
			for _, peer := range t.Peers {
				for _, id := range own[peer.Func] {
					if k := (pair{id, peer.Peer}); !seen[k] {
						seen[k] = true
						out[id] += listed[peer.Peer]
					}
				}
			}
		}
	}
	for id, n := range out {
		if n == 0 {
			delete(out, id)
		}
	}
	return out
}
