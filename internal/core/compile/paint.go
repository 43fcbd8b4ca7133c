package compile

import (
	"cmp"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// stroke is a verdict for a range of ports: what one rule, or the default, says about one peer.
type stroke struct {
	ports   model.PortRange
	verdict model.Verdict
	rule    uint32 // index into names
}

// painter resolves strokes into a function of protocol and port: where strokes overlap the first one counts. It is
// reused; start begins the next function.
type painter struct {
	protos []protoPaint // the first used ones are in use
	used   int
	base   stroke // for every protocol that is not in protos
	done   bool   // base is painted, nothing is left to paint
	cells  int
	flat   []stroke
}

// protoPaint is what is painted of one protocol.
type protoPaint struct {
	proto model.Proto
	cells []stroke // disjoint, unsorted until finish
	gaps  []gap    // sorted: what is not painted yet
	spare []gap
}

type gap struct{ lo, hi uint16 }

func (p *painter) start() { p.used, p.done, p.cells = 0, false, 0 }

// paint adds a stroke below those before it.
func (p *painter) paint(s stroke) {
	if p.done {
		return
	}
	if s.ports.Proto != model.ProtoAny {
		p.proto(s.ports.Proto).paint(s, &p.cells)
		return
	}
	for i := range p.protos[:p.used] {
		p.protos[i].paint(s, &p.cells)
	}
	p.base, p.done = s, true
}

func (p *painter) proto(proto model.Proto) *protoPaint {
	for i := range p.protos[:p.used] {
		if p.protos[i].proto == proto {
			return &p.protos[i]
		}
	}
	if p.used == len(p.protos) {
		p.protos = append(p.protos, protoPaint{})
	}
	pp := &p.protos[p.used]
	p.used++
	pp.proto, pp.cells, pp.gaps = proto, pp.cells[:0], append(pp.gaps[:0], gap{0, 65535})
	return pp
}

func (pp *protoPaint) paint(s stroke, cells *int) {
	lo, hi := s.ports.Lo, s.ports.Hi
	first, _ := slices.BinarySearchFunc(pp.gaps, lo, func(g gap, lo uint16) int { return cmp.Compare(g.hi, lo) })
	if first == len(pp.gaps) || pp.gaps[first].lo > hi {
		return
	}
	rest := append(pp.spare[:0], pp.gaps[:first]...)
	i := first
	for ; i < len(pp.gaps) && pp.gaps[i].lo <= hi; i++ {
		g := pp.gaps[i]
		from, to := max(g.lo, lo), min(g.hi, hi)
		pp.cells = append(pp.cells, stroke{model.PortRange{Proto: pp.proto, Lo: from, Hi: to}, s.verdict, s.rule})
		*cells++
		if g.lo < from {
			rest = append(rest, gap{g.lo, from - 1})
		}
		if g.hi > to {
			rest = append(rest, gap{to + 1, g.hi})
		}
	}
	pp.spare, pp.gaps = pp.gaps, append(rest, pp.gaps[i:]...)
}

// finish returns the cells in the order of hostpolicy.Func, adjacent equal ones merged and protocols that the base
// speaks for left out. The result is valid until the next start. Something must have painted every protocol.
func (p *painter) finish() []stroke {
	protos := p.protos[:p.used]
	slices.SortFunc(protos, func(a, b protoPaint) int { return cmp.Compare(a.proto, b.proto) })
	p.flat = append(p.flat[:0], stroke{model.AnyPort, p.base.verdict, p.base.rule})
	for i := range protos {
		pp := &protos[i]
		slices.SortFunc(pp.cells, func(a, b stroke) int { return cmp.Compare(a.ports.Lo, b.ports.Lo) })
		begin := len(p.flat)
		for _, c := range pp.cells {
			if last := &p.flat[len(p.flat)-1]; len(p.flat) > begin && last.verdict == c.verdict && last.rule == c.rule {
				last.ports.Hi = c.ports.Hi
				continue
			}
			p.flat = append(p.flat, c)
		}
		if only := p.flat[begin]; len(p.flat) == begin+1 && only.verdict == p.base.verdict && only.rule == p.base.rule {
			p.flat = p.flat[:begin]
		}
	}
	return p.flat
}

// functions holds each distinct function once, for all policy sets of a world.
type functions struct {
	names []model.RuleID
	cells []stroke // of all functions, one function after the other, in the order of hostpolicy.Func
	start []uint32 // where in cells each function begins; one more than there are functions
	funcs []hostpolicy.Func
}

// functionBuilder makes functions.
type functionBuilder struct {
	*functions
	byName map[model.RuleID]uint32
	byKey  map[string]int32
	key    []byte
}

func newFunctionBuilder() *functionBuilder {
	return &functionBuilder{
		functions: &functions{start: []uint32{0}},
		byName:    map[model.RuleID]uint32{},
		byKey:     map[string]int32{},
	}
}

// of returns the cells of a function.
func (f *functions) of(fn int32) []stroke { return f.cells[f.start[fn]:f.start[fn+1]] }

// name returns the index of a rule's name.
func (f *functionBuilder) name(id model.RuleID) uint32 {
	if i, ok := f.byName[id]; ok {
		return i
	}
	i := uint32(len(f.names))
	f.names = append(f.names, id)
	f.byName[id] = i
	return i
}

// intern returns the index of the function that the strokes of a finished painter make.
func (f *functionBuilder) intern(strokes []stroke) int32 {
	f.key = f.key[:0]
	for _, s := range strokes {
		f.key = append(f.key,
			byte(s.ports.Proto), byte(s.ports.Lo), byte(s.ports.Lo>>8), byte(s.ports.Hi), byte(s.ports.Hi>>8),
			byte(s.verdict), byte(s.rule), byte(s.rule>>8), byte(s.rule>>16), byte(s.rule>>24))
	}
	if i, ok := f.byKey[string(f.key)]; ok {
		return i
	}
	fn := make(hostpolicy.Func, len(strokes))
	for i, s := range strokes {
		fn[i] = hostpolicy.Cell{Ports: s.ports, Verdict: s.verdict, Rule: f.names[s.rule]}
	}
	i := int32(len(f.funcs))
	f.byKey[string(f.key)] = i
	f.cells = append(f.cells, strokes...)
	f.start = append(f.start, uint32(len(f.cells)))
	f.funcs = append(f.funcs, fn)
	return i
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
