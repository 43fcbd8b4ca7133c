package reach

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/model"
)

// Ports is a set of protocols and ports. Essentials that protocol and port tell belong to no difference and break no
// guardrail; a set takes them in or leaves them out, whichever is shorter to say.
type Ports struct {
	// Rest says whether the set holds the protocols that Ranges does not name.
	Rest bool
	// Ranges are sorted, disjoint and of named protocols: what the set holds if Rest is false, what it lacks if
	// Rest is true.
	Ranges []model.PortRange
}

// Empty reports whether the set holds nothing.
func (p *Ports) Empty() bool { return !p.Rest && len(p.Ranges) == 0 }

// Contains reports whether the set holds the port.
func (p *Ports) Contains(proto model.Proto, port uint16) bool {
	in := slices.ContainsFunc(p.Ranges, func(r model.PortRange) bool { return r.Contains(proto, port) })
	return in != p.Rest
}

// familiar are the ports that examples are made of if they can be.
var familiar = []model.PortRange{
	{Proto: model.ProtoTCP, Lo: 443, Hi: 443}, {Proto: model.ProtoTCP, Lo: 22, Hi: 22}, {Proto: model.ProtoTCP, Lo: 80, Hi: 80},
}

// First returns one port of the set, the one that is easiest to understand: a familiar one, or else one of TCP if there
// is one.
func (p *Ports) First() (model.PortRange, bool) {
	for _, f := range familiar {
		if p.Contains(f.Proto, f.Lo) {
			return f, true
		}
	}
	if !p.Rest {
		if len(p.Ranges) == 0 {
			return model.PortRange{}, false
		}
		for _, r := range p.Ranges {
			if r.Proto == model.ProtoTCP {
				port := min(max(r.Lo, 1), r.Hi)
				return model.PortRange{Proto: r.Proto, Lo: port, Hi: port}, true
			}
		}
		r := p.Ranges[0]
		for port := int(r.Lo); port <= int(r.Hi); port++ {
			if _, inside := inRanges(always, r.Proto, uint16(port)); !inside {
				return model.PortRange{Proto: r.Proto, Lo: uint16(port), Hi: uint16(port)}, true
			}
		}
		return model.PortRange{Proto: r.Proto, Lo: r.Lo, Hi: r.Lo}, true
	}
	for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP} {
		for port := 1; port <= 65535; port++ {
			if r, inside := inRanges(p.Ranges, proto, uint16(port)); inside {
				port = int(r.Hi)
				continue
			}
			if r, inside := inRanges(always, proto, uint16(port)); inside {
				port = int(r.Hi)
				continue
			}
			return model.PortRange{Proto: proto, Lo: uint16(port), Hi: uint16(port)}, true
		}
	}
	const gre, last = 47, 255 // a protocol without ports; there is always one that no range names
	for proto := model.Proto(gre); proto < last; proto++ {
		if p.Contains(proto, 0) {
			return model.PortRange{Proto: proto}, true
		}
	}
	return model.PortRange{}, false
}

func inRanges(list []model.PortRange, proto model.Proto, port uint16) (model.PortRange, bool) {
	for _, r := range list {
		if r.Contains(proto, port) {
			return r, true
		}
	}
	return model.PortRange{}, false
}

// Strings writes the set as people and rules do: names of services where one is exactly that port, ranges else; "any",
// or "any but …".
func (p *Ports) Strings(services map[model.PortRange]string) []string {
	var out []string
	if p.Rest {
		if len(p.Ranges) == 0 {
			return []string{"any"}
		}
		out = append(out, "any but")
	}
	for _, r := range p.Ranges {
		if name := services[r]; name != "" {
			out = append(out, name)
		} else {
			out = append(out, r.String())
		}
	}
	if p.Rest {
		for i := range out[1 : len(out)-1] {
			out[1+i] += ","
		}
		return []string{join(out)}
	}
	return out
}

func join(words []string) string {
	s := words[0]
	for _, w := range words[1:] {
		s += " " + w
	}
	return s
}

// Key returns text that is equal for equal sets only.
func (p *Ports) Key() string {
	b := make([]byte, 0, 1+5*len(p.Ranges))
	if p.Rest {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	for _, r := range p.Ranges {
		b = append(b, byte(r.Proto))
		b = binary.LittleEndian.AppendUint16(b, r.Lo)
		b = binary.LittleEndian.AppendUint16(b, r.Hi)
	}
	return string(b)
}

// portsBuilder makes a set from pieces in the order in which walk visits them.
type portsBuilder struct {
	pieces []portsPiece
}

type portsPiece struct {
	ports model.PortRange
	in    bool
	free  bool // essential: in or out, as is shorter
}

func (b *portsBuilder) add(p model.PortRange, in, free bool) {
	b.pieces = append(b.pieces, portsPiece{p, in, free})
}

// build decides about the free pieces and joins neighbours.
func (b *portsBuilder) build() Ports {
	last := len(b.pieces) - 1
	out := Ports{Rest: b.pieces[last].in}
	for lo := 0; lo < last; {
		hi := lo
		for hi < last && b.pieces[hi].ports.Proto == b.pieces[lo].ports.Proto {
			hi++
		}
		settle(b.pieces[lo:hi], out.Rest)
		for _, p := range b.pieces[lo:hi] {
			if p.in == out.Rest {
				continue
			}
			if n := len(out.Ranges); n > 0 && out.Ranges[n-1].Proto == p.ports.Proto && int(out.Ranges[n-1].Hi)+1 == int(p.ports.Lo) {
				out.Ranges[n-1].Hi = p.ports.Hi
			} else {
				out.Ranges = append(out.Ranges, p.ports)
			}
		}
		lo = hi
	}
	return out
}

// settle gives the free pieces of one protocol the side that their neighbours are on. If they differ, the side of the
// rest wins; without neighbours too.
func settle(pieces []portsPiece, rest bool) {
	for i := range pieces {
		if !pieces[i].free {
			continue
		}
		before, after := rest, rest
		if i > 0 {
			before = pieces[i-1].in // decided already if it was free
		}
		for j := i + 1; j < len(pieces); j++ {
			if !pieces[j].free {
				after = pieces[j].in
				break
			}
		}
		switch {
		case i == 0:
			pieces[i].in = after
		case before == after:
			pieces[i].in = before
		default:
			pieces[i].in = rest
		}
	}
}

// Piece is a part of the protocols and ports that is in a set or not. Free pieces, which are essential, are in or out as
// is shorter to say.
type Piece struct {
	Ports    model.PortRange
	In, Free bool
}

// NewPorts makes a set of pieces that cover everything, sorted by protocol and port; the last has ProtoAny and stands for
// every protocol that the others do not name.
func NewPorts(pieces []Piece) Ports {
	var b portsBuilder
	for _, p := range pieces {
		b.add(p.Ports, p.In, p.Free)
	}
	return b.build()
}
