package compile

import (
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// TableOf returns the number of one table of what judges a workload at a point. Points of one number are judged alike.
func (w *World) TableOf(at *Point, d model.Direction) int32 { return w.sets[at.set].tables[d] }

// WalkTable reads the table of a number without making the form that hosts get: visit is called, in the order of their
// identities, for the peers that the table tells from all others, by index. It returns the function of those others.
// Functions are numbers for Function; tables of one world have the same numbers.
func (w *World) WalkTable(table int32, visit func(peer, function int32)) (others int32) {
	t := &w.tables[table]
	for i := range t.rows {
		visit(int32(t.rows[i].peer), t.rows[i].fn)
	}
	return t.def
}

// Function returns the function of that number.
func (w *World) Function(n int32) hostpolicy.Func { return w.functions.funcs[n] }
