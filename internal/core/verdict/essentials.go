package verdict

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// Essential is a kind of traffic that no policy and no quarantine blocks.
type Essential struct {
	Rule  model.RuleID `json:"rule"`
	On    []string     `json:"on"`    // ports; "any" for all
	Where string       `json:"where"` // between whom
	Why   string       `json:"why"`
}

// Essentials is the list that "explain essentials" shows.
type Essentials []Essential

// ExplainEssentials lists everything that always passes: what is fixed, and what the documents of the world add by
// the purpose of a network. The last entries hold for isolated workloads only.
func (e *Evaluator) ExplainEssentials() Essentials {
	const everywhere = "every workload, both ways"
	var out Essentials
	for _, f := range essential.Fixed {
		out = append(out, Essential{f.Rule, []string{fixedPorts(f.Ports)}, everywhere, f.Why})
	}
	out = append(out, Essential{model.RuleSameWorkload, []string{"any"}, "a workload and itself", "a workload is one compartment"})
	out = append(out, Essential{model.RuleController, []string{"tcp"}, e.controllerText(), "an agent must always reach its controller"})
	for _, p := range []struct {
		purpose model.Purpose
		rule    model.RuleID
		on      []string
		where   string
		why     string
	}{
		{model.PurposeResolvers, model.RuleDNS, []string{"tcp/53", "udp/53"}, "every workload towards network %s", "names must resolve"},
		{model.PurposeTime, model.RuleTime, []string{"udp/123"}, "every workload towards network %s", "clocks must agree"},
		{model.PurposeForensic, model.RuleForensic, []string{"any"}, "isolated workloads and network %s, both ways", "an investigation must reach what it investigates"},
	} {
		networks := e.world.Documents().Networks
		for i := range networks {
			if n := &networks[i]; n.Purpose == p.purpose {
				out = append(out, Essential{p.rule, p.on, fmt.Sprintf(p.where, n.Name), p.why})
			}
		}
	}
	return out
}

// fixedPorts writes a range of ICMP types by its types; documents have no spelling for one.
func fixedPorts(r model.PortRange) string {
	if first, last := r.Lo>>8, r.Hi>>8; r.Proto.IsICMP() && first != last {
		return fmt.Sprintf("%s/%d-%d", r.Proto, first, last)
	}
	return r.String()
}

func (e *Evaluator) controllerText() string {
	if len(e.controllers) == 0 {
		return "every host towards its controller"
	}
	at := make([]string, len(e.controllers))
	for i, c := range e.controllers {
		at[i] = c.String()
	}
	return "every host towards " + strings.Join(at, ", ")
}

// Text renders the list for a terminal.
func (list Essentials) Text() string {
	var b strings.Builder
	for _, x := range list {
		fmt.Fprintf(&b, "%-28s %-18s %s: %s\n", x.Rule, strings.Join(x.On, " "), x.Where, x.Why)
	}
	return b.String()
}
