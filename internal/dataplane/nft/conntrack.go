package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// Messages and attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h) that package unix does not name.
const (
	ctNew, ctGet                             = 0, 1
	ctaTupleOrig, ctaTupleReply, ctaStatus   = 1, 2, 3
	ctaProtoInfo, ctaTimeout, ctaMark        = 4, 7, 8
	ctaCountersOrig, ctaCountersReply        = 9, 10
	ctaZone, ctaMarkMask                     = 18, 21
	ctaTupleIP, ctaTupleProto                = 1, 2
	ctaProtoNum, ctaProtoSrc, ctaProtoDst    = 1, 2, 3
	ctaCountersPackets, ctaCountersBytes     = 1, 2
	ctaProtoInfoTCP                          = 1
	ctaTCPState, ctaTCPFlagsOrig, ctaTCPRply = 1, 4, 5

	ctStatus         = 1<<1 | 1<<2 | 1<<3 // IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
	ctTCPEstablished = 3
	ctTCPLastACK     = 6
	ctTCPTimeWait    = 7
	ctTCPLiberal     = 8 // IP_CT_TCP_FLAG_BE_LIBERAL

	groupDestroy = 3 // NFNLGRP_CONNTRACK_DESTROY
)

// tuple is one direction of a connection.
type tuple struct {
	proto    model.Proto
	src, dst netip.AddrPort // ports of ICMP: 0, and type<<8|code
}

// connection is what the kernel tracks of one.
type connection struct {
	original, reply tuple
	mark            uint32
	state           uint8 // of TCP
	sent, answered  counted
	known           bool   // counters are there
	named, zone     []byte // the attributes by which the kernel knows it; zone is nil in the customary one
}

type counted struct{ packets, bytes uint64 }

// flow returns the addresses of the sockets at both ends, behind any translation.
func (c *connection) flow() flowKey {
	k := flowKey{proto: c.original.proto, client: c.original.src, server: c.reply.src}
	if k.proto.IsICMP() {
		k.client = netip.AddrPortFrom(c.original.src.Addr(), 0)
		k.server = netip.AddrPortFrom(c.reply.src.Addr(), c.original.dst.Port())
	}
	return k
}

func parseConnection(b []byte) (c connection) {
	eachAttribute(b, func(typ uint16, b []byte) {
		switch typ {
		case ctaTupleOrig:
			c.original, c.named = parseTuple(b), b
		case ctaZone:
			c.zone = b
		case ctaTupleReply:
			c.reply = parseTuple(b)
		case ctaMark:
			if len(b) == 4 {
				c.mark = binary.BigEndian.Uint32(b)
			}
		case ctaCountersOrig:
			c.sent, c.known = parseCounted(b), true
		case ctaCountersReply:
			c.answered = parseCounted(b)
		case ctaProtoInfo:
			eachAttribute(b, func(typ uint16, b []byte) {
				if typ == ctaProtoInfoTCP {
					eachAttribute(b, func(typ uint16, b []byte) {
						if typ == ctaTCPState && len(b) == 1 {
							c.state = b[0]
						}
					})
				}
			})
		}
	})
	return c
}

func parseCounted(b []byte) (n counted) {
	eachAttribute(b, func(typ uint16, b []byte) {
		if len(b) != 8 {
			return
		}
		switch typ {
		case ctaCountersPackets:
			n.packets = binary.BigEndian.Uint64(b)
		case ctaCountersBytes:
			n.bytes = binary.BigEndian.Uint64(b)
		}
	})
	return n
}

func parseTuple(b []byte) (t tuple) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	eachAttribute(b, func(typ uint16, b []byte) {
		switch typ {
		case ctaTupleIP:
			eachAttribute(b, func(typ uint16, b []byte) {
				if a, ok := netip.AddrFromSlice(b); ok {
					if typ&1 == 1 { // 1 and 3 are the sources of both families
						src = a
					} else {
						dst = a
					}
				}
			})
		case ctaTupleProto:
			eachAttribute(b, func(typ uint16, b []byte) {
				switch {
				case typ == ctaProtoNum && len(b) == 1:
					t.proto = model.Proto(b[0])
				case typ == ctaProtoSrc && len(b) == 2:
					srcPort = binary.BigEndian.Uint16(b)
				case typ == ctaProtoDst && len(b) == 2:
					dstPort = binary.BigEndian.Uint16(b)
				case (typ == 5 || typ == 8) && len(b) == 1: // type of ICMP, ICMPv6
					dstPort |= uint16(b[0]) << 8
				case (typ == 6 || typ == 9) && len(b) == 1: // code
					dstPort |= uint16(b[0])
				}
			})
		}
	})
	t.src, t.dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return t
}

