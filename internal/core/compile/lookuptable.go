package compile

// What judging a flow costs in a large world is how often the processor waits for memory. So the evaluator does not search
// the rows of tables: most rows of a large table come from rules that many subjects have in common, and other tables have
// them too. lookup keeps a few of those whole, and of each table what it has beside one of them.

// lookup is the form of all tables that the evaluator reads.
type lookup struct {
	tables     []lookupTable // parallel to World.tables
	slots      []row         // hash tables by peer, one after the other; noPeer where there is nothing
	common     []int32       // functions by peer, for one common table after the other
	identities int
}

// lookupTable is one table: what is in its slots comes before what is in its common table, and the default comes last.
type lookupTable struct {
	slots  uint32 // where they begin
	shift  uint8  // 32 less the logarithm of how many they are
	common int32  // where its common table begins; None if it has none
	def    int32
}

const noPeer = ^uint32(0)

// slotOf spreads peers over the slots (Knuth: multiplicative hashing).
func slotOf(peer uint32, shift uint8) uint32 { return peer * 0x9e3779b1 >> shift }

// find returns the function that judges the peer.
func (l *lookup) find(table, peer int32) int32 {
	t := &l.tables[table]
	if peer < 0 {
		return t.def
	}
	mask := uint32(1)<<(32-t.shift) - 1
	for at := slotOf(uint32(peer), t.shift); ; at = (at + 1) & mask {
		switch s := &l.slots[t.slots+at]; s.peer {
		case uint32(peer):
			return s.fn
		case noPeer:
			if t.common >= 0 {
				return l.common[t.common+peer]
			}
			return t.def
		}
	}
}

// kinWorth is how many rows a family of tables must have, in all, for each identity that its common table lists.
const kinWorth = 2

// newLookup makes the lookup of tables over so many identities. Tables of one family, which is a number or None, may have
// most of their rows in common; nothing depends on it but time and space.
func newLookup(tables []table, families []int32, identities int) *lookup {
	l := &lookup{tables: make([]lookupTable, len(tables)), identities: identities}
	l.slots = append(l.slots, row{peer: noPeer}) // for tables without rows
	commons := make(map[int32]*table)            // by family: the table with the fewest rows
	rows := map[int32]int{}
	for i := range tables {
		if f := families[i]; f != None {
			if c := commons[f]; c == nil || len(tables[i].rows) < len(c.rows) {
				commons[f] = &tables[i]
			}
			rows[f] += len(tables[i].rows)
		}
	}
	at := map[int32]int32{} // family to its common table
	var beside []row
	for i := range tables {
		t := &tables[i]
		out := lookupTable{common: None, def: t.def, shift: 32}
		own := t.rows
		if f := families[i]; f != None && rows[f] >= kinWorth*identities && commons[f].def == t.def {
			var ok bool
			if beside, ok = differ(beside[:0], t.rows, commons[f].rows, t.def, len(t.rows)/2); ok {
				own = beside
				if out.common, ok = at[f]; !ok {
					out.common = int32(len(l.common))
					at[f] = out.common
					l.addCommon(commons[f])
				}
			}
		}
		if len(own) > 0 {
			out.slots, out.shift = l.addSlots(own)
		}
		l.tables[i] = out
	}
	return l
}

// addCommon lists the functions of a table for every peer.
func (l *lookup) addCommon(t *table) {
	at := len(l.common)
	l.common = append(l.common, make([]int32, l.identities)...)
	all := l.common[at:]
	for i := range all {
		all[i] = t.def
	}
	for _, r := range t.rows {
		all[r.peer] = r.fn
	}
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
	slots, mask := l.slots[at:], uint32(n-1)
	for _, r := range rows {
		k := slotOf(r.peer, shift)
		for slots[k].peer != noPeer {
			k = (k + 1) & mask
		}
		slots[k] = r
	}
	return at, shift
}
