package compile

import (
	"net/netip"

	"bulkhead/internal/core/model"
)

// Spot is a workload at one of its addresses, as far as most judgements ask. The zero Spot is of nobody: whoever meets it
// takes a closer look.
type Spot struct {
	host  int32 // equal where two are on one host, and where they are one workload
	class uint32
}

// class is what all spots have in common of which policy says the same: two to a line of memory. Of what it has by
// direction, each is what lookupTable has.
type class struct {
	exact, seen uint32 // indexes of identities, as Seat has them
	slots       [2]uint32
	def         [2]int32
	common      [2]uint16
	shift       [2]uint8
	traits      traits
}

// traits are what two ends must know of each other.
type traits uint8

const (
	hasIPv4 traits = 1 << iota // the address is of this family
	hasIPv6
	isPod      // runs on a node, at an address of its own
	isNode     // is a node, or is at its address
	meetsPods  // a flow with a pod may be one of a pod and its node
	meetsNodes // likewise with a node
	needsALook // nothing is known, or more counts than policy sets: a controller is there
)

const (
	families     = hasIPv4 | hasIPv6
	podsAndNodes = isPod | isNode
	meets        = 2 // by how much to shift meetsPods and meetsNodes to isPod and isNode
)

// closer is the class of which nothing is known: its table is empty.
const closer = 0

func (w *World) traitsOf(s *Seat) traits {
	t := traits(0)
	switch s.family {
	case family4:
		t = hasIPv4
	case family6:
		t = hasIPv6
	}
	switch {
	case s.Node == None:
	case s.Pod:
		t |= isPod | meetsNodes
	default:
		t |= isNode | meetsPods
	}
	for _, c := range w.opts.Controllers {
		if c.Addr() == w.points[s.point].Addr {
			t |= needsALook
		}
	}
	return t
}

// plain reports whether a flow between two of the classes, on two hosts, is judged by their policy sets alone, at the addresses
// that are known.
func (a *class) plain(b *class) bool {
	return a.traits&b.traits&families != 0 && a.traits&(b.traits>>meets)&podsAndNodes == 0 && (a.traits|b.traits)&needsALook == 0
}

// sit gives every point its seat, and who is found by a name or an address alone a spot. The tables of lookup move to the
// classes.
func (w *World) sit() {
	l := w.lookup
	type kind struct {
		exact, seen, set int32
		traits           traits
	}
	known := map[kind]uint32{}
	l.classes = append(l.classes, class{shift: [2]uint8{leastShift, leastShift}, traits: needsALook})
	l.groupsOf = append(l.groupsOf, 0, 0)
	w.seats = make([]Seat, len(w.points))
	spots := make([]Spot, len(w.points))
	for i := range w.points {
		s := w.seat(int32(i))
		set := w.points[i].set
		k := kind{s.Exact, s.Seen, set, w.traitsOf(&s)}
		at, ok := known[k]
		if !ok {
			at = uint32(len(l.classes))
			known[k] = at
			l.addClass(&s, &w.sets[set], k.traits)
		}
		s.class = at
		w.seats[i] = s
		spots[i] = Spot{s.Host, at}
		if s.Host == None {
			spots[i].host = -2 - s.Workload
		}
	}
	l.tables = nil
	for i := range w.byName.slots {
		if s := &w.byName.slots[i]; s.name != "" {
			s.Spot = spots[w.byName.points[i]]
		}
	}
	for i, owner := range w.owner4.owners {
		if owner >= 0 {
			w.owner4.slots[i].Spot = spots[owner]
		}
	}
}

func (l *lookup) addClass(s *Seat, set *policySet, t traits) {
	c := class{exact: uint32(s.Exact), seen: uint32(s.Seen), traits: t}
	for d := range c.slots {
		of := &l.tables[set.tables[d]]
		c.slots[d], c.def[d], c.common[d], c.shift[d] = of.slots, of.def, of.common, of.shift
		l.groupsOf = append(l.groupsOf, of.groups)
	}
	l.classes = append(l.classes, c)
}

// PlaceOfName returns where TouchName and SpotOfName look for a name.
func (w *World) PlaceOfName(name string) uint32 { return w.byName.at(hashName(name)) }

// PlaceOfAddr returns where TouchAddr and SpotOfAddr look for an IPv4 address.
func (w *World) PlaceOfAddr(addr netip.Addr) uint32 { return w.owner4.at(hashAddr(number4(addr))) }

// TouchName reads what SpotOfName will read. What it returns means nothing, but that it has been read.
func (w *World) TouchName(place uint32) uint32 {
	s := &w.byName.slots[place]
	return s.class + uint32(len(s.name))
}

// TouchAddr reads what SpotOfAddr will read. What it returns means nothing, but that it has been read.
func (w *World) TouchAddr(place uint32) uint32 { return w.owner4.slots[place].class }

// SpotOfName returns the spot of the workload of that name, at its first address, or the zero Spot where Find may know better.
func (w *World) SpotOfName(place uint32, name string) Spot {
	if s := &w.byName.slots[place]; s.name == name {
		return s.Spot
	}
	return Spot{}
}

// SpotOfAddr returns the spot of the workload that has the IPv4 address for its own, or the zero Spot where FindAddr may know
// better.
func (w *World) SpotOfAddr(place uint32, addr netip.Addr) Spot {
	s := w.owner4.slots[place]
	if s.addr != number4(addr) {
		s.Spot = Spot{}
	}
	return s.Spot
}

// TouchClass reads what AskBoth will read. What it returns means nothing, but that it has been read.
func (w *World) TouchClass(s Spot) uint32 { return w.lookup.classes[s.class].exact }

// AskBoth asks the policy sets of both ends of a flow about each other. It reports false, and asks nothing, where more is to
// know of them: one is unknown or at a controller's address, they are on one host or pod and node, or their addresses are not of
// one family.
func (w *World) AskBoth(egress, ingress *Question, from, to Spot) bool {
	l := w.lookup
	a, b := &l.classes[from.class], &l.classes[to.class]
	if from.host == to.host || !a.plain(b) {
		return false
	}
	l.ask(egress, from.class, model.Egress, b.exact)
	l.ask(ingress, to.class, model.Ingress, a.seen)
	return true
}
