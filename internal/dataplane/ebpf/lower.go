package ebpf

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// ruleNumber is what the programs know a rule by.
func ruleNumber(r model.RuleID) uint64 {
	if i := slices.Index(fixedRules, r); i > 0 {
		return uint64(i)
	}
	sum := sha256.Sum256([]byte(r))
	n := binary.BigEndian.Uint64(sum[:8])
	if n < 1<<16 {
		n += 1 << 16 // never one of the fixed
	}
	return n
}

// lowered is a policy set as the programs hold it.
type lowered struct {
	rows   []entry[rowKey]
	ranges []entry[rangeKey]
}

type entry[K any] struct {
	key K
	row row
}

// piece is a row of a function, before it is known for which set.
type piece struct {
	kind  uint8
	proto uint8
	port  uint16
	bits  int // significant bits of port, if it is a range; else 0
	row   row
}

// lower turns a policy set into rows. Each listed peer costs one, which names its function; the functions are there
// once. A function is total and its cells do not overlap, so each protocol is cut into one row for its costliest
// verdict, which stands for all ports, and exact rows and ranges for the others. Look-up goes from the exact to the
// general, and so finds the cell.
func lower(set *hostpolicy.PolicySet, number uint32) *lowered {
	l := &lowered{}
	for _, dir := range model.Directions {
		t := set.Table(dir)
		any := make([]row, len(t.Funcs))
		for i, f := range t.Funcs {
			pieces := lowerFunc(f)
			any[i] = pieces[0].row
			any[i].Function = uint32(i)
			l.function(number, uint32(i), dir, pieces[1:])
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

func (l *lowered) function(set, number uint32, dir model.Direction, pieces []piece) {
	for _, p := range pieces {
		if p.bits == 0 {
			key := rowKey{Peer: uint64(number), Pset: set, Port: p.port, Proto: p.proto, Kind: p.kind | uint8(dir)}
			l.rows = append(l.rows, entry[rowKey]{key, p.row})
			continue
		}
		key := rangeKey{
			Bits: uint32(80 + p.bits), Pset: set, Function: number, Dir: uint8(dir), Proto: p.proto, Port: networkOrder(p.port),
		}
		l.ranges = append(l.ranges, entry[rangeKey]{key, p.row})
	}
}

// size returns how many rows and ranges lower will make.
func size(set *hostpolicy.PolicySet) (rows, ranges int) {
	for _, dir := range model.Directions {
		t := set.Table(dir)
		rows++
		for _, f := range t.Funcs {
			for _, p := range lowerFunc(f)[1:] {
				if p.bits == 0 {
					rows++
				} else {
					ranges++
				}
			}
		}
		for _, p := range t.Peers {
			if p.Func != 0 {
				rows++
			}
		}
	}
	return rows, ranges
}

type outcome struct {
	verdict model.Verdict
	rule    model.RuleID
}

func (o outcome) row() row { return row{Rule: ruleNumber(o.rule), Verdict: uint8(o.verdict)} }

func lowerFunc(f hostpolicy.Func) []piece {
	any := outcome{f[0].Verdict, f[0].Rule}
	pieces := []piece{{kind: rowAny, row: any.row()}}
	has := uint8(0)
	for i := 1; i < len(f); {
		j := i
		for j < len(f) && f[j].Ports.Proto == f[i].Ports.Proto {
			j++
		}
		for _, p := range lowerProto(f[i:j], any) {
			switch {
			case p.bits > 0:
				has |= hasRange
			case p.kind == rowPort:
				has |= hasPort
			default:
				has |= hasProto
			}
			pieces = append(pieces, p)
		}
		i = j
	}
	pieces[0].row.Has = has
	return pieces
}

// lowerProto lowers the cells of one protocol, where any is what holds without a row.
func lowerProto(cells []hostpolicy.Cell, any outcome) []piece {
	costs := map[outcome]int{any: 1} // it saves the protocol's own row
	for _, c := range cells {
		costs[outcome{c.Verdict, c.Rule}] += len(cut(c.Ports.Lo, c.Ports.Hi))
	}
	general := any
	if len(cells) == 1 { // every port alike: no range can say that
		general = outcome{cells[0].Verdict, cells[0].Rule}
	}
	for _, c := range cells { // in order, for the same rows every time
		if o := (outcome{c.Verdict, c.Rule}); costs[o] > costs[general] {
			general = o
		}
	}
	proto := uint8(cells[0].Ports.Proto)
	var pieces []piece
	if general != any {
		pieces = append(pieces, piece{kind: rowProto, proto: proto, row: general.row()})
	}
	for _, c := range cells {
		o := outcome{c.Verdict, c.Rule}
		if o == general {
			continue
		}
		for _, b := range cut(c.Ports.Lo, c.Ports.Hi) {
			p := piece{kind: rowPort, proto: proto, port: b.port, bits: b.bits, row: o.row()}
			if p.bits == 16 {
				p.bits = 0
			}
			pieces = append(pieces, p)
		}
	}
	return pieces
}

// block is an aligned block of ports: those whose first bits are port's.
type block struct {
	port uint16
	bits int
}

// cut cuts a range of ports into the fewest aligned blocks.
func cut(lo, hi uint16) []block {
	var blocks []block
	for at, end := uint32(lo), uint32(hi)+1; at < end; {
		size := uint32(1) << min(bits.TrailingZeros32(at|1<<16), bits.Len32(end-at)-1)
		blocks = append(blocks, block{uint16(at), 16 - bits.TrailingZeros32(size)})
		at += size
	}
	return blocks
}
