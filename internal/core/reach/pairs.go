package reach

import (
	"slices"

	"bulkhead/internal/core/model"
)

// Pair is what the ends of a flow between members of two classes say, in each world: the functions of egress and
// ingress. An end that nobody enforces allows everything.
type Pair struct {
	Egress, Ingress []FuncID // by world
}

// Source looks at all destinations from one class. It is valid until From is called again.
type Source struct {
	u      *Universe
	class  int32
	local  bool          // it may count for destinations that the source is on their host
	byDest [][]FuncID    // by world and column: what the source's egress says
	byRow  [2][][]FuncID // by remote or local, world and row: what others' ingress says
	pair   Pair
}

const (
	remote = 0
	local  = 1
)

// From returns a view of all pairs whose source is the class.
func (u *Universe) From(class int32) *Source {
	s := &u.source
	if s.u == nil {
		n := len(u.worlds)
		*s = Source{u: u, byDest: make([][]FuncID, n), pair: Pair{make([]FuncID, n), make([]FuncID, n)}}
		s.byRow[remote], s.byRow[local] = make([][]FuncID, n), make([][]FuncID, n)
	}
	c := &u.Classes[class]
	s.class, s.local = class, c.local
	for w := range u.worlds {
		p := &c.worlds[w]
		dest := slices.Grow(s.byDest[w][:0], len(u.columns[model.Egress][w]))[:len(u.columns[model.Egress][w])]
		s.byDest[w] = dest
		if p.managed {
			r := &u.rows[model.Egress][w][p.egress]
			fill(dest, r.rest)
			for _, e := range r.entries {
				dest[e.col] = e.fn
			}
		} else {
			fill(dest, u.open)
		}
		s.byRow[remote][w] = u.byRow(s.byRow[remote][w], w, p.asRemote)
		if c.local {
			s.byRow[local][w] = u.byRow(s.byRow[local][w], w, p.asLocal)
		}
	}
	return s
}

// byRow says what each row of ingress says of a peer. It reuses the space of out.
func (u *Universe) byRow(out []FuncID, world int, peer colID) []FuncID {
	rows := u.rests[world]
	out = append(out[:0], rows...)
	for _, e := range u.columns[model.Ingress][world][peer] {
		out[e.row] = e.fn
	}
	return out
}

func fill(list []FuncID, fn FuncID) {
	for i := range list {
		list[i] = fn
	}
}

// Where says which members of two classes a statement is about.
type Where uint8

// The places.
const (
	Anywhere  Where = iota // wherever they are
	Elsewhere              // a source on another host than the destination
	SameHost               // a source on the destination's host
)

// Each calls fn for what is true between members of the source's class and of the class to. There is nothing to say
// between one workload and itself, between IPv4 and IPv6, and between addresses that nobody owns. Most often there is
// one thing to say, Anywhere; where it makes a difference to the destination that the source is on its host, fn is called
// for Elsewhere and for SameHost, as far as there are such members. The pair is valid during the call.
func (s *Source) Each(to int32, fn func(p *Pair, where Where)) {
	a, b := &s.u.Classes[s.class], &s.u.Classes[to]
	if a.family != b.family && a.family != noAddress && b.family != noAddress ||
		!a.owned && !b.owned || s.class == to && !a.many || a.named {
		return
	}
	if !a.many && !b.many && a.first == b.first && a.owned && b.owned {
		return
	}
	if !s.differs(to) {
		fn(s.at(b, to, remote), Anywhere)
		return
	}
	if a.meetFar(b) {
		fn(s.at(b, to, remote), Elsewhere)
	}
	if a.meetNear(b) {
		fn(s.at(b, to, local), SameHost)
	}
}

// At returns what the ends say in one world about a member of the class to on another host, whether or not there is one.
// It is quick, and it is all there is to say unless HostCounts.
func (s *Source) At(to int32, world int) (egress, ingress FuncID) {
	at := s.u.seats[world][to]
	if at.ingress == unjudged {
		return s.byDest[world][at.asDest], s.u.open
	}
	return s.byDest[world][at.asDest], s.byRow[remote][world][at.ingress]
}

// HostCounts reports whether Each may say more than At: where the destination is a controller, or where it makes a
// difference that the source is on its host.
func (s *Source) HostCounts(to int32) bool {
	if !s.local && !s.u.controls {
		return false
	}
	return s.u.controls && s.u.Classes[to].controls || s.differs(to)
}

// differs reports whether it counts for the destination that the source is on its host.
func (s *Source) differs(to int32) bool {
	if !s.local {
		return false
	}
	for w := range s.u.worlds {
		at := s.u.seats[w][to].ingress
		if at != unjudged && s.byRow[remote][w][at] != s.byRow[local][w][at] {
			return true
		}
	}
	return false
}

func (s *Source) at(b *Class, to int32, where int) *Pair {
	a := &s.u.Classes[s.class]
	for w := range s.u.worlds {
		src, dst := &a.worlds[w], &b.worlds[w]
		egress, ingress := s.u.open, s.u.open
		if src.managed {
			egress = s.byDest[w][dst.asDest]
			if len(dst.controller) > 0 && !src.unit {
				egress = s.u.mask(egress, w, to)
			}
		}
		if dst.managed {
			ingress = s.byRow[where][w][dst.ingress]
			if len(dst.controller) > 0 {
				ingress = s.u.mask(ingress, w, to)
			}
		}
		s.pair.Egress[w], s.pair.Ingress[w] = egress, ingress
	}
	return &s.pair
}

