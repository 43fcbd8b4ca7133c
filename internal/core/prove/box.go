package prove

import (
	"math/bits"
	"slices"
)

// A question about everything that could exist is asked over finitely many variables: see space. Each has a domain of
// small numbers, and a box leaves every variable a part of its domain.

// literal is a condition on one variable: that its value is one of values (or none of them, if not), or one of bits.
type literal struct {
	variable int32
	not      bool
	values   []int32  // sorted, distinct; counts if bits is nil
	bits     []uint64 //
	count    int32    // of bits
}

// conjunction is a list of literals that hold at once. The empty one always holds.
type conjunction []literal

// domain is what a box leaves of a variable's values: all of them if bits is nil.
type domain struct {
	bits  []uint64
	count int32
}

func (d *domain) has(v int32) bool { return d.bits == nil || d.bits[v/64]&(1<<(v%64)) != 0 }

// first returns the least value of a domain that is not empty.
func (d *domain) first() int32 {
	for i, w := range d.bits {
		if w != 0 {
			return int32(i*64 + bits.TrailingZeros64(w))
		}
	}
	return 0
}

// box narrows variables and takes back what it did.
type box struct {
	sizes   []int32 // by variable: the size of its domain
	domains []domain
	trail   []change
}

type change struct {
	variable int32
	before   domain
}

func newBox(sizes []int32) *box {
	b := &box{sizes: sizes, domains: make([]domain, len(sizes))}
	for v, n := range sizes {
		b.domains[v].count = n
	}
	return b
}

// mark returns a state to come back to with undo.
func (b *box) mark() int { return len(b.trail) }

func (b *box) undo(mark int) {
	for len(b.trail) > mark {
		last := &b.trail[len(b.trail)-1]
		b.domains[last.variable] = last.before
		b.trail = b.trail[:len(b.trail)-1]
	}
}

// test says whether the literal holds somewhere in the box, and whether it holds everywhere.
func (b *box) test(l *literal) (some, all bool) {
	d := &b.domains[l.variable]
	in := b.hits(d, l)
	if l.not {
		return in < d.count, in == 0
	}
	return in > 0, in == d.count
}

// hits counts the values of the domain that the literal names.
func (b *box) hits(d *domain, l *literal) int32 {
	switch {
	case l.bits != nil && d.bits == nil:
		return l.count
	case l.bits != nil:
		n := 0
		for i, w := range d.bits {
			n += bits.OnesCount64(w & l.bits[i])
		}
		return int32(n)
	case d.bits == nil:
		return int32(len(l.values))
	}
	n := int32(0)
	for _, v := range l.values {
		if d.bits[v/64]&(1<<(v%64)) != 0 {
			n++
		}
	}
	return n
}

// narrow leaves what meets the literal, or with want false what does not. It reports whether anything is left.
func (b *box) narrow(l *literal, want bool) bool {
	d := &b.domains[l.variable]
	keep := want != l.not // keep the values that the literal names
	in := b.hits(d, l)
	left := in
	if !keep {
		left = d.count - in
	}
	if left == d.count {
		return left > 0
	}
	b.trail = append(b.trail, change{l.variable, *d})
	out := domain{bits: make([]uint64, (b.sizes[l.variable]+63)/64), count: left}
	switch {
	case l.bits != nil:
		for i := range out.bits {
			if keep {
				out.bits[i] = l.bits[i]
			} else {
				out.bits[i] = ^l.bits[i]
			}
		}
		b.intersect(out.bits, d, l.variable)
	case keep:
		for _, v := range l.values {
			if d.has(v) {
				out.bits[v/64] |= 1 << (v % 64)
			}
		}
	default:
		for i := range out.bits {
			out.bits[i] = ^uint64(0)
		}
		b.intersect(out.bits, d, l.variable)
		for _, v := range l.values {
			out.bits[v/64] &^= 1 << (v % 64)
		}
	}
	*d = out
	return left > 0
}

// intersect keeps of out what is in the domain.
func (b *box) intersect(out []uint64, d *domain, variable int32) {
	if d.bits != nil {
		for i := range out {
			out[i] &= d.bits[i]
		}
		return
	}
	if n := b.sizes[variable] % 64; n != 0 {
		out[len(out)-1] &= 1<<n - 1
	}
}

// fix leaves one value.
func (b *box) fix(variable, value int32) bool {
	return b.narrow(&literal{variable: variable, values: []int32{value}}, true)
}

// within narrows to the conjunctions' literals, all of them.
func (b *box) within(list ...conjunction) bool {
	for _, c := range list {
		for i := range c {
			if !b.narrow(&c[i], true) {
				return false
			}
		}
	}
	return true
}

// meets reports whether every literal of the conjunction holds somewhere in the box.
func (b *box) meets(c conjunction) bool {
	for i := range c {
		if some, _ := b.test(&c[i]); !some {
			return false
		}
	}
	return true
}

// among makes the literal that the variable has one of the values.
func among(variable int32, values ...int32) literal {
	slices.Sort(values)
	return literal{variable: variable, values: slices.Compact(values)}
}

// inBits makes the literal that the variable has one of the values.
func inBits(variable int32, set []uint64) literal {
	l := literal{variable: variable, bits: set}
	for _, w := range set {
		l.count += int32(bits.OnesCount64(w))
	}
	return l
}
