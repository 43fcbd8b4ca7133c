package plan

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// conditional returns the rules for some processes or host names only that one of the worlds has and the other has not, or
// has otherwise, sorted. Communications are compared for processes and names that are not known, so what such rules do
// is not among them.
func conditional(before, after *compile.World) []model.RuleID {
	was, is := conditionalRules(before), conditionalRules(after)
	var out []model.RuleID
	for id, text := range was {
		if is[id] != text {
			out = append(out, id)
		}
	}
	for id := range is {
		if _, ok := was[id]; !ok {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// conditionalRules returns what the rules in force that depend on a process or a host name say, by rule.
func conditionalRules(w *compile.World) map[model.RuleID]string {
	named := map[string]string{} // networks that list domains, and those
	for i := range w.Documents().Networks {
		if n := &w.Documents().Networks[i]; len(n.Domains) > 0 {
			domains := slices.Clone(n.Domains)
			slices.Sort(domains)
			named[n.Name] = strings.Join(domains, " ")
		}
	}
	out := map[model.RuleID]string{}
	for _, d := range model.Directions {
		rules := w.Rules(d)
		for i := range rules {
			r := &rules[i]
			names := byName(&r.Subject, named) + byName(&r.Peer, named)
			if r.Expired || r.SubjectProcess == nil && names == "" {
				continue
			}
			process := ""
			if r.SubjectProcess != nil {
				process = r.SubjectProcess.String()
			}
			out[r.ID] += fmt.Sprintln(d, r.Stage, r.Action, r.Subject.String(), r.Peer.String(), r.Ports, process, names)
		}
	}
	return out
}

// byName returns the domains that the match means, as text.
func byName(m *compile.Match, named map[string]string) string {
	var b strings.Builder
	for _, t := range m.Terms {
		if t.Selector != nil {
			continue
		}
		if strings.HasPrefix(t.Network, model.DomainNetwork("")) {
			b.WriteString(t.Network + "\n")
		}
		if domains := named[t.Network]; domains != "" {
			b.WriteString(domains + "\n")
		}
	}
	return b.String()
}
