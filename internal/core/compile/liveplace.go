package compile

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// liveNetset is a netset in use. Its slot stays when the address space is cut anew.
type liveNetset struct {
	key        string
	names      []string
	purposes   purposes
	identities []int32 // unshared ones
	unowned    int32   // identity of its addresses that no workload owns; None of the empty netset and of one without cells
}

// liveWorkload is a workload with its identities.
type liveWorkload struct {
	*model.Instance
	labels int32
	points []livePoint // one for each address; of a workload without addresses one without an address
}

// livePoint is a workload at one of its addresses.
type livePoint struct {
	of     *liveWorkload
	addr   netip.Addr
	netset int32
	exact  int32
}

// liveAddr is an address that workloads own. What others see of it is in rec, which does not change but is replaced.
type liveAddr struct {
	addr   netip.Addr
	owners []*livePoint // sorted by workload
	rec    *addrRecord
	dirty  bool // rec differs from what it was before the batch
}

// addrRecord is what hosts may be told of an address.
type addrRecord struct {
	of         *liveAddr
	seen       int32
	members    []int32 // of seen, if that is shared
	cell       int32   // number of a liveCell
	address    hostpolicy.Address
	portOwners []hostpolicy.PortOwner
	addressSums
	at int // index in its place: the only part that changes
}

func (r *addrRecord) equal(o *addrRecord) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.seen == o.seen && r.cell == o.cell && r.address == o.address && slices.Equal(r.members, o.members) &&
		slices.Equal(r.portOwners, o.portOwners)
}

// netset returns the slot of a netset.
func (l *Live) netset(s *netset) int32 {
	key := string(append([]byte(strings.Join(s.names, "\x00")), 0, byte(s.purposes)))
	if at, ok := l.netsetsByKey[key]; ok {
		return at
	}
	at := l.netsetSlots.take(len(l.netsets))
	if int(at) == len(l.netsets) {
		l.netsets = append(l.netsets, liveNetset{})
	}
	l.netsets[at] = liveNetset{key: key, names: s.names, purposes: s.purposes, unowned: None}
	l.netsetsByKey[key] = at
	return at
}

// dropNetsets frees the netsets that no cell and no identity has.
func (l *Live) dropNetsets() {
	used := make([]bool, len(l.netsets))
	for _, at := range l.slotOf {
		used[at] = true
	}
	for at := range l.netsets {
		s := &l.netsets[at]
		if at > 0 && s.key != "" && !used[at] && len(s.identities) == 0 {
			delete(l.netsetsByKey, s.key)
			*s = liveNetset{unowned: None}
			l.netsetSlots.free = append(l.netsetSlots.free, int32(at))
		}
	}
}

// identity returns the slot of an identity that is not shared, with one more reference to it. Labels of an address that
// no workload owns are None.
func (b *batch) identity(labels, netset int32) int32 {
	l := b.Live
	k := identityKey{labels, netset}
	if at, ok := l.byKey[k]; ok {
		l.refs[at]++
		return at
	}
	n := &l.netsets[netset]
	id := model.Identity{Networks: n.names}
	if labels >= 0 {
		id.Owned, id.Labels = true, l.labelSets[labels].labels
		l.labelSets[labels].refs++
	}
	at := b.newIdentity(identity{Identity: id, key: id.Key(), labels: labels, netset: netset}, id.ID())
	l.byKey[k] = at
	n.identities = insert(n.identities, at)
	mean := func(t int32) {
		l.terms[t].members = insert(l.terms[t].members, at)
		for _, m := range l.terms[t].matches {
			l.matches.members[m] = insert(l.matches.members[m], at)
			l.meant[at] = insert(l.meant[at], m)
		}
	}
	if labels >= 0 {
		s := &l.labelSets[labels]
		s.identities = insert(s.identities, at)
		for _, t := range s.terms {
			mean(t)
		}
	}
	for _, name := range n.names {
		if t, ok := l.termsByKey["n"+name]; ok {
			mean(t)
		}
	}
	l.forPurposes(n.purposes, func(list []int32) []int32 { return insert(list, at) })
	return at
}

func (l *Live) forPurposes(p purposes, change func([]int32) []int32) {
	for _, bit := range []purposes{resolver, timeServer, forensic} {
		if p&bit != 0 {
			l.builder.byPurpose[bit] = change(l.builder.byPurpose[bit])
		}
	}
}

