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

// placeSums are the sums of the addresses that others take for one identity, in one cell.
type placeSums struct {
	cell int32
	addressSums
}

// book adds the record of an address to the sums of its place.
func (l *Live) book(r *addrRecord) {
	l.cells[r.cell].sums.add(&r.addressSums)
	for i := range l.places[r.seen] {
		if p := &l.places[r.seen][i]; p.cell == r.cell {
			p.add(&r.addressSums)
			return
		}
	}
	l.places[r.seen] = append(l.places[r.seen], placeSums{r.cell, r.addressSums})
}

// unbook is the inverse of book.
func (l *Live) unbook(r *addrRecord) {
	l.cells[r.cell].sums.remove(&r.addressSums)
	list := l.places[r.seen]
	for i := range list {
		if p := &list[i]; p.cell == r.cell {
			if p.remove(&r.addressSums); p.addresses.N == 0 {
				list[i] = list[len(list)-1]
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
