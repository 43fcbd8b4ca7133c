package compile

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

const (
	digitBits = 10
	digits    = 4      // of an IPv4 prefix: its address and its length
	manyToo   = 1 << 7 // entries from which counting is quicker than comparing
	digitMask = 1<<digitBits - 1
)

// keyed is an IPv4 entry of a list of addresses, by what orders it.
type keyed struct {
	key uint64
	at  int32
}

// sortAddresses puts a list into the order of hostpolicy.CompareAddresses; what was in the list is lost. A delta may tell a
// host of thousands of addresses, nearly all of them IPv4: those are sorted by counting (Knuth 5.2.5, radix exchange from
// the last digit).
func sortAddresses(list []hostpolicy.Address) []hostpolicy.Address {
	byPrefix := func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) }
	if len(list) < manyToo {
		slices.SortFunc(list, byPrefix)
		return list
	}
	from := make([]keyed, 0, len(list))
	out := make([]hostpolicy.Address, 0, len(list))
	var counts [digits][1 << digitBits]int32
	for i := range list {
		p := list[i].Prefix
		if !p.Addr().Is4() {
			continue
		}
		a := p.Addr().As4()
		key := uint64(binary.BigEndian.Uint32(a[:]))<<8 | uint64(p.Bits())
		for d := range counts {
			counts[d][key>>(d*digitBits)&digitMask]++
		}
		from = append(from, keyed{key, int32(i)})
	}
	to := make([]keyed, len(from))
	for d := range counts {
		sum := int32(0)
		for k, n := range counts[d] {
			counts[d][k], sum = sum, sum+n
		}
		for _, x := range from {
			k := x.key >> (d * digitBits) & digitMask
			to[counts[d][k]] = x
			counts[d][k]++
		}
		from, to = to, from
	}
	for _, x := range from {
		out = append(out, list[x.at])
	}
	n := len(out)
	for i := range list {
		if !list[i].Prefix.Addr().Is4() {
			out = append(out, list[i])
		}
	}
	slices.SortFunc(out[n:], byPrefix)
	return out
}
