package policy

import (
	"bulkhead/internal/core/model"
)

// contradictory finds documents that say opposite things: rules that allow what a guardrail says must never be, segments
// of the same workloads that are kept differently, and expectations of one flow that expect different verdicts. Rules
// that contradict each other are found by overlapping.
func (h *hygiene) contradictory() {
	h.againstGuardrails()
	h.segments()
	h.expectations()
}

func (h *hygiene) againstGuardrails() {
	for i := range h.docs.Guardrails {
		g := &h.docs.Guardrails[i]
		never := h.box(model.RuleID(g.Name), &model.Rule{From: g.From, To: g.To, On: g.On})
		for _, a := range h.boxes {
			if a.rule.Action == model.ActionAllow && !h.pointless[a.id] && never.covers(a) {
				h.add(a.rule.Pos, Warning, CodeContradictory, "remove one of them, or narrow the guardrail",
					"the rule %s allows only what the guardrail %q%s says must never be", a.id, g.Name, at(g.Pos)).also(g.Pos)
			}
		}
	}
}

// segments finds two segments of the same workloads. Of both the stricter counts, so what the other says is not so.
func (h *hygiene) segments() {
	list := h.docs.Segments
	sets := make([]peerSet, len(list))
	for i := range list {
		sets[i] = workloadSet(&list[i].Selector)
	}
	for i := range list {
		for j := range i {
			if !sets[i].covers(&sets[j]) || !sets[j].covers(&sets[i]) {
				continue
			}
			a, b := &list[i], &list[j]
			if h.sameKeeping(a, b) {
				h.add(a.Pos, Warning, CodeDuplicate, "remove one of them", "segment %q holds the same workloads as %q%s, kept alike", a.Name, b.Name, at(b.Pos)).also(b.Pos).remove()
			} else {
				h.add(a.Pos, Warning, CodeContradictory, "make one of them",
					"segment %q holds the same workloads as %q%s, but is kept differently; of both the stricter counts", a.Name, b.Name, at(b.Pos)).also(b.Pos)
			}
			break
		}
	}
}

func (h *hygiene) sameKeeping(a, b *model.Segment) bool {
	on, other := h.portSet(a.Services), h.portSet(b.Services)
	return a.Mode == b.Mode && a.MembersOpen == b.MembersOpen && a.OnAgentLoss == b.OnAgentLoss && a.Contain == b.Contain &&
		a.Closes(model.Ingress) == b.Closes(model.Ingress) && a.Closes(model.Egress) == b.Closes(model.Egress) &&
		(a.Mode != model.ModeSelective || on.covers(other) && other.covers(on))
}

func (h *hygiene) expectations() {
	type flow struct {
		from, to string
		on       model.PortRange
	}
	first := map[flow]*model.ExpectationCase{}
	for i := range h.docs.Expectations {
		for j := range h.docs.Expectations[i].Cases {
			c := &h.docs.Expectations[i].Cases[j]
			key := flow{c.From, c.To, c.On}
			other, ok := first[key]
			switch {
			case !ok:
				first[key] = c
			case other.Expect != c.Expect:
				h.add(c.Pos, Warning, CodeContradictory, "remove one of them", "the case expects %s of what the case%s expects %s",
					c.Expect, at(other.Pos), other.Expect).also(other.Pos)
			default:
				h.add(c.Pos, Notice, CodeDuplicate, "remove one of them", "the case says the same as the one%s", at(other.Pos)).also(other.Pos).remove()
			}
		}
	}
}
