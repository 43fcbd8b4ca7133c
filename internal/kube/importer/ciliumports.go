package importer

import (
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// ciliumPorts are the ports of a rule.
type ciliumPorts struct {
	ranges []model.PortRange
	named  []model.NamedPort
}

var (
	portProtocols = []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP}
	portName      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$`)
)

func itoa(i int) string { return strconv.Itoa(i) }

// isPortName reports whether a container's port can have the name.
func isPortName(s string) bool {
	return portName.MatchString(s) && strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") && !strings.Contains(s, "--")
}

func wholeProto(p model.Proto) model.PortRange { return model.PortRange{Proto: p, Hi: 65535} }

// ports reads toPorts and icmps, of which one is there at most. explicit reports whether one is.
func (c *ciliumRule) ports(toPorts, icmps *yaml.Node, path string, d model.Direction, deny bool) (out ciliumPorts, explicit bool) {
	switch {
	case toPorts != nil && len(toPorts.Content) > 0:
		c.each(toPorts, path+".toPorts", func(v *yaml.Node, path string) { c.portRule(v, path, d, deny, &out) })
	case icmps != nil && len(icmps.Content) > 0:
		c.each(icmps, path+".icmps", func(v *yaml.Node, path string) {
			c.fields(v, path, field("fields", func(v *yaml.Node) {
				c.each(v, path+".fields", func(v *yaml.Node, path string) { c.icmp(v, path, &out) })
			}))
		})
	default:
		return ciliumPorts{ranges: anyPort}, false
	}
	return out, true
}

func (c *ciliumRule) portRule(n *yaml.Node, path string, d model.Direction, deny bool, out *ciliumPorts) {
	var own ciliumPorts
	left, listed := false, false
	above := func(name, what string) func(*yaml.Node) {
		return func(v *yaml.Node) {
			left = true
			c.say(Narrower, v, path+"."+name, "remove "+name+", if the port is to be open for everything", "%s is judged above the network: what it is about was left out", what)
		}
	}
	fields := []fieldOf{
		field("ports", func(v *yaml.Node) {
			c.each(v, path+".ports", func(v *yaml.Node, path string) {
				listed = true
				c.port(v, path, d, deny, &own)
			})
		}),
	}
	if !deny {
		fields = append(fields,
			field("rules", func(v *yaml.Node) { left = c.layer7(v, path+".rules") || left }),
			field("serverNames", above("serverNames", "the server name of TLS")),
			field("terminatingTLS", above("terminatingTLS", "TLS that is ended on the way")),
			field("originatingTLS", above("originatingTLS", "TLS that begins on the way")),
			field("listener", above("listener", "traffic that goes to an Envoy listener")),
		)
	}
	if !c.fields(n, path, fields...) || left {
		return
	}
	if !listed && deny {
		c.say(Narrower, n, path, "list the ports", "no port is listed: every port is denied")
		own.ranges = anyPort
	}
	out.ranges, out.named = append(out.ranges, own.ranges...), append(out.named, own.named...)
}

// layer7 reports whether the rules of an application protocol restrict what the port allows.
func (c *ciliumRule) layer7(n *yaml.Node, path string) (left bool) {
	if !c.IsMapping(n, path) {
		return true
	}
	c.Pairs(n, func(key string, _, v *yaml.Node) {
		if isNull(v) || v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
			return
		}
		if key == "dns" && v.Kind == yaml.SequenceNode {
			open := false
			for _, x := range v.Content {
				pattern := child(x, "matchPattern")
				open = open || pattern != nil && pattern.Value == "*" && len(x.Content) == 2
			}
			if open {
				c.say(Note, v, path+".dns", "nothing is to be done", `matchPattern "*" allows every DNS query: the port is open for them, and for whatever else is said there`)
				return
			}
		}
		left = true
		c.say(Narrower, v, path+"."+key, "remove the rules, if the port is to be open for everything",
			"%s is judged above the network: without it the port would be open wider, so it was left out", strings.ToUpper(key))
	})
	return left
}

func (c *ciliumRule) port(n *yaml.Node, path string, d model.Direction, deny bool, out *ciliumPorts) {
	protos, known := portProtocols, true
	var port, end *yaml.Node
	if !c.fields(n, path,
		field("port", func(v *yaml.Node) { port = v }),
		field("endPort", func(v *yaml.Node) { end = v }),
		field("protocol", func(v *yaml.Node) {
			text, ok := c.Text(v, path+".protocol")
			if !ok {
				known = false
				return
			}
			switch text = strings.ToUpper(text); text {
			case "ANY", "":
			case "TCP", "UDP", "SCTP":
				p, err := model.ParseProto(text)
				if err != nil {
					c.Fail(v, "%s.protocol: %v", path, err)
				}
				protos = []model.Proto{p}
			case "ICMP", "ICMPV6", "VRRP", "IGMP":
				known = false
				if deny {
					out.ranges = append(out.ranges, model.AnyPort)
				}
				c.say(Narrower, v, path+".protocol", "write ICMP under icmps", "ports of %s mean nothing here%s", text,
					(&ciliumPeers{deny: deny}).consequence("every port of every protocol is denied"))
			default:
				known = false
				c.Fail(v, "%s.protocol: unknown protocol %q; use TCP, UDP, SCTP or ANY", path, text)
			}
		}),
	) || !known {
		return
	}
	if port == nil {
		c.Fail(n, "%s: port is missing; Cilium asks for one, and 0 means every port", path)
		return
	}
	text, ok := c.Text(port, path+".port")
	if !ok {
		return
	}
	if name := strings.ToLower(text); isPortName(name) {
		if end != nil {
			c.Fail(end, "%s.endPort goes with a number, not with the name %q", path, text)
			return
		}
		if deny && d == model.Egress {
			// Cilium denies the numbers that any pod gives the name, at every pod (pkg/policy/l4.go, GetNamedPort).
			c.say(Narrower, port, path+".port", "write the number", "which numbers the name %q has somewhere is not known here: every port of the protocol is denied", text)
			for _, p := range protos {
				out.ranges = append(out.ranges, wholeProto(p))
			}
			return
		}
		for _, p := range protos {
			out.named = append(out.named, model.NamedPort{Proto: p, Name: name})
		}
		return
	}
	lo, err := strconv.ParseUint(text, 0, 16)
	if err != nil {
		c.Fail(port, "%s.port: %q is no port; write a number from 0 to 65535 or a container's port name", path, text)
		return
	}
	hi := int(lo)
	if end != nil {
		if hi, ok = c.Integer(end, path+".endPort", 0, 65535); !ok {
			return
		}
		if hi == 0 {
			hi = int(lo)
		}
		if hi < int(lo) {
			c.Fail(end, "%s.endPort %d is before port %d", path, hi, lo)
			return
		}
	}
	if lo == 0 && hi == 0 {
		if len(protos) > 1 && deny {
			// It is everything to some releases of Cilium.
			c.say(Narrower, port, path+".port", "name the protocols", "every port of every protocol may be meant: ICMP is denied too")
			out.ranges = append(out.ranges, model.AnyPort)
			return
		}
		hi = 65535
	}
	for _, p := range protos {
		out.ranges = append(out.ranges, model.PortRange{Proto: p, Lo: uint16(lo), Hi: uint16(hi)})
	}
}

// icmpTypes are the types that Cilium knows by name (pkg/policy/api/icmp.go), of IPv4 and IPv6.
var icmpTypes = [2]map[string]int{
	{
		"EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8, "RouterAdvertisement": 9,
		"RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14, "Photuris": 40,
		"ExtendedEchoRequest": 42, "ExtendedEchoReply": 43, "ExtendedEcho Reply": 43,
	},
	{
		"DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128, "EchoReply": 129,
		"MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132, "RouterSolicitation": 133,
		"RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136, "RedirectMessage": 137,
	},
}

func (c *ciliumRule) icmp(n *yaml.Node, path string, out *ciliumPorts) {
	family := 0
	var typ *yaml.Node
	if !c.fields(n, path,
		field("family", func(v *yaml.Node) {
			if v.Value != "" { // nothing means IPv4
				family, _ = c.Choice(v, "family", []string{"IPv4", "IPv6"})
			}
		}),
		field("type", func(v *yaml.Node) { typ = v }),
	) {
		return
	}
	if typ == nil {
		c.Fail(n, "%s: type is missing; write its number or name", path)
		return
	}
	number, named := icmpTypes[family][typ.Value]
	if !named {
		v, err := strconv.ParseUint(typ.Value, 10, 8)
		if err != nil || typ.Kind != yaml.ScalarNode {
			c.Fail(typ, "%s.type: %q is no type of ICMP; write a number from 0 to 255", path, typ.Value)
			return
		}
		number = int(v)
	}
	proto := []model.Proto{model.ProtoICMP, model.ProtoICMPv6}[family]
	out.ranges = append(out.ranges, model.PortRange{Proto: proto, Lo: uint16(number) << 8, Hi: uint16(number)<<8 | 0xff})
}
