package compile

import (
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// addressDelta is what changes in the addresses and ports that hosts are told of, with what it does to their sums.
type addressDelta struct {
	delta     *hostpolicy.AddressDelta
	gone, new addressSums
	twice     bool // a prefix may be new and gone
}

// to does to the sums what the delta does to the addresses, and undo takes it back.
func (d *addressDelta) to(s *addressSums) {
	s.add(&d.new)
	s.remove(&d.gone)
}

func (d *addressDelta) undo(s *addressSums) {
	s.add(&d.gone)
	s.remove(&d.new)
}

var noAddresses = &addressDelta{}

// addressDelta returns what changes in the addresses and ports that hosts are told of, from one state to the next. Peers in
// doubt may be told apart in one of them only; moot are the addresses whose records changed and may be told of.
func (b *batch) addressDelta(old, now *groupState, doubt []int32, moot []*liveAddr) *addressDelta {
	l := b.Live
	shared := len(doubt) == 0 && len(moot) <= 8 && old.cover == now.cover
	if shared {
		// Hosts of many groups are told the same of few addresses: they share it.
		key := b.key[:0]
		for _, e := range moot {
			was, is := old.lists(b.was[e]), now.lists(e.rec)
			if was || is {
				key = append(key, e.addr.AsSlice()...)
				key = append(key, flagByte(was), flagByte(is))
			}
		}
		b.key = key
		if len(key) == 0 {
			return noAddresses
		}
		if known, ok := b.addressDeltas[string(key)]; ok {
			return known
		}
	}
	g := &l.gathering
	d := &addressDelta{delta: &hostpolicy.AddressDelta{
		Upsert: g.upsert[:0], Remove: g.remove[:0], UpsertPorts: g.upsertPorts[:0], RemovePorts: g.removePorts[:0],
	}}
	l.mark++
	seen := l.mark
	look := func(e *liveAddr) {
		if e.seen == seen {
			return
		}
		e.seen = seen
		was, is := e.rec, e.rec
		if e.dirty {
			was = b.was[e]
		}
		if !old.lists(was) {
			was = nil
		}
		if !now.lists(is) {
			is = nil
		}
		d.entry(was, is)
	}
	l.mark++
	visited := l.mark
	for _, p := range doubt {
		if old.tells(p) == now.tells(p) {
			continue
		}
		b.places(d, old, now, p, look, visited)
		for _, shared := range l.ids.sharedIn[p] {
			b.places(d, old, now, shared, look, visited)
		}
	}
	if old.cover != now.cover {
		d.prefixes(old.cover.prefixes, now.cover.prefixes)
		for _, pair := range [2][2]*cover{{old.cover, now.cover}, {now.cover, old.cover}} {
			for _, cell := range pair[0].cells {
				if pair[1].holds(cell) {
					continue
				}
				l.ownedIn(cell, func(e *liveAddr) {
					if e.dirty || e.rec.cell == cell {
						look(e)
					}
				})
			}
		}
	}
	for _, e := range moot {
		look(e)
	}
	d.finish(g)
	if shared {
		b.addressDeltas[string(b.key)] = d
	}
	return d
}

// places adds what changes because an identity, or one of those that it stands for, is told apart in one state only, all
// addresses of a place at once. Addresses that the batch changed are left to look, and so are those that hosts are told of
// because of their cell in one state only.
func (b *batch) places(d *addressDelta, old, now *groupState, p int32, look func(*liveAddr), visited uint32) {
	l := b.Live
	if l.identityMark[p] == visited {
		return
	}
	l.identityMark[p] = visited
	was, is := old.tellsAny(p, l.ids.all[p].members), now.tellsAny(p, l.ids.all[p].members)
	if was == is {
		return
	}
	for i := range l.places[p] {
		at := &l.places[p][i]
		switch {
		case old.cover.holds(at.cell) || now.cover.holds(at.cell):
			// In both, nothing changes; in one of them, the cell is looked at.
		case at.changes == b.number:
			for _, e := range l.addrs[p] {
				if e.rec.seen == p && e.rec.cell == at.cell {
					look(e)
				}
			}
		case is:
			d.new.add(&at.addressSums)
			d.delta.Upsert = append(d.delta.Upsert, at.listed...)
			d.delta.UpsertPorts = at.appendPorts(d.delta.UpsertPorts)
		default:
			d.gone.add(&at.addressSums)
			d.delta.Remove = append(d.delta.Remove, at.listed...)
			d.delta.RemovePorts = at.appendPorts(d.delta.RemovePorts)
		}
	}
}

func (p *place) appendPorts(dst []hostpolicy.PortOwner) []hostpolicy.PortOwner {
	if p.ports.N == 0 {
		return dst
	}
	for _, r := range p.records {
		dst = append(dst, r.portOwners...)
	}
	return dst
}

func flagByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (d *addressDelta) entry(was, is *addrRecord) {
	if was == nil && is == nil {
		return
	}
	var old, now []hostpolicy.PortOwner
	if was != nil {
		d.gone.add(&was.addressSums)
		old = was.portOwners
	}
	if is != nil {
		d.new.add(&is.addressSums)
		now = is.portOwners
	}
	switch {
	case is == nil:
		d.delta.Remove = append(d.delta.Remove, was.address)
	case was == nil || was.address != is.address:
		d.delta.Upsert = append(d.delta.Upsert, is.address)
	}
	for _, o := range now {
		if !slices.Contains(old, o) {
			d.delta.UpsertPorts = append(d.delta.UpsertPorts, o)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n hostpolicy.PortOwner) bool { return hostpolicy.ComparePorts(&n, &o) == 0 }) {
			d.delta.RemovePorts = append(d.delta.RemovePorts, o)
		}
	}
}

