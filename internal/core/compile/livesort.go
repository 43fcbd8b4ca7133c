package compile

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// A delta may tell a host of thousands of addresses, and of as many ports. They are gathered in places that are used again,
// and put into order as numbers, by counting: that costs a few nanoseconds for each, where comparing entries costs hundreds.

// gathering is what a delta gathers before it is in order. It is empty between deltas, and keeps its memory.
type gathering struct {
	*addressDelta              // of which the sums are made
	upsertBlocks, removeBlocks []*hostpolicy.Block
	upsert, remove             []hostpolicy.Address // that are in none of the blocks
	upsertPorts, removePorts   []hostpolicy.PortOwner
	entries                    int  // of the blocks
	twice                      bool // a prefix may be new and gone

	// Of the making of one block.
	addressesOf []hostpolicy.Address
	portsOf     []hostpolicy.PortOwner
	sorter
}

// manyToo is from how many entries on counting is quicker than comparing.
const manyToo = 64

// keyed is an entry of a list by a part of what orders it.
type keyed struct {
	key uint64
	at  int32
}

// sorter sorts by numbers; it keeps its memory.
type sorter struct{ list, other []keyed }

// sort puts the list into the order of keys by counting, digit by digit from the last one (Knuth 5.2.5); entries of equal keys
// stay as they are. Digits begin at the last bit in which keys differ and end with the first one.
func (s *sorter) sort() {
	if len(s.list) < 2 {
		return
	}
	differ := uint64(0)
	for _, x := range s.list {
		differ |= x.key ^ s.list[0].key
	}
	s.other = slices.Grow(s.other[:0], len(s.list))[:len(s.list)]
	for shift := bits.TrailingZeros64(differ); shift < bits.Len64(differ); shift += 8 {
		var counts [256]int32
		for _, x := range s.list {
			counts[uint8(x.key>>shift)]++
		}
		sum := int32(0)
		for k, n := range counts {
			counts[k], sum = sum, sum+n
		}
		for _, x := range s.list {
			k := uint8(x.key >> shift)
			s.other[counts[k]] = x
			counts[k]++
		}
		s.list, s.other = s.other, s.list
	}
}

// sortBy sorts by another part of the keys.
func (s *sorter) sortBy(key func(at int32) uint64) {
	for i := range s.list {
		s.list[i].key = key(s.list[i].at)
	}
	s.sort()
}

// addresses returns a copy of the list in the order of hostpolicy.CompareAddresses; nil if it is empty.
func (s *sorter) addresses(list []hostpolicy.Address) []hostpolicy.Address {
	if len(list) < manyToo {
		return sorted(list, hostpolicy.CompareAddresses)
	}
	out := make([]hostpolicy.Address, 0, len(list))
	s.list = s.list[:0]
	for i := range list {
		if p := list[i].Prefix; p.Addr().Is4() {
			s.list = append(s.list, keyed{ipv4Key(p.Addr())<<8 | uint64(p.Bits()), int32(i)})
		}
	}
	s.sort()
	for _, x := range s.list {
		out = append(out, list[x.at])
	}
	s.list = s.list[:0]
	for i := range list {
		if p := list[i].Prefix; !p.Addr().Is4() {
			s.list = append(s.list, keyed{uint64(p.Bits()), int32(i)})
		}
	}
	s.sort()
	s.byIPv6(func(at int32) netip.Addr { return list[at].Prefix.Addr() })
	for _, x := range s.list {
		out = append(out, list[x.at])
	}
	return out
}

// ports returns a copy of the list in the order of hostpolicy.ComparePorts; nil if it is empty.
func (s *sorter) ports(list []hostpolicy.PortOwner) []hostpolicy.PortOwner {
	if len(list) < manyToo {
		return sorted(list, hostpolicy.ComparePorts)
	}
	out := make([]hostpolicy.PortOwner, 0, len(list))
	s.list = s.list[:0]
	for i := range list {
		if o := &list[i]; o.Addr.Is4() {
			s.list = append(s.list, keyed{ipv4Key(o.Addr)<<24 | uint64(portKey(o.Proto, o.Port)), int32(i)})
		}
	}
	s.sort()
	for _, x := range s.list {
		out = append(out, list[x.at])
	}
	s.list = s.list[:0]
	for i := range list {
		if o := &list[i]; !o.Addr.Is4() {
			s.list = append(s.list, keyed{uint64(portKey(o.Proto, o.Port)), int32(i)})
		}
	}
	s.sort()
	s.byIPv6(func(at int32) netip.Addr { return list[at].Addr })
	for _, x := range s.list {
		out = append(out, list[x.at])
	}
	return out
}

// byIPv6 sorts by addresses of IPv6.
func (s *sorter) byIPv6(of func(at int32) netip.Addr) {
	s.sortBy(func(at int32) uint64 { a := of(at).As16(); return binary.BigEndian.Uint64(a[8:]) })
	s.sortBy(func(at int32) uint64 { a := of(at).As16(); return binary.BigEndian.Uint64(a[:8]) })
}

func ipv4Key(addr netip.Addr) uint64 {
	a := addr.As4()
	return uint64(binary.BigEndian.Uint32(a[:]))
}

// sorted returns a copy of a short list in order; nil if it is empty.
func sorted[T any](list []T, compare func(a, b *T) int) []T {
	if len(list) == 0 {
		return nil
	}
	out := slices.Clone(list)
	slices.SortFunc(out, func(a, b T) int { return compare(&a, &b) })
	return out
}
