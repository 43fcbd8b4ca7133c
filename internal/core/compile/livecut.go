package compile

import (
	"net/netip"
	"slices"
)

// cut puts another partition in place of the present one: addresses in the parts that changed get other identities.
func (b *batch) cut(nets *partition) {
	l := b.Live
	before, slotsBefore := l.nets, l.slotOf
	b.recut = true
	l.nets, l.slotOf = nets, make([]int32, len(nets.netsets))
	for i := range nets.netsets {
		l.slotOf[i] = l.netset(&nets.netsets[i])
	}
	var gone []int32
	for at := range l.netsets {
		if u := l.netsets[at].unowned; u >= 0 {
			gone = append(gone, int32(at))
		}
	}
	for i := range nets.netsets[1:] {
		if s := &nets.netsets[1+i]; s.cells || s.domain {
			at := l.slotOf[1+i]
			if l.netsets[at].unowned < 0 {
				l.netsets[at].unowned = b.identity(None, at)
			}
			gone = slices.DeleteFunc(gone, func(g int32) bool { return g == at })
		}
	}
	for _, at := range gone {
		b.release(l.netsets[at].unowned)
		b.lostUnowned = append(b.lostUnowned, at)
	}
	b.rename(before, slotsBefore)
	b.rename(nets, l.slotOf)

	type cut struct {
		netset int32
		parent netip.Prefix
	}
	of := func(p *partition, slots []int32) map[netip.Prefix]cut {
		m := make(map[netip.Prefix]cut, len(p.cells))
		for i := range p.cells {
			c := cut{netset: slots[p.cells[i].netset]}
			if p.cells[i].parent >= 0 {
				c.parent = p.cells[p.cells[i].parent].prefix
			}
			m[p.cells[i].prefix] = c
		}
		return m
	}
	old, now := of(before, slotsBefore), of(nets, l.slotOf)
	var changed []netip.Prefix
	for p, c := range old {
		if n, ok := now[p]; !ok || n != c {
			changed = append(changed, p)
		}
	}
	for p := range now {
		if _, ok := old[p]; !ok {
			changed = append(changed, p)
		}
	}
	slices.SortFunc(changed, netip.Prefix.Compare)
	for _, p := range changed {
		b.uncover(before, slotsBefore, p)
		b.uncover(nets, l.slotOf, p)
		for _, e := range l.owned.Subnets(p) {
			b.move(e)
		}
	}
}

// rename notes that who tells an address from others that a name may change must look at names again.
func (b *batch) rename(p *partition, slots []int32) {
	for _, c := range p.classes {
		for base, with := range c.netset {
			for _, n := range [2]int32{base, with} {
				if u := b.netsets[slots[n]].unowned; u >= 0 {
					b.recover[u] = true
				}
			}
		}
	}
}

// uncover notes that who tells an address of the prefix, or of one around it, from others must look at prefixes again.
func (b *batch) uncover(p *partition, slots []int32, prefix netip.Prefix) {
	b.around(p, slots, prefix, func(u int32) { b.recover[u] = true })
}

// around calls visit for the identities of unowned addresses that make who tells them apart list the cells around a
// prefix: those of the cells, and those that names make of them. What names make of addresses in no network is always
// among them: it makes them list every owned address.
func (l *Live) around(p *partition, slots []int32, prefix netip.Prefix, visit func(unowned int32)) {
	for _, c := range p.classes {
		if u := l.netsets[slots[c.netset[0]]].unowned; u >= 0 {
			visit(u)
		}
	}
	for _, cell := range p.lookup.Supernets(prefix) {
		n := p.cells[cell].netset
		if u := l.netsets[slots[n]].unowned; u >= 0 {
			visit(u)
		}
		for _, c := range p.classes {
			if u := l.netsets[slots[c.netset[n]]].unowned; u >= 0 {
				visit(u)
			}
		}
	}
}

// move gives the owners of an address the identities that its netset asks for.
func (b *batch) move(e *liveAddr) {
	b.touch(e)
	at := b.netsetAt(e.addr)
	for _, p := range e.owners {
		if p.netset == at {
			continue
		}
		old := p.exact
		p.netset, p.exact = at, b.identity(p.of.labels, at)
		b.release(old)
		b.concern(p.of)
	}
}
