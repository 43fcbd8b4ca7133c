package compile

import "math/bits"

// nameIndex finds points by the names of their workloads, and ipv4Index by their addresses. Both are hash tables with open
// addressing: a search touches one line of memory where a map of the language touches several.

// nameIndex finds the first point of the workload of a name. A slot has one more than the point in its lower bits and some
// bits of the name's hash above them; 0 where there is nothing.
type nameIndex struct {
	slots []uint32
	shift uint8
	point uint32 // the bits of a slot that are the point's
}

// newNameIndex makes the index of at most so many names of at most so many points.
func newNameIndex(names, points int) nameIndex {
	log := slotsFor(names)
	return nameIndex{make([]uint32, 1<<log), uint8(64 - log), 1<<bits.Len(uint(points)) - 1}
}

// slotsFor returns the logarithm of how many slots n entries take.
func slotsFor(n int) int { return bits.Len(uint(n + n/2)) }

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

// add notes the point of a name that is not there yet.
func (x *nameIndex) add(name string, point int32) {
	h := hashName(name)
	at, mask := h>>x.shift, uint64(len(x.slots)-1)
	for x.slots[at] != 0 {
		at = (at + 1) & mask
	}
	x.slots[at] = uint32(h)&^x.point | uint32(point+1)
}

// probe returns the first point that a name of that hash may be of; -1 if there is none.
func (x *nameIndex) probe(hash uint64) int32 {
	mask := uint64(len(x.slots) - 1)
	for at := hash >> x.shift; ; at = (at + 1) & mask {
		s := x.slots[at&mask]
		if s == 0 || (s^uint32(hash))&^x.point == 0 {
			return int32(s&x.point) - 1
		}
	}
}

// find returns the point of a name, of which the hash is known. Names are those of the points.
func (x *nameIndex) find(name string, hash uint64, names []string) (point int32, ok bool) {
	if len(x.slots) == 0 {
		return 0, false
	}
	mask := uint64(len(x.slots) - 1)
	for at := hash >> x.shift; ; at = (at + 1) & mask {
		s := x.slots[at]
		if s == 0 {
			return 0, false
		}
		if p := int32(s&x.point) - 1; (s^uint32(hash))&^x.point == 0 && names[p] == name {
			return p, true
		}
	}
}

// ipv4Index finds who owns an IPv4 address: a point, or -1-i for shared[i].
type ipv4Index struct {
	slots []ipv4Slot
	shift uint8
	n     int
}

type ipv4Slot struct {
	addr  uint32
	owner int32 // noOwner where there is nothing
}

const noOwner = int32(-1) << 31

func newIPv4Index(n int) ipv4Index {
	log := slotsFor(n)
	x := ipv4Index{slots: make([]ipv4Slot, 1<<log), shift: uint8(64 - log)}
	for i := range x.slots {
		x.slots[i].owner = noOwner
	}
	return x
}

func (x *ipv4Index) home(addr uint32) uint64 { return uint64(addr) * hashFactor >> x.shift }

// slot returns the slot of the address, or the one that it would take.
func (x *ipv4Index) slot(addr uint32) *ipv4Slot {
	mask := uint64(len(x.slots) - 1)
	for at := x.home(addr); ; at = (at + 1) & mask {
		if s := &x.slots[at]; s.addr == addr || s.owner == noOwner {
			return s
		}
	}
}

// set notes who owns an address. There must not be more addresses than the index was made for.
func (x *ipv4Index) set(addr uint32, owner int32) {
	s := x.slot(addr)
	if s.owner == noOwner {
		x.n++
	}
	*s = ipv4Slot{addr, owner}
}

func (x *ipv4Index) find(addr uint32) (owner int32, ok bool) {
	if len(x.slots) == 0 {
		return 0, false
	}
	owner = x.slot(addr).owner
	return owner, owner != noOwner
}
