package prove

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// scene is a flow that could be: two ends, with the ports on which the guardrail's question has the answer yes.
type scene struct {
	ends  [2]figure
	ports reach.Ports
	port  model.PortRange
	says  [2]model.EndVerdict // by direction
}

// figure is one end of a scene.
type figure struct {
	kind     kind
	identity model.Identity
	addr     netip.Addr // invalid for none
	domain   string     // pattern of the names that the address was found by; "" for none
	base     []string   // what the address is in without
	process  model.Process
}

// scene makes the simplest flow of the box that a search left, and judges it rule by rule: a second opinion about what the
// search found. It returns nil if the two disagree, which would be a fault of the search.
func (h *hypothesis) scene() *scene {
	sc := &scene{}
	for end := range sc.ends {
		sc.ends[end] = h.figure(end)
	}
	var asked [2][]*rule
	for _, d := range model.Directions {
		self, peer := endsOf(d)
		if sc.ends[self].kind == managed {
			asked[d] = h.applying(d, &sc.ends[self], &sc.ends[peer])
		}
	}
	want := model.Allow
	if h.aim == passing {
		want = model.WouldDeny
	}
	var pieces []reach.Piece
	inside := h.domains[h.port()]
	for i, p := range h.cuts.pieces {
		in, free := h.ports[i/64]&(1<<(i%64)) != 0, false
		if !in {
			free = h.guards(i)
		}
		if in && !h.essential(&sc.ends[1], p) {
			v := min(h.decide(sc, model.Egress, asked, i).Verdict, h.decide(sc, model.Ingress, asked, i).Verdict)
			in = v == want
		} else {
			in = false
		}
		if !in && inside.bits != nil && inside.has(int32(i)) {
			return nil
		}
		pieces = append(pieces, reach.Piece{Ports: p, In: in, Free: free})
	}
	sc.ports = reach.NewPorts(pieces)
	var ok bool
	if sc.port, ok = sc.ports.First(); !ok {
		return nil
	}
	at := h.cuts.of(sc.port)
	for _, d := range model.Directions {
		sc.says[d] = h.decide(sc, d, asked, at)
	}
	return sc
}

// guards reports whether the guardrail names the piece of the ports, essential or not.
func (h *hypothesis) guards(piece int) bool {
	set := h.cuts.set(portsOf(h.docs, h.guardrail.On))
	return set[piece/64]&(1<<(piece%64)) != 0
}

// of returns the piece that holds the port.
func (c *portCuts) of(p model.PortRange) int {
	for i, x := range c.pieces[:len(c.pieces)-1] {
		if x.Contains(p.Proto, p.Lo) {
			return i
		}
	}
	return len(c.pieces) - 1
}

func (s *space) covers(r *rule, piece int) bool {
	return s.cuts.sets[r.ports][piece/64]&(1<<(piece%64)) != 0
}

// figure takes the simplest value of each variable: no label, no address, or the first.
func (h *hypothesis) figure(end int) figure {
	f := figure{kind: h.kinds[end]}
	if f.kind == device {
		d := h.domains[h.device(end)]
		f.identity = *h.devices[d.first()]
		return f
	}
	place := h.domains[h.place(end)]
	if f.kind == address || !place.has(h.noAddress()) {
		cell := &h.cells[place.first()]
		f.addr, f.identity.Networks, f.domain, f.base = cell.Addr, cell.Networks, cell.Domain, cell.Base
	}
	if f.kind == address {
		return f
	}
	f.identity.Owned = true
	for i := range h.labels {
		k := &h.keys[i]
		d := h.domains[h.variable(end, i)]
		if d.bits == nil || d.has(k.absent) {
			continue
		}
		if f.identity.Labels == nil {
			f.identity.Labels = model.Labels{}
		}
		f.identity.Labels[k.name] = k.value(d.first())
	}
	var process [3]string
	for i := range process {
		k := &h.keys[h.labels+i]
		if d := h.domains[h.process(end, i)]; d.bits != nil && !d.has(k.other) {
			process[i] = k.values[d.first()]
		}
	}
	f.process = model.Process{Unit: process[0], Path: process[1], User: process[2]}
	return f
}

// value returns a value by its number; of the one that stands for all others, one that nothing mentions.
func (k *keyDomain) value(n int32) string {
	if int(n) < len(k.values) {
		return k.values[n]
	}
	name := "other"
	for i := 2; slices.Contains(k.values, name); i++ {
		name = fmt.Sprintf("other-%d", i)
	}
	return name
}

