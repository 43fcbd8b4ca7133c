package compile

import (
	"math"
	"math/bits"
	"slices"
)

// peerGroup is some peers of a table that one function judges, the same ones or nearly so as in other tables, though each has a
// function of its own: those that one rule admits are such, or those of a network.
type peerGroup struct {
	peers uint16 // number in listed
	last  bool   // of the table
	fn    int32
}

// mostGroups is how many groups of one table are told apart.
const mostGroups = 2

// grouping finds the groups of tables.
type grouping struct {
	l      *lookup
	least  int                           // peers that make a group
	known  []uint16                      // numbers of the peers of groups
	unions map[[mostGroups]uint16]uint16 // of the peers of groups, in their order, to who is in one of them
	count  []int32                       // by function
	peers  bitset
	others []row
}

func newGrouping(l *lookup) *grouping {
	return &grouping{l: l, least: max(64, l.identities/64), unions: map[[mostGroups]uint16]uint16{}, peers: make(bitset, l.words)}
}

// part gives a table its groups, and returns the rows that it has beside them. With ok false it has none that are worth it.
func (g *grouping) part(dst []row, t *table, out *lookupTable) (beside []row, ok bool) {
	if len(t.rows) < g.least {
		return dst, false
	}
	begin := len(g.l.groups)
	var key [mostGroups]uint16
	for i, fn := range g.commonest(t.rows) {
		if fn == unknown {
			break
		}
		peers, ok := g.peersOf(t.rows, fn)
		if !ok {
			break
		}
		key[i] = peers
		g.l.groups = append(g.l.groups, peerGroup{peers: peers, fn: fn})
	}
	groups := g.l.groups[begin:]
	if len(groups) == 0 {
		return dst, false
	}
	groups[len(groups)-1].last = true
	beside, ok = differ(dst, t.rows, g.rowsOf(groups), t.def, len(t.rows)/2)
	if ok {
		out.common, ok = g.union(key, groups)
	}
	if !ok {
		g.l.groups = g.l.groups[:begin]
		return dst, false
	}
	out.groups = uint32(begin)
	return beside, true
}

// commonest returns the functions of most rows, the first of them first; unknown where there are fewer that make a group.
func (g *grouping) commonest(rows []row) (fns [mostGroups]int32) {
	for _, r := range rows {
		for int(r.fn) >= len(g.count) {
			g.count = append(g.count, 0)
		}
		g.count[r.fn]++
	}
	for i := range fns {
		fns[i] = unknown
		for _, r := range rows {
			if n := g.count[r.fn]; int(n) >= g.least && (fns[i] == unknown || n > g.count[fns[i]]) {
				fns[i] = r.fn
			}
		}
		if fns[i] != unknown {
			g.count[fns[i]] = 0
		}
	}
	for _, r := range rows {
		g.count[r.fn] = 0
	}
	return fns
}

// peersOf returns the number of the peers of a group: known ones if few differ.
func (g *grouping) peersOf(rows []row, fn int32) (number uint16, ok bool) {
	g.peers.clear()
	n := 0
	for _, r := range rows {
		if r.fn == fn {
			g.peers.add(int32(r.peer))
			n++
		}
	}
	for _, number := range g.known {
		if g.alike(g.l.listedOf(number), n/8) {
			return number, true
		}
	}
	if number, ok = g.l.addListed(g.peers); ok {
		g.known = append(g.known, number)
	}
	return number, ok
}

// alike reports whether no more than some peers are in only one of the two.
func (g *grouping) alike(other bitset, most int) bool {
	n := 0
	for i, w := range g.peers {
		if n += bits.OnesCount64(w ^ other[i]); n > most {
			return false
		}
	}
	return true
}

// rowsOf lists what groups say. Of a peer in several the first counts.
func (g *grouping) rowsOf(groups []peerGroup) []row {
	g.peers.clear()
	for _, x := range groups {
		for i, w := range g.l.listedOf(x.peers) {
			g.peers[i] |= w
		}
	}
	g.others = g.others[:0]
	for p := range g.peers.all() {
		g.others = append(g.others, row{uint32(p), groupOf(g.l, groups, uint32(p))})
	}
	return g.others
}

// union returns the number of the peers that are in one of the groups.
func (g *grouping) union(key [mostGroups]uint16, groups []peerGroup) (number uint16, ok bool) {
	if len(groups) == 1 {
		return groups[0].peers, true
	}
	slices.Sort(key[:])
	if number, ok = g.unions[key]; !ok {
		if number, ok = g.l.addListed(g.peers); ok {
			g.unions[key] = number
		}
	}
	return number, ok
}

// groupOf returns the function of the first of the groups that has the peer. One of them has it.
func groupOf(l *lookup, groups []peerGroup, peer uint32) int32 {
	for i := range groups {
		if x := &groups[i]; x.last || l.listedOf(x.peers).has(int32(peer)) {
			return x.fn
		}
	}
	return unknown
}

// listedOf returns which peers are listed by that number.
func (l *lookup) listedOf(number uint16) bitset {
	return l.listed[uint32(number)*l.words:][:l.words]
}

// addListed numbers some peers; ok is false if there are too many numbers.
func (l *lookup) addListed(peers bitset) (number uint16, ok bool) {
	n := len(l.whole)
	if n > math.MaxUint16 {
		return 0, false
	}
	l.listed = append(l.listed, peers...)
	l.whole = append(l.whole, inGroups)
	return uint16(n), true
}
