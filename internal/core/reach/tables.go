package reach

import (
	"math/bits"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// rowID numbers the distinct tables of one world and direction; colID the distinct ways in which the tables of one world
// and direction speak about a peer. Column 0 is that of peers no table singles out.
type (
	rowID int32
	colID int32
)

// row is a table without the rules: a default, and the columns of peers that are judged otherwise.
type row struct {
	rest    FuncID
	entries []rowEntry
}

type rowEntry struct {
	peer int32 // index of the identity
	col  colID // known once all rows are
	fn   FuncID
}

// column says which rows judge its peers otherwise than their default.
type column []colEntry

type colEntry struct {
	row rowID
	fn  FuncID
}

// tables are the interned policy sets of one world.
type tables struct {
	rows map[hostpolicy.PolicySetID][2]rowID
	cols [2]map[model.IdentityID]colID
}

func (t *tables) column(d model.Direction, id model.IdentityID) colID { return t.cols[d][id] }

func (u *Universe) tablesOf(world int, w *compile.World) *tables {
	t := &tables{rows: map[hostpolicy.PolicySetID][2]rowID{}}
	r := &rowReader{u: u, w: w, world: world, byHash: [2]map[uint64][]rowID{{}, {}}, byTable: [2]map[int32]rowID{{}, {}}}
	for i := range u.Actors {
		v := &u.Actors[i].views[world]
		if !v.managed() {
			continue
		}
		id := w.PolicySetID(v.at)
		if _, done := t.rows[id]; done {
			continue
		}
		var ids [2]rowID
		for _, d := range model.Directions {
			ids[d] = r.row(v.at, d)
		}
		t.rows[id] = ids
	}
	for _, d := range model.Directions {
		t.cols[d] = u.columnsOf(world, w, d)
	}
	return t
}

// rowReader interns the tables of one world.
type rowReader struct {
	u       *Universe
	w       *compile.World
	world   int
	funcs   [2][]FuncID // by direction and the world's number; unread if it was not asked for yet
	byHash  [2]map[uint64][]rowID
	byTable [2]map[int32]rowID
	entries []rowEntry // of the rows read last; their room is used up from one row to the next
}

const unread FuncID = -1

func (r *rowReader) function(n int32, d model.Direction) FuncID {
	known := &r.funcs[d]
	for int(n) >= len(*known) {
		*known = append(*known, unread)
	}
	if (*known)[n] == unread {
		(*known)[n] = r.u.functions.of(r.w.Function(n), d)
	}
	return (*known)[n]
}

func (r *rowReader) row(at *compile.Point, d model.Direction) rowID {
	table := r.w.TableOf(at, d)
	id, ok := r.byTable[d][table]
	if !ok {
		id = r.intern(table, d)
		r.byTable[d][table] = id
	}
	return id
}

func (r *rowReader) intern(table int32, d model.Direction) rowID {
	if cap(r.entries)-len(r.entries) < r.w.Identities() { // what a table may have at most
		r.entries = make([]rowEntry, 0, max(r.w.Identities(), entriesTogether))
	}
	begin := len(r.entries)
	rest := r.function(r.w.WalkTable(table, func(peer, fn int32) {
		r.entries = append(r.entries, rowEntry{peer: peer, fn: r.function(fn, d)})
	}), d)
	h := mix(0, uint64(rest))
	kept := r.entries[begin:begin]
	for _, e := range r.entries[begin:] {
		if e.fn != rest {
			kept = append(kept, e)
			h = mix(h, uint64(e.peer)<<32|uint64(uint32(e.fn)))
		}
	}
	r.entries = r.entries[:begin]
	rows := &r.u.rows[d][r.world]
	for _, id := range r.byHash[d][h] {
		if known := &(*rows)[id]; known.rest == rest && slices.Equal(known.entries, kept) {
			return id
		}
	}
	id := rowID(len(*rows))
	r.byHash[d][h] = append(r.byHash[d][h], id)
	r.entries = r.entries[:begin+len(kept)]
	*rows = append(*rows, row{rest: rest, entries: slices.Clip(kept)})
	return id
}

// entriesTogether is how many entries of rows are made at a time.
const entriesTogether = 1 << 18

// mix adds a number to a hash.
func mix(h, x uint64) uint64 {
	hi, lo := bits.Mul64(h^x^0x2545f4914f6cdd1d, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// columnsOf interns what the rows say of each peer, and notes it in the rows.
func (u *Universe) columnsOf(world int, w *compile.World, d model.Direction) map[model.IdentityID]colID {
	rows := u.rows[d][world]
	// spoken[begin[p]:begin[p+1]] is what the rows say of peer p.
	begin := make([]int32, w.Identities()+1)
	for r := range rows {
		for k := range rows[r].entries {
			begin[rows[r].entries[k].peer+1]++
		}
	}
	for p := range w.Identities() {
		begin[p+1] += begin[p]
	}
	spoken := make([]colEntry, begin[w.Identities()])
	end := slices.Clone(begin)
	for r := range rows {
		for _, e := range rows[r].entries {
			spoken[end[e.peer]] = colEntry{rowID(r), e.fn}
			end[e.peer]++
		}
	}
	columns := []column{nil}
	byHash := map[uint64][]colID{}
	of := make([]colID, w.Identities())
	out := make(map[model.IdentityID]colID, w.Identities())
	for p := range of {
		said := column(spoken[begin[p]:begin[p+1]])
		if len(said) == 0 {
			continue
		}
		var h uint64
		for _, e := range said {
			h = mix(h, uint64(e.row)<<32|uint64(uint32(e.fn)))
		}
		at := slices.IndexFunc(byHash[h], func(c colID) bool { return slices.Equal(columns[c], said) })
		if at >= 0 {
			of[p] = byHash[h][at]
		} else {
			of[p] = colID(len(columns))
			byHash[h] = append(byHash[h], of[p])
			columns = append(columns, slices.Clip(said))
		}
		out[w.IdentityID(int32(p))] = of[p]
	}
	u.columns[d][world] = columns
	for r := range rows {
		for k := range rows[r].entries {
			e := &rows[r].entries[k]
			e.col = of[e.peer]
		}
	}
	return out
}
