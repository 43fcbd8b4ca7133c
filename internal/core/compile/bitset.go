package compile

import (
	"iter"
	"math/bits"
)

// bitset is a set of small numbers, listed in ascending order.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (s bitset) add(i int32) { s[uint32(i)/64] |= 1 << (uint32(i) % 64) }

func (s bitset) drop(i int32) { s[uint32(i)/64] &^= 1 << (uint32(i) % 64) }

func (s bitset) has(i int32) bool { return s[uint32(i)/64]&(1<<(uint32(i)%64)) != 0 }

func (s bitset) clear() { clear(s) }

func (s bitset) len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s bitset) all() iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for i, w := range s {
			for ; w != 0; w &= w - 1 {
				if !yield(int32(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}