// sharedIdentity returns the slot of the identity that stands for several, with one more reference to it.
func (b *batch) sharedIdentity(members []int32) int32 {
	l := b.Live
	key := make([]byte, 0, 4*len(members))
	of := make([]model.IdentityID, len(members))
	for k, m := range members {
		key = binary.LittleEndian.AppendUint32(key, uint32(m))
		of[k] = l.ids.ids[m]
	}
	if at, ok := l.byMembers[string(key)]; ok {
		l.refs[at]++
		return at
	}
	members = slices.Clone(members)
	at := b.newIdentity(identity{
		Identity: model.Identity{Owned: true}, key: string(key), labels: None, netset: l.ids.all[members[0]].netset, members: members,
	}, model.SharedID(of))
	l.byMembers[string(key)] = at
	l.ids.sharedAll = append(l.ids.sharedAll, at)
	l.ids.membersOf[at] = span{int32(len(l.ids.members)), int32(len(l.ids.members) + len(members))}
	l.ids.members = append(l.ids.members, members...)
	for _, m := range members {
		l.refs[m]++
		l.ids.sharedIn[m] = insert(l.ids.sharedIn[m], at)
		l.members.add(m)
	}
	return at
}

func (b *batch) newIdentity(x identity, id model.IdentityID) int32 {
	l := b.Live
	at := l.identitySlots.take(len(l.ids.all))
	if int(at) == len(l.ids.all) {
		l.ids.all = append(l.ids.all, identity{})
		l.ids.ids = append(l.ids.ids, 0)
		l.ids.sharedIn = append(l.ids.sharedIn, nil)
		l.ids.membersOf = append(l.ids.membersOf, span{})
		l.refs = append(l.refs, 0)
		l.bornIn = append(l.bornIn, 0)
		l.meant = append(l.meant, nil)
		l.places = append(l.places, nil)
		l.identityMark = append(l.identityMark, 0)
		l.judgeOf = append(l.judgeOf, nil)
		l.builder.grow(len(l.ids.all))
		if len(l.members)*64 < len(l.ids.all) {
			l.members = append(l.members, 0)
		}
	}
	l.ids.all[at], l.ids.ids[at], l.refs[at], l.bornIn[at] = x, id, 1, b.number
	l.builder.digests.peers[at] = hostpolicy.PeerDigest(id)
	b.born = append(b.born, at)
	return at
}

// release gives up a reference to an identity. One that nothing refers to goes at the end of the batch.
func (b *batch) release(at int32) {
	if b.refs[at]--; b.refs[at] == 0 {
		b.dying = append(b.dying, at)
	}
}

// bury frees an identity, but for its slot.
func (b *batch) bury(at int32) {
	l := b.Live
	x := &l.ids.all[at]
	if x.members != nil {
		delete(l.byMembers, x.key)
		l.ids.sharedAll = slices.DeleteFunc(l.ids.sharedAll, func(s int32) bool { return s == at })
		for _, m := range x.members {
			if l.ids.sharedIn[m] = remove(l.ids.sharedIn[m], at); len(l.ids.sharedIn[m]) == 0 {
				l.members.drop(m)
			}
		}
	} else {
		n := &l.netsets[x.netset]
		delete(l.byKey, identityKey{x.labels, x.netset})
		n.identities = remove(n.identities, at)
		forget := func(t int32) { l.terms[t].members = remove(l.terms[t].members, at) }
		for _, name := range n.names {
			if t, ok := l.termsByKey["n"+name]; ok {
				forget(t)
			}
		}
		l.forPurposes(n.purposes, func(list []int32) []int32 { return remove(list, at) })
		if x.labels >= 0 {
			s := &l.labelSets[x.labels]
			s.identities = remove(s.identities, at)
			for _, t := range s.terms {
				forget(t)
			}
			l.dropLabelSet(x.labels)
		}
		for _, m := range l.meant[at] {
			l.matches.members[m] = remove(l.matches.members[m], at)
		}
	}
	*x = identity{labels: None}
	l.ids.ids[at], l.meant[at], l.places[at], l.ids.sharedIn[at] = 0, nil, nil, nil
	l.buried = append(l.buried, buriedSlot{at, l.turns.end()})
}

// entry returns the address, new if nobody had it, and notes that it must be looked at again.
func (b *batch) entry(a netip.Addr) *liveAddr {
	key := netip.PrefixFrom(a, a.BitLen())
	e, ok := b.owned.Get(key)
	if !ok {
		e = &liveAddr{addr: a}
		b.owned.Insert(key, e)
	}
	b.touch(e)
	return e
}

func (b *batch) touch(e *liveAddr) {
	if _, ok := b.was[e]; !ok {
		b.was[e] = e.rec
		b.touched = append(b.touched, e)
	}
}

func (l *Live) netsetAt(a netip.Addr) int32 { return l.slotOf[l.nets.netsetOf(l.nets.cellOf(a))] }

