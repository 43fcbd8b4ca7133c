package compile

import (
	"cmp"
	"slices"

	"bulkhead/internal/core/model"
)

// stroke is a verdict for a range of ports: what one rule, or the default, says about one peer.
type stroke struct {
	ports   model.PortRange
	verdict model.Verdict
	rule    uint32 // index into names
	when    int32  // index of the alternatives that are asked before; noAlternative
}

// painter resolves strokes into a function of protocol and port: where strokes overlap the first one counts. It is
// reused; start begins the next function.
type painter struct {
	functions *functionBuilder
	protos    []protoPaint // the first used ones are in use
	used      int
	base      stroke // for every protocol that is not in protos
	baseState baseState
	parked    bool // something is passed over
	done      bool // nothing is left to paint
	cells     int
	flat      []stroke
}

// baseState is what has become of the protocols that are not in painter.protos.
type baseState uint8

const (
	baseOpen   baseState = iota
	basePassed           // passed over: open again at the end of the stage
	basePainted
)

// protoPaint is what is painted of one protocol.
type protoPaint struct {
	proto  model.Proto
	cells  []stroke // disjoint, unsorted until finish
	gaps   []gap    // sorted: what is not painted yet
	parked []gap    // what is passed over
	spare  []gap
}

// gap is a range of ports that is not painted. when lists the alternatives that have been painted on it.
type gap struct {
	lo, hi uint16
	when   int32
}

func (p *painter) start() {
	p.used, p.cells = 0, 0
	p.base, p.baseState, p.parked, p.done = stroke{when: noAlternative}, baseOpen, false, false
}

// paint adds a stroke below those before it.
func (p *painter) paint(s stroke) {
	p.put(s.ports, func(pp *protoPaint, g gap) {
		c := p.under(g.when, s)
		c.ports = model.PortRange{Proto: pp.proto, Lo: g.lo, Hi: g.hi}
		pp.cells = append(pp.cells, c)
		p.cells++
	})
	if s.ports.Proto != model.ProtoAny {
		return
	}
	if p.baseState == baseOpen {
		p.base, p.baseState = p.under(p.base.when, s), basePainted
	}
	p.done = p.baseState == basePainted && !p.parked
}

// under returns the stroke below the alternatives.
func (p *painter) under(when int32, s stroke) stroke {
	if when != noAlternative {
		s.when = p.functions.trim(when, s.verdict, s.rule)
	}
	return s
}

// paintFor adds a stroke for the processes that meet a constraint. What is below it stays visible to all others.
func (p *painter) paintFor(process int32, s stroke) {
	over := func(when int32) int32 { return p.functions.alternative(when, process, s.verdict, s.rule) }
	p.put(s.ports, func(pp *protoPaint, g gap) {
		g.when = over(g.when)
		pp.gaps = append(pp.gaps, g)
		p.cells++
	})
	if s.ports.Proto == model.ProtoAny && p.baseState == baseOpen {
		p.base.when = over(p.base.when)
	}
}

// pass leaves the rest of the stage out: what comes before resume does not paint there.
func (p *painter) pass(ports model.PortRange) {
	p.put(ports, func(pp *protoPaint, g gap) {
		pp.parked = append(pp.parked, g)
		p.parked = true
	})
	if ports.Proto == model.ProtoAny && p.baseState == baseOpen {
		p.baseState, p.parked = basePassed, true
	}
}

// resume ends a stage: what was passed over is painted again.
func (p *painter) resume() {
	if !p.parked {
		return
	}
	for i := range p.protos[:p.used] {
		pp := &p.protos[i]
		pp.gaps, pp.parked = append(pp.gaps, pp.parked...), pp.parked[:0]
		slices.SortFunc(pp.gaps, func(a, b gap) int { return cmp.Compare(a.lo, b.lo) })
	}
	if p.baseState == basePassed {
		p.baseState = baseOpen
	}
	p.parked = false
}

// put takes every gap in the ports out, and gives each to do, which may put it back: all that lies in the ports, and no
// more than that.
func (p *painter) put(ports model.PortRange, do func(*protoPaint, gap)) {
	if p.done {
		return
	}
	if ports.Proto != model.ProtoAny {
		if pp := p.proto(ports.Proto); pp != nil {
			pp.put(ports.Lo, ports.Hi, do)
		}
		return
	}
	for i := range p.protos[:p.used] {
		p.protos[i].put(0, 65535, do)
	}
}

