package policy

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/model"
)

// overlapping finds rules that another rule, several together, or a segment open among its members, make pointless. What
// it says to remove may be removed all at once: no rule is called pointless for the sake of one that is.
func (h *hygiene) overlapping() {
	var needs []uint64
	h.rules(func(id model.RuleID, r *model.Rule) {
		b := h.box(id, r)
		h.boxes = append(h.boxes, b)
		needs = append(needs, b.needs)
	})
	for i, a := range h.boxes {
		var shadow, twin, wider *box // the first of each
		for j, b := range h.boxes {
			if needs[j]&^a.has != 0 || i == j || shadow != nil {
				continue
			}
			same := a.rule.Action == b.rule.Action
			if same && twin != nil || !same && !b.shadows(a) || same && !b.covers(a) {
				continue
			}
			switch {
			case !same:
				shadow = b
			case !a.covers(b):
				if wider == nil {
					wider = b
				}
			case j < i:
				twin = b
			}
		}
		h.overlap(a, shadow, twin, wider)
	}
	h.together()
}

// shadows reports whether the deny rule b leaves nothing of the allow rule a. A deny rule with a process is not there at
// the far end, so it leaves there what a allows.
func (b *box) shadows(a *box) bool {
	return b.rule.Action == model.ActionDeny && a.rule.Action == model.ActionAllow && !anyProcess(b.from, b.to) && b.covers(a)
}

// overlap reports the weightiest reason why a rule is pointless.
func (h *hygiene) overlap(a, shadow, twin, wider *box) {
	var f *Finding
	switch {
	case shadow != nil && a.covers(shadow):
		f = h.add(a.rule.Pos, Warning, CodeContradictory, "remove one of them",
			"the rule %s allows what %s%s denies, no more and no less; deny comes first", a.id, shadow.id, at(shadow.rule.Pos)).also(shadow.rule.Pos)
	case shadow != nil:
		f = h.add(a.rule.Pos, Warning, CodeShadowed, fmt.Sprintf("remove it, or narrow %s", shadow.id),
			"the rule %s never allows anything: %s%s denies all of it, and deny comes first", a.id, shadow.id, at(shadow.rule.Pos)).also(shadow.rule.Pos)
	case twin != nil:
		f = h.add(a.rule.Pos, Warning, CodeDuplicate, "remove one of them",
			"the rule %s says the same as %s%s", a.id, twin.id, at(twin.rule.Pos)).also(twin.rule.Pos)
	case wider != nil:
		f = h.add(a.rule.Pos, Notice, CodeRedundant, fmt.Sprintf("remove it, or narrow %s", wider.id),
			"the rule %s adds nothing: %s%s %s all of it already", a.id, wider.id, at(wider.rule.Pos), does(a.rule.Action)).also(wider.rule.Pos)
	default:
		s := h.ring(a)
		if s == nil {
			return
		}
		f = h.add(a.rule.Pos, Notice, CodeRedundant, "remove it, or set members: deny in the segment",
			"the rule %s adds nothing: members of segment %q%s may talk to each other on everything", a.id, s.Name, at(s.Pos)).also(s.Pos)
	}
	f.remove()
	h.pointless[a.id] = true
}

func does(a model.Action) string {
	if a == model.ActionAllow {
		return "allows"
	}
	return "denies"
}

// ring returns a segment that is open among its members and holds both ends of an allow rule.
func (h *hygiene) ring(a *box) *model.Segment {
	if a.rule.Action != model.ActionAllow {
		return nil
	}
	for i := range h.docs.Segments {
		s := &h.docs.Segments[i]
		if !s.MembersOpen {
			continue
		}
		members := []peerSet{workloadSet(&s.Selector)}
		if coverPeers(members, a.from) && coverPeers(members, a.to) {
			return s
		}
	}
	return nil
}

// together finds rules of which no other rule holds all, but several hold every part: each source, destination and port.
func (h *hygiene) together() {
	for _, a := range h.boxes {
		if h.pointless[a.id] {
			continue
		}
		if a.rule.Action == model.ActionAllow {
			if by := h.parts(a, func(b *box) bool { return b.rule.Action == model.ActionDeny && !anyProcess(b.from, b.to) }); by != nil {
				h.add(a.rule.Pos, Warning, CodeShadowed, "remove it, or narrow one of them",
					"the rule %s never allows anything: %s together deny all of it, and deny comes first", a.id, ruleIDs(by)).also(places(by)...).remove()
				h.pointless[a.id] = true
				continue
			}
		}
		if by := h.parts(a, func(b *box) bool { return b.rule.Action == a.rule.Action }); by != nil {
			h.add(a.rule.Pos, Notice, CodeRedundant, "remove it, or narrow one of them",
				"the rule %s adds nothing: %s together %s all of it already", a.id, ruleIDs(by), a.rule.Action).also(places(by)...).remove()
			h.pointless[a.id] = true
		}
	}
}

// parts returns other rules, none of them pointless, of which each part of a is within the ports of some; nil if a part
// sticks out.
func (h *hygiene) parts(a *box, counts func(*box) bool) []*box {
	var by []*box
	for i := range a.from {
		for j := range a.to {
			has := a.from[i].signature("from") | a.to[j].signature("to")
			var held portSet
			for _, b := range h.boxes {
				if b.needs&^has != 0 || b == a || h.pointless[b.id] || !counts(b) || !b.outlives(a) || !b.on.meets(a.on) ||
					!coverPeers(b.from, a.from[i:i+1]) || !coverPeers(b.to, a.to[j:j+1]) {
					continue
				}
				held = held.with(b.on)
				if !slices.Contains(by, b) {
					by = append(by, b)
				}
				if held.covers(a.on) {
					break
				}
			}
			if !held.covers(a.on) {
				return nil
			}
		}
	}
	return by
}

func ruleIDs(boxes []*box) string {
	names := make([]string, len(boxes))
	for i, b := range boxes {
		names[i] = string(b.id)
	}
	return both(names)
}

func places(boxes []*box) []model.Position {
	out := make([]model.Position, len(boxes))
	for i, b := range boxes {
		out[i] = b.rule.Pos
	}
	return out
}
