package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Messages and attributes of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	logPacket, logConfig           = 0, 1
	logCfgCommand, logCfgMode      = 1, 2
	logCfgThreshold, logCfgFlags   = 5, 6
	logBind                        = 1
	logCopyPacket                  = 2
	logSequence                    = 1
	logAttrMark, logAttrPayload    = 2, 9
	logAttrPrefix, logAttrSequence = 10, 12
	loggedBytes                    = 256 // of a packet: headers, and room for IPv6 extensions
	tcpFlagFIN, tcpFlagSYN         = 1, 2
	tcpFlagRST, tcpFlagACK         = 4, 16
)

// listenLog has the kernel send what our rules tell to this socket.
func (n *namespace) listenLog(group uint16) (*netlink.Conn, error) {
	c, err := n.dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	configure := func(add func(*attributes)) error {
		var a attributes
		add(&a)
		_, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | logConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header(unix.AF_UNSPEC, group), a...),
		})
		return err
	}
	err = configure(func(a *attributes) { a.bytes(logCfgCommand, []byte{logBind}) })
	if err == nil {
		err = configure(func(a *attributes) {
			a.bytes(logCfgMode, append(be32(loggedBytes), logCopyPacket, 0))
			a.u32(logCfgThreshold, 1)
			a.u16(logCfgFlags, logSequence)
		})
	}
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM):
		err = fmt.Errorf("somebody else listens to nflog group %d in this network namespace", group)
	default:
		err = fmt.Errorf("nflog: %w", plain(err))
	}
	return nil, errors.Join(err, c.Close())
}

// logged is what a rule has told of a packet.
type logged struct {
	gen      uint8
	local    bool
	dir      model.Direction
	decided  byte
	mark     uint32
	flow     flowKey
	opens    bool   // it is the first of a TCP connection
	sequence uint32 // of TCP
}

// parseLogged reads a message of the log. ok is false if it is none of ours, or the packet is cut short.
func parseLogged(b []byte) (l logged, sequence uint32, ok bool) {
	var prefix, payload []byte
	eachAttribute(b, func(typ uint16, b []byte) {
		switch {
		case typ == logAttrMark && len(b) == 4:
			l.mark = binary.BigEndian.Uint32(b)
		case typ == logAttrSequence && len(b) == 4:
			sequence = binary.BigEndian.Uint32(b)
		case typ == logAttrPayload:
			payload = b
		case typ == logAttrPrefix:
			prefix = b
		}
	})
	fields := bytes.Fields(bytes.TrimRight(prefix, "\x00"))
	if len(fields) != 4 || string(fields[0])+" " != prefixStart || len(fields[3]) != 2 {
		return l, sequence, false
	}
	gen, err := strconv.ParseUint(string(fields[1]), 10, 8)
	if err != nil {
		return l, sequence, false
	}
	l.gen = uint8(gen)
	end := fields[2]
	l.local = len(end) == 2
	l.dir = directionOf(end[len(end)-1])
	l.decided = fields[3][0]
	return l, sequence, l.packet(payload, fields[3][1] == 'r')
}

// packet reads the headers. An answer is that of the one who was asked.
func (l *logged) packet(b []byte, answer bool) bool {
	var src, dst netip.Addr
	var proto uint8
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		proto = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[min(int(b[0]&15)*4, len(b)):]
	case len(b) >= 40 && b[0]>>4 == 6:
		proto = b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
		for more := true; more && len(b) >= 8; {
			n := 8 + 8*int(b[1])
			switch proto {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			case unix.IPPROTO_FRAGMENT:
				n = 8
			case unix.IPPROTO_AH:
				n = 8 + 4*int(b[1])
			default:
				more = false
				continue
			}
			proto = b[0]
			b = b[min(n, len(b)):]
		}
	default:
		return false
	}
	var from, to uint16
	p := model.Proto(proto)
	switch p {
	case model.ProtoICMP, model.ProtoICMPv6:
		if len(b) < 2 {
			return false
		}
		typ := b[0]
		if answer { // the ports of a flow are those of what was asked
			typ = asked(p, typ)
		}
		to = model.ICMPPort(typ, b[1])
	case model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, 33, 136: // DCCP, UDP-Lite
		if len(b) < 4 {
			return false
		}
		from, to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		if p == model.ProtoTCP && len(b) >= 14 {
			l.opens = b[13]&(tcpFlagSYN|tcpFlagACK) == tcpFlagSYN
			l.sequence = binary.BigEndian.Uint32(b[4:])
		}
	}
	l.flow = flowKey{p, netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)}
	if answer {
		l.flow.client, l.flow.server = l.flow.server, l.flow.client
		if p.IsICMP() {
			l.flow.client, l.flow.server = netip.AddrPortFrom(dst, 0), netip.AddrPortFrom(src, to)
		}
	}
	return true
}

// asked returns the type of ICMP that is answered by one.
func asked(p model.Proto, typ uint8) uint8 {
	switch {
	case p == model.ProtoICMPv6 && typ == 129:
		return 128
	case p != model.ProtoICMP:
	case typ == 0:
		return 8
	case typ == 14, typ == 16, typ == 18: // timestamp, information, address mask
		return typ - 1
	}
	return typ
}

// packetOf returns what the evaluator is asked about it.
func packetOf(l *logged) hostpolicy.Packet {
	p := hostpolicy.Packet{Dir: l.dir, Local: l.flow.client.Addr(), Remote: l.flow.server.Addr(), Proto: l.flow.proto, Port: l.flow.server.Port()}
	if l.dir == model.Ingress {
		p.Local, p.Remote = p.Remote, p.Local
	}
	return p
}