// proto returns what is painted of a protocol; nil if the base has painted all of it.
func (p *painter) proto(proto model.Proto) *protoPaint {
	for i := range p.protos[:p.used] {
		if p.protos[i].proto == proto {
			return &p.protos[i]
		}
	}
	if p.baseState == basePainted {
		return nil
	}
	if p.used == len(p.protos) {
		p.protos = append(p.protos, protoPaint{})
	}
	pp := &p.protos[p.used]
	p.used++
	pp.proto, pp.cells, pp.gaps, pp.parked = proto, pp.cells[:0], pp.gaps[:0], pp.parked[:0]
	all := gap{0, 65535, p.base.when}
	if p.baseState == basePassed {
		pp.parked = append(pp.parked, all)
	} else {
		pp.gaps = append(pp.gaps, all)
	}
	return pp
}

func (pp *protoPaint) put(lo, hi uint16, do func(*protoPaint, gap)) {
	first, _ := slices.BinarySearchFunc(pp.gaps, lo, func(g gap, lo uint16) int { return cmp.Compare(g.hi, lo) })
	if first == len(pp.gaps) || pp.gaps[first].lo > hi {
		return
	}
	before := pp.gaps
	pp.gaps = append(pp.spare[:0], before[:first]...)
	i := first
	for ; i < len(before) && before[i].lo <= hi; i++ {
		g := before[i]
		from, to := max(g.lo, lo), min(g.hi, hi)
		if g.lo < from {
			pp.gaps = append(pp.gaps, gap{g.lo, from - 1, g.when})
		}
		do(pp, gap{from, to, g.when})
		if g.hi > to {
			pp.gaps = append(pp.gaps, gap{to + 1, g.hi, g.when})
		}
	}
	pp.gaps = append(pp.gaps, before[i:]...)
	pp.spare = before
}

// finish returns the cells in the order of hostpolicy.Func, adjacent equal ones merged and protocols that the base
// speaks for left out. The result is valid until the next start. Something must have painted every protocol.
func (p *painter) finish() []stroke {
	protos := p.protos[:p.used]
	slices.SortFunc(protos, func(a, b protoPaint) int { return cmp.Compare(a.proto, b.proto) })
	base := p.base
	base.ports = model.AnyPort
	p.flat = append(p.flat[:0], base)
	for i := range protos {
		pp := &protos[i]
		slices.SortFunc(pp.cells, func(a, b stroke) int { return cmp.Compare(a.ports.Lo, b.ports.Lo) })
		begin := len(p.flat)
		for _, c := range pp.cells {
			if last := &p.flat[len(p.flat)-1]; len(p.flat) > begin && last.says(&c) {
				last.ports.Hi = c.ports.Hi
				continue
			}
			p.flat = append(p.flat, c)
		}
		if only := &p.flat[begin]; len(p.flat) == begin+1 && only.says(&base) {
			p.flat = p.flat[:begin]
		}
	}
	return p.flat
}

// says reports whether two strokes say the same, wherever they are.
func (s *stroke) says(other *stroke) bool {
	return s.verdict == other.verdict && s.rule == other.rule && s.when == other.when
}

// section returns the cells of a function for one protocol.
func section(strokes []stroke, proto model.Proto) []stroke {
	for i := 1; i < len(strokes); i++ {
		if strokes[i].ports.Proto != proto {
			continue
		}
		end := i
		for end < len(strokes) && strokes[end].ports.Proto == proto {
			end++
		}
		return strokes[i:end]
	}
	return strokes[:1]
}

// clip returns the part of a stroke, taken for the protocol, that lies in the range; ok is false if none does.
func clip(s stroke, proto model.Proto, lo, hi uint16) (stroke, bool) {
	from, to := s.ports.Lo, s.ports.Hi
	if s.ports.Proto == model.ProtoAny {
		from, to = 0, 65535
	}
	from, to = max(from, lo), min(to, hi)
	s.ports = model.PortRange{Proto: proto, Lo: from, Hi: to}
	return s, from <= to
}
