package compile

import (
	"math/bits"
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// addressDelta is what changes in the addresses and ports that hosts are told of, with what it does to their sums.
type addressDelta struct {
	delta     *hostpolicy.AddressDelta
	gone, new addressSums
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
// doubt may be told apart in one of them only, if it is not known of all peers; moot are the addresses whose records changed and
// may be told of.
func (b *batch) addressDelta(old, now *view, doubt []int32, moot []*liveAddr) *addressDelta {
	l := b.Live
	shared := old.told == nil && len(doubt) == 0 && len(moot) <= 8 && old.cover == now.cover
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
	d := &addressDelta{}
	g := &l.gathering
	g.addressDelta = d
	if old.told != nil {
		for at, word := range old.told {
			for word ^= now.told[at]; word != 0; word &= word - 1 {
				p := int32(at*64 + bits.TrailingZeros64(word))
				b.places(old, now, p, old.told.has(p))
			}
		}
	} else {
		b.doubt(old, now, doubt)
	}
	if old.cover != now.cover {
		g.prefixes(old.cover.prefixes, now.cover.prefixes)
		for _, pair := range [2][2]*cover{{old.cover, now.cover}, {now.cover, old.cover}} {
			for _, cell := range pair[0].cells {
				if pair[1].holds(cell) {
					continue
				}
				for _, at := range l.cells[cell].places {
					members := l.ids.all[at.seen].members
					b.place(at, old.cover.holds(cell) || old.tells(at.seen, members), now.cover.holds(cell) || now.tells(at.seen, members))
				}
			}
		}
	}
	for _, e := range moot {
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
		g.entry(was, is)
	}
	d.delta = g.finish()
	if shared {
		b.addressDeltas[string(b.key)] = d
	}
	return d
}

// doubt gathers what changes because a peer is told apart in one state only, or a shared identity that stands for it.
func (b *batch) doubt(old, now *view, peers []int32) {
	l := b.Live
	l.mark++
	look := func(p int32) {
		if l.identityMark[p] == l.mark {
			return
		}
		l.identityMark[p] = l.mark
		members := l.ids.all[p].members
		if was := old.tells(p, members); was != now.tells(p, members) {
			b.places(old, now, p, was)
		}
	}
	for _, p := range peers {
		look(p)
		for _, shared := range l.ids.sharedIn[p] {
			look(shared)
		}
	}
}

// places gathers the places of an identity that is told apart in one state only, but for those that hosts are told of because of
// their cell, in both states or in one.
func (b *batch) places(old, now *view, p int32, was bool) {
	for at := b.Live.places[p]; at != nil; at = at.more {
		if !old.cover.holds(at.cell) && !now.cover.holds(at.cell) {
			b.place(at, was, !was)
		}
	}
}

// place gathers a place of which hosts were told, or are told now. Addresses that the batch changed are not among it: they are
// looked at one by one.
func (b *batch) place(at *place, was, is bool) {
	g := &b.Live.gathering
	switch {
	case was == is:
	case at.changed:
		for _, r := range at.records {
			switch {
			case r.of.dirty:
			case is:
				g.entry(nil, r)
			default:
				g.entry(r, nil)
			}
		}
	case is:
		g.new.addPlace(at)
		g.upsertBlocks = append(g.upsertBlocks, b.Live.block(at))
		g.entries += at.len()
	default:
		g.gone.addPlace(at)
		g.removeBlocks = append(g.removeBlocks, b.Live.block(at))
		g.entries += at.len()
	}
}

func flagByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// entry gathers an address that is told of otherwise, or in one state only.
func (g *gathering) entry(was, is *addrRecord) {
	if was == nil && is == nil {
		return
	}
	var old, now []hostpolicy.PortOwner
	if was != nil {
		g.gone.add(&was.addressSums)
		old = was.portOwners
	}
	if is != nil {
		g.new.add(&is.addressSums)
		now = is.portOwners
	}
	switch {
	case is == nil:
		g.remove = append(g.remove, was.address)
	case was == nil || was.address != is.address:
		g.upsert = append(g.upsert, is.address)
	}
	for _, o := range now {
		if !slices.Contains(old, o) {
			g.upsertPorts = append(g.upsertPorts, o)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n hostpolicy.PortOwner) bool { return hostpolicy.ComparePorts(&n, &o) == 0 }) {
			g.removePorts = append(g.removePorts, o)
		}
	}
}

// prefixes gathers what changes in the prefixes of addresses that no workload owns.
func (g *gathering) prefixes(old, now []hostpolicy.Address) {
	if len(old)+len(now) == 0 || len(old) == len(now) && &old[0] == &now[0] {
		return
	}
	g.twice = true // an address of a workload may be a prefix too
	for len(old) > 0 || len(now) > 0 {
		c := -1
		switch {
		case len(old) == 0:
			c = 1
		case len(now) > 0:
			c = hostpolicy.CompareAddresses(&old[0], &now[0])
		}
		if c == 0 && old[0] != now[0] || c > 0 {
			g.upsert = append(g.upsert, now[0])
			g.new.addresses.Add(now[0].Digest())
		}
		if c == 0 && old[0] != now[0] || c < 0 {
			if c < 0 {
				g.remove = append(g.remove, old[0])
			}
			g.gone.addresses.Add(old[0].Digest())
		}
		if c <= 0 {
			old = old[1:]
		}
		if c >= 0 {
			now = now[1:]
		}
	}
}

// finish returns the delta of what was gathered, and forgets that. An entry that takes the place of one of the same prefix is no
// removal.
func (g *gathering) finish() *hostpolicy.AddressDelta {
	upsert := &hostpolicy.Block{Addresses: g.addresses(g.upsert), Ports: g.ports(g.upsertPorts)}
	remove := &hostpolicy.Block{Addresses: g.addresses(g.remove), Ports: g.ports(g.removePorts)}
	if g.twice {
		n, k := 0, 0
		for i := range remove.Addresses {
			for k < len(upsert.Addresses) && hostpolicy.CompareAddresses(&upsert.Addresses[k], &remove.Addresses[i]) < 0 {
				k++
			}
			if k == len(upsert.Addresses) || upsert.Addresses[k].Prefix != remove.Addresses[i].Prefix {
				remove.Addresses[n] = remove.Addresses[i]
				n++
			}
		}
		remove.Addresses = remove.Addresses[:n]
	}
	if n := upsert.Len(); n > 0 {
		g.upsertBlocks = append(g.upsertBlocks, upsert)
		g.entries += n
	}
	if n := remove.Len(); n > 0 {
		g.removeBlocks = append(g.removeBlocks, remove)
		g.entries += n
	}
	out := &hostpolicy.AddressDelta{Upsert: slices.Clone(g.upsertBlocks), Remove: slices.Clone(g.removeBlocks), Entries: g.entries}
	g.upsert, g.remove, g.upsertPorts, g.removePorts = g.upsert[:0], g.remove[:0], g.upsertPorts[:0], g.removePorts[:0]
	clear(g.upsertBlocks) // or blocks of long ago would be kept
	clear(g.removeBlocks)
	g.upsertBlocks, g.removeBlocks, g.entries, g.twice, g.addressDelta = g.upsertBlocks[:0], g.removeBlocks[:0], 0, false, nil
	return out
}
