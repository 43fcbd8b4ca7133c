package compile

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// TestSorter holds the order of numbers to that of comparisons, for lists of both families of which the addresses differ
// everywhere, or in few bits only.
func TestSorter(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	var s sorter
	for round := range 400 {
		var addresses []hostpolicy.Address
		var ports []hostpolicy.PortOwner
		spread := 1 + r.IntN(16) // bytes that differ
		only4, seen := r.IntN(2) == 0, map[any]bool{}
		for range r.IntN(3 * manyToo) {
			b := [16]byte{0: 0xfd, 9: 7}
			for k := range spread {
				b[15-k] = byte(r.IntN(256))
			}
			a := netip.AddrFrom16(b)
			if only4 || r.IntN(2) == 0 {
				a = netip.AddrFrom4([4]byte(b[12:]))
			}
			a = a.WithZone("")
			p, err := a.Prefix(a.BitLen() - r.IntN(2)*r.IntN(a.BitLen()+1))
			if err != nil {
				t.Fatal(err)
			}
			if !seen[p] {
				seen[p] = true
				addresses = append(addresses, hostpolicy.Address{Prefix: p, Identity: model.IdentityID(r.Uint64())})
			}
			o := hostpolicy.PortOwner{Addr: a, Proto: model.Proto(r.IntN(3) * 100), Port: uint16(r.IntN(4) * 20000)}
			if !seen[o] {
				seen[o] = true
				o.Identity = model.IdentityID(r.Uint64())
				ports = append(ports, o)
			}
		}
		before := slices.Clone(addresses)
		if got, want := s.addresses(addresses), sorted(addresses, hostpolicy.CompareAddresses); !slices.Equal(got, want) {
			t.Fatalf("round %d: %d addresses: %v, want %v", round, len(want), got, want)
		}
		if !slices.Equal(addresses, before) {
			t.Fatal("the list itself is changed")
		}
		if got, want := s.ports(ports), sorted(ports, hostpolicy.ComparePorts); !slices.Equal(got, want) {
			t.Fatalf("round %d: %d ports: %v, want %v", round, len(want), got, want)
		}
	}
}
