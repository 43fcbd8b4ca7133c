package budget

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/model"
)

// Problem is something that some hosts cannot hold: too much of a resource, or rules of a kind that their target cannot
// judge. Hosts that cannot hold the same for the same reason are one problem. Its JSON is a part of that of plan.Plan.
type Problem struct {
	Hosts  []string `json:"hosts"`  // sorted
	Target string   `json:"target"` // the kind of dataplane
	// Assumed says that no agent of the hosts has said which dataplane it has.
	Assumed bool `json:"assumed,omitempty"`
	// Kind is ProblemSize, ProblemProcesses, ProblemDomains or ProblemName.
	Kind string `json:"kind"`
	// What names what there is too much of; Have is how much it would be, May how much the target can hold. Of kinds that
	// the target cannot judge at all, Have counts the rules.
	What string `json:"what"`
	Have int    `json:"have"`
	May  int    `json:"may"`
	// Change says that it would fit once it is in force: what is there and what comes must be held at once for a moment.
	Change bool `json:"change,omitempty"`
	// Before says that it did not fit before the change either.
	Before bool `json:"before,omitempty"`
	// Sets are the policy sets that take most of it, and Rules the rules that do; both the largest first, and only some.
	Sets  []SetShare  `json:"sets,omitempty"`
	Rules []RuleShare `json:"rules,omitempty"`
	Next  string      `json:"next"` // what to do
}

// The kinds of problem.
const (
	ProblemSize      = "size"
	ProblemProcesses = "processes"
	ProblemDomains   = "domains"
	ProblemName      = "name"
)

// SetShare is what one policy set takes of something.
type SetShare struct {
	Set    string `json:"set"`                // its ID
	Labels string `json:"labels"`             // of the subject that it judges, "" for no labels
	Of     string `json:"workload"`           // the first workload of the host that it judges
	Local  bool   `json:"local,omitempty"`    // at some of its addresses only
	Alone  bool   `json:"isolated,omitempty"` // while it is isolated
	Takes  int    `json:"takes"`
}

// RuleShare is what one rule takes of something: rows that name it and peers that would have none without it. What
// several rules need counts for each of them.
type RuleShare struct {
	Rule  model.RuleID `json:"rule"`
	Takes int          `json:"takes"`
}

// Blocks reports whether the problem is reason enough to refuse the change: it is new, and certain. What a target cannot
// judge at all is certain only of agents that have said what they have.
func (p *Problem) Blocks() bool {
	return !p.Before && (!p.Assumed || p.Kind == ProblemSize || p.Kind == ProblemName)
}

// shownHosts is how many hosts text names.
const shownHosts = 3

// Where names the hosts in words: "web-1, web-2 and 12 more (ebpf)".
func (p *Problem) Where() string {
	names := p.Hosts
	text := strings.Join(names[:min(len(names), shownHosts)], ", ")
	if n := len(names) - shownHosts; n > 0 {
		text += fmt.Sprintf(" and %s more", thousands(n))
	}
	target := p.Target
	if p.Assumed {
		target += " assumed"
	}
	return fmt.Sprintf("%s (%s)", text, target)
}

// Why says in words what is too much: "612,000 policy rows, and 524,288 fit".
func (p *Problem) Why() string {
	switch p.Kind {
	case ProblemProcesses:
		return fmt.Sprintf("%s for some processes only, which the %s dataplane cannot tell apart yet", rules(p.Have), p.Target)
	case ProblemDomains:
		return fmt.Sprintf("%s naming hosts, which the %s dataplane cannot follow yet", rules(p.Have), p.Target)
	case ProblemName:
		return fmt.Sprintf("%s of %s bytes, and %s fit", p.What, thousands(p.Have), thousands(p.May))
	}
	text := fmt.Sprintf("%s %s, and %s fit", thousands(p.Have), p.What, thousands(p.May))
	if p.Change {
		text += " (while what is there and what comes are held at once; what comes fits alone)"
	}
	return text
}

func rules(n int) string { return Rules.Text(n) }

// Most names what takes most of it in words, one line each; empty if nothing stands out.
func (p *Problem) Most() []string {
	var out []string
	for i := range p.Sets {
		s := &p.Sets[i]
		who := s.Labels
		if who == "" {
			who = "no labels"
		}
		text := fmt.Sprintf("policy set of %s (%s", s.Of, who)
		switch {
		case s.Alone:
			text += ", while isolated"
		case s.Local:
			text += ", at some addresses"
		}
		out = append(out, fmt.Sprintf("%s): %s", text, thousands(s.Takes)))
	}
	if len(p.Rules) > 0 {
		var names []string
		for _, r := range p.Rules {
			if p.Kind == ProblemSize {
				names = append(names, fmt.Sprintf("%s (%s)", r.Rule, thousands(r.Takes)))
			} else {
				names = append(names, string(r.Rule))
			}
		}
		text := "rules that take most: "
		if p.Kind != ProblemSize {
			text = "rules: "
		}
		text += strings.Join(names, ", ")
		if n := p.Have - len(names); p.Kind != ProblemSize && p.Kind != ProblemName && n > 0 {
			text += fmt.Sprintf(" and %s more", thousands(n))
		}
		out = append(out, text)
	}
	return out
}

// String says all of it in one line.
func (p *Problem) String() string {
	text := fmt.Sprintf("%s cannot hold it: %s", p.Where(), p.Why())
	if most := p.Most(); len(most) > 0 {
		text += "; " + strings.Join(most, "; ")
	}
	return text + "; " + p.Next
}

var next = [Resources]string{
	Rows:         "name networks instead of many label sets, or the same ports for all of them",
	Alternatives: "use fewer rules with a process",
	Ranges:       "use fewer ranges, or ranges that begin at a multiple of their length",
	Sets:         "declare fewer units of the host as workloads, or give them the same labels",
	Rules:        "make one rule of several",
	Subjects:     "declare fewer units of the host as workloads, or move some to another host",
	LocalSets:    "put the addresses of the host into the same networks",
	Addresses:    "let rules name networks instead of the labels of very many workloads",
	Prefixes:     "name fewer, wider networks",
	Ports:        "give units addresses of their own",
	Controllers:  "name fewer controllers",
	Patterns:     "use fewer, wider patterns of host names",
	Named:        "use fewer, wider patterns of host names, or put domains and cidrs into fewer networks",
}

const nextChange = "make the change in two steps"
