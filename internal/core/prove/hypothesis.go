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

	kinds   [2]kind // at either end
	state   startState
	touched [2][]int8 // by match: what the start of the search says of it
	// meetsPorts is likewise by set of ports.
	meetsPorts []int8
	always     []*clause // essentials
	denials    [2][]denial
	ways       [2][]way
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
				if h.within(a.conjunction, b.conjunction) {
					h.state = startState{ends: ends, family: f, isolated: isolated}
					h.touched = [2][]int8{h.touchedBy(0, a.key), h.touchedBy(1, b.key)}
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
func (s *space) peers(end int, k kind, peers []model.Peer) []alternative {
	var out []alternative
	for i := range peers {
		p := &peers[i]
		if p.Kind == model.PeerAny {
			out = append(out, alternative{})
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
			out = append(out, alternative{c, keyOf(p)})
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
	h.meetsPorts = slices.Grow(h.meetsPorts[:0], len(h.portSets))[:len(h.portSets)]
	clear(h.meetsPorts)
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
