package compile

// What judging a flow costs in a large world is how often the processor waits for memory. So the evaluator does not search
// the rows of tables: most rows of a large table come from rules that many subjects have in common, and other tables have
// them too. lookup keeps a few of those whole, and of each table what it has beside one of them.

// lookup is the form of all tables that the evaluator reads.
type lookup struct {
	tables []lookupTable // parallel to World.tables, until arrange
	sets   []lookupTable // of each policy set the table of ingress and that of egress, after arrange
	slots  []row         // hash tables by peer, one after the other; noPeer where there is nothing
	// filter is parallel to slots: of the peers whose search begins there, a bit for what peerBit tells of each. Most peers
	// have no slot, and eight times as many bytes of filter as of slots stay in the processor's cache.
	filter     []uint8
	common     []int32 // of each common table the default, and then the functions by peer
	identities int
}

// lookupTable is one table: what is in its slots comes before what is in its common table. The default is the first entry of
// the common table, and all that there is of one that lists no peers.
type lookupTable struct {
	slots  uint32 // where they begin
	common uint32 // where the common table begins
	peers  uint32 // all bits if the common table lists peers, else none
	shift  uint8  // 32 less the logarithm of how many slots there are
}

const noPeer = ^uint32(0)

// slotOf spreads peers over the slots (Knuth: multiplicative hashing).
func slotOf(peer uint32, shift uint8) uint32 { return peer * 0x9e3779b1 >> shift }

func peerBit(peer uint32) uint8 { return 1 << (peer & 7) }

// filterBit returns the bit of a peer to look for; none of a peer that no table has a row for.
func filterBit(peer int32) uint8 {
	if peer < 0 {
		return 0
	}
	return peerBit(uint32(peer))
}

// look returns the function of the common table, and not 0 if there may be one before it.
func (l *lookup) look(t *lookupTable, peer int32, bit uint8) (fn int32, own uint8) {
	return l.common[t.common+uint32(peer+1)&t.peers], l.filter[t.slots+slotOf(uint32(peer), t.shift)] & bit
}

// warm reads the slot where the search of a peer begins.
func (l *lookup) warm(t *lookupTable, peer int32) int32 {
	return l.slots[t.slots+slotOf(uint32(peer), t.shift)].fn
}

// own returns the function of the peer's slot; common if it has none.
func (l *lookup) own(t *lookupTable, peer, common int32) int32 {
	mask := uint32(1)<<(32-t.shift) - 1
	for at := slotOf(uint32(peer), t.shift); ; at = (at + 1) & mask {
		switch s := &l.slots[t.slots+at]; s.peer {
		case uint32(peer):
			return s.fn
		case noPeer:
			return common
		}
	}
}

// find returns the function that judges the peer.
func (l *lookup) find(t *lookupTable, peer int32) int32 {
	fn, own := l.look(t, peer, filterBit(peer))
	if own != 0 {
		fn = l.own(t, peer, fn)
	}
	return fn
}

// arrange puts the tables of each policy set side by side, and starts in the place of the functions' numbers.
func (l *lookup) arrange(sets []policySet, starts []int32) {
	l.sets = make([]lookupTable, 0, 2*len(sets))
	for i := range sets {
		l.sets = append(l.sets, l.tables[sets[i].tables[0]], l.tables[sets[i].tables[1]])
	}
	l.tables = nil
	for i := range l.slots {
		if s := &l.slots[i]; s.peer != noPeer {
			s.fn = starts[s.fn]
		}
	}
	for i, fn := range l.common {
		l.common[i] = starts[fn]
	}
}

// kinWorth is how many rows a family of tables must have, in all, for each identity that its common table lists.
const kinWorth = 2

// newLookup makes the lookup of tables over so many identities. Tables of one family, which is a number or None, may have
// most of their rows in common; nothing depends on it but time and space.
func newLookup(tables []table, families []int32, identities int) *lookup {
	l := &lookup{tables: make([]lookupTable, len(tables)), identities: identities}
	l.slots, l.filter = append(l.slots, row{peer: noPeer}), append(l.filter, 0) // for tables without rows
	commons := make(map[int32]*table)                                           // by family: the table with the fewest rows
	rows := map[int32]int{}
	for i := range tables {
		if f := families[i]; f != None {
			if c := commons[f]; c == nil || len(tables[i].rows) < len(c.rows) {
				commons[f] = &tables[i]
			}
			rows[f] += len(tables[i].rows)
		}
	}
	at := map[int32]uint32{}       // family to its common table
	defaults := map[int32]uint32{} // default to a common table that lists no peers
	var beside []row
	for i := range tables {
		t := &tables[i]
		out := lookupTable{shift: 32}
		own, kin := t.rows, false
		if f := families[i]; f != None && rows[f] >= kinWorth*identities && commons[f].def == t.def {
			if beside, kin = differ(beside[:0], t.rows, commons[f].rows, t.def, len(t.rows)/2); kin {
				own, out.peers = beside, ^uint32(0)
				var ok bool
				if out.common, ok = at[f]; !ok {
					out.common = l.addCommon(commons[f])
					at[f] = out.common
				}
			}
		}
		if !kin {
			var ok bool
			if out.common, ok = defaults[t.def]; !ok {
				out.common = uint32(len(l.common))
				l.common = append(l.common, t.def)
				defaults[t.def] = out.common
			}
		}
		if len(own) > 0 {
			out.slots, out.shift = l.addSlots(own)
		}
		l.tables[i] = out
	}
	return l
}

// addCommon lists the functions of a table for every peer, after its default.
func (l *lookup) addCommon(t *table) uint32 {
	at := len(l.common)
	l.common = append(l.common, make([]int32, 1+l.identities)...)
	all := l.common[at:]
	for i := range all {
		all[i] = t.def
	}
	for _, r := range t.rows {
		all[1+r.peer] = r.fn
	}
	return uint32(at)
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

// addSlots makes the hash table of some rows.
func (l *lookup) addSlots(rows []row) (at uint32, shift uint8) {
	n := 2
	for shift = 31; n*3 < len(rows)*4; shift-- {
		n *= 2
	}
	at = uint32(len(l.slots))
	for range n {
		l.slots = append(l.slots, row{peer: noPeer})
	}
	l.filter = append(l.filter, make([]uint8, n)...)
	slots, filter, mask := l.slots[at:], l.filter[at:], uint32(n-1)
	for _, r := range rows {
		k := slotOf(r.peer, shift)
		filter[k] |= peerBit(r.peer)
		for slots[k].peer != noPeer {
			k = (k + 1) & mask
		}
		slots[k] = r
	}
	return at, shift
}
