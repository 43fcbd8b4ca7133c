package compile

import (
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
	d := &addressDelta{delta: &hostpolicy.AddressDelta{}}
	l.mark++
	look := func(e *liveAddr) {
		if e.seen == l.mark {
			return
		}
		e.seen = l.mark
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
	for _, p := range doubt {
		if old.tells(p) != now.tells(p) {
			for _, e := range l.addrs[p] {
				look(e)
			}
		}
	}
	if old.cover != now.cover {
		d.prefixes(old.cover.prefixes, now.cover.prefixes)
		for _, pair := range [2][2]*cover{{old.cover, now.cover}, {now.cover, old.cover}} {
			for _, cell := range pair[0].cells {
				if !pair[1].holds(cell) {
					l.ownedIn(cell, look)
				}
			}
		}
	}
	for _, e := range moot {
		look(e)
	}
	d.finish()
	if shared {
		b.addressDeltas[string(b.key)] = d
	}
	return d
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

// finish puts the lists into order. An entry that takes the place of one of the same prefix is no removal.
func (d *addressDelta) finish() {
	x := d.delta
	byPrefix := func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) }
	byPort := func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) }
	slices.SortFunc(x.Upsert, byPrefix)
	slices.SortFunc(x.Remove, byPrefix)
	slices.SortFunc(x.UpsertPorts, byPort)
	slices.SortFunc(x.RemovePorts, byPort)
	x.Remove = slices.DeleteFunc(x.Remove, func(a hostpolicy.Address) bool {
		_, found := slices.BinarySearchFunc(x.Upsert, a, byPrefix)
		return found
	})
}
