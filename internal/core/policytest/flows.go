package policytest

import (
	"fmt"
	"net/netip"

	"bulkhead/internal/core/model"
)

// flow returns a flow that is likely to touch a boundary of some document.
func (g *generator) flow() model.Flow {
	if len(g.inUse) > 0 && g.chance(4) {
		return g.flowInUse()
	}
	f := model.Flow{From: g.end(), To: g.end()}
	f.Proto, f.Port = g.service()
	if g.chance(60) {
		f.FromProcess = g.process()
	}
	if g.chance(60) {
		f.ToProcess = g.process()
	}
	if g.chance(30) {
		f.ToDomain = pick(g, []string{"eu.api.stripe.com", "us.api.stripe.com", "api.stripe.com", "stripe.com", "example.org", "api.example.net", "www.example.org"})
	}
	return f
}

// edgeInUse is an edge that a restricted workload may go on using.
type edgeInUse struct {
	workload string
	model.InUse
}

// flowInUse returns a flow along an edge in use, or one port beside it.
func (g *generator) flowInUse() model.Flow {
	e := pick(g, g.inUse)
	f := model.Flow{From: model.End{Workload: e.workload}, To: model.End{Workload: e.Peer}, Proto: e.Ports.Proto}
	if e.Direction == model.Ingress {
		f.From, f.To = f.To, f.From
	}
	if f.Proto == model.ProtoAny {
		f.Proto = model.ProtoTCP
	}
	f.Port = pick(g, []uint16{e.Ports.Lo, e.Ports.Lo, e.Ports.Hi, e.Ports.Hi, e.Ports.Lo - 1, e.Ports.Hi + 1})
	return f
}

func (g *generator) service() (model.Proto, uint16) {
	protos := []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, model.ProtoICMPv6}
	const gre = 47
	switch n := g.IntN(100); {
	case n < 60 && len(g.ranges) > 0: // at, or one beside, the border of a range that some document names
		r := pick(g, g.ranges)
		port := pick(g, []uint16{r.Lo, r.Lo, r.Hi, r.Hi, r.Lo - 1, r.Hi + 1, r.Lo/2 + r.Hi/2})
		if r.Proto == model.ProtoAny {
			return pick(g, protos), port
		}
		return r.Proto, port
	case n < 75: // essentials, and their neighbours
		return pick(g, protos[:2]), pick(g, []uint16{53, 123, 67, 68, 69, 546, 547})
	case n < 85:
		return model.ProtoICMP, model.ICMPPort(pick(g, []uint8{0, 3, 8, 11, 12, 13}), uint8(g.IntN(3)))
	case n < 92:
		return model.ProtoICMPv6, model.ICMPPort(pick(g, []uint8{1, 4, 5, 128, 130, 137, 138, 143}), uint8(g.IntN(3)))
	case n < 95:
		return gre, 0
	}
	return pick(g, protos[:3]), uint16(g.IntN(65536))
}

// end returns a workload by name, an address that one workload owns, or any other address.
func (g *generator) end() model.End {
	if len(g.instances) == 0 {
		return g.addressEnd(g.outside())
	}
	inst := pick(g, g.instances)
	switch n := g.IntN(100); {
	case n < 1:
		return model.End{Workload: "nobody"}
	case n < 25 && len(inst.Addresses) > 0:
		a := pick(g, inst.Addresses)
		if len(g.owners[a]) == 1 || g.chance(10) {
			return g.addressEnd(a)
		}
	case n < 45:
		return g.addressEnd(g.outside())
	}
	return model.End{Workload: inst.Name}
}

// addressEnd returns the end as a caller with an address gives it, or as flowline reads it: with the text beside it.
func (g *generator) addressEnd(a netip.Addr) model.End {
	if a.Is4() && g.chance(5) {
		a = netip.AddrFrom16(a.As16()) // IPv4-mapped
	}
	if g.chance(50) {
		return model.End{Workload: a.String(), Addr: a.Unmap()}
	}
	return model.End{Addr: a}
}

// outside returns the first or last address of a named prefix, one beside it, or one that nothing names.
func (g *generator) outside() netip.Addr {
	if len(g.prefixes) == 0 || g.chance(15) {
		return pick(g, []netip.Addr{
			netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("10.255.255.254"),
		})
	}
	p := pick(g, g.prefixes)
	first, last := p.Addr(), lastOf(p)
	a := pick(g, []netip.Addr{first, last, first.Next(), last.Prev(), first.Prev(), last.Next()})
	if !a.IsValid() { // before 0.0.0.0 or after the last address
		return first
	}
	return a
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		panic(fmt.Sprintf("policytest: %d bytes are no address", len(b)))
	}
	return a
}

// expectations name workloads and addresses of the world; what they expect is left to chance.
func (g *generator) expectations() {
	for i := range g.size.Expectations {
		e := model.Expectation{Meta: g.meta("expect", i)}
		for range 1 + g.IntN(3) {
			proto, port := g.service()
			switch {
			case proto == 47:
				proto = model.ProtoTCP
			}
			e.Cases = append(e.Cases, model.ExpectationCase{
				From: g.end().String(), To: g.end().String(),
				On:     model.PortRange{Proto: proto, Lo: port, Hi: port},
				Expect: pick(g, []model.Verdict{model.Deny, model.WouldDeny, model.Allow}),
			})
		}
		g.docs.Expectations = append(g.docs.Expectations, e)
	}
}
