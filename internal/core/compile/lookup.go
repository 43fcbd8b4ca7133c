package compile

import (
	"net/netip"

	"bulkhead/internal/core/model"
)

// None stands for no workload, no host, and for the identity of an address in no network, where an index is asked.
const None = int32(-1)

// Seat is a workload at one of its addresses, in the numbers that judging takes: small enough that the seats of many
// workloads stay in the processor's cache.
type Seat struct {
	name     string
	Workload int32 // index of the workload
	Exact    int32 // index of the identity that the workload has there
	Seen     int32 // index of the identity that other hosts see there
	Host     int32 // number of the host that it is on; None if it is not known
	Node     int32 // number of the node that it is, or that it runs on; None if it is neither
	tables   [2]int32
	point    int32
	// Managed is false if nothing enforces at the workload. Unit is true of a unit of a host.
	Managed, Unit bool
	// Pod: it runs on a node, at an address of its own.
	Pod bool
	// Placed is false if the workload has no address; Is4 tells the family of the address.
	Placed, Is4 bool
	_           [7]byte // a line of memory
}

func (w *World) seat(point int32) Seat {
	p := &w.points[point]
	wl := &w.workloads[p.workload]
	return Seat{
		name: wl.Name, Workload: p.workload, Exact: p.exact, Seen: p.seen, Host: wl.host, Node: wl.node, tables: w.sets[p.set].tables,
		point: point, Managed: wl.Managed, Unit: wl.IsUnit(), Pod: wl.IsPod(),
		Placed: p.Addr.IsValid(), Is4: p.Addr.Is4(),
	}
}

// Find returns the workload of that name at its first address, or nil. The seat must not be changed.
func (w *World) Find(name string) *Seat {
	if p, ok := w.byName.find(name, w.seats); ok {
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
		case c == '.' || c == ':':
			punctuated = true
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
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

// Decide returns what the policy set of the seat says about the peer identity of that index, for a process at the seat;
// nil if it is not known. It allocates nothing.
func (w *World) Decide(at *Seat, d model.Direction, peer int32, proto model.Proto, port uint16, process *model.Process) model.EndVerdict {
	cells := w.functions.of(w.lookup.find(at.tables[d], peer))
	c := decide(cells, proto, port)
	if c.when == noAlternative {
		return model.EndVerdict{Verdict: c.verdict, Rule: w.functions.names[c.rule]}
	}
	verdict, rule := w.functions.choose(c, process)
	return model.EndVerdict{Verdict: verdict, Rule: w.functions.names[rule]}
}

// decide returns the cell of a function that holds the port. It is hostpolicy.Func.Cell on the compact form.
func decide(cells []stroke, proto model.Proto, port uint16) *stroke {
	lo, hi := 1, len(cells)
	for lo < hi { // the first cell after (proto, port)
		mid := int(uint(lo+hi) >> 1)
		c := &cells[mid].ports
		if c.Proto < proto || c.Proto == proto && c.Lo <= port {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if at := lo - 1; cells[at].ports.Proto == proto {
		return &cells[at]
	}
	return &cells[0]
}
