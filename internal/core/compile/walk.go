package compile

import (
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// WalkTable reads one table of what judges a workload at a point, without making the form that hosts get: visit is
// called, in the order of their identities, for the peers that the table tells from all others. It returns the function
// of those others. Functions are numbers for Function; a table that two points share has the same numbers in both.
func (w *World) WalkTable(at *Point, d model.Direction, visit func(peer model.IdentityID, function int32)) (others int32) {
	t := &w.tables[w.sets[at.set].tables[d]]
	for i := range t.rows {
		visit(w.ids.ids[t.rows[i].peer], t.rows[i].fn)
	}
	return t.def
}

// Function returns the function of that number.
func (w *World) Function(n int32) hostpolicy.Func { return w.functions.funcs[n] }
