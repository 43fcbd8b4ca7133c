package compile

import (
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// table is the compact form of a hostpolicy.Table: the evaluator reads lookup.
type table struct {
	rows []row // sorted by peer
	def  int32 // function of every peer that has no row
}

// row says which function judges a peer.
type row struct {
	peer uint32 // index of the identity
	fn   int32
}

// policySet is the compact form of a hostpolicy.PolicySet.
type policySet struct {
	id     hostpolicy.PolicySetID
	tables [2]int32 // by direction
}

// numbering numbers the functions of one table in the order in which hosts get them: the default first, then as the
// rows first name them.
type numbering struct {
	index []int32 // function to its number, unknown if it has none
	named []int32 // number to function
}

// reset begins another table.
func (n *numbering) reset(functions int) {
	for _, fn := range n.named {
		n.index[fn] = unknown
	}
	n.named = n.named[:0]
	for len(n.index) < functions {
		n.index = append(n.index, unknown)
	}
}

func (n *numbering) number(t *table) {
	n.add(t.def)
	for i := range t.rows {
		n.add(t.rows[i].fn)
	}
}

// add returns the number of a function.
func (n *numbering) add(fn int32) uint32 {
	if n.index[fn] == unknown {
		n.index[fn] = int32(len(n.named))
		n.named = append(n.named, fn)
	}
	return uint32(n.index[fn])
}

func (n *numbering) funcs(f *functions) []hostpolicy.Func {
	out := make([]hostpolicy.Func, len(n.named))
	for i, fn := range n.named {
		out[i] = f.funcs[fn]
	}
	return out
}

// Sets returns how many distinct policy sets are in use, isolation sets included.
func (w *World) Sets() int { return len(w.sets) }

// Rows returns how many rows the tables of all distinct policy sets have.
func (w *World) Rows() int {
	n := 0
	for i := range w.tables {
		n += len(w.tables[i].rows)
	}
	return n
}

// PolicySet returns what judges a workload at one of its points. An unmanaged workload's set allows everything.
func (w *World) PolicySet(at *Point) *hostpolicy.PolicySet {
	s := w.policySet(at.set)
	return &s
}

// PolicySetID returns the ID of PolicySet without making the set: points of one ID are judged alike.
func (w *World) PolicySetID(at *Point) hostpolicy.PolicySetID { return w.sets[at.set].id }

func (w *World) policySet(at int32) hostpolicy.PolicySet {
	s := &w.sets[at]
	return hostpolicy.PolicySet{ID: s.id, Ingress: w.table(s.tables[model.Ingress]), Egress: w.table(s.tables[model.Egress])}
}

// table makes the form of a table that hosts get.
func (w *World) table(at int32) hostpolicy.Table {
	t := &w.tables[at]
	var n numbering
	n.reset(len(w.functions.funcs))
	n.number(t)
	out := hostpolicy.Table{Funcs: n.funcs(w.functions)}
	if len(t.rows) > 0 {
		out.Peers = make([]hostpolicy.PeerFunc, len(t.rows))
	}
	for i, r := range t.rows {
		out.Peers[i] = hostpolicy.PeerFunc{Peer: w.ids.ids[r.peer], Func: uint32(n.index[r.fn])}
	}
	return out
}
