package importer

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// calicoMatch are ports.
type calicoMatch struct {
	ranges []model.PortRange
	named  []model.NamedPort
}

// calicoPorts are the fields of a rule that say which protocols and ports it is about.
type calicoPorts struct {
	p                                               *calicoPolicy
	path                                            string
	version                                         int // of IP; 0 is either
	protocol, notProtocol, icmp, notICMP, list, not *yaml.Node
}

// reason says why ports are not exact.
type reason struct {
	at             *yaml.Node
	path, fix, msg string
}

// read returns the ports that the rule is about, at least and at most.
func (c *calicoPorts) read() (over, under calicoMatch, why *reason) {
	any := calicoMatch{ranges: anyPort}
	if c.protocol == nil {
		for _, n := range []*yaml.Node{c.icmp, c.notICMP, c.list, c.not} {
			if n != nil {
				c.p.Fail(n, "%s: ports and ICMP need a protocol; write protocol: beside them", c.path)
				return any, calicoMatch{}, nil
			}
		}
	}
	if c.notProtocol != nil {
		p, _, _ := c.proto(c.notProtocol, "notProtocol")
		for _, x := range []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, model.ProtoICMPv6} {
			if x != p {
				under.ranges = append(under.ranges, wholeProto(x))
			}
		}
		why = &reason{c.notProtocol, c.path + ".notProtocol", "list the protocols that are meant in rules of their own", "every protocol but one cannot be said, only those that have names here"}
		if c.protocol == nil {
			return any, under, why
		}
	}
	if c.protocol == nil {
		return any, any, why
	}
	p, known, ok := c.proto(c.protocol, "protocol")
	if !ok {
		return any, calicoMatch{}, why
	}
	if !known {
		return any, calicoMatch{}, &reason{c.protocol, c.path + ".protocol", "remove the rule, or judge it elsewhere", "the protocol " + c.protocol.Value + " has no name here"}
	}
	if p == model.ProtoICMP && c.version == 6 || p == model.ProtoICMPv6 && c.version == 4 {
		return calicoMatch{}, calicoMatch{}, nil // no packet is so
	}
	all := []model.PortRange{wholeProto(p)}
	if p.IsICMP() {
		over, under = c.icmpTypes(p, all)
	} else {
		over, under, why = c.numbers(p, all, why)
	}
	if c.notProtocol != nil {
		if q, _, _ := c.proto(c.notProtocol, "notProtocol"); q == p {
			return calicoMatch{}, calicoMatch{}, nil
		}
		return over, under, nil
	}
	return over, under, why
}

// proto reads a protocol by name or number. known reports whether it has a name here.
func (c *calicoPorts) proto(n *yaml.Node, what string) (p model.Proto, known, ok bool) {
	if n.Kind == yaml.ScalarNode {
		if v, err := strconv.ParseUint(n.Value, 10, 8); err == nil && v > 0 {
			p = model.Proto(v)
			_, err := model.ParseProto(p.String())
			return p, err == nil, true
		}
		switch text := strings.ToUpper(n.Value); text {
		case "TCP", "UDP", "SCTP", "ICMP", "ICMPV6":
			p, err := model.ParseProto(text)
			return p, err == nil, err == nil
		case "UDPLITE":
			return 136, false, true
		}
	}
	c.p.Fail(n, "%s.%s: unknown protocol; use TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or a number from 1 to 255", c.path, what)
	return 0, false, false
}

