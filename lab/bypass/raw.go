package bypass

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rawSend sends whole packets, headers and all, to an address.
func rawSend(to netip.Addr, packets ...[]byte) error {
	fd, err := open(domain(to), unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var errs []error
	for _, p := range packets {
		// Each by itself: that one is stopped says nothing of the others.
		if err := unix.Sendto(fd, p, 0, sockaddr(netip.AddrPortFrom(to, 0))); err != nil {
			errs = append(errs, fmt.Errorf("send: %w", err))
		}
	}
	return errors.Join(errs...)
}

func rawUDP(a *attempt) error { return a.rawDatagram(a.own()) }

// rawPort sends as if from a port that the allowed unit has bound.
func rawPort(a *attempt) error {
	return a.rawDatagram(netip.AddrPortFrom(a.Own[a.family], helperPort))
}

// rawSource sends as if from another host.
func rawSource(a *attempt) error {
	return a.rawDatagram(netip.AddrPortFrom(a.Allowed[a.family], a.port))
}

func (a *attempt) rawDatagram(src netip.AddrPort) error {
	p := packet{src: src.Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: udp(src, a.target(), a.token)}
	return rawSend(a.addr(), p.bytes())
}

func rawTCP(a *attempt) error {
	p := packet{src: a.own().Addr(), dst: a.addr(), proto: unix.IPPROTO_TCP, payload: syn(a.own(), a.target(), sequence(a.token), a.token)}
	return rawSend(a.addr(), p.bytes())
}

func rawEcho(a *attempt) error {
	proto, b := echo(a.own().Addr(), a.addr(), a.token)
	return rawSend(a.addr(), (&packet{src: a.own().Addr(), dst: a.addr(), proto: proto, payload: b}).bytes())
}

func rawPortless(a *attempt) error {
	return rawSend(a.addr(), (&packet{src: a.own().Addr(), dst: a.addr(), proto: portless, payload: []byte(a.token)}).bytes())
}

// extension sends a datagram behind extension headers.
func extension(kind uint8) func(*attempt) error {
	return func(a *attempt) error {
		p := packet{src: a.own().Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: udp(a.own(), a.target(), a.token), first: kind}
		if kind == unix.IPPROTO_FRAGMENT {
			p.between = fragment6(p.proto, 0, false, 1)
		} else {
			p.first = unix.IPPROTO_HOPOPTS
			p.between = append(append(options6(unix.IPPROTO_ROUTING), routing6(unix.IPPROTO_DSTOPTS, 4, 0, a.addr())...), options6(p.proto)...)
		}
		return rawSend(a.addr(), p.bytes())
	}
}

// routingEnd sends a datagram behind a routing header that has nothing left to say.
func routingEnd(kind uint8) func(*attempt) error {
	return func(a *attempt) error {
		p := packet{src: a.own().Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: udp(a.own(), a.target(), a.token),
			first: unix.IPPROTO_ROUTING, between: routing6(unix.IPPROTO_UDP, kind, 0, a.Allowed[v6])}
		return rawSend(a.addr(), p.bytes())
	}
}

// routing sends a datagram to what is allowed, which its routing header asks to pass it on.
func routing(kind uint8) func(*attempt) error {
	return func(a *attempt) error {
		// The checksum is that of the packet as it ends (RFC 8200, 8.1). Type 4 lists from the end.
		p := packet{src: a.own().Addr(), dst: a.Allowed[v6], proto: unix.IPPROTO_UDP, payload: udp(a.own(), a.target(), a.token), first: unix.IPPROTO_ROUTING}
		addrs := []netip.Addr{a.addr()}
		if kind == 4 {
			addrs = append(addrs, a.Allowed[v6])
		}
		p.between = routing6(p.proto, kind, 1, addrs...)
		return rawSend(p.dst, p.bytes())
	}
}

// tinyFragments sends a datagram in two: what the ports are in is 8 bytes long and comes last.
func tinyFragments(a *attempt) error {
	whole := udp(a.own(), a.target(), a.token)
	return rawSend(a.addr(), a.fragment(whole, 8, len(whole)), a.fragment(whole, 0, 8))
}

// overlapping sends a datagram to a port that is allowed in two fragments, and a third that puts another port over it.
func overlapping(a *attempt) error {
	lure := udp(a.own(), netip.AddrPortFrom(a.addr(), openPort), a.token)
	real := udp(a.own(), a.target(), a.token)
	return rawSend(a.addr(), a.fragment(lure, 0, 16), a.fragment(real, 0, 24), a.fragment(real, 24, len(real)))
}

// fragment is the packet with the bytes from .. to of the transport.
func (a *attempt) fragment(whole []byte, from, to int) []byte {
	p := packet{src: a.own().Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: whole[from:to]}
	id := sequence(a.token) | 1
	if a.family == v6 {
		p.first, p.between = unix.IPPROTO_FRAGMENT, fragment6(p.proto, from, to < len(whole), id)
	} else {
		p.id, p.offset, p.more = uint16(id), from, to < len(whole)
	}
	return p.bytes()
}

// cutPorts has nothing in the first fragment but an extension header.
func cutPorts(a *attempt) error {
	whole := append(options6(unix.IPPROTO_UDP), udp(a.own(), a.target(), a.token)...)
	part := func(from, to int) []byte {
		p := packet{src: a.own().Addr(), dst: a.addr(), payload: whole[from:to], first: unix.IPPROTO_FRAGMENT}
		p.between = fragment6(unix.IPPROTO_DSTOPTS, from, to < len(whole), sequence(a.token))
		return p.bytes()
	}
	return rawSend(a.addr(), part(0, 8), part(8, len(whole)))
}
