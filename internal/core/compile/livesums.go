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

// place is all addresses that others take for one identity in one cell, with their sums.
type place struct {
	cell    int32
	changes uint64 // the latest batch that changed a record in it
	records []*addrRecord
	listed  []hostpolicy.Address // of the records, one by one
	addressSums
}

// book puts the record of an address in its place.
func (b *batch) book(r *addrRecord) {
	l := b.Live
	l.cells[r.cell].sums.add(&r.addressSums)
	for i := range l.places[r.seen] {
		if p := &l.places[r.seen][i]; p.cell == r.cell {
			p.put(r, b.number)
			return
		}
	}
	p := place{cell: r.cell}
	p.put(r, b.number)
	l.places[r.seen] = append(l.places[r.seen], p)
}

func (p *place) put(r *addrRecord, batch uint64) {
	p.add(&r.addressSums)
	r.at, p.changes = len(p.records), batch
	p.records, p.listed = append(p.records, r), append(p.listed, r.address)
}

func (p *place) take(r *addrRecord, batch uint64) {
	p.remove(&r.addressSums)
	last := len(p.records) - 1
	p.records[r.at], p.listed[r.at], p.records[last].at = p.records[last], p.listed[last], r.at
	p.records[last] = nil
	p.records, p.listed, p.changes = p.records[:last], p.listed[:last], batch
}

// unbook is the inverse of book.
func (b *batch) unbook(r *addrRecord) {
	l := b.Live
	l.cells[r.cell].sums.remove(&r.addressSums)
	list := l.places[r.seen]
	for i := range list {
		if p := &list[i]; p.cell == r.cell {
			if p.take(r, b.number); p.addresses.N == 0 {
				list[i], list[len(list)-1] = list[len(list)-1], place{}
				l.places[r.seen] = list[:len(list)-1]
			}
			return
		}
	}
}

// sumUp finds the sums of all addresses that hosts are told of now.
func (l *Live) sumUp(s *groupState) addressSums {
	out := addressSums{addresses: s.cover.sum}
	for _, c := range s.cover.cells {
		out.add(&l.cells[c].sums)
	}
	l.mark++
	mark := l.mark
	one := func(p int32) {
		if l.identityMark[p] == mark {
			return
		}
		l.identityMark[p] = mark
		list := l.places[p]
		for i := range list {
			if !s.cover.holds(list[i].cell) {
				out.add(&list[i].addressSums)
			}
		}
	}
	for _, c := range s.contents {
		c.each(func(p, _ int32) {
			one(p)
			for _, shared := range l.ids.sharedIn[p] {
				one(shared)
			}
		})
	}
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
	for ; k.version < version; k.version++ {
		for _, c := range a.changes[(k.version+1)%logged] {
			if s.lists(c.was) {
				k.remove(&c.was.addressSums)
			}
			if s.lists(c.is) {
				k.add(&c.is.addressSums)
			}
		}
	}
	return true
}

// sums returns the sums of what the hosts of a group are told now.
func (l *Live) sums(g *group) *addressSums {
	k := &g.known
	if !l.log.advance(k, g.state, l.log.version) {
		*k = knownSums{g.state, l.log.version, l.sumUp(g.state)}
	}
	return &k.addressSums
}
