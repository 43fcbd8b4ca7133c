package compile

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// sharedAddress is an address that several workloads have.
type sharedAddress struct {
	addr   netip.Addr
	points []int32 // of the workloads that have it, sorted by their names
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
	total := 0
	for i := range instances {
		total += max(1, len(instances[i].Addresses))
	}
	w.workloads = make([]Workload, len(instances))
	w.points = make([]Point, 0, total) // never grows: workloads keep parts of it
	owners := claims{newIPv4Claims(total), map[netip.Addr]int32{}}
	w.units = map[string][]int32{}
	c := newCollector(w.nets)
	hosts, first := make(map[string]int32, len(instances)), make([]int32, len(instances))
	for i := range instances {
		inst := &instances[i]
		if i > 0 && instances[i-1].Name >= inst.Name {
			return Errors{{Msg: "the inventory is not sorted at " + inst.Name + ", or has it twice"}}
		}
		first[i] = int32(len(w.points))
		w.placeWorkload(c, &owners, int32(i), inst, hosts)
	}
	w.byName = newNameIndex(w.workloads, first)
	w.owner4, w.owner6 = newAddrIndex(&owners.v4), owners.v6
	for n := range w.nets.netsets[1:] {
		if s := &w.nets.netsets[1+n]; s.cells || s.domain {
			c.unowned(int32(1 + n))
		}
	}
	for i := range w.points {
		w.points[i].seen = w.points[i].exact
	}
	w.share(c)
	return w.number(c)
}

func (w *World) placeWorkload(c *collector, owners *claims, i int32, inst *model.Instance, hosts map[string]int32) {
	wl := &w.workloads[i]
	*wl = Workload{Instance: inst, labels: c.labelSet(identityLabels(inst)), host: None, node: None, family: [2]int32{-1, -1}}
	if inst.Host != "" {
		n, ok := hosts[inst.Host]
		if !ok {
			n = int32(len(hosts))
			hosts[inst.Host] = n
		}
		wl.host = n
	}
	if inst.Node != "" {
		wl.node = c.node(inst.Node)
	}
	if inst.IsUnit() {
		w.units[inst.Host] = append(w.units[inst.Host], i)
	}
	if !w.addressNames && MayBeAddress(inst.Name) {
		w.addressNames = true
	}
	begin := int32(len(w.points))
	for _, a := range inst.Addresses {
		a = a.Unmap().WithZone("")
		at := int32(len(w.points))
		cell := w.nets.cellOf(a)
		w.points = append(w.points, Point{Addr: a, workload: i, cell: cell, exact: c.owned(wl.labels, w.nets.netsetOf(cell))})
		if f := familyOf(a.Is4()); wl.family[f] < 0 {
			wl.family[f] = at
		}
		w.own(owners, at, a)
	}
	if len(inst.Addresses) == 0 {
		w.points = append(w.points, Point{workload: i, cell: -1, exact: c.owned(wl.labels, 0)})
	}
	wl.Points = w.points[begin:len(w.points):len(w.points)]
}

// own notes that a workload has the address at that point.
func (w *World) own(owners *claims, point int32, a netip.Addr) {
	before, taken := owners.of(a)
	if !taken {
		owners.set(a, point)
		return
	}
	if before >= 0 {
		if w.points[before].workload == w.points[point].workload {
			return // the same address twice
		}
		w.shared = append(w.shared, sharedAddress{addr: a, points: []int32{before}})
		before = -int32(len(w.shared))
		owners.set(a, before)
	}
	s := &w.shared[-1-before]
	if last := s.points[len(s.points)-1]; w.points[last].workload != w.points[point].workload {
		s.points = append(s.points, point)
	}
}

// ownerOf returns the point that has a plain address, or -1-i for shared[i].
func (w *World) ownerOf(a netip.Addr) (owner int32, ok bool) {
	if a.Is4() {
		return w.owner4.find(number4(a))
	}
	owner, ok = w.owner6[a]
	return owner, ok
}

// share gives shared addresses the identity that other hosts see.
func (w *World) share(c *collector) {
	for i := range w.shared {
		s := &w.shared[i]
		members := make([]int32, len(s.points))
		for k, p := range s.points {
			members[k] = w.points[p].exact
		}
		s.seen = c.shared(members)
		for _, p := range s.points {
			w.points[p].seen = s.seen
		}
	}
}

// number replaces the collector's numbers by the sealed ones, and indexes addresses.
func (w *World) number(c *collector) error {
	ids, sealed, err := c.seal()
	if err != nil {
		return Errors{{Msg: err.Error()}}
	}
	w.ids = ids
	for i := range w.points {
		p := &w.points[i]
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
	w.index()
	return nil
}

func (w *World) index() {
	p := &w.placed
	p.byIdentity = make([][]int32, len(w.ids.ids))
	p.byCell = make([][]int32, len(w.nets.cells))
	p.addrs = make([]placedAddr, 0, w.owner4.n+len(w.owner6))
	for i := range w.points {
		pt := &w.points[i]
		if owner, ok := w.ownerOf(pt.Addr); ok && owner == int32(i) {
			p.addrs = append(p.addrs, placedAddr{pt.Addr, pt.seen, -1, pt.cell})
		}
	}
	for i := range w.shared {
		s := &w.shared[i]
		at := placedAddr{s.addr, s.seen, -1, w.nets.cellOf(s.addr)}
		if w.ids.all[s.seen].members != nil {
			at.shared = int32(i)
			claimants := make([]claimant, len(s.points))
			for k, p := range s.points {
				claimants[k] = claimant{w.workloads[w.points[p].workload].Instance, w.points[p].exact}
			}
			s.ports = portOwners(s.addr, claimants)
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

// identityLabels returns the labels that tell a workload's identities from others: its own, and of one that nothing
// enforces on a mark.
func identityLabels(inst *model.Instance) model.Labels {
	if inst.Managed {
		return inst.Labels
	}
	return inst.Labels.With(model.Labels{unmanagedLabel: ""})
}
