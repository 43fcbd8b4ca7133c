package diff

import (
	"encoding/binary"
	"slices"
)

// relation is a set of pairs of classes, kept as blocks. Pairs come source by source: add notes a destination of the
// present source, seal ends the source.
type relation struct {
	open   []int32
	blocks []block
	byKey  map[string]int32
}

// block is a set of sources and a set of destinations such that every pair of them is meant.
type block struct {
	from, to []int32 // classes, sorted
}

func (r *relation) add(to int32) {
	if n := len(r.open); n == 0 || r.open[n-1] != to {
		r.open = append(r.open, to)
	}
}

// seal joins the source to the block of sources that have the same destinations.
func (r *relation) seal(from int32) {
	if len(r.open) == 0 {
		return
	}
	if r.byKey == nil {
		r.byKey = map[string]int32{}
	}
	k := key(r.open)
	n, ok := r.byKey[k]
	if !ok {
		n = int32(len(r.blocks))
		r.byKey[k] = n
		r.blocks = append(r.blocks, block{to: slices.Clone(r.open)})
	}
	r.blocks[n].from = append(r.blocks[n].from, from)
	r.open = r.open[:0]
}

func key(list []int32) string {
	b := make([]byte, 0, 4*len(list))
	for _, n := range list {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return string(b)
}

// gather returns the relation in few blocks: by sources with the same destinations, or by destinations with the same
// sources, whichever makes fewer.
func (r *relation) gather() []block {
	if len(r.blocks) < 2 {
		return r.blocks
	}
	in := map[int32][]int32{} // destination to the blocks that it is in
	for n := range r.blocks {
		for _, to := range r.blocks[n].to {
			in[to] = append(in[to], int32(n))
		}
	}
	dests := make([]int32, 0, len(in))
	for to := range in {
		dests = append(dests, to)
	}
	slices.Sort(dests)
	byKey := map[string]int{}
	var out []block
	for _, to := range dests {
		k := key(in[to])
		n, ok := byKey[k]
		if !ok {
			n = len(out)
			byKey[k] = n
			b := block{}
			for _, m := range in[to] {
				b.from = append(b.from, r.blocks[m].from...)
			}
			slices.Sort(b.from)
			out = append(out, b)
		}
		out[n].to = append(out[n].to, to)
	}
	if len(out) < len(r.blocks) {
		return out
	}
	return r.blocks
}