// applying returns the rules that mean the two ends, on any port, in the order in which they are asked.
func (s *space) applying(d model.Direction, self, peer *figure) []*rule {
	var out []*rule
	subjects, peers := s.meant(&self.identity), s.meant(&peer.identity)
	for i := range s.rules[d] {
		r := &s.rules[d][i]
		if subjects[r.subject] && peers[r.peer] && runs(r.Rule, &self.process) {
			out = append(out, r)
		}
	}
	return out
}

// runs reports whether the process meets what the rule asks of it.
func runs(r *compile.Rule, p *model.Process) bool {
	return r.SubjectProcess == nil || r.SubjectProcess.Admits(p)
}

// essential reports whether the traffic to the destination is essential there.
func (h *hypothesis) essential(to *figure, p model.PortRange) bool {
	in := func(list []model.PortRange) bool {
		return slices.ContainsFunc(list, func(x model.PortRange) bool { return x.Contains(p.Proto, p.Lo) })
	}
	networks := to.identity.Networks
	if to.domain != "" {
		networks = to.base
	}
	for _, n := range networks {
		switch h.purpose(n) {
		case model.PurposeResolvers:
			if in(dnsPorts) {
				return true
			}
		case model.PurposeTime:
			if in(timePorts) {
				return true
			}
		}
	}
	if to.kind != managed || p.Proto != model.ProtoTCP || !to.addr.IsValid() {
		return false
	}
	return slices.Contains(h.world.Options().Controllers, netip.AddrPortFrom(to.addr, p.Lo))
}

func (s *space) purpose(network string) model.Purpose {
	for i := range s.docs.Networks {
		if s.docs.Networks[i].Name == network {
			return s.docs.Networks[i].Purpose
		}
	}
	return model.PurposeNone
}

// decide judges one end on a piece of the ports: quarantine, then the rules that apply, then the default.
func (h *hypothesis) decide(sc *scene, d model.Direction, asked [2][]*rule, piece int) model.EndVerdict {
	at, other := endsOf(d)
	self, peer := &sc.ends[at], &sc.ends[other]
	if self.kind != managed {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged}
	}
	if self.identity.Labels[model.QuarantineLabel] == model.QuarantineIsolate.String() {
		if slices.ContainsFunc(peer.identity.Networks, func(n string) bool { return h.purpose(n) == model.PurposeForensic }) {
			return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleForensic}
		}
		return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleIsolate}
	}
	passed, over := compile.Stage(0), false
	for _, r := range asked[d] {
		if !h.covers(r, piece) || over && r.Stage == passed {
			continue
		}
		switch r.Action {
		case compile.Pass:
			passed, over = r.Stage, true
		case compile.Allow:
			return model.EndVerdict{Verdict: model.Allow, Rule: r.ID}
		default:
			return model.EndVerdict{Verdict: h.denied(r, &self.identity), Rule: r.ID}
		}
	}
	closed := false
	for i := range h.docs.Segments {
		seg := &h.docs.Segments[i]
		if !seg.Closes(d) || !seg.Selector.Matches(self.identity.Labels) {
			continue
		}
		closed = true
		on := h.cuts.sets[h.onPorts[i]]
		if seg.Mode == model.ModeEnforce || seg.Mode == model.ModeSelective && on[piece/64]&(1<<(piece%64)) != 0 {
			return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleDefaultDeny}
		}
	}
	if closed {
		return model.EndVerdict{Verdict: model.WouldDeny, Rule: model.RuleDefaultDeny}
	}
	return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleOpen}
}

// denied says what a denial comes to: where every segment of the subject merely observes, a native one only records.
func (s *space) denied(r *rule, self *model.Identity) model.Verdict {
	if r.Drops {
		return model.Deny
	}
	for i := range s.docs.Segments {
		if seg := &s.docs.Segments[i]; seg.Mode != model.ModeObserve && seg.Selector.Matches(self.Labels) {
			return model.Deny
		}
	}
	return model.WouldDeny
}

// name returns the end as a counterexample names it, and what it is.
func (f *figure) name() (name, is string) {
	switch {
	case f.kind == address && f.domain != "":
		return "an address", "found by the name " + f.domain
	case f.kind == address && len(f.identity.Networks) == 0:
		return f.addr.String(), "an address in no network"
	case f.kind == address:
		return f.addr.String(), "an address in " + strings.Join(f.identity.Networks, " and ")
	}
	name = "a workload"
	if f.kind == device {
		name = "a workload without an agent"
	}
	is = cmp.Or(f.identity.Labels.String(), "no labels")
	if len(f.identity.Networks) > 0 {
		is += ", at an address in " + strings.Join(f.identity.Networks, " and ")
	}
	if f.process != (model.Process{}) {
		is = withProcess(is, &f.process)
	}
	return name, is
}

func cidrName(p *model.Peer) string { return reach.CIDRName(p.CIDR) }