func (d *addressDelta) prefixes(old, now []hostpolicy.Address) {
	if len(old)+len(now) == 0 || len(old) == len(now) && &old[0] == &now[0] {
		return
	}
	d.twice = true // an address of a workload may be a prefix too
	for len(old) > 0 || len(now) > 0 {
		c := -1
		switch {
		case len(old) == 0:
			c = 1
		case len(now) > 0:
			c = hostpolicy.CompareAddresses(&old[0], &now[0])
		}
		if c == 0 && old[0] != now[0] || c > 0 {
			d.delta.Upsert = append(d.delta.Upsert, now[0])
			d.new.addresses.Add(now[0].Digest())
		}
		if c == 0 && old[0] != now[0] || c < 0 {
			if c < 0 {
				d.delta.Remove = append(d.delta.Remove, old[0])
			}
			d.gone.addresses.Add(old[0].Digest())
		}
		if c <= 0 {
			old = old[1:]
		}
		if c >= 0 {
			now = now[1:]
		}
	}
}

// finish puts the lists, which were gathered, into order. An entry that takes the place of one of the same prefix is no removal.
func (d *addressDelta) finish(g *gathering) {
	x := d.delta
	g.upsert, g.remove, g.upsertPorts, g.removePorts = x.Upsert, x.Remove, x.UpsertPorts, x.RemovePorts
	x.Upsert, x.Remove = g.addresses(g.upsert), g.addresses(g.remove)
	x.UpsertPorts, x.RemovePorts = g.ports(g.upsertPorts), g.ports(g.removePorts)
	if !d.twice {
		return
	}
	n, k := 0, 0
	for i := range x.Remove {
		for k < len(x.Upsert) && hostpolicy.CompareAddresses(&x.Upsert[k], &x.Remove[i]) < 0 {
			k++
		}
		if k == len(x.Upsert) || x.Upsert[k].Prefix != x.Remove[i].Prefix {
			x.Remove[n] = x.Remove[i]
			n++
		}
	}
	x.Remove = x.Remove[:n]
}