// icmpTypes cuts the types and codes of ICMP down to those that are meant.
func (c *calicoPorts) icmpTypes(p model.Proto, all []model.PortRange) (over, under calicoMatch) {
	for _, n := range []*yaml.Node{c.list, c.not} {
		if n != nil {
			c.p.Fail(n, "%s: ICMP has no ports; write icmp: {type: 8}", c.path)
		}
	}
	read := func(n *yaml.Node, what string) []model.PortRange {
		typ, code := -1, -1
		c.p.fields(n, c.path+"."+what,
			field("type", func(v *yaml.Node) { typ, _ = c.p.Integer(v, c.path+"."+what+".type", 0, 255) }),
			field("code", func(v *yaml.Node) { code, _ = c.p.Integer(v, c.path+"."+what+".code", 0, 255) }))
		if typ < 0 {
			if code >= 0 {
				c.p.Fail(n, "%s.%s: a code goes with a type", c.path, what)
			}
			return all
		}
		r := model.PortRange{Proto: p, Lo: uint16(typ) << 8, Hi: uint16(typ)<<8 | 0xff}
		if code >= 0 {
			r.Lo |= uint16(code)
			r.Hi = r.Lo
		}
		return []model.PortRange{r}
	}
	ranges := all
	if c.icmp != nil {
		ranges = read(c.icmp, "icmp")
	}
	if c.notICMP != nil {
		if not := read(c.notICMP, "notICMP"); len(not) > 0 && not[0] != all[0] {
			ranges = byType(without(ranges, not))
		}
	}
	return calicoMatch{ranges: ranges}, calicoMatch{ranges: ranges}
}

// byType cuts ranges of ICMP into those that documents can write: a type, or a type and a code.
func byType(ranges []model.PortRange) []model.PortRange {
	var out []model.PortRange
	for _, r := range ranges {
		for lo := int(r.Lo); lo <= int(r.Hi); {
			hi := lo
			if lo&0xff == 0 && lo|0xff <= int(r.Hi) {
				hi = lo | 0xff
			}
			out = append(out, model.PortRange{Proto: r.Proto, Lo: uint16(lo), Hi: uint16(hi)})
			lo = hi + 1
		}
	}
	return out
}

// numbers cuts the ports of a protocol down to those that are meant.
func (c *calicoPorts) numbers(p model.Proto, all []model.PortRange, why *reason) (calicoMatch, calicoMatch, *reason) {
	for _, n := range []*yaml.Node{c.icmp, c.notICMP} {
		if n != nil {
			c.p.Fail(n, "%s: icmp goes with protocol: ICMP or ICMPv6", c.path)
		}
	}
	m := calicoMatch{ranges: all}
	if c.list != nil {
		m = c.portList(c.list, p, "destination.ports")
	}
	if c.not == nil {
		return m, m, why
	}
	not := c.portList(c.not, p, "destination.notPorts")
	over := calicoMatch{without(m.ranges, not.ranges), m.named}
	if len(not.named) == 0 && len(m.named) == 0 {
		return over, over, why
	}
	return over, calicoMatch{}, &reason{c.not, c.path + ".destination.notPorts", "write the numbers of the ports", "ports by name cannot be taken out, nor taken out of"}
}

func (c *calicoPorts) portList(n *yaml.Node, p model.Proto, what string) (out calicoMatch) {
	c.p.each(n, c.path+"."+what, func(v *yaml.Node, path string) {
		lo, hi, isRange := strings.Cut(v.Value, ":")
		l, errLo := strconv.ParseUint(lo, 10, 16)
		h := l
		var errHi error
		if isRange {
			h, errHi = strconv.ParseUint(hi, 10, 16)
		}
		switch {
		case v.Kind != yaml.ScalarNode:
			c.p.Fail(v, "%s: a port is a number, a range such as 80:90, or a name", path)
		case errLo == nil && errHi == nil && l <= h:
			out.ranges = append(out.ranges, model.PortRange{Proto: p, Lo: uint16(l), Hi: uint16(h)})
		case isRange || errLo == nil || strings.Trim(v.Value, "0123456789") == "":
			c.p.Fail(v, "%s: %q is no port and no range of ports from 0 to 65535", path, v.Value)
		case isPortName(v.Value): // what no container can be called means nobody
			out.named = append(out.named, model.NamedPort{Proto: p, Name: v.Value})
		}
	})
	return out
}
