package model

import (
	"fmt"
	"strconv"
	"strings"
)

// Proto is an IP protocol number. Zero is every protocol.
type Proto uint8

// The protocols that documents name.
const (
	ProtoAny    Proto = 0
	ProtoICMP   Proto = 1
	ProtoTCP    Proto = 6
	ProtoUDP    Proto = 17
	ProtoICMPv6 Proto = 58
	ProtoSCTP   Proto = 132
)

var protoNames = map[Proto]string{
	ProtoAny: "any", ProtoICMP: "icmp", ProtoTCP: "tcp", ProtoUDP: "udp", ProtoICMPv6: "icmpv6", ProtoSCTP: "sctp",
}

// String returns the name that documents use, or the number.
func (p Proto) String() string {
	if n, ok := protoNames[p]; ok {
		return n
	}
	return strconv.Itoa(int(p))
}

// IsICMP reports whether ports of the protocol are ICMP types and codes.
func (p Proto) IsICMP() bool { return p == ProtoICMP || p == ProtoICMPv6 }

// ParseProto parses a protocol by name (case-insensitive); "any" gives ProtoAny.
func ParseProto(s string) (Proto, error) {
	for p, n := range protoNames {
		if strings.EqualFold(n, s) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown protocol %q: use tcp, udp, sctp, icmp, icmpv6 or any", s)
}

// PortRange is a protocol and an inclusive range of its ports. Of ICMP the "port" is type<<8|code, so icmp/8 is the
// range 0x0800–0x08ff. Proto zero is every protocol, and then the range is 0–65535.
type PortRange struct {
	Proto  Proto
	Lo, Hi uint16
}

// AnyPort is every port of every protocol.
var AnyPort = PortRange{Proto: ProtoAny, Lo: 0, Hi: 65535}

// ICMPPort returns the port that stands for an ICMP type and code.
func ICMPPort(typ, code uint8) uint16 { return uint16(typ)<<8 | uint16(code) }

// Contains reports whether the range holds the port of the protocol.
func (r PortRange) Contains(p Proto, port uint16) bool {
	return (r.Proto == ProtoAny || r.Proto == p) && r.Lo <= port && port <= r.Hi
}

// Single reports whether the range is one port of one protocol.
func (r PortRange) Single() bool { return r.Proto != ProtoAny && r.Lo == r.Hi }

// String returns the range as documents spell it: tcp/443, udp/8000-8100, icmp, icmp/8/0, any.
func (r PortRange) String() string {
	name := r.Proto.String()
	if r.Lo == 0 && r.Hi == 65535 {
		return name
	}
	if r.Proto.IsICMP() {
		switch {
		case r.Lo == r.Hi:
			return fmt.Sprintf("%s/%d/%d", name, r.Lo>>8, r.Lo&0xff)
		case r.Lo&0xff == 0 && r.Hi == r.Lo|0xff:
			return fmt.Sprintf("%s/%d", name, r.Lo>>8)
		}
	}
	if r.Lo == r.Hi {
		return fmt.Sprintf("%s/%d", name, r.Lo)
	}
	return fmt.Sprintf("%s/%d-%d", name, r.Lo, r.Hi)
}

// ParsePortRange parses tcp/443, udp/53, tcp/8000-8100, sctp/3868, tcp, icmp, icmp/8, icmp/8/0, icmpv6/128 and any.
func ParsePortRange(s string) (PortRange, error) {
	name, rest, hasRest := strings.Cut(s, "/")
	proto, err := ParseProto(name)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q: %w", s, err)
	}
	if !hasRest {
		return PortRange{Proto: proto, Hi: 65535}, nil
	}
	if proto == ProtoAny {
		return PortRange{}, fmt.Errorf("port %q: any takes no port; name the protocol", s)
	}
	if proto.IsICMP() {
		typ, code, hasCode := strings.Cut(rest, "/")
		t, err := number(typ, 255)
		if err != nil {
			return PortRange{}, fmt.Errorf("port %q: ICMP type: %w", s, err)
		}
		if !hasCode {
			return PortRange{Proto: proto, Lo: t << 8, Hi: t<<8 | 0xff}, nil
		}
		c, err := number(code, 255)
		if err != nil {
			return PortRange{}, fmt.Errorf("port %q: ICMP code: %w", s, err)
		}
		return PortRange{Proto: proto, Lo: t<<8 | c, Hi: t<<8 | c}, nil
	}
	lo, hi, isRange := strings.Cut(rest, "-")
	l, err := number(lo, 65535)
	if err != nil {
		return PortRange{}, fmt.Errorf("port %q: %w", s, err)
	}
	h := l
	if isRange {
		if h, err = number(hi, 65535); err != nil {
			return PortRange{}, fmt.Errorf("port %q: %w", s, err)
		}
		if h < l {
			return PortRange{}, fmt.Errorf("port %q: the range ends before it begins", s)
		}
	}
	return PortRange{Proto: proto, Lo: l, Hi: h}, nil
}

func number(s string, limit uint64) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	if n > limit {
		return 0, fmt.Errorf("%d is out of range 0–%d", n, limit)
	}
	return uint16(n), nil
}
