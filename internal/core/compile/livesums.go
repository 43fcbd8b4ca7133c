package compile

import "bulkhead/internal/core/hostpolicy"

// What hosts are told of addresses enters the hashes of their policies as sums, and a sum is not kept for each group of
// hosts but found when it is asked for: from the last one and the addresses that changed since, if they are few, else
// from the sums of all addresses of an identity, of which each change of an address moves one.

// addressSums are what addresses, and the ports of shared ones, add to the bags of a policy.
type addressSums struct{ addresses, ports hostpolicy.Bag }

func (s *addressSums) add(x *addressSums) {
	s.addresses.N += x.addresses.N
	s.addresses.Sum.Add(x.addresses.Sum)
	if x.ports.N > 0 {
		s.ports.N += x.ports.N
		s.ports.Sum.Add(x.ports.Sum)
	}
}

func (s *addressSums) remove(x *addressSums) {
	s.addresses.N -= x.addresses.N
	s.addresses.Sum.Remove(x.addresses.Sum)
	if x.ports.N > 0 {
		s.ports.N -= x.ports.N
		s.ports.Sum.Remove(x.ports.Sum)
	}
}

// addPlace adds a whole place, without a look at its ports if there are none.
func (s *addressSums) addPlace(p *place) {
	s.addresses.N += p.addresses.N
	s.addresses.Sum.Add(p.addresses.Sum)
	if p.shared {
		s.ports.N += p.ports.N
		s.ports.Sum.Add(p.ports.Sum)
	}
}

// place is all addresses that others take for one identity in one cell, with their sums. What hosts are told of them is one
// block of a delta, unless the batch changed some of them. To draw a delta is to walk over thousands of places that are in no
// cache: what that reads comes first, and fills a line.
type place struct {
	addresses hostpolicy.Bag
	known     *hostpolicy.Block // of the records; nil: not made since they changed
	more      *place            // of the same identity in another cell
	cell      int32
	changed   bool // a record in it, by the batch
	shared    bool // the identity is, and there may be ports

	seen    int32
	inCell  int32 // index in the places of the cell
	records []*addrRecord
	ports   hostpolicy.Bag
}

// len returns how many entries there are to tell.
func (p *place) len() int {
	n := p.addresses.N
	if p.shared {
		n += p.ports.N
	}
	return int(n)
}

// placeOf returns the place that a record belongs in, nil if there is none.
func (l *Live) placeOf(r *addrRecord) *place {
	p := l.places[r.seen]
	for p != nil && p.cell != r.cell {
		p = p.more
	}
	return p
}

// book puts the record of an address in its place.
func (b *batch) book(r *addrRecord) {
	l := b.Live
	c := &l.cells[r.cell]
	c.sums.add(&r.addressSums)
	p := l.placeOf(r)
	if p == nil {
		p = &place{seen: r.seen, cell: r.cell, shared: r.members != nil, more: l.places[r.seen], inCell: int32(len(c.places))}
		l.places[r.seen], c.places = p, append(c.places, p)
	}
	sums := addressSums{p.addresses, p.ports}
	sums.add(&r.addressSums)
	p.addresses, p.ports = sums.addresses, sums.ports
	r.at, p.records = len(p.records), append(p.records, r)
	b.change(p)
}

// unbook is the inverse of book.
func (b *batch) unbook(r *addrRecord) {
	l := b.Live
	c := &l.cells[r.cell]
	c.sums.remove(&r.addressSums)
	p := l.placeOf(r)
	sums := addressSums{p.addresses, p.ports}
	sums.remove(&r.addressSums)
	p.addresses, p.ports = sums.addresses, sums.ports
	last := len(p.records) - 1
	p.records[r.at], p.records[last].at = p.records[last], r.at
	p.records[last] = nil
	p.records = p.records[:last]
	b.change(p)
	if last > 0 {
		return
	}
	at := &l.places[r.seen]
	for *at != p {
		at = &(*at).more
	}
	*at = p.more
	end := len(c.places) - 1
	c.places[p.inCell], c.places[end].inCell = c.places[end], p.inCell
	c.places[end] = nil
	c.places = c.places[:end]
}

func (b *batch) change(p *place) {
	p.known = nil
	if !p.changed {
		p.changed = true
		b.placesChanged = append(b.placesChanged, p)
	}
}

// block returns what there is to tell of a place.
func (l *Live) block(p *place) *hostpolicy.Block {
	if p.known == nil {
		g := &l.gathering
		addresses, ports := g.addressesOf[:0], g.portsOf[:0]
		for _, r := range p.records {
			addresses, ports = append(addresses, r.address), append(ports, r.portOwners...)
		}
		g.addressesOf, g.portsOf = addresses, ports
		p.known = &hostpolicy.Block{Addresses: g.addresses(addresses), Ports: g.ports(ports)}
	}
	return p.known
}

// outside calls visit for every place that hosts are told of because of its identity, and not of its cell.
func (l *Live) outside(v *view, visit func(*place)) {
	for p := range v.told.all() {
		for at := l.places[p]; at != nil; at = at.more {
			if !v.cover.holds(at.cell) {
				visit(at)
			}
		}
	}
}

// sumUp finds the sums of all addresses that hosts are told of now.
func (l *Live) sumUp(v *view) addressSums {
	out := addressSums{addresses: v.cover.sum}
	for _, c := range v.cover.cells {
		out.add(&l.cells[c].sums)
	}
	l.outside(v, func(p *place) { out.addPlace(p) })
	return out
}

// addressChange is an address before and after a change; nil where nobody has it.
type addressChange struct{ was, is *addrRecord }

const (
	logged  = 64 // changes of the world that addressLog knows
	atOnce  = 32 // addresses that one of them may change, to be known
	reading = 48 // addresses that are looked at rather than all summed up
)

// addressLog is which addresses the latest changes of the world changed.
type addressLog struct {
	version uint64 // of the world
	since   uint64 // it is known what changed after this version
	changes [logged][]addressChange
}

// next adds the changes that lead to the next version.
func (a *addressLog) next(changes []addressChange) {
	a.version++
	if len(changes) > atOnce {
		changes, a.since = nil, a.version
	}
	a.changes[a.version%logged] = changes
	if a.version-a.since > logged-1 {
		a.since = a.version - (logged - 1)
	}
}

// knownSums are the sums of a group as they were when somebody asked.
type knownSums struct {
	state   *groupState
	version uint64
	addressSums
}

// advance brings the sums of a state from their version to a later one, if the log tells the way; until that version the
// state must have been this one.
func (a *addressLog) advance(k *knownSums, s *groupState, version uint64) bool {
	if k.state != s || k.version < a.since {
		return false
	}
	n := 0
	for v := k.version + 1; v <= version; v++ {
		if n += len(a.changes[v%logged]); n > reading {
			return false
		}
	}
	v := view{groupState: s}
	for ; k.version < version; k.version++ {
		for _, c := range a.changes[(k.version+1)%logged] {
			if v.lists(c.was) {
				k.remove(&c.was.addressSums)
			}
			if v.lists(c.is) {
				k.add(&c.is.addressSums)
			}
		}
	}
	return true
}

// sums returns the sums of what the hosts of a group are told now; the view of its state may be there already, or nil.
func (l *Live) sums(g *group, v *view) *addressSums {
	k := &g.known
	if !l.log.advance(k, g.state, l.log.version) {
		if v == nil || v.told == nil {
			v = l.view(g.state, 0)
		}
		*k = knownSums{g.state, l.log.version, l.sumUp(v)}
	}
	return &k.addressSums
}
