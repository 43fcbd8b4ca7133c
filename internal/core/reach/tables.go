package reach

import (
	"encoding/binary"

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
	funcs := map[*hostpolicy.Cell]FuncID{}
	byKey := [2]map[string]rowID{{}, {}}
	for _, set := range w.Sets() {
		var ids [2]rowID
		for _, d := range model.Directions {
			ids[d] = u.row(world, d, set.Table(d), byKey[d], funcs)
		}
		t.rows[set.ID] = ids
	}
	for _, d := range model.Directions {
		t.cols[d] = u.columnsOf(world, d)
	}
	return t
}

// row interns a table. Functions are recognised by their first cell: tables of one world share them.
func (u *Universe) row(world int, d model.Direction, t *hostpolicy.Table, byKey map[string]rowID, funcs map[*hostpolicy.Cell]FuncID) rowID {
	of := make([]FuncID, len(t.Funcs))
	for i, f := range t.Funcs {
		id, ok := funcs[&f[0]]
		if !ok {
			id = u.functions.of(f)
			funcs[&f[0]] = id
		}
		of[i] = id
	}
	r := row{rest: of[0]}
	key := binary.LittleEndian.AppendUint32(nil, uint32(r.rest))
	for _, p := range t.Peers {
		if fn := of[p.Func]; fn != r.rest {
			r.entries = append(r.entries, rowEntry{peer: p.Peer, fn: fn})
			key = binary.LittleEndian.AppendUint64(key, uint64(p.Peer))
			key = binary.LittleEndian.AppendUint32(key, uint32(fn))
		}
	}
	if id, ok := byKey[string(key)]; ok {
		return id
	}
	id := rowID(len(u.rows[d][world]))
	byKey[string(key)] = id
	u.rows[d][world] = append(u.rows[d][world], r)
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
