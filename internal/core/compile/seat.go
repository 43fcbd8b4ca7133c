package compile

import (
	"net/netip"

	"bulkhead/internal/core/model"
)

// None stands for no workload, no host, and for the identity of an address in no network, where an index is asked.
const None = int32(-1)

// Seat is a workload at one of its addresses, in the numbers that judging takes: two to a line of memory, so that the
// seats of many workloads stay in the processor's cache.
type Seat struct {
	Workload int32 // index of the workload
	Exact    int32 // index of the identity that the workload has there
	Seen     int32 // index of the identity that other hosts see there
	Host     int32 // number of the host that it is on; None if it is not known
	Node     int32 // number of the node that it is, or that it runs on; None if it is neither
	point    int32
	class    uint32
	// Managed is false if nothing enforces at the workload. Unit is true of a unit of a host.
	Managed, Unit bool
	// Pod: it runs on a node, at an address of its own.
	Pod    bool
	family family
}

// family is that of the address of a seat.
type family uint8

const (
	unplaced family = iota // no address
	family4
	family6
)

// Placed is false if the workload has no address.
func (s *Seat) Placed() bool { return s.family != unplaced }

// Is4 tells the family of the address; false if there is none.
func (s *Seat) Is4() bool { return s.family == family4 }

// Meets reports whether the addresses of both seats are of one family.
func (s *Seat) Meets(other *Seat) bool { return s.family == other.family && s.family != unplaced }

func (w *World) seat(point int32) Seat {
	p := &w.points[point]
	wl := &w.workloads[p.workload]
	s := Seat{
		Workload: p.workload, Exact: p.exact, Seen: p.seen, Host: wl.host, Node: wl.node, point: point,
		Managed: wl.Managed, Unit: wl.IsUnit(), Pod: wl.IsPod(),
	}
	switch {
	case p.Addr.Is4():
		s.family = family4
	case p.Addr.IsValid():
		s.family = family6
	}
	return s
}

// Find returns the workload of that name at its first address, or nil. The seat must not be changed.
func (w *World) Find(name string) *Seat {
	if p, ok := w.byName.find(name); ok {
		return &w.seats[p]
	}
	return nil
}

// FindAddr returns the workload that has the plain address, at that address, or nil; shared is true if several have
// it. The seat must not be changed.
func (w *World) FindAddr(addr netip.Addr) (seat *Seat, shared bool) {
	p, ok := w.ownerOf(addr)
	switch {
	case !ok:
		return nil, false
	case p < 0:
		return nil, true
	}
	return &w.seats[p], false
}

// HasAddressNames reports whether some workload has a name that could be read as an address.
func (w *World) HasAddressNames() bool { return w.addressNames }

// MayBeAddress reports whether a name could be read as an address: in doubt it says yes. It looks at the first eight bytes
// and at the last: an address has a dot or a colon among the first, and otherwise digits only.
func MayBeAddress(name string) bool {
	if len(name) < 8 {
		return mayBeShortAddress(name)
	}
	first := eightBytes(name)
	odd := notOfAddress(first) | notOfAddress(eightBytes(name[len(name)-8:]))
	return odd == 0 && hasByte(first, '.')|hasByte(first, ':') != 0
}

func mayBeShortAddress(name string) bool {
	punctuated := false
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c >= '0' && c <= '9':
		case c == '.' || c == ':':
			punctuated = true
		case c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
		default:
			return false
		}
	}
	return punctuated
}

// everyByte times a byte is eight of it.
const everyByte = 0x0101010101010101

// notOfAddress is not 0 if one of eight bytes is none of an address, but for a few others that pass too: those that do are
// the 18 from the dot on, with all digits and the colon, and the letters up to g with what stands before the first.
func notOfAddress(eight uint64) uint64 {
	const top = 0x80 * everyByte
	small := ^(eight + (0x80-'.')*everyByte) & top // the byte is less than a dot, as long as none has its top bit
	letters := eight & (0x40 * everyByte)
	return eight&top | small | eight&(letters>>2|letters>>3)
}

// hasByte is not 0 if one of eight bytes is b, and may be if none is.
func hasByte(eight uint64, b byte) uint64 {
	x := eight ^ uint64(b)*everyByte
	return (x - everyByte) &^ x & (0x80 * everyByte)
}

// Of returns the workload that sits there.
func (w *World) Of(s *Seat) *Workload { return &w.workloads[s.Workload] }

// PointOf returns the point at which the workload sits.
func (w *World) PointOf(s *Seat) *Point { return &w.points[s.point] }

// InFamily returns the workload at its first address of the family, or nil. The seat must not be changed.
func (w *World) InFamily(s *Seat, is4 bool) *Seat {
	if p := w.workloads[s.Workload].family[familyOf(is4)]; p >= 0 {
		return &w.seats[p]
	}
	return nil
}

func familyOf(is4 bool) int {
	if is4 {
		return 0
	}
	return 1
}

// UnownedIndex returns the index of the identity of a plain address that no workload owns; None if no network of the
// policy holds it.
func (w *World) UnownedIndex(addr netip.Addr) int32 { return w.UnownedByName(addr, "") }

// IdentityID returns the number of the identity of an index; zero of None.
func (w *World) IdentityID(index int32) model.IdentityID {
	if index < 0 {
		return 0
	}
	return w.ids.ids[index]
}
