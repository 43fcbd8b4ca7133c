package compile

import (
	"encoding/binary"
	"net/netip"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// cover is what hosts are told of addresses that no workload owns, by the netsets that their tables tell apart. It does
// not change; hosts of which the tables tell the same netsets apart share one.
type cover struct {
	prefixes []hostpolicy.Address
	domains  []hostpolicy.Domain
	sum      hostpolicy.Bag // of prefixes
	// cells are those in which an owned address must be listed, lest it be taken for another: numbers of liveCells.
	cells []int32
	in    bitset // of cells
}

// holds reports whether owned addresses of the cell must be listed.
func (c *cover) holds(cell int32) bool {
	return int(cell)/64 < len(c.in) && c.in.has(cell)
}

// nowhere is the number of the liveCell of all addresses that no network holds.
const nowhere = 0

// liveCell is a prefix that is, or was, a cell of the partition.
type liveCell struct {
	prefix netip.Prefix // the zero value of nowhere
	sums   addressSums  // of the owned addresses in it
	places []*place
}

// cell returns the number of the cell that the address is in.
func (l *Live) cell(a netip.Addr) int32 {
	if c := l.nets.cellOf(a); c >= 0 {
		return l.cellNumber(l.nets.cells[c].prefix)
	}
	return nowhere
}

func (l *Live) cellNumber(p netip.Prefix) int32 {
	if n, ok := l.cellByPrefix[p]; ok {
		return n
	}
	n := int32(len(l.cells))
	l.cells = append(l.cells, liveCell{prefix: p})
	l.cellByPrefix[p] = n
	return n
}

// cover returns what there is to tell hosts with these tables of addresses that no workload owns.
func (l *Live) cover(contents []*content) *cover {
	var told []int32
	for _, c := range contents {
		for _, n := range c.unowned {
			told = insert(told, n)
		}
	}
	l.buf = l.buf[:0]
	for _, n := range told {
		l.buf = binary.LittleEndian.AppendUint32(l.buf, uint32(n))
	}
	if c, ok := l.covers[string(l.buf)]; ok {
		return c
	}
	key := string(l.buf)
	c := l.newCover(told)
	l.covers[key] = c
	return c
}

// newCover makes the cover of the netsets told, which are sorted. See World.prefixes.
func (l *Live) newCover(told []int32) *cover {
	s := &cover{}
	if len(told) == 0 {
		return s
	}
	everywhere := false // see World.domainsOf
	if len(l.nets.classes) > 0 {
		var bases []int32
		s.domains, bases = l.nets.domainsOf(func(netset int32) bool { return has(told, l.slotOf[netset]) }, func(netset int32) model.IdentityID {
			if u := l.netsets[l.slotOf[netset]].unowned; u >= 0 {
				return l.ids.ids[u]
			}
			return 0
		})
		for _, base := range bases {
			everywhere = everywhere || base == 0
			if at := l.slotOf[base]; at > 0 {
				told = insert(told, at)
			}
		}
	}
	for len(l.cellAs) < len(l.nets.cells) {
		l.cellAs = append(l.cellAs, None)
	}
	for i := range l.nets.cells {
		c := &l.nets.cells[i]
		inherited := None
		if c.parent >= 0 {
			inherited = l.cellAs[c.parent]
		}
		at := l.slotOf[c.netset]
		if c.prefix.IsSingleIP() {
			if _, owned := l.owned.Get(c.prefix); owned {
				l.cellAs[i] = inherited
				if inherited >= 0 || everywhere {
					s.cells = append(s.cells, l.cellNumber(c.prefix))
				}
				continue
			}
		}
		l.cellAs[i] = None
		if at > 0 && has(told, at) {
			l.cellAs[i] = at
		}
		if l.cellAs[i] >= 0 || everywhere {
			s.cells = append(s.cells, l.cellNumber(c.prefix))
		}
		if l.cellAs[i] != inherited {
			a := hostpolicy.Address{Prefix: c.prefix}
			if u := l.netsets[at].unowned; u >= 0 {
				a.Identity = l.ids.ids[u]
			}
			s.prefixes = append(s.prefixes, a)
			s.sum.Add(a.Digest())
		}
	}
	if everywhere {
		s.cells = append(s.cells, nowhere)
	}
	s.in = newBitset(len(l.cells))
	for _, c := range s.cells {
		s.in.add(c)
	}
	return s
}