func (t tuple) attributes(a *attributes, typ uint16) {
	a.nest(typ, func(a *attributes) {
		a.nest(ctaTupleIP, func(a *attributes) {
			first := uint16(1)
			if t.src.Addr().Is6() {
				first = 3
			}
			a.bytes(first, t.src.Addr().AsSlice())
			a.bytes(first+1, t.dst.Addr().AsSlice())
		})
		a.nest(ctaTupleProto, func(a *attributes) {
			a.u8(ctaProtoNum, uint8(t.proto))
			a.u16(ctaProtoSrc, t.src.Port())
			a.u16(ctaProtoDst, t.dst.Port())
		})
	})
}

func (t tuple) family() uint8 {
	if t.src.Addr().Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (t tuple) reversed() tuple { return tuple{t.proto, t.dst, t.src} }

func conntrack(msg int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | msg)
}

// connections calls f for every connection that the kernel tracks.
func (n *namespace) connections(f func(*connection)) error {
	err := n.query(conntrack(ctGet), unix.AF_UNSPEC, unix.NLM_F_DUMP, nil, func(b []byte) {
		c := parseConnection(b)
		f(&c)
	})
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// connection returns what the kernel tracks under the tuple of either direction; ok is false if that is nothing.
func (n *namespace) connection(t tuple) (c connection, ok bool, err error) {
	var a attributes
	t.attributes(&a, ctaTupleOrig)
	// The kernel says that more is to come, and nothing does; the acknowledgement ends it.
	err = n.query(conntrack(ctGet), t.family(), unix.NLM_F_ACK, a, func(b []byte) { c, ok = parseConnection(b), true })
	if errors.Is(err, unix.ENOENT) {
		return c, false, nil
	}
	return c, ok, err
}

// forget clears our bits in the marks of connections that match; the next packet of each is judged from nothing.
func (n *namespace) forget(mask uint32, match func(mark uint32) bool) (err error) {
	var all []connection
	if err := n.connections(func(c *connection) {
		if match(c.mark) {
			all = append(all, *c)
		}
	}); err != nil || len(all) == 0 {
		return err
	}
	c, err := n.dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range all {
		var a attributes
		a.bytes(ctaTupleOrig|unix.NLA_F_NESTED, all[i].named) // as the kernel has told it: only it knows what is in there
		if all[i].zone != nil {
			a.bytes(ctaZone, all[i].zone)
		}
		a.u32(ctaMark, 0)
		a.u32(ctaMarkMask, mask)
		_, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: conntrack(ctNew), Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header(all[i].original.family(), 0), a...),
		})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget a connection: %w", plain(err))
		}
	}
	return nil
}

// track has the kernel track a TCP connection that was there before it tracked any, in the direction in which it was
// opened. One that is tracked already stays as it is.
func (n *namespace) track(t tuple) error {
	var a attributes
	t.attributes(&a, ctaTupleOrig)
	t.reversed().attributes(&a, ctaTupleReply)
	a.u32(ctaStatus, ctStatus)
	a.u32(ctaTimeout, 432000) // that of an established connection
	a.nest(ctaProtoInfo, func(a *attributes) {
		a.nest(ctaProtoInfoTCP, func(a *attributes) {
			a.u8(ctaTCPState, ctTCPEstablished)
			// Which sequence numbers are in use nobody has seen.
			a.bytes(ctaTCPFlagsOrig, []byte{ctTCPLiberal, ctTCPLiberal})
			a.bytes(ctaTCPRply, []byte{ctTCPLiberal, ctTCPLiberal})
		})
	})
	err := n.query(conntrack(ctNew), t.family(), unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, a, func([]byte) {})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("track a connection: %w", err)
	}
	return nil
}
