package compile

import "bulkhead/internal/core/model"

// What judging a flow costs in a large world is how often the processor waits for memory. So the evaluator does not search
// the rows of tables: most rows of a large table come from rules that many subjects have in common, and other tables have
// them too. lookup keeps a few of those whole, and of each table what it has beside one of them.

// lookup is the form of all tables that the evaluator reads. Most peers of most tables are judged by the default, and two words
// say so: one of the filter, one of listed. What else there is lies apart and is seldom read.
type lookup struct {
	tables  []lookupTable // parallel to World.tables, until there are classes
	classes []class       // of points
	slots   []row         // hash tables by peer, one after the other; noPeer where there is nothing
	// filter has a word for each line of slots: of the peers whose search begins there, the bits that filterBits tells of each.
	filter []uint64
	// common has, one common table after the other, the functions by peer; and listed, with a bit for each peer, which of
	// them are not the default. Where groups take the place of a common table listed tells who is in one of them. The first
	// words of listed are none's.
	common     []int32
	listed     bitset
	words      uint32      // of listed for each number
	whole      []int32     // by number: where in common the table begins; inGroups
	groups     []peerGroup // of all tables
	groupsOf   []uint32    // by class<<1 | direction: the first of its groups, if it has any
	identities int
}

const inGroups = int32(-1)

// lookupTable is one table: what is in its slots comes before what is in its common table or groups, and that before the
// default.
type lookupTable struct {
	slots  uint32 // where they begin, at the beginning of a line
	def    int32
	groups uint32 // the first of its groups, if it has any
	common uint16 // number in listed of the common table or of its groups, from one; zero if it has neither
	shift  uint8  // 32 less the logarithm of how many slots there are
}

const (
	noPeer      = ^uint32(0)
	lineOfSlots = 8 // what the filter has a word for, and the least that a table has
)

// slotOf spreads peers over the slots (Knuth: multiplicative hashing).
func slotOf(peer uint32, shift uint8) uint32 { return peer * 0x9e3779b1 >> (shift & 31) }

// filterBits returns the bits of a peer in its word of the filter: three, so that one in a hundred of those that have no slot
// seems to have one (Bloom 1970).
func filterBits(peer uint32) uint64 {
	h := peer * 0x85ebca6b
	return 1<<(h>>26) | 1<<(h>>20&63) | 1<<(h>>14&63)
}

// ask begins to look for a peer in the table of a class.
func (l *lookup) ask(q *Question, of uint32, d model.Direction, peer uint32) {
	c := &l.classes[of]
	q.missing = filterBits(peer)
	q.peer = peer
	q.home = c.slots[d&1] + slotOf(peer, c.shift[d&1])
	q.listed = uint32(c.common[d&1])*l.words + peer/64
	q.fn = c.def[d&1]
	q.at = of<<1 | uint32(d&1)
}

// peer returns the number of an identity that may be none.
func (l *lookup) peer(index int32) uint32 {
	if index < 0 {
		return uint32(l.identities)
	}
	return uint32(index)
}

func (l *lookup) look(q *Question) {
	q.missing &^= l.filter[q.home/lineOfSlots]
	q.listed = uint32(l.listed[q.listed]>>(q.peer%64)) & 1
}

func (l *lookup) touch(q *Question) int32 {
	if q.missing == 0 {
		return l.slots[q.home].fn
	}
	return l.inCommon(q)
}

// seek finds what there is before the default.
func (l *lookup) seek(q *Question) {
	if q.missing == 0 {
		if fn, ok := l.own(q); ok {
			q.fn = fn
			return
		}
	}
	if q.listed != 0 {
		q.fn = l.inCommon(q)
	}
}

// own returns the function of the peer's slot.
func (l *lookup) own(q *Question) (fn int32, ok bool) {
	c, d := &l.classes[q.at>>1], q.at&1
	begin, mask := c.slots[d], uint32(1)<<(32-c.shift[d])-1
	for at := q.home - begin; ; at = (at + 1) & mask {
		switch s := &l.slots[begin+at]; s.peer {
		case q.peer:
			return s.fn, true
		case noPeer:
			return 0, false
		}
	}
}

// inCommon returns the function of a peer that is listed.
func (l *lookup) inCommon(q *Question) int32 {
	common := l.classes[q.at>>1].common[q.at&1]
	if at := l.whole[common]; at != inGroups {
		return l.common[int(at)+int(q.peer)]
	}
	return groupOf(l, l.groups[l.groupsOf[q.at]:], q.peer)
}

