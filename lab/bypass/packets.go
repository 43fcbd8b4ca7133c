package bypass

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet is what an attacker writes by himself: a network header, what stands between it and the transport header, and
// the rest.
type packet struct {
	src, dst netip.Addr
	proto    uint8 // of payload
	payload  []byte
	id       uint16 // IPv4
	offset   int    // IPv4: of a fragment, in bytes
	more     bool   // IPv4: more fragments follow
	between  []byte // IPv6: extension headers, complete
	first    uint8  // IPv6: what kind the first of them is
}

func (p *packet) bytes() []byte {
	if p.dst.Is4() {
		h := make([]byte, 20, 20+len(p.payload))
		h[0], h[8], h[9] = 0x45, 64, p.proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(p.payload)))
		binary.BigEndian.PutUint16(h[4:], p.id)
		flags := uint16(p.offset / 8)
		if p.more {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(h[6:], flags)
		copy(h[12:], p.src.AsSlice())
		copy(h[16:], p.dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h, 0))
		return append(h, p.payload...)
	}
	h := make([]byte, 40, 40+len(p.between)+len(p.payload))
	h[0], h[6], h[7] = 0x60, p.proto, 64
	if p.between != nil {
		h[6] = p.first
	}
	binary.BigEndian.PutUint16(h[4:], uint16(len(p.between)+len(p.payload)))
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	return append(append(h, p.between...), p.payload...)
}

// checksum is that of the Internet (RFC 1071), over b after sum.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudo is what the checksum of the transport covers of the network header.
func pseudo(src, dst netip.Addr, proto uint8, length int) (sum uint32) {
	for _, a := range []netip.Addr{src, dst} {
		for b := a.AsSlice(); len(b) > 0; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	return sum + uint32(proto) + uint32(length)
}

// udp is a datagram with its header.
func udp(src, dst netip.AddrPort, data string) []byte {
	b := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[6:], checksum(b, pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, len(b))))
	return b
}

// syn is a segment that opens a connection, with data in it. The number it begins with tells it from all others.
func syn(src, dst netip.AddrPort, seq uint32, data string) []byte {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, 2
	binary.BigEndian.PutUint16(b[14:], 65535)
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[16:], checksum(b, pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(b))))
	return b
}

// echo is an echo request.
func echo(src, dst netip.Addr, data string) (proto uint8, b []byte) {
	b = append([]byte{8, 0, 0, 0, 0x60, 0x60, 0, 1}, data...)
	if dst.Is4() {
		binary.BigEndian.PutUint16(b[2:], checksum(b, 0))
		return unix.IPPROTO_ICMP, b
	}
	b[0] = 128
	binary.BigEndian.PutUint16(b[2:], checksum(b, pseudo(src, dst, unix.IPPROTO_ICMPV6, len(b))))
	return unix.IPPROTO_ICMPV6, b
}

// frame is the packet on Ethernet.
func frame(src, dst net.HardwareAddr, p []byte) []byte {
	kind := []byte{0x08, 0x00}
	if p[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	return append(append(append(append([]byte{}, dst...), src...), kind...), p...)
}

// fragment6 is the extension header of a fragment (RFC 8200, 4.5).
func fragment6(next uint8, offset int, more bool, id uint32) []byte {
	b := make([]byte, 8)
	b[0] = next
	binary.BigEndian.PutUint16(b[2:], uint16(offset))
	if more {
		b[3] |= 1
	}
	binary.BigEndian.PutUint32(b[4:], id)
	return b
}

// options6 is an extension header of options with nothing but padding in it.
func options6(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

// routing6 is a routing header (RFC 8200, 4.4) of type 0, 2 or 4 over the addresses, of which left are still to come.
// The last of the list is where the packet begins in type 4, and ends in the others.
func routing6(next, kind uint8, left int, addrs ...netip.Addr) []byte {
	b := []byte{next, uint8(2 * len(addrs)), kind, uint8(left), 0, 0, 0, 0}
	if kind == 4 && len(addrs) > 0 {
		b[4] = uint8(len(addrs) - 1)
	}
	for _, a := range addrs {
		b = append(b, a.AsSlice()...)
	}
	return b
}
