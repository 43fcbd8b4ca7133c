package compile

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// nameIndex finds workloads by their names, and addrIndex by their IPv4 addresses. What judging most flows takes lies beside
// the key, so that to find an end of a flow is to read one line of memory or two. The less memory they take in all, the more
// of it a processor keeps at hand: in a large world that is most of what judging costs.

// nameIndex finds the first point of the workload of a name.
type nameIndex struct {
	perfect
	slots  []nameSlot
	points []int32          // parallel to slots
	left   map[string]int32 // points of names that found no place
}

// nameSlot is a workload at its first address. The zero slot is nobody's: no workload has an empty name.
type nameSlot struct {
	name string
	Spot
}

// newNameIndex makes the index of some workloads, each at the first of its points. Their spots are zero.
func newNameIndex(workloads []Workload, points []int32) nameIndex {
	hashes := make([]uint64, len(workloads))
	for i := range workloads {
		hashes[i] = hashName(workloads[i].Name)
	}
	p, places := newPerfect(hashes)
	x := nameIndex{perfect: p, slots: make([]nameSlot, p.places), points: make([]int32, p.places)}
	for i, at := range places {
		name := workloads[i].Name
		if at != noPlace {
			x.slots[at].name, x.points[at] = name, points[i]
			continue
		}
		if x.left == nil {
			x.left = map[string]int32{}
		}
		x.left[name] = points[i]
	}
	return x
}

// find returns the point of a name.
func (x *nameIndex) find(name string) (point int32, ok bool) {
	if at := x.at(hashName(name)); x.slots[at].name == name && name != "" {
		return x.points[at], true
	}
	point, ok = x.left[name]
	return point, ok
}

// hashName spreads names; equal names have equal hashes in every run.
func hashName(s string) uint64 {
	h := uint64(len(s)) * hashFactor
	if len(s) < 8 {
		var rest uint64
		for i := range len(s) {
			rest |= uint64(s[i]) << (8 * i)
		}
		return mixHash(mixHash(h, rest), hashFactor)
	}
	// The last eight bytes may be read twice: no step depends on how many are left, which a processor would have to guess.
	for rest := s; len(rest) > 8; rest = rest[8:] {
		h = mixHash(h, eightBytes(rest))
	}
	return mixHash(mixHash(h, eightBytes(s[len(s)-8:])), hashFactor)
}

const hashFactor = 0x9e3779b97f4a7c15

func mixHash(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^v, hashFactor)
	return hi ^ lo
}

func eightBytes(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// addrIndex finds who owns an IPv4 address: a point, or -1-i for shared[i].
type addrIndex struct {
	perfect
	slots  []addrSlot
	owners []int32 // parallel to slots; noOwner where there is nothing
	left   map[uint32]int32
	n      int
}

// addrSlot is the owner of an address, if it is the only one.
type addrSlot struct {
	addr uint32
	Spot
}

const noOwner = int32(-1) << 31

func hashAddr(addr uint32) uint64 { return mixHash(uint64(addr), hashFactor) }

// newAddrIndex makes the index of what was claimed. Its spots are zero.
func newAddrIndex(c *ipv4Claims) addrIndex {
	addrs, owners := make([]uint32, 0, c.n), make([]int32, 0, c.n)
	hashes := make([]uint64, 0, c.n)
	for _, s := range c.slots {
		if s.owner != noOwner {
			addrs, owners, hashes = append(addrs, s.addr), append(owners, s.owner), append(hashes, hashAddr(s.addr))
		}
	}
	p, places := newPerfect(hashes)
	x := addrIndex{perfect: p, slots: make([]addrSlot, p.places), owners: make([]int32, p.places), n: c.n}
	for i := range x.owners {
		x.owners[i] = noOwner
	}
	for i, at := range places {
		if at != noPlace {
			x.slots[at].addr, x.owners[at] = addrs[i], owners[i]
			continue
		}
		if x.left == nil {
			x.left = map[uint32]int32{}
		}
		x.left[addrs[i]] = owners[i]
	}
	return x
}

// number4 returns an IPv4 address as a number.
func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func (x *addrIndex) find(addr uint32) (owner int32, ok bool) {
	if at := x.at(hashAddr(addr)); x.slots[at].addr == addr && x.owners[at] != noOwner {
		return x.owners[at], true
	}
	owner, ok = x.left[addr]
	return owner, ok
}

// claims collects who owns which address, until all are known.
type claims struct {
	v4 ipv4Claims
	v6 map[netip.Addr]int32
}

func (c *claims) of(a netip.Addr) (owner int32, taken bool) {
	if a.Is4() {
		return c.v4.find(number4(a))
	}
	owner, taken = c.v6[a]
	return owner, taken
}

func (c *claims) set(a netip.Addr, owner int32) {
	if a.Is4() {
		c.v4.set(number4(a), owner)
		return
	}
	c.v6[a] = owner
}

// ipv4Claims collects who owns which IPv4 address: a hash table with open addressing.
type ipv4Claims struct {
	slots []ipv4Slot
	shift uint8
	n     int
}

type ipv4Slot struct {
	addr  uint32
	owner int32 // noOwner where there is nothing
}

func newIPv4Claims(n int) ipv4Claims {
	log := bits.Len(uint(n + n/2))
	x := ipv4Claims{slots: make([]ipv4Slot, 1<<log), shift: uint8(64 - log)}
	for i := range x.slots {
		x.slots[i].owner = noOwner
	}
	return x
}

// slot returns the slot of the address, or the one that it would take.
func (x *ipv4Claims) slot(addr uint32) *ipv4Slot {
	mask := uint64(len(x.slots) - 1)
	for at := uint64(addr) * hashFactor >> x.shift; ; at = (at + 1) & mask {
		if s := &x.slots[at]; s.addr == addr || s.owner == noOwner {
			return s
		}
	}
}

// set notes who owns an address. There must not be more addresses than it was made for.
func (x *ipv4Claims) set(addr uint32, owner int32) {
	s := x.slot(addr)
	if s.owner == noOwner {
		x.n++
	}
	*s = ipv4Slot{addr, owner}
}

func (x *ipv4Claims) find(addr uint32) (owner int32, ok bool) {
	owner = x.slot(addr).owner
	return owner, owner != noOwner
}
