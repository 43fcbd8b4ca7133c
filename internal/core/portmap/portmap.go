// Package portmap says how a function of protocol and port is held by a target that looks up exact keys and prefixes, as
// the maps of eBPF do. It is pure, so that what a policy will cost a target is known before the target has it: the
// dataplane writes exactly these entries, and package budget counts them.
package portmap

import (
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Entry says that a block of ports of one protocol is judged as Cell says. Of the entries that hold a port the one with
// most Bits counts; where none does, the first cell of the function counts.
type Entry struct {
	Proto model.Proto
	Port  uint16 // the first of the block, which is aligned
	Bits  int    // how many bits of Port count: 0 is every port of the protocol, 16 a single one
	Cell  *hostpolicy.Cell
}

// IsRange reports whether the entry is for some ports of a protocol, more than one.
func (e *Entry) IsRange() bool { return e.Bits > 0 && e.Bits < 16 }

// Lower returns the fewest entries that say what the function says, and of those that are as few the ones with fewest
// blocks of some ports, which cost most to look up. They are grouped by protocol in the order of the function, the wider
// before those in it. The same function yields the same entries. The function must be one that hostpolicy.Policy.Check
// accepts.
//
// It is the problem of the optimal routing table (Draves, King, Venkatachary and Zill, "Constructing Optimal IP Routing
// Tables", INFOCOM 1999), over the bits of the port: a wide entry with exceptions may be cheaper than many narrow ones.
func Lower(f hostpolicy.Func) []Entry {
	l := lowering{cells: f, outcome: outcomes(f)}
	for i := 1; i < len(f); {
		j := i + 1
		for j < len(f) && f[j].Ports.Proto == f[i].Ports.Proto {
			j++
		}
		l.emit(l.tree(i, j, 0, 0), 0, f[i].Ports.Proto, 0, 0)
		i = j
	}
	return l.out
}

type lowering struct {
	cells   hostpolicy.Func
	outcome []int // of each cell: the first cell that says the same
	out     []Entry
}

// node is a block of ports. It has no halves where one outcome holds for all of it.
type node struct {
	options     []option // sorted by outcome; those that cost less than others
	others      int      // what the block costs where any other outcome holds around it
	replace     bool     // others is the cost of an entry for the block and of the first of the cheapest options
	left, right *node
}

// option is what the entries in a block cost, the block's own not among them, where outcome holds for the block.
type option struct{ outcome, cost int }

// cost returns what the block costs, where outcome holds around it.
func (n *node) cost(outcome int) int {
	if i, ok := n.find(outcome); ok {
		return n.options[i].cost
	}
	return n.others
}

func (n *node) find(outcome int) (int, bool) {
	return slices.BinarySearchFunc(n.options, outcome, func(o option, outcome int) int { return o.outcome - outcome })
}

// cheapest returns the first option that costs least.
func (n *node) cheapest() option {
	return slices.MinFunc(n.options, func(a, b option) int { return a.cost - b.cost })
}

// entryCost returns what an entry costs. Every number of entries counts more than which entries they are.
func entryCost(bits int) int {
	if bits == 0 || bits == 16 {
		return 1 << 20
	}
	return 1<<20 + 1
}

func outcomes(f hostpolicy.Func) []int {
	type plain struct {
		verdict model.Verdict
		rule    model.RuleID
	}
	known := map[plain][]int{} // the outcomes that differ in their alternatives only
	out := make([]int, len(f))
	for i := range f {
		key := plain{f[i].Verdict, f[i].Rule}
		at := slices.IndexFunc(known[key], func(k int) bool { return slices.Equal(f[k].When, f[i].When) })
		if at < 0 {
			at = len(known[key])
			known[key] = append(known[key], i)
		}
		out[i] = known[key][at]
	}
	return out
}

// tree makes the node of a block, which the cells in [from, to) cover.
func (l *lowering) tree(from, to int, port uint16, bits int) *node {
	if to-from == 1 {
		return &node{options: []option{{outcome: l.outcome[from]}}, others: entryCost(bits), replace: true}
	}
	half := port | 1<<(15-bits) // the first port of the upper half
	last := from                // the cell that holds the last port of the lower half
	for l.cells[last].Ports.Hi < half-1 {
		last++
	}
	upper := last
	if l.cells[last].Ports.Hi == half-1 {
		upper++
	}
	n := &node{left: l.tree(from, last+1, port, bits+1), right: l.tree(upper, to, half, bits+1)}
	n.choose(entryCost(bits))
	return n
}

// choose makes the options of a block of those of its halves, where an entry for all of it costs entry.
func (n *node) choose(entry int) {
	all := make([]option, 0, len(n.left.options)+len(n.right.options))
	for _, half := range []*node{n.left, n.right} {
		for _, o := range half.options {
			all = append(all, option{o.outcome, n.left.cost(o.outcome) + n.right.cost(o.outcome)})
		}
	}
	slices.SortFunc(all, func(a, b option) int { return a.outcome - b.outcome })
	n.options = slices.Compact(all)
	n.others = n.left.others + n.right.others
	if least := n.cheapest().cost; entry+least < n.others {
		n.others, n.replace = entry+least, true
	}
	keep := n.cheapest().outcome // which replaces
	n.options = slices.DeleteFunc(n.options, func(o option) bool { return o.cost >= n.others && o.outcome != keep })
}

// emit writes the entries of a block around which inherited holds.
func (l *lowering) emit(n *node, inherited int, proto model.Proto, port uint16, bits int) {
	if _, ok := n.find(inherited); !ok && n.replace {
		inherited = n.cheapest().outcome
		l.out = append(l.out, Entry{Proto: proto, Port: port, Bits: bits, Cell: &l.cells[inherited]})
	}
	if n.left != nil {
		l.emit(n.left, inherited, proto, port, bits+1)
		l.emit(n.right, inherited, proto, port|1<<(15-bits), bits+1)
	}
}

// Raise is the inverse of Lower: it returns the function that entries say, where others is the cell that holds without
// one. Its cells are not merged.
func Raise(others *hostpolicy.Cell, entries []Entry) hostpolicy.Func {
	f := hostpolicy.Func{*others}
	f[0].Ports = model.AnyPort
	for len(entries) > 0 {
		proto := entries[0].Proto
		n := 0
		for n < len(entries) && entries[n].Proto == proto {
			n++
		}
		f = raiseProto(f, others, proto, entries[:n])
		entries = entries[n:]
	}
	return f
}

func raiseProto(f hostpolicy.Func, others *hostpolicy.Cell, proto model.Proto, entries []Entry) hostpolicy.Func {
	edges := []int{0, 1 << 16} // where blocks begin, and end
	for _, e := range entries {
		edges = append(edges, int(e.Port), int(e.Port)+1<<(16-e.Bits))
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	for i, lo := range edges[:len(edges)-1] {
		cell, bits := others, -1
		for k := range entries {
			e := &entries[k]
			if uint16(lo)&(^uint16(0)<<(16-e.Bits)) == e.Port && e.Bits > bits {
				cell, bits = e.Cell, e.Bits
			}
		}
		c := *cell
		c.Ports = model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(edges[i+1] - 1)}
		f = append(f, c)
	}
	return f
}
