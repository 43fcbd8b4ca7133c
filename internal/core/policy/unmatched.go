package policy

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// population is the inventory as hygiene asks about it: distinct label sets, and what keys and values there are.
type population struct {
	sets   []model.Labels
	keys   []string            // sorted
	values map[string][]string // of each key, sorted
	known  map[string]bool     // selectors by their text: whether somebody meets them
}

func newPopulation(inv *model.Inventory) *population {
	p := &population{values: map[string][]string{}, known: map[string]bool{}}
	seen := map[string]bool{}
	for i := range inv.Instances {
		l := inv.Instances[i].Labels
		if text := l.String(); !seen[text] {
			seen[text] = true
			p.sets = append(p.sets, l)
		}
	}
	for _, l := range p.sets {
		for _, k := range l.Keys() {
			if _, ok := p.values[k]; !ok {
				p.keys = append(p.keys, k)
			}
			p.values[k] = append(p.values[k], l[k])
		}
	}
	slices.Sort(p.keys)
	for k, v := range p.values {
		slices.Sort(v)
		p.values[k] = slices.Compact(v)
	}
	return p
}

func (p *population) matches(s *model.Selector) bool {
	text := s.String()
	found, ok := p.known[text]
	if !ok {
		found = slices.ContainsFunc(p.sets, s.Matches)
		p.known[text] = found
	}
	return found
}

// why says why nobody meets the selector, and what was likely meant.
func (p *population) why(s *model.Selector) string {
	for i := range s.Requirements {
		r := &s.Requirements[i]
		if slices.ContainsFunc(p.sets, r.Matches) {
			continue
		}
		if r.Op == model.OpIn || r.Op == model.OpExists {
			if _, ok := p.values[r.Key]; !ok {
				return "no workload has a label named " + r.Key + didYouMean(r.Key, p.keys)
			}
		}
		hint := ""
		if r.Op == model.OpIn && len(r.Values) == 1 {
			hint = didYouMean(r.Values[0], p.values[r.Key])
		}
		return "no workload meets " + r.String() + hint
	}
	return "no workload meets all of it at once"
}

// system reports whether the selector asks for labels that the system sets and takes away as things happen.
func system(s *model.Selector) bool {
	return slices.ContainsFunc(s.Requirements, func(r model.Requirement) bool {
		return strings.HasPrefix(r.Key, model.SystemLabelPrefix)
	})
}

// unmatched finds selectors that nobody of the inventory meets, and cases about workloads that do not exist.
func (h *hygiene) unmatched(inv *model.Inventory) {
	p := newPopulation(inv)
	const fix = "mend the selector, label the workloads, or remove it"
	peers := func(s Severity, what string, list []model.Peer) {
		for i := range list {
			x := &list[i]
			if x.Kind == model.PeerWorkloads && !system(&x.Workloads) && !p.matches(&x.Workloads) {
				h.add(x.Pos, s, CodeNeverMatches, fix, "%q in %s matches nobody: %s", x.Workloads.String(), what, p.why(&x.Workloads))
			}
		}
	}
	h.rules(func(id model.RuleID, r *model.Rule) {
		severity := Warning
		if r.Action == model.ActionDeny {
			severity = Notice // may well stand guard against what is not there yet
		}
		peers(severity, "the rule "+string(id), r.From)
		peers(severity, "the rule "+string(id), r.To)
	})
	for i := range h.docs.Guardrails {
		g := &h.docs.Guardrails[i]
		peers(Notice, "the guardrail "+g.Name, g.From)
		peers(Notice, "the guardrail "+g.Name, g.To)
	}
	for i := range h.docs.Segments {
		s := &h.docs.Segments[i]
		if !system(&s.Selector) && !p.matches(&s.Selector) {
			h.add(s.Pos, Warning, CodeNeverMatches, fix, "segment %q has no members: %s", s.Name, p.why(&s.Selector))
		}
	}
	h.strangers(inv)
}

// strangers finds cases of expectations that name neither a workload nor an address.
func (h *hygiene) strangers(inv *model.Inventory) {
	all := newNames(inv.Instances, func(i *model.Instance) string { return i.Name })
	for i := range h.docs.Expectations {
		for _, c := range h.docs.Expectations[i].Cases {
			for _, name := range []string{c.From, c.To} {
				if _, err := netip.ParseAddr(name); err == nil || all.has[name] {
					continue
				}
				h.add(c.Pos, Warning, CodeNeverMatches, "name a workload or an address that exists",
					"the case names %q, which is no workload%s", name, all.hint(name, ""))
			}
		}
	}
}
