package compile

import (
	"encoding/binary"
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
	set      int32
	point    int32
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

func (w *World) seat(point int32) Seat {
	p := &w.points[point]
	wl := &w.workloads[p.workload]
	s := Seat{
		Workload: p.workload, Exact: p.exact, Seen: p.seen, Host: wl.host, Node: wl.node, set: p.set, point: point,
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

// Trace is where the indexes lead from a name or an address, before anybody has looked whether it is right. To trace
// many ends, then to follow all of them, and only then to find them waits for memory once a step and not once an end; no
// answer depends on it.
//
//	TraceName, TraceAddr → Follow → Warm → Find, FindAddr
type Trace struct {
	hash  uint64 // of a name
	home  uint32 // slot of the index
	point int32
	by    index
}

type index uint8

const (
	traceNothing index = iota
	traceName
	traceIPv4
)

// TraceName traces the workload of a name.
func (w *World) TraceName(name string) Trace {
	h := hashName(name)
	return Trace{hash: h, home: uint32(h >> w.byName.shift), by: traceName}
}

// TraceAddr traces the owner of a plain address.
func (w *World) TraceAddr(addr netip.Addr) Trace {
	if !addr.Is4() {
		return Trace{}
	}
	b := addr.As4()
	return Trace{home: uint32(w.owner4.home(binary.BigEndian.Uint32(b[:]))), by: traceIPv4}
}

// Follow reads the slot that was traced.
func (w *World) Follow(t *Trace) {
	switch t.by {
	case traceName:
		t.point = w.byName.guess(t.home)
	case traceIPv4:
		t.point = w.owner4.slots[t.home].owner
	}
}

// Warm reads what Find and FindAddr will read. What it returns means nothing, but that it has been read.
func (w *World) Warm(t *Trace) int32 {
	if uint(t.point) >= uint(len(w.seats)) {
		return 0
	}
	return w.seats[t.point].Exact + int32(len(w.names[t.point]))
}

// Find returns the workload of that name at its first address, or nil. The trace is that of the name. The seat must not
// be changed.
func (w *World) Find(name string, t *Trace) *Seat {
	if p, ok := w.byName.find(name, t.hash, w.names); ok {
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

// MayBeAddress reports whether a name could be read as an address: in doubt it says yes.
func MayBeAddress(name string) bool {
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
