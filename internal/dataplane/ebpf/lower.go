package ebpf

import (
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

// ruleNumber is what the programs know a rule by.
func ruleNumber(r model.RuleID) uint64 {
	if i := slices.Index(fixedRules, r); i > 0 {
		return uint64(i)
	}
	n := numberOf(string(r))
	if n < 1<<16 {
		n += 1 << 16 // never one of the fixed
	}
	return n
}

// lowered is a policy set as the programs hold it.
type lowered struct {
	rows   []entry[rowKey]
	ranges []entry[rangeKey]
	lists  portmap.Lists // the alternatives of rows
}

type entry[K any] struct {
	key K
	row row
}

// lower turns a policy set into rows. Each listed peer costs one, which names its function; the functions are there
// once, as package portmap lowers them. Look-up goes from the exact to the general.
func lower(set *hostpolicy.PolicySet, number uint32) *lowered {
	l := &lowered{}
	for _, dir := range model.Directions {
		t := set.Table(dir)
		any := make([]row, len(t.Funcs))
		for i, f := range t.Funcs {
			any[i] = l.row(&f[0])
			any[i].Function = uint32(i)
			any[i].Has = l.function(number, uint32(i), dir, portmap.Lower(f))
		}
		l.peer(number, 0, dir, any[0])
		for _, p := range t.Peers {
			if p.Func != 0 { // the default serves it
				l.peer(number, uint64(p.Peer), dir, any[p.Func])
			}
		}
	}
	return l
}

func (l *lowered) peer(set uint32, peer uint64, dir model.Direction, r row) {
	l.rows = append(l.rows, entry[rowKey]{rowKey{Peer: peer, Pset: set, Kind: rowAny | uint8(dir)}, r})
}

// function adds the entries of a function and returns which kinds of them there are.
func (l *lowered) function(set, number uint32, dir model.Direction, entries []portmap.Entry) (has uint8) {
	for _, e := range entries {
		row, proto := l.row(e.Cell), uint8(e.Proto)
		switch {
		case e.IsRange():
			has |= hasRange
			l.ranges = append(l.ranges, entry[rangeKey]{rangeKey{
				Bits: uint32(80 + e.Bits), Pset: set, Function: number, Dir: uint8(dir), Proto: proto, Port: networkOrder(e.Port),
			}, row})
			continue
		case e.Bits == 0:
			has |= hasProto
			l.rows = append(l.rows, entry[rowKey]{rowKey{Peer: uint64(number), Pset: set, Proto: proto, Kind: rowProto | uint8(dir)}, row})
		default:
			has |= hasPort
			l.rows = append(l.rows, entry[rowKey]{rowKey{Peer: uint64(number), Pset: set, Port: e.Port, Proto: proto, Kind: rowPort | uint8(dir)}, row})
		}
	}
	return has
}

func (l *lowered) row(c *hostpolicy.Cell) row {
	return row{Rule: ruleNumber(c.Rule), Verdict: uint8(c.Verdict), List: uint16(l.lists.Number(c.When))}
}
