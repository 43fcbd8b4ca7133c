package hostpolicy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"bulkhead/internal/core/model"
)

// randomPolicy makes a policy of few subjects, sets, addresses and ports, so that two of them have much in common.
func randomPolicy(r *rand.Rand) *Policy {
	p := &Policy{Host: "h", Revision: r.Uint64N(9)}
	for _, w := range []string{"h", "u", "v"} {
		if r.IntN(3) > 0 {
			unit := ""
			if w != "h" && r.IntN(4) > 0 {
				unit = w
			}
			p.Subjects = append(p.Subjects, Subject{Workload: w, Unit: unit, Identity: model.IdentityID(r.IntN(3))})
		}
	}
	for id := range PolicySetID(5) {
		if r.IntN(2) == 0 {
			p.Sets = append(p.Sets, PolicySet{ID: id + 1})
		}
	}
	for i := range byte(12) {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, i})
		if r.IntN(2) == 0 {
			p.Addresses = append(p.Addresses, Address{Prefix: netip.PrefixFrom(addr, 32), Identity: model.IdentityID(r.IntN(3)), Shared: r.IntN(5) == 0})
		}
		for port := range uint16(2) {
			if r.IntN(3) == 0 {
				p.Ports = append(p.Ports, PortOwner{Addr: addr, Proto: model.ProtoTCP, Port: port, Identity: model.IdentityID(r.IntN(3))})
			}
		}
	}
	if r.IntN(2) == 0 {
		p.Domains = []Domain{{Pattern: "a", Identity: model.IdentityID(r.IntN(2))}}
	}
	slices.SortFunc(p.Subjects, func(a, b Subject) int { return CompareSubjects(&a, &b) })
	return p
}

// inPieces returns the entries of the blocks in others, none of them empty.
func inPieces(r *rand.Rand, blocks []*Block) []*Block {
	var out []*Block
	at := func() *Block {
		if len(out) == 0 || r.IntN(3) == 0 {
			out = append(out, &Block{})
		}
		return out[r.IntN(len(out))]
	}
	for a := range Addresses(blocks) {
		b := at()
		b.Addresses = append(b.Addresses, *a)
	}
	for o := range Ports(blocks) {
		b := at()
		b.Ports = append(b.Ports, *o)
	}
	return slices.DeleteFunc(out, func(b *Block) bool { return b.Len() == 0 })
}

// TestJoinAddresses: deltas joined do what they do one after the other.
func TestJoinAddresses(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		first := randomPolicy(r)
		last := first
		var deltas []*AddressDelta
		for range r.IntN(5) {
			next := randomPolicy(r)
			d := Between(last, next).AddressDelta
			d.Upsert, d.Remove = inPieces(r, d.Upsert), inPieces(r, d.Remove)
			deltas, last = append(deltas, &d), next
		}
		joined := JoinAddresses(deltas)
		got, err := first.Patch(&Delta{Addresses: joined})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Addresses, last.Addresses) || !slices.Equal(got.Ports, last.Ports) {
			t.Fatalf("seed %d: %d deltas lead to %v %v, want %v %v", seed, len(deltas), got.Addresses, got.Ports, last.Addresses, last.Ports)
		}
		n, seen := 0, map[any]bool{}
		for i, blocks := range [][]*Block{joined.Upsert, joined.Remove} {
			for _, b := range blocks {
				if sorted(b.Addresses, CompareAddresses) >= 0 || sorted(b.Ports, ComparePorts) >= 0 || b.Len() == 0 {
					t.Errorf("seed %d: block %d is empty or out of order: %v", seed, i, b)
				}
				n += b.Len()
			}
			for a := range Addresses(blocks) {
				if seen[a.Prefix] {
					t.Errorf("seed %d: %s twice", seed, a.Prefix)
				}
				seen[a.Prefix] = true
			}
			for o := range Ports(blocks) {
				key := PortOwner{Addr: o.Addr, Proto: o.Proto, Port: o.Port}
				if seen[key] {
					t.Errorf("seed %d: %v twice", seed, key)
				}
				seen[key] = true
			}
		}
		if joined.Len() != n || joined.Empty() != (n == 0) {
			t.Errorf("seed %d: length %d, want %d", seed, joined.Len(), n)
		}
	}
	if (*AddressDelta)(nil).Len() != 0 {
		t.Error("nothing has a length")
	}
}
