package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attributes are netlink attributes one after the other, as nf_tables and nfnetlink take them: numbers in network order.
type attributes []byte

func (a *attributes) bytes(typ uint16, b []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(4+len(b)))
	*a = binary.NativeEndian.AppendUint16(*a, typ)
	*a = append(*a, b...)
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

func (a *attributes) u8(typ uint16, v uint8)   { a.bytes(typ, []byte{v}) }
func (a *attributes) u16(typ uint16, v uint16) { a.bytes(typ, binary.BigEndian.AppendUint16(nil, v)) }
func (a *attributes) u32(typ uint16, v uint32) { a.bytes(typ, be32(v)) }
func (a *attributes) u64(typ uint16, v uint64) { a.bytes(typ, be64(v)) }
func (a *attributes) text(typ uint16, s string) {
	a.bytes(typ, append([]byte(s), 0))
}

// nest puts an attribute around those that f adds.
func (a *attributes) nest(typ uint16, f func(*attributes)) {
	at := len(*a)
	*a = append(*a, 0, 0, 0, 0)
	f(a)
	binary.NativeEndian.PutUint16((*a)[at:], uint16(len(*a)-at))
	binary.NativeEndian.PutUint16((*a)[at+2:], typ|unix.NLA_F_NESTED)
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
func ne32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func ne64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

// eachAttribute calls f for each attribute, without what says that it is nested.
func eachAttribute(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// textOf returns the text that a NUL ends.
func textOf(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