// mask makes the way to a controller essential.
func (u *Universe) mask(fn FuncID, world int, class int32) FuncID {
	k := maskKey{fn, world, class}
	out, ok := u.masked[k]
	if !ok {
		out = u.functions.withEssential(fn, u.Classes[class].worlds[world].controller)
		u.masked[k] = out
	}
	return out
}

// meetFar reports whether two members are not on one host. Only if all members of both are on one and the same host
// are there none.
func (a *Class) meetFar(b *Class) bool {
	if len(a.hosts) > 1 || len(b.hosts) > 1 {
		return true
	}
	for h := range a.hosts {
		_, same := b.hosts[h]
		return h == "" || !same
	}
	return false
}

// meetNear reports whether two different workloads of the classes are on one host.
func (a *Class) meetNear(b *Class) bool {
	if len(a.hosts) > len(b.hosts) {
		a, b = b, a
	}
	for h, x := range a.hosts {
		if y, ok := b.hosts[h]; ok && h != "" && (x.many || y.many || x.first != y.first) {
			return true
		}
	}
	return false
}

// Example returns two different actors of the lists that can meet at such a place; nil if there are none. A pod and its own
// node, which may always talk, are no example.
func (u *Universe) Example(from, to []int32, where Where) *[2]*Actor {
	for _, i := range from {
		x := &u.Actors[i]
		for _, j := range to {
			y := &u.Actors[j]
			if x.Owned() && x.Workload == y.Workload || x.ownNode(y) {
				continue
			}
			near := x.Owned() && y.Owned() && x.host() != "" && x.host() == y.host()
			if where == Anywhere || near == (where == SameHost) {
				return &[2]*Actor{x, y}
			}
		}
	}
	return nil
}

// jointKey are the functions at both ends of a pair.
type jointKey struct{ egress, ingress FuncID }

// Joint returns the function over both ends: the stricter of the two on each port, where an essential at one end
// counts as allowed.
func (u *Universe) Joint(egress, ingress FuncID) FuncID {
	switch {
	case egress == u.open:
		return ingress
	case ingress == u.open:
		return egress
	}
	k := jointKey{egress, ingress}
	if id, ok := u.joint[k]; ok {
		return id
	}
	a, b := &u.functions.all[egress], &u.functions.all[ingress]
	choices := u.functions.choices
	out := function{rest: choices.join(a.rest, b.rest)}
	walk([]*function{a, b}, nil, func(p model.PortRange, says []choice, _ bool) {
		if p.Proto != model.ProtoAny {
			out.add(levelCell{p.Proto, p.Lo, p.Hi, choices.join(says[0], says[1])})
		}
	})
	id := u.functions.intern(out)
	u.joint[k] = id
	return id
}

// Where returns the ports, of those that within allows, on which the function has the level for some of who.
func (u *Universe) Where(id, within FuncID, level Level, who Who) Ports {
	var b portsBuilder
	s := u.functions.choices
	walk([]*function{&u.functions.all[id], &u.functions.all[within]}, always, func(p model.PortRange, says []choice, free bool) {
		inside := says[1] == choice(Allow)
		b.add(p, !free && inside && s.and(s.whose(says[0], level), who) != Nobody, free && inside)
	})
	return b.build()
}

// Difference is one way in which two functions differ: from one verdict to another, on some ports, for some processes.
type Difference struct {
	Before, After model.Verdict
	Who           Who
	Ports         Ports
	// Only says that what closes is left to all processes but those of Who: to them, it passes afterwards.
	Only bool
}

// Differences returns how two functions differ: all of it, and nothing twice.
func (u *Universe) Differences(before, after FuncID) []Difference {
	type piece struct {
		ports model.PortRange
		free  bool
		says  [2]choice
	}
	var pieces []piece
	walk([]*function{&u.functions.all[before], &u.functions.all[after]}, always, func(p model.PortRange, says []choice, free bool) {
		pieces = append(pieces, piece{p, free, [2]choice{says[0], says[1]}})
	})
	var out []Difference
	s := u.functions.choices
	for was := model.Deny; was <= model.Allow; was++ {
		for is := model.Deny; is <= model.Allow; is++ {
			if was == is {
				continue
			}
			first := len(out)
			whose := make([]Who, len(pieces))
			for i := range pieces {
				p := &pieces[i]
				if p.free || p.says[0] == p.says[1] {
					continue
				}
				whose[i] = s.turns(p.says[0], p.says[1], was, is)
				if whose[i] != Nobody && !slices.ContainsFunc(out[first:], func(d Difference) bool { return d.Who == whose[i] }) {
					out = append(out, Difference{Before: was, After: is, Who: whose[i]})
				}
			}
			for k := range out[first:] {
				d := &out[first+k]
				var b portsBuilder
				d.Only = is == model.Deny && d.Who != Everybody
				for i := range pieces {
					b.add(pieces[i].ports, whose[i] == d.Who, pieces[i].free)
					d.Only = d.Only && (whose[i] != d.Who || s.whose(pieces[i].says[1], Deny) == d.Who)
				}
				d.Ports = b.build()
			}
		}
	}
	return out
}
