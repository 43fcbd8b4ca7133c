package plan

import (
	"fmt"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/prove"
)

// Reason is why a change should not be made.
type Reason struct {
	At   string // file:line:column, or "" if it is about no place
	Text string
}

// Unmet returns the guardrails and expectations of the world after a change that do not hold, and what hosts cannot hold of
// it that they could before (nil: nothing was in force). Without targets every host is taken for one with eBPF.
func Unmet(before, after *compile.World, targets budget.Targets) []Reason {
	var out []Reason
	for _, g := range prove.Guardrails(after) {
		if !g.Holds {
			out = append(out, Reason{g.At, fmt.Sprintf("guardrail %s does not hold: %s", g.Name, g.Why())})
		}
	}
	for _, c := range prove.Expectations(after) {
		if !c.Pass {
			out = append(out, Reason{c.At, fmt.Sprintf("expectation %s is not met: %s", c.Expectation, c.String())})
		}
	}
	for _, p := range budget.Check(before, after, targets) {
		if p.Blocks() {
			out = append(out, Reason{rulePlace(after, p.Rules), p.String()})
		}
	}
	return out
}

// rulePlace returns where the first of the rules stands.
func rulePlace(w *compile.World, shares []budget.RuleShare) string {
	if len(shares) == 0 {
		return ""
	}
	for _, d := range model.Directions {
		for _, r := range w.Rules(d) {
			if r.ID == shares[0].Rule {
				return r.Pos.String()
			}
		}
	}
	return ""
}
