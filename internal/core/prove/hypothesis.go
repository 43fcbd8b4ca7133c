package prove

import (
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// maxSteps bounds the search about one guardrail. Policies that people write need a few thousand steps; what needs more
// is reported as undecided, never as proved.
const maxSteps = 4_000_000

// aim is what a search looks for.
type aim uint8

const (
	allowed aim = iota // what policy allows
	passing            // what is not dropped: allowed, or recorded as would-deny
)

// hypothesis is the question whether something that could exist does what a guardrail forbids.
type hypothesis struct {
	*space
	solver
	aim       aim
	guardrail *model.Guardrail
	ports     []uint64 // of the guardrail, without what is always essential

	kinds   [2]kind   // at either end
	touched [2][]int8 // by match: what the start of the search says of it
	always  []*clause // essentials
	denials [2][]denial
	ways    [2][]way
}

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

// could looks for something that could exist and breaks the guardrail.
func (s *space) could(g *model.Guardrail, a aim) (answer, *scene) {
	h := &hypothesis{space: s, aim: a, guardrail: g, ports: s.cuts.set(portsOf(s.docs, g.On))}
	for i, p := range s.cuts.pieces[:len(s.cuts.pieces)-1] {
		if _, always := essential.Match(p.Proto, p.Lo); always {
			h.ports[i/64] &^= 1 << (i % 64)
		}
	}
	h.steps = maxSteps
	h.solver.spare = s.spare
	families := []addressFamily{family4, family6}
	if !s.familiesDiffer() {
		families = families[:1]
	}
	for _, f := range families {
		for _, ends := range [][2]kind{{managed, managed}, {managed, address}, {address, managed}, {managed, device}, {device, managed}} {
			if len(s.devices) == 0 && (ends[0] == device || ends[1] == device) {
				continue
			}
			if out, found := h.between(ends, f); out != nothing {
				return out, found
			}
		}
	}
	return nothing, nil
}

// familiesDiffer reports whether something can be said of IPv6 that cannot be said of IPv4.
func (s *space) familiesDiffer() bool {
	for i := range s.cells {
		six := &s.cells[i]
		if six.Addr.Is4() {
			continue
		}
		if len(six.Controllers) > 0 || !slices.ContainsFunc(s.cells, func(c reach.Cell) bool {
			return c.Addr.Is4() && slices.Equal(c.Networks, six.Networks)
		}) {
			return true
		}
	}
	return slices.Contains(s.family, family6)
}

// between looks at flows between ends of two kinds.
func (h *hypothesis) between(ends [2]kind, f addressFamily) (answer, *scene) {
	from := h.peers(0, ends[0], h.guardrail.From)
	to := h.peers(1, ends[1], h.guardrail.To)
	if len(from) == 0 || len(to) == 0 {
		return nothing, nil
	}
	h.kinds = ends
	for _, isolated := range h.isolations() {
		h.box = newBox(h.sizes)
		port := inBits(h.port(), h.ports)
		if port.count == 0 || !h.narrow(&port, true) || !h.start(0, f, isolated[0]) || !h.start(1, f, isolated[1]) {
			continue
		}
		start := h.mark()
		for _, a := range from {
			for _, b := range to {
				if h.within(a, b) {
					if out := h.search(isolated); out != nothing {
						if out == found {
							return out, h.scene()
						}
						return out, nil
					}
				}
				h.undo(start)
			}
		}
	}
	return nothing, nil
}

// isolations lists which ends may be in quarantine of level isolate: there, no rule is asked.
func (h *hypothesis) isolations() [][2]bool {
	out := [][2]bool{{false, false}}
	for _, both := range [][2]bool{{true, false}, {false, true}, {true, true}} {
		possible := true
		for end := range both {
			if !both[end] {
				continue
			}
			_, ok := h.serving(1-end, h.kinds[1-end], model.PurposeForensic)
			possible = possible && ok && h.kinds[end] == managed
		}
		if possible {
			out = append(out, both)
		}
	}
	return out
}

// start narrows an end to what can be of its kind.
func (h *hypothesis) start(end int, f addressFamily, isolated bool) bool {
	if h.kinds[end] == device {
		set := make([]uint64, (len(h.devices)+63)/64)
		for i, of := range h.family {
			if of == f || of == anyFamily {
				set[i/64] |= 1 << (i % 64)
			}
		}
		l := inBits(h.device(end), set)
		return h.narrow(&l, true)
	}
	set := make([]uint64, (len(h.cells)+64)/64)
	for i := range h.cells {
		if h.cells[i].Domain != "" && (h.kinds[end] == managed || end == 0) {
			continue // a source knows the name of an address that no workload owns, and nobody else does
		}
		if h.cells[i].Addr.Is4() == (f == family4) {
			set[i/64] |= 1 << (i % 64)
		}
	}
	if h.kinds[end] == managed {
		n := h.noAddress()
		set[n/64] |= 1 << (n % 64)
	}
	l := inBits(h.place(end), set)
	if !h.narrow(&l, true) {
		return false
	}
	if h.kinds[end] == address {
		return true
	}
	isolate, _ := slices.BinarySearch(h.keys[h.level].values, model.QuarantineIsolate.String())
	level := among(h.variable(end, int(h.level)), int32(isolate))
	if !h.narrow(&level, isolated) {
		return false
	}
	if isolated {
		l, _ := h.serving(1-end, h.kinds[1-end], model.PurposeForensic)
		return h.narrow(&l, true)
	}
	return true
}

// peers returns what the peers of a guardrail mean at an end of the kind. Of workloads that could exist, a guardrail speaks
// by their labels: one about a network means the addresses that no workload owns, and the workloads of today that are
// there. Else no guardrail about a network could ever hold, for any workload could be given an address in it.
func (s *space) peers(end int, k kind, peers []model.Peer) []conjunction {
	var out []conjunction
	for i := range peers {
		p := &peers[i]
		if p.Kind == model.PeerAny {
			out = append(out, nil)
			continue
		}
		if k == managed && p.Kind != model.PeerWorkloads {
			continue
		}
		t := compile.Term{Selector: &p.Workloads}
		switch p.Kind {
		case model.PeerNetwork:
			t = compile.Term{Network: p.Network}
		case model.PeerCIDR:
			t = compile.Term{Network: cidrName(p)}
		case model.PeerDomain:
			t = compile.Term{Network: model.DomainNetwork(p.Domain)}
		}
		for _, c := range s.term(end, k, &t) {
			if p.Process != nil && k == managed {
				c = append(slices.Clip(c), s.running(end, p.Process)...)
			}
			out = append(out, c)
		}
	}
	return out
}

// running returns what a process at the end must be.
func (s *space) running(end int, p *model.Process) conjunction {
	var out conjunction
	for f, v := range fields(p) {
		if v == "" {
			continue
		}
		n, _ := slices.BinarySearch(s.keys[s.labels+f].values, v)
		out = append(out, among(s.process(end, f), int32(n)))
	}
	return out
}

// search looks for a point in the box as it is.
func (h *hypothesis) search(isolated [2]bool) answer {
	for end := range h.touched {
		h.touched[end] = append(h.touched[end][:0], make([]int8, len(h.matches))...)
	}
	h.always = h.essentials()
	for _, d := range model.Directions {
		self, _ := endsOf(d)
		if h.kinds[self] != managed || isolated[self] {
			h.denials[d], h.ways[d] = nil, []way{{rule: unset, twin: unset}} // has no say, or is asked nothing
			continue
		}
		h.findWays(d)
	}
	both := h.kinds == [2]kind{managed, managed} && isolated == [2]bool{}
	twins := map[int32][]*way{} // what rules for both ends say at the destination
	var single []*way
	for i := range h.ways[model.Ingress] {
		if w := &h.ways[model.Ingress][i]; both && w.twin != unset {
			twins[w.rule] = append(twins[w.rule], w)
		} else {
			single = append(single, w)
		}
	}
	for i := range h.ways[model.Egress] {
		out := &h.ways[model.Egress][i]
		if both && out.twin != unset {
			// The first rule for both ends that applies is the same at both. Before it, or where none applies, there
			// may be rules for one end only.
			if a := h.tryAll(out, twins[out.twin], false); a != nothing {
				return a
			}
		} else if both && !out.last {
			for k := range h.ways[model.Ingress] {
				if in := &h.ways[model.Ingress][k]; in.twin != unset {
					if a := h.tryAll(out, []*way{in}, false); a != nothing {
						return a
					}
				}
			}
		}
		if a := h.tryAll(out, single, both && out.twin != unset); a != nothing {
			return a
		}
	}
	return nothing
}

// endsOf returns which end judges in a direction, and which is its peer.
func endsOf(d model.Direction) (self, peer int) {
	if d == model.Egress {
		return 0, 1
	}
	return 1, 0
}

// tryAll looks for a flow that passes the source in one way and the destination in one of several. Where it finds one,
// the box stays narrow.
func (h *hypothesis) tryAll(out *way, ins []*way, ruled bool) answer {
	start := h.mark()
	for _, x := range alternatives(out) {
		if !h.inside(x) {
			h.undo(start)
			continue
		}
		half := h.mark()
		for _, in := range ins {
			if ruled && in.last {
				continue // some rule applies
			}
			for _, y := range alternatives(in) {
				if h.steps--; h.steps <= 0 {
					return exhausted
				}
				if h.inside(y) {
					if a := h.solve(h.forbidden(out, in)); a != nothing {
						return a
					}
				}
				h.undo(half)
			}
		}
		h.undo(start)
	}
	return nothing
}

// alternatives returns the boxes of a way; one that excludes nothing if it has none.
func alternatives(w *way) []*clause {
	if len(w.boxes) == 0 {
		return []*clause{{}}
	}
	return w.boxes
}

func (h *hypothesis) inside(c *clause) bool {
	return h.meetsClause(c) && h.within(c.parts[:]...)
}

// forbidden lists what must not be met for a flow to pass the two ends in these ways.
func (h *hypothesis) forbidden(out, in *way) []*clause {
	list := slices.Concat(h.always, out.forbids, in.forbids)
	for _, d := range model.Directions {
		w, other := out, in
		if d == model.Ingress {
			w, other = in, out
		}
		for i := range h.denials[d] {
			x := &h.denials[d][i]
			if !w.counts(x) || d == model.Ingress && x.twin != unset && int(x.twin) < other.before && !other.lax {
				continue // or counted at the source
			}
			list = append(list, x.clauses...)
		}
	}
	return list
}

// counts reports whether the denial would keep a flow from passing in this way.
func (w *way) counts(x *denial) bool {
	left := slices.ContainsFunc(w.skips, func(s [2]int) bool { return s[0] <= x.at && x.at < s[1] })
	return x.at < w.before && !left && !(w.lax && x.native)
}

// essentials forbid what no guardrail is about: name service, time, and the way to a controller.
func (h *hypothesis) essentials() []*clause {
	var out []*clause
	for _, e := range []struct {
		purpose model.Purpose
		ports   []model.PortRange
	}{{model.PurposeResolvers, dnsPorts}, {model.PurposeTime, timePorts}} {
		if l, ok := h.byAddress(e.purpose); ok {
			out = append(out, &clause{parts: [4]conjunction{{l}, {inBits(h.port(), h.cuts.set(e.ports))}}})
		}
	}
	if h.kinds[1] == managed {
		for i := range h.cells {
			for _, port := range h.cells[i].Controllers {
				set := h.cuts.set([]model.PortRange{{Proto: model.ProtoTCP, Lo: port, Hi: port}})
				out = append(out, &clause{parts: [4]conjunction{{among(h.place(1), int32(i))}, {inBits(h.port(), set)}}})
			}
		}
	}
	return out
}

// byAddress returns where the destination is in a network of that purpose by its address: by a name alone nothing becomes
// essential.
func (h *hypothesis) byAddress(purpose model.Purpose) (l literal, ok bool) {
	l, ok = h.serving(1, h.kinds[1], purpose)
	if !ok || h.kinds[1] == device {
		return l, ok
	}
	set := slices.Clone(l.bits)
	for i := range h.cells {
		c := &h.cells[i]
		if c.Domain != "" && !slices.ContainsFunc(c.Base, func(n string) bool { return h.purpose(n) == purpose }) {
			set[i/64] &^= 1 << (i % 64)
		}
	}
	l = inBits(l.variable, set)
	return l, l.count > 0
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
	at := &h.touched[end][match]
	if *at == 0 {
		*at = -1
		for _, c := range h.of(end, h.kinds[end], match) {
			if h.meets(c) {
				*at = 1
				break
			}
		}
	}
	return *at > 0
}

// boxes returns where the rule applies, as far as that is in the box.
func (h *hypothesis) boxes(r *rule, self, peer int) []*clause {
	ports := conjunction{inBits(h.port(), h.cuts.sets[r.ports])}
	if !h.meets(ports) {
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
				ports = conjunction{inBits(h.port(), h.cuts.sets[h.onPorts[i]])}
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
