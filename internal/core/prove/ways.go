package prove

import (
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// denial is a rule that denies.
type denial struct {
	at      int // its place among the rules
	clauses []*clause
	native  bool // it only records where no segment of the subject drops
	twin    int32
}

// way is one way in which an end may let a flow pass.
type way struct {
	rule    int32     // index of the rule that lets it; unset for others
	twin    int32     // of the rule
	last    bool      // the default
	boxes   []*clause // one of them must be met
	before  int       // no denial before this place applies,
	skips   [][2]int  // but for those from one of these places to the other, which a rule that passes leaves out
	lax     bool      // and but for native ones, which do not drop
	forbids []*clause // nor may one of these be met
}

// findWays lists the denials of a direction and the ways past them.
func (h *hypothesis) findWays(d model.Direction) {
	self, peer := endsOf(d)
	denials, ways, passes := h.denials[d][:0], h.ways[d][:0], []way(nil)
	recorded := h.aim == passing && h.mayOnlyRecord(self)
	var observed []*clause
	if recorded {
		observed = h.dropping(self)
	}
	for i := range h.rules[d] {
		r := &h.rules[d][i]
		if !h.touches(self, r.subject) || !h.touches(peer, r.peer) {
			continue
		}
		boxes := h.boxes(r, self, peer)
		if len(boxes) == 0 {
			continue
		}
		native := !r.Drops
		switch r.Action {
		case compile.Deny:
			denials = append(denials, denial{at: i, clauses: boxes, native: native, twin: r.twin})
			if recorded && native { // where it is the first that applies, it only records
				ways = append(ways, way{rule: int32(i), twin: r.twin, boxes: boxes, before: i, lax: true, forbids: observed})
			}
		case compile.Pass:
			end := i + 1
			for end < len(h.rules[d]) && h.rules[d][end].Stage == r.Stage {
				end++
			}
			passes = append(passes, way{boxes: boxes, before: i, skips: [][2]int{{i + 1, end}}})
		case compile.Allow:
			ways = append(ways, way{rule: int32(i), twin: r.twin, boxes: boxes, before: i})
		}
	}
	ways = append(ways, way{rule: unset, twin: unset, last: true, before: len(h.rules[d]), forbids: h.closing(self, d)})
	h.denials[d], h.ways[d] = denials, h.past(ways, passes)
}

// past adds to each way those that lead past a rule which leaves the rest of its stage out, stage after stage.
func (h *hypothesis) past(ways, passes []way) []way {
	for len(passes) > 0 {
		n := 1
		for n < len(passes) && passes[n].skips[0][1] == passes[0].skips[0][1] {
			n++
		}
		ways, passes = pastStage(ways, passes[:n]), passes[n:]
	}
	return ways
}

// pastStage adds the ways past the rules of one stage.
func pastStage(ways, passes []way) []way {
	out := make([]way, 0, len(ways)*(1+len(passes)))
	for _, w := range ways {
		plain := w
		for i := range passes {
			p := &passes[i]
			switch {
			case p.before > w.before: // asked later
			case w.before < p.skips[0][1]: // of the same stage: left out where the rule passes
				plain.forbids = slices.Concat(plain.forbids, p.boxes)
			default:
				over := w
				over.skips = slices.Concat(w.skips, p.skips)
				over.boxes = product(w.boxes, p.boxes)
				out = append(out, over)
			}
		}
		out = append(out, plain)
	}
	return out
}

// product returns the boxes that are in one of each list.
func product(a, b []*clause) []*clause {
	if len(a) == 0 {
		return b
	}
	var out []*clause
	for _, x := range a {
		for _, y := range b {
			c := &clause{}
			for i := range c.parts {
				c.parts[i] = slices.Concat(x.parts[i], y.parts[i])
			}
			out = append(out, c)
		}
	}
	return out
}

// touches reports whether the match may mean something at the end.
func (h *hypothesis) touches(end int, match int32) bool {
	if known := h.touched[end][match]; known != 0 {
		return known > 0
	}
	return h.touch(end, match)
}

func (h *hypothesis) touch(end int, match int32) bool {
	at := &h.touched[end][match]
	*at = -1
	for _, c := range h.of(end, h.kinds[end], match) {
		if h.meets(c) {
			*at = 1
			break
		}
	}
	return *at > 0
}

// on reports whether the set of ports is asked about, and returns it as a condition.
func (h *hypothesis) on(ports int32) (conjunction, bool) {
	c := h.portSets[ports]
	at := &h.meetsPorts[ports]
	if *at == 0 {
		*at = -1
		if h.meets(c) {
			*at = 1
		}
	}
	return c, *at > 0
}

// boxes returns where the rule applies, as far as that is in the box.
func (h *hypothesis) boxes(r *rule, self, peer int) []*clause {
	ports, asked := h.on(r.ports)
	if !asked {
		return nil
	}
	var process conjunction
	if r.SubjectProcess != nil {
		process = h.running(self, r.SubjectProcess)
	}
	var out []*clause
	for _, a := range h.of(self, h.kinds[self], r.subject) {
		if !h.meets(a) {
			continue
		}
		for _, b := range h.of(peer, h.kinds[peer], r.peer) {
			if !h.meets(b) {
				continue
			}
			out = append(out, &clause{parts: [4]conjunction{a, b, process, ports}})
		}
	}
	return out
}

// closing lists where the default does not let a flow pass.
func (h *hypothesis) closing(self int, d model.Direction) []*clause {
	var out []*clause
	for i := range h.docs.Segments {
		seg := &h.docs.Segments[i]
		if !seg.Closes(d) || !h.touches(self, h.segments[i]) {
			continue
		}
		var ports conjunction
		if h.aim == passing {
			switch seg.Mode {
			case model.ModeObserve:
				continue
			case model.ModeSelective:
				ports = h.portSets[h.onPorts[i]]
			}
		}
		for _, c := range h.of(self, managed, h.segments[i]) {
			out = append(out, &clause{parts: [4]conjunction{c, ports}})
		}
	}
	return out
}

// dropping lists where a native denial drops: in every segment that does not merely observe.
func (h *hypothesis) dropping(self int) []*clause {
	var out []*clause
	for i := range h.docs.Segments {
		if h.docs.Segments[i].Mode == model.ModeObserve || !h.touches(self, h.segments[i]) {
			continue
		}
		for _, c := range h.of(self, managed, h.segments[i]) {
			out = append(out, &clause{parts: [4]conjunction{c}})
		}
	}
	return out
}

// mayOnlyRecord reports whether the end may be in no segment in which a native denial drops.
func (h *hypothesis) mayOnlyRecord(self int) bool {
	mark := h.mark()
	defer h.undo(mark)
	return h.solve(h.dropping(self)) != nothing
}

// counts reports whether the denial would keep a flow from passing in this way.
func (w *way) counts(x *denial) bool {
	left := slices.ContainsFunc(w.skips, func(s [2]int) bool { return s[0] <= x.at && x.at < s[1] })
	return x.at < w.before && !left && !(w.lax && x.native)
}
