package reach

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// addWorkloads makes an actor of every workload at each of its addresses, by name. A workload that has other addresses
// in another world is the same actor there, at its first.
func (u *Universe) addWorkloads() {
	l := &labelInterner{u: u, byText: map[string]int32{}, known: map[model.IdentityID]int32{}}
	if len(u.worlds) == 1 {
		instances := u.worlds[0].Inventory().Instances
		u.Actors = make([]Actor, 0, len(instances)+len(instances)/8)
		for i := range instances { // sorted by name
			u.addActors(instances[i].Name, addressesOf(nil, u.worlds[0].Workload(instances[i].Name)), l)
		}
		return
	}
	addrs := map[string][]netip.Addr{}
	var names []string
	for _, w := range u.worlds {
		for i := range w.Inventory().Instances {
			name := w.Inventory().Instances[i].Name
			list, known := addrs[name]
			if !known {
				names = append(names, name)
			}
			addrs[name] = addressesOf(list, w.Workload(name))
		}
	}
	slices.Sort(names)
	u.Actors = make([]Actor, 0, len(names)+len(names)/8)
	for _, name := range names {
		u.addActors(name, addrs[name], l)
	}
}

// addressesOf appends the addresses of a workload that are not in the list.
func addressesOf(list []netip.Addr, wl *compile.Workload) []netip.Addr {
	for k := range wl.Points {
		if a := wl.Points[k].Addr; a.IsValid() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

func (u *Universe) addActors(name string, addrs []netip.Addr, l *labelInterner) {
	if len(addrs) == 0 {
		addrs = []netip.Addr{{}}
	}
	for _, a := range addrs {
		u.Actors = append(u.Actors, u.workloadActor(name, a, l))
	}
}

// labelInterner numbers label sets. The identities of one world tell most of them apart without a look at the labels.
type labelInterner struct {
	u      *Universe
	byText map[string]int32
	known  map[model.IdentityID]int32
}

func (l *labelInterner) number(id model.IdentityID, labels model.Labels) int32 {
	if n, ok := l.known[id]; ok {
		return n
	}
	text := labels.String()
	n, ok := l.byText[text]
	if !ok {
		n = int32(len(l.u.LabelSets))
		l.byText[text] = n
		l.u.LabelSets = append(l.u.LabelSets, labels)
	}
	l.known[id] = n
	return n
}

func (u *Universe) workloadActor(name string, a netip.Addr, l *labelInterner) Actor {
	actor := Actor{Workload: name, Addr: a, views: make([]view, len(u.worlds)), alone: a.IsValid()}
	if a.IsValid() {
		actor.NetworkSet = u.address.kindOf(a)
		actor.Networks = u.NetworkSets[actor.NetworkSet]
	}
	for i, w := range u.worlds {
		v := &actor.views[i]
		if v.workload = w.Workload(name); v.workload != nil {
			v.at = v.workload.At(a)
			actor.Labels = v.workload.Labels
			actor.LabelSet = l.number(v.at.Identity, actor.Labels)
		} else if a.IsValid() {
			u.lookUp(v, w, a)
		}
		if seat, _ := w.FindAddr(a); seat == nil || w.Of(seat).Name != name {
			actor.alone = false
		}
		if v.workload != nil {
			v.identity, v.seen = v.at.Identity, v.at.Seen
		}
	}
	return actor
}

// lookUp finds what a world takes an address for. An address that several workloads share there is taken for the first.
func (u *Universe) lookUp(v *view, w *compile.World, a netip.Addr) {
	if owners := w.Owners(a); len(owners) > 0 {
		v.workload, v.at = owners[0], owners[0].At(a)
		return
	}
	v.identity = w.Unowned(a)
	v.seen = v.identity
}

// addAddresses makes an actor of each set of addresses that no workload owns in any world and that are in the same
// networks. Addresses of a family that no workload has are left out: they meet nobody.
func (u *Universe) addAddresses() {
	var met [3]bool
	for i := range u.Actors {
		met[familyOf(u.Actors[i].Addr)] = true
	}
	for _, s := range u.address.unowned(u.worlds) {
		if !met[noAddress] && !met[familyOf(s.addr)] {
			continue
		}
		actor := Actor{Addr: s.addr, Networks: u.NetworkSets[s.kind], NetworkSet: s.kind, LabelSet: -1, views: make([]view, len(u.worlds)), alone: true}
		for i, w := range u.worlds {
			u.lookUp(&actor.views[i], w, s.addr)
		}
		u.Actors = append(u.Actors, actor)
	}
}

// classify groups the actors by what the tables say of them.
func (u *Universe) classify(tables []*tables) {
	byKey := map[string]int32{}
	var key []byte
	for i := range u.Actors {
		a := &u.Actors[i]
		places := make([]place, len(u.worlds))
		key = append(key[:0], byte(familyOf(a.Addr)))
		switch {
		case a.Owned():
			key = append(key, 1)
		case a.Domain != "":
			key = append(key, 2)
		default:
			key = append(key, 0)
		}
		for k := range u.worlds {
			places[k] = u.placeOf(a, k, tables[k])
			key = places[k].appendTo(key)
		}
		n, ok := byKey[string(key)]
		if !ok {
			n = int32(len(u.Classes))
			byKey[string(key)] = n
			u.Classes = append(u.Classes, Class{
				family: familyOf(a.Addr), owned: a.Owned(), named: a.Domain != "", first: a.Workload, many: !a.Owned(), hosts: map[string]hostMembers{}, worlds: places,
			})
		}
		c := &u.Classes[n]
		for k := range places {
			c.local = c.local || places[k].asLocal != places[k].asRemote
			c.controls = c.controls || len(places[k].controller) > 0
		}
		c.Members = append(c.Members, int32(i))
		c.many = c.many || a.Workload != c.first
		h, known := c.hosts[a.host()]
		if !known {
			h.first = a.Workload
		}
		h.many = h.many || h.first != a.Workload
		c.hosts[a.host()] = h
		a.class = n
	}
	u.seats = make([][]seat, len(u.worlds))
	for w := range u.worlds {
		u.seats[w] = make([]seat, len(u.Classes))
		for i := range u.Classes {
			p := &u.Classes[i].worlds[w]
			u.seats[w][i] = seat{p.asDest, unjudged}
			if p.managed {
				u.seats[w][i].ingress = p.ingress
			}
			u.controls = u.controls || u.Classes[i].controls
		}
	}
}

// host returns the host of the workload in the last world that has it; "" if no agent is known.
func (a *Actor) host() string {
	for i := len(a.views) - 1; i >= 0; i-- {
		if wl := a.views[i].workload; wl != nil && wl.Name == a.Workload {
			return wl.Host
		}
	}
	return ""
}

// ownNode reports whether the two are a pod and the node that it runs on, in the last world that has both.
func (a *Actor) ownNode(b *Actor) bool {
	for i := len(a.views) - 1; i >= 0; i-- {
		x, y := a.views[i].workload, b.views[i].workload
		if x != nil && y != nil && x.Name == a.Workload && y.Name == b.Workload {
			return x.Node != "" && x.Node == y.Node && x.IsPod() != y.IsPod()
		}
	}
	return false
}

func (u *Universe) placeOf(a *Actor, world int, t *tables) place {
	v := &a.views[world]
	p := place{
		asDest:   t.column(model.Egress, v.identity),
		asLocal:  t.column(model.Ingress, v.identity),
		asRemote: t.column(model.Ingress, v.seen),
	}
	if v.managed() {
		p.managed, p.unit = true, v.workload.IsUnit()
		rows := t.rows[u.worlds[world].PolicySetID(v.at)]
		p.egress, p.ingress = rows[model.Egress], rows[model.Ingress]
	}
	for _, c := range u.worlds[world].Options().Controllers {
		if c.Addr() == a.Addr {
			p.controller = append(p.controller, c.Port())
		}
	}
	if len(u.worlds[world].Options().Controllers) == 0 {
		p.unit = false // only the way to controllers tells units from hosts
	}
	return p
}

func (p *place) appendTo(key []byte) []byte {
	flags := byte(0)
	if p.managed {
		flags |= 1
	}
	if p.unit {
		flags |= 2
	}
	key = append(key, flags, byte(len(p.controller)))
	for _, n := range []int32{int32(p.egress), int32(p.ingress), int32(p.asDest), int32(p.asLocal), int32(p.asRemote)} {
		key = binary.LittleEndian.AppendUint32(key, uint32(n))
	}
	for _, port := range p.controller {
		key = binary.LittleEndian.AppendUint16(key, port)
	}
	return key
}
