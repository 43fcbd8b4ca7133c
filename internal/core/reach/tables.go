package reach

import (
	"encoding/binary"
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
	peer model.IdentityID
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
	r := &rowReader{u: u, w: w, world: world, byKey: [2]map[string]rowID{{}, {}}}
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
		t.cols[d] = u.columnsOf(world, d)
	}
	return t
}

// rowReader interns the tables of one world.
type rowReader struct {
	u       *Universe
	w       *compile.World
	world   int
	funcs   [2][]FuncID // by direction and the world's number; unread if it was not asked for yet
	byKey   [2]map[string]rowID
	entries []rowEntry
	key     []byte
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
	r.entries = r.entries[:0]
	rest := r.function(r.w.WalkTable(at, d, func(peer model.IdentityID, fn int32) {
		r.entries = append(r.entries, rowEntry{peer: peer, fn: r.function(fn, d)})
	}), d)
	r.key = binary.LittleEndian.AppendUint32(r.key[:0], uint32(rest))
	kept := r.entries[:0]
	for _, e := range r.entries {
		if e.fn != rest {
			kept = append(kept, e)
			r.key = binary.LittleEndian.AppendUint64(r.key, uint64(e.peer))
			r.key = binary.LittleEndian.AppendUint32(r.key, uint32(e.fn))
		}
	}
	if id, ok := r.byKey[d][string(r.key)]; ok {
		return id
	}
	rows := &r.u.rows[d][r.world]
	id := rowID(len(*rows))
	r.byKey[d][string(r.key)] = id
	*rows = append(*rows, row{rest: rest, entries: slices.Clone(kept)})
	return id
}

// columnsOf interns what the rows say of each peer, and notes it in the rows.
func (u *Universe) columnsOf(world int, d model.Direction) map[model.IdentityID]colID {
	rows := u.rows[d][world]
	spoken := map[model.IdentityID]column{}
	var order []model.IdentityID
	for r := range rows {
		for _, e := range rows[r].entries {
			if spoken[e.peer] == nil {
				order = append(order, e.peer)
			}
			spoken[e.peer] = append(spoken[e.peer], colEntry{rowID(r), e.fn})
		}
	}
	u.columns[d][world] = []column{nil}
	byKey := map[string]colID{}
	out := make(map[model.IdentityID]colID, len(order))
	var key []byte
	for _, id := range order {
		key = key[:0]
		for _, e := range spoken[id] {
			key = binary.LittleEndian.AppendUint32(key, uint32(e.row))
			key = binary.LittleEndian.AppendUint32(key, uint32(e.fn))
		}
		col, ok := byKey[string(key)]
		if !ok {
			col = colID(len(u.columns[d][world]))
			byKey[string(key)] = col
			u.columns[d][world] = append(u.columns[d][world], spoken[id])
		}
		out[id] = col
	}
	for r := range rows {
		for k := range rows[r].entries {
			rows[r].entries[k].col = out[rows[r].entries[k].peer]
		}
	}
	return out
}
