package budget

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// How many sets and rules a problem names.
const (
	namedSets  = 3
	namedRules = 5
)

// check returns what the target cannot hold of a policy and of the change to it. The world knows the subjects' labels.
func (t *Target) check(before, after *hostpolicy.Policy, w *compile.World) []Problem {
	var out []Problem
	alone, both, was := Of(after), Between(before, after), Of(before)
	for r := range All() {
		p := Problem{Kind: ProblemSize, What: r.String(), Have: alone[r], May: t.Max[r], Before: was[r] > t.Max[r], Next: next[r]}
		switch {
		case alone[r] > t.Max[r]:
		case both[r] > t.Max[r]:
			p.Have, p.Change, p.Before, p.Next = both[r], true, false, nextChange
		default:
			continue
		}
		p.Sets, p.Rules = shares(after, w, r)
		out = append(out, p)
	}
	if rules := processRules(after); len(rules) > 0 && t.MaxAlternatives == 0 {
		out = append(out, Problem{
			Kind: ProblemProcesses, What: "rules for some processes", Have: len(rules), Before: subset(rules, processRules(before)),
			Rules: firstRules(rules), Next: "leave process out, or declare the unit as a workload",
		})
	}
	if n := mostOf(after); n > t.MaxAlternatives && t.MaxAlternatives > 0 {
		out = append(out, Problem{
			Kind: ProblemSize, What: "rules for some processes that apply to one peer and port", Have: n, May: t.MaxAlternatives,
			Before: mostOf(before) >= n, Rules: firstRules(processRules(after)), Next: next[Alternatives],
		})
	}
	if rules := domainRules(after); len(after.Domains) > 0 && !t.Domains {
		out = append(out, Problem{
			Kind: ProblemDomains, What: "rules naming hosts", Have: len(rules), Before: len(before.Domains) > 0 && subset(rules, domainRules(before)),
			Rules: firstRules(rules), Next: "name the addresses by cidr or network",
		})
	}
	out = append(out, t.names(before, after)...)
	return out
}

// names finds what has too long a name.
func (t *Target) names(before, after *hostpolicy.Policy) []Problem {
	var out []Problem
	add := func(what, name string, rule model.RuleID, there bool) {
		p := Problem{Kind: ProblemName, What: fmt.Sprintf("%s %s: a name", what, name), Have: len(name), May: t.MaxName, Before: there, Next: "give it a shorter name"}
		if rule != "" {
			p.Rules = []RuleShare{{rule, len(name)}}
		}
		out = append(out, p)
	}
	for i := range after.Subjects {
		name := after.Subjects[i].Workload
		if len(name) > t.MaxName {
			add("workload", name, "", slices.ContainsFunc(before.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == name }))
		}
	}
	was, is := rulesOf(before), rulesOf(after)
	for _, id := range slices.Sorted(maps.Keys(is)) {
		if len(id) > t.MaxName {
			add("rule", string(id), id, was[id])
		}
	}
	return out
}

func rulesOf(p *hostpolicy.Policy) map[model.RuleID]bool {
	out := map[model.RuleID]bool{}
	for i := range p.Sets {
		eachRule(&p.Sets[i], func(id model.RuleID) { out[id] = true })
	}
	return out
}

// mostAlternatives returns the most alternatives of one cell of the function.
func mostAlternatives(f hostpolicy.Func) (n int) {
	for k := range f {
		n = max(n, len(f[k].When))
	}
	return n
}

func mostOf(p *hostpolicy.Policy) (n int) {
	for i := range p.Sets {
		for _, d := range model.Directions {
			for _, f := range p.Sets[i].Table(d).Funcs {
				n = max(n, mostAlternatives(f))
			}
		}
	}
	return n
}

// processRules returns the rules that depend on the process at the host's end, sorted.
func processRules(p *hostpolicy.Policy) []model.RuleID {
	found := map[model.RuleID]bool{}
	for i := range p.Sets {
		for a := range p.Sets[i].Alternatives() {
			found[a.Rule] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// domainRules returns the rules that decide about an address because of its name, sorted: those in the function of what
// it is by its name, and not in that of what it is without.
func domainRules(p *hostpolicy.Policy) []model.RuleID {
	found := map[model.RuleID]bool{}
	for i := range p.Sets {
		t := &p.Sets[i].Egress
		for _, d := range p.Domains {
			bare := named(t.Find(d.Base))
			for id := range named(t.Find(d.Identity)) {
				if !bare[id] {
					found[id] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// named returns the rules that a function names.
func named(f hostpolicy.Func) map[model.RuleID]bool {
	out := map[model.RuleID]bool{}
	for k := range f {
		out[f[k].Rule] = true
		for _, a := range f[k].When {
			out[a.Rule] = true
		}
	}
	return out
}

func subset(a, b []model.RuleID) bool {
	return !slices.ContainsFunc(a, func(id model.RuleID) bool {
		_, ok := slices.BinarySearch(b, id)
		return !ok
	})
}

func firstRules(ids []model.RuleID) []RuleShare {
	var out []RuleShare
	for _, id := range ids[:min(len(ids), namedRules)] {
		out = append(out, RuleShare{id, 1})
	}
	return out
}

// largest sorts by what is taken, and returns the first few.
func largest(takes map[model.RuleID]int) []RuleShare {
	var out []RuleShare
	for id, n := range takes {
		out = append(out, RuleShare{id, n})
	}
	slices.SortFunc(out, func(a, b RuleShare) int {
		return cmp.Or(cmp.Compare(b.Takes, a.Takes), cmp.Compare(a.Rule, b.Rule))
	})
	return out[:min(len(out), namedRules)]
}