// begin puts where functions begin in the place of their numbers.
func (l *lookup) begin(starts []int32) {
	for i := range l.slots {
		if s := &l.slots[i]; s.peer != noPeer {
			s.fn = starts[s.fn]
		}
	}
	for i := range l.tables {
		l.tables[i].def = starts[l.tables[i].def]
	}
	for i, fn := range l.common {
		l.common[i] = starts[fn]
	}
	for i := range l.groups {
		l.groups[i].fn = starts[l.groups[i].fn]
	}
}

// kinWorth is how many rows a family of tables must have, in all, for each identity that its common table lists.
const kinWorth = 2

// newLookup makes the lookup of tables over so many identities. Tables of one family, which is a number or None, may have
// most of their rows in common; nothing depends on it but time and space.
func newLookup(tables []table, families []int32, identities int) *lookup {
	l := &lookup{tables: make([]lookupTable, len(tables)), identities: identities, words: uint32(identities/64 + 1)}
	l.addSlots(nil) // for tables without rows
	none, _ := l.addListed(make(bitset, l.words))
	groups := newGrouping(l)
	commons := make(map[int32]*table) // by family: the table with the fewest rows
	rows := map[int32]int{}
	for i := range tables {
		if f := families[i]; f != None {
			if c := commons[f]; c == nil || len(tables[i].rows) < len(c.rows) {
				commons[f] = &tables[i]
			}
			rows[f] += len(tables[i].rows)
		}
	}
	at := map[int32]uint16{} // family to its common table
	var beside []row
	for i := range tables {
		t := &tables[i]
		out := lookupTable{def: t.def, shift: leastShift}
		own := t.rows
		if f := families[i]; f != None && rows[f] >= kinWorth*identities && commons[f].def == t.def {
			var kin bool
			if beside, kin = differ(beside[:0], t.rows, commons[f].rows, t.def, len(t.rows)/2); kin {
				var ok bool
				if out.common, ok = at[f]; !ok {
					out.common = l.addCommon(commons[f])
					at[f] = out.common
				}
				if out.common != none {
					own = beside
				}
			}
		}
		if out.common == none {
			var parted bool
			if beside, parted = groups.part(beside[:0], t, &out); parted {
				own = beside
			}
		}
		if len(own) > 0 {
			out.slots, out.shift = l.addSlots(own)
		}
		l.tables[i] = out
	}
	return l
}

// addCommon lists the functions of a table for every peer, and returns the number of the list; zero if there are too many.
func (l *lookup) addCommon(t *table) uint16 {
	listed := make(bitset, l.words)
	for _, r := range t.rows {
		listed.add(int32(r.peer))
	}
	number, ok := l.addListed(listed)
	if !ok {
		return 0
	}
	at := len(l.common)
	l.whole[number] = int32(at)
	l.common = append(l.common, make([]int32, l.identities)...)
	all := l.common[at:]
	for i := range all {
		all[i] = t.def
	}
	for _, r := range t.rows {
		all[r.peer] = r.fn
	}
	return number
}

// differ appends what rows say otherwise than others; ok is false if that is more than most.
func differ(dst, rows, others []row, def int32, most int) (out []row, ok bool) {
	for len(rows) > 0 || len(others) > 0 {
		switch {
		case len(others) == 0 || len(rows) > 0 && rows[0].peer < others[0].peer:
			dst, rows = append(dst, rows[0]), rows[1:]
		case len(rows) == 0 || others[0].peer < rows[0].peer:
			dst, others = append(dst, row{others[0].peer, def}), others[1:]
		default:
			if rows[0].fn != others[0].fn {
				dst = append(dst, rows[0])
			}
			rows, others = rows[1:], others[1:]
		}
		if len(dst) > most {
			return dst, false
		}
	}
	return dst, true
}

// leastShift is the shift of a table with one line of slots.
const leastShift = 32 - 3

// addSlots makes the hash table of some rows.
func (l *lookup) addSlots(rows []row) (at uint32, shift uint8) {
	n := lineOfSlots
	for shift = leastShift; n*3 < len(rows)*4; shift-- {
		n *= 2
	}
	at = uint32(len(l.slots))
	for range n {
		l.slots = append(l.slots, row{peer: noPeer})
	}
	l.filter = append(l.filter, make([]uint64, n/lineOfSlots)...)
	slots, filter, mask := l.slots[at:], l.filter[at/lineOfSlots:], uint32(n-1)
	for _, r := range rows {
		k := slotOf(r.peer, shift)
		filter[k/lineOfSlots] |= filterBits(r.peer)
		for slots[k].peer != noPeer {
			k = (k + 1) & mask
		}
		slots[k] = r
	}
	return at, shift
}
