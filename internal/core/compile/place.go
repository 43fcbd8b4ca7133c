package compile

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// sharedAddress is an address that several workloads have.
type sharedAddress struct {
	addr   netip.Addr
	owners []int32 // workloads, sorted
	points []int32 // parallel to owners: which of the workload's points it is
	seen   int32   // identity that other hosts see
	ports  []portOwner
}

// portOwner is a port of a shared address that belongs to one identity.
type portOwner struct {
	proto    model.Proto
	port     uint16
	identity int32
}

// placement finds addresses by what they are. Addresses are indexes into addrs.
type placement struct {
	addrs      []placedAddr // sorted
	byIdentity [][]int32    // identity to the addresses that it, alone or among others, stands behind
	byCell     [][]int32    // cell of the partition to the owned addresses in it
}

type placedAddr struct {
	addr   netip.Addr
	seen   int32
	shared int32 // index into World.shared if Ports may tell more than seen does, else -1
	cell   int32
}

// place numbers label sets and identities and gives every workload its points.
func (w *World) place() error {
	instances := w.inv.Instances
	w.workloads = make([]Workload, len(instances))
	w.byName = make(map[string]int32, len(instances))
	w.owner = make(map[netip.Addr]int32, len(instances))
	w.units = map[string][]int32{}
	c := newCollector(w.nets)

	total := 0
	for i := range instances {
		total += max(1, len(instances[i].Addresses))
	}
	points := make([]Point, 0, total)
	for i := range instances {
		inst := &instances[i]
		if i > 0 && instances[i-1].Name >= inst.Name {
			return Errors{{Msg: "the inventory is not sorted at " + inst.Name + ", or has it twice"}}
		}
		wl := &w.workloads[i]
		wl.Instance, wl.labels, wl.family = inst, c.labelSet(inst.Labels), [2]int32{-1, -1}
		w.byName[inst.Name] = int32(i)
		if inst.IsUnit() {
			w.units[inst.Host] = append(w.units[inst.Host], int32(i))
		}
		begin := len(points)
		for _, a := range inst.Addresses {
			a = a.Unmap().WithZone("")
			cell := w.nets.cellOf(a)
			points = append(points, Point{Addr: a, cell: cell, exact: c.owned(wl.labels, w.nets.netsetOf(cell))})
			f := 1
			if a.Is4() {
				f = 0
			}
			if at := int32(len(points) - begin - 1); wl.family[f] < 0 {
				wl.family[f] = at
			}
			w.own(int32(i), int32(len(points)-begin-1), a)
		}
		if len(points) == begin {
			points = append(points, Point{cell: -1, exact: c.owned(wl.labels, 0)})
		}
		wl.Points = points[begin:len(points):len(points)]
	}
	for cell := range w.nets.cells {
		if n := w.nets.cells[cell].netset; n != 0 {
			c.unowned(n)
		}
	}
	for i := range points {
		points[i].seen = points[i].exact
	}
	w.share(c)
	return w.number(c, points)
}

// own notes that the workload has the address.
func (w *World) own(workload, point int32, a netip.Addr) {
	before, taken := w.owner[a]
	if !taken {
		w.owner[a] = workload
		return
	}
	if before >= 0 {
		if before == workload {
			return
		}
		first := &w.workloads[before]
		w.shared = append(w.shared, sharedAddress{addr: a, owners: []int32{before}, points: []int32{indexOf(first, a)}})
		before = -int32(len(w.shared))
		w.owner[a] = before
	}
	s := &w.shared[-1-before]
	if s.owners[len(s.owners)-1] != workload {
		s.owners, s.points = append(s.owners, workload), append(s.points, point)
	}
}

func indexOf(w *Workload, a netip.Addr) int32 {
	for i := range w.Points {
		if w.Points[i].Addr == a {
			return int32(i)
		}
	}
	return 0
}

// share gives shared addresses the identity that other hosts see.
func (w *World) share(c *collector) {
	for i := range w.shared {
		s := &w.shared[i]
		members := make([]int32, len(s.owners))
		for k, o := range s.owners {
			members[k] = w.workloads[o].Points[s.points[k]].exact
		}
		s.seen = c.shared(members)
		for k, o := range s.owners {
			w.workloads[o].Points[s.points[k]].seen = s.seen
		}
	}
}

// number replaces the collector's numbers by the sealed ones, and indexes addresses.
func (w *World) number(c *collector, points []Point) error {
	ids, sealed, err := c.seal()
	if err != nil {
		return Errors{{Msg: err.Error()}}
	}
	w.ids = ids
	for i := range points {
		p := &points[i]
		p.exact, p.seen = sealed[p.exact], sealed[p.seen]
		p.Identity, p.Seen = ids.ids[p.exact], ids.ids[p.seen]
	}
	for i := range w.shared {
		w.shared[i].seen = sealed[w.shared[i].seen]
	}
	for i := range w.nets.netsets {
		if at, ok := c.byKey[identityKey{-1, int32(i)}]; ok {
			w.nets.netsets[i].unowned = ids.ids[sealed[at]]
			w.nets.netsets[i].unownedIndex = sealed[at]
		} else {
			w.nets.netsets[i].unownedIndex = -1
		}
	}
	w.index(points)
	return nil
}

func (w *World) index(points []Point) {
	p := &w.placed
	p.byIdentity = make([][]int32, len(w.ids.ids))
	p.byCell = make([][]int32, len(w.nets.cells))
	p.addrs = make([]placedAddr, 0, len(w.owner))
	for i := range points {
		pt := &points[i]
		if pt.Addr.IsValid() && w.owner[pt.Addr] >= 0 {
			p.addrs = append(p.addrs, placedAddr{pt.Addr, pt.seen, -1, pt.cell})
		}
	}
	for i := range w.shared {
		s := &w.shared[i]
		at := placedAddr{s.addr, s.seen, -1, w.nets.cellOf(s.addr)}
		if w.ids.all[s.seen].members != nil {
			at.shared = int32(i)
			s.ports = w.portOwners(s)
		}
		p.addrs = append(p.addrs, at)
	}
	slices.SortFunc(p.addrs, func(a, b placedAddr) int { return a.addr.Compare(b.addr) })
	for i := range p.addrs {
		a := &p.addrs[i]
		p.byIdentity[a.seen] = append(p.byIdentity[a.seen], int32(i))
		for _, m := range w.ids.all[a.seen].members {
			p.byIdentity[m] = append(p.byIdentity[m], int32(i))
		}
		if a.cell >= 0 {
			p.byCell[a.cell] = append(p.byCell[a.cell], int32(i))
		}
	}
}