// join adds a workload.
func (b *batch) join(inst *model.Instance) {
	l := b.Live
	w := &liveWorkload{Instance: inst, labels: l.labelSet(identityLabels(inst))}
	l.labelSets[w.labels].workloads++
	l.workloads[inst.Name] = w
	n := len(inst.Addresses)
	w.points = make([]livePoint, 0, max(1, n))
	for _, a := range inst.Addresses {
		a = a.Unmap().WithZone("")
		if slices.ContainsFunc(w.points, func(p livePoint) bool { return p.addr == a }) {
			continue
		}
		at := l.netsetAt(a)
		w.points = append(w.points, livePoint{of: w, addr: a, netset: at, exact: b.identity(w.labels, at)})
	}
	if n == 0 {
		w.points = append(w.points, livePoint{of: w, exact: b.identity(w.labels, 0)})
	}
	for i := range w.points {
		p := &w.points[i]
		if !p.addr.IsValid() {
			continue
		}
		e := b.entry(p.addr)
		at, _ := slices.BinarySearchFunc(e.owners, inst.Name, func(o *livePoint, name string) int { return strings.Compare(o.of.Name, name) })
		e.owners = slices.Insert(e.owners, at, p)
	}
	if inst.IsUnit() {
		list := l.units[inst.Host]
		at, _ := slices.BinarySearchFunc(list, inst.Name, func(u *liveWorkload, name string) int { return strings.Compare(u.Name, name) })
		l.units[inst.Host] = slices.Insert(list, at, w)
	}
	b.concern(w)
}

// leave removes a workload.
func (b *batch) leave(w *liveWorkload) {
	l := b.Live
	b.concern(w)
	delete(l.workloads, w.Name)
	for i := range w.points {
		p := &w.points[i]
		if p.addr.IsValid() {
			e := b.entry(p.addr)
			e.owners = slices.DeleteFunc(e.owners, func(o *livePoint) bool { return o.of == w })
		}
		b.release(p.exact)
	}
	if w.IsUnit() {
		list := slices.DeleteFunc(l.units[w.Host], func(u *liveWorkload) bool { return u == w })
		if len(list) == 0 {
			delete(l.units, w.Host)
		} else {
			l.units[w.Host] = list
		}
	}
	l.labelSets[w.labels].workloads--
	l.dropLabelSet(w.labels)
}

// concern notes that the workload's host, and the restrictions that name it, must be looked at again.
func (b *batch) concern(w *liveWorkload) {
	host := w.Name
	if w.IsUnit() {
		host = w.Host
	}
	b.hosts[host] = true
	for other := range b.namedBy[w.Name] {
		if o := b.workloads[other]; o != nil {
			if host = o.Name; o.IsUnit() {
				host = o.Host
			}
			b.hosts[host] = true
		}
	}
}

// settle makes the records of all touched addresses, and forgets addresses that nobody owns any more.
func (b *batch) settle() {
	l := b.Live
	for _, e := range b.touched {
		old := e.rec
		if old != nil {
			b.unbook(old)
		}
		e.rec = b.record(e)
		if e.rec.equal(b.was[e]) {
			e.rec = b.was[e]
		} else {
			e.dirty = true
			b.dirty = append(b.dirty, e)
			if only := netip.PrefixFrom(e.addr, e.addr.BitLen()); (e.rec == nil) != (b.was[e] == nil) {
				if _, ok := l.nets.lookup.Get(only); ok {
					b.uncover(l.nets, l.slotOf, only)
				}
			}
		}
		if old != nil && old.members != nil {
			b.release(old.seen)
		}
		if e.rec != nil {
			b.book(e.rec)
		} else {
			l.owned.Delete(netip.PrefixFrom(e.addr, e.addr.BitLen()))
		}
	}
}

// record returns what there is to say about an address; nil if nobody owns it. A shared identity that it names has one
// more reference.
func (b *batch) record(e *liveAddr) *addrRecord {
	if len(e.owners) == 0 {
		return nil
	}
	l := b.Live
	r := &addrRecord{of: e, cell: l.cell(e.addr)}
	members := make([]int32, len(e.owners))
	for k, p := range e.owners {
		members[k] = p.exact
	}
	slices.SortFunc(members, func(x, y int32) int { return strings.Compare(l.ids.all[x].key, l.ids.all[y].key) })
	members = slices.Compact(members)
	r.seen = members[0]
	if len(members) > 1 {
		r.seen = b.sharedIdentity(members)
		r.members = l.ids.all[r.seen].members
		claimants := make([]claimant, len(e.owners))
		for k, p := range e.owners {
			claimants[k] = claimant{p.of.Instance, p.exact}
		}
		for _, o := range portOwners(e.addr, claimants) {
			r.portOwners = append(r.portOwners, hostpolicy.PortOwner{Addr: e.addr, Proto: o.proto, Port: o.port, Identity: l.ids.ids[o.identity]})
		}
		for i := range r.portOwners {
			r.ports.Add(r.portOwners[i].Digest())
		}
	}
	r.address = hostpolicy.Address{
		Prefix: netip.PrefixFrom(e.addr, e.addr.BitLen()), Identity: l.ids.ids[r.seen], Shared: r.members != nil,
	}
	r.addresses.Add(r.address.Digest())
	return r
}
