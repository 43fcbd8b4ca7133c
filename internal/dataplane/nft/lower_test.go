package nft

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// TestSpans holds the division of addresses to the longest prefix, over many random sets of prefixes.
func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		seen := map[netip.Prefix]bool{}
		var prefixes []hostpolicy.Address
		for range r.IntN(12) {
			p, err := netip.AddrFrom4([4]byte{10, byte(r.IntN(4) << 6), 0, byte(r.IntN(256))}).Prefix(r.IntN(32))
			if err != nil {
				t.Fatal(err)
			}
			if !seen[p] {
				seen[p] = true
				prefixes = append(prefixes, hostpolicy.Address{Prefix: p, Identity: model.IdentityID(r.IntN(4))})
			}
		}
		all := spans(prefixes, netip.IPv4Unspecified())
		next := netip.IPv4Unspecified()
		for _, s := range all {
			if s.first != next || s.last.Less(s.first) {
				t.Fatalf("%v: %v follows what ends before %s", prefixes, s, next)
			}
			next = s.last.Next()
		}
		if next.IsValid() {
			t.Fatalf("%v: nothing from %s on", prefixes, next)
		}
		check := func(a netip.Addr) {
			want, bits := model.IdentityID(0), -1
			for _, p := range prefixes {
				if p.Prefix.Contains(a) && p.Prefix.Bits() > bits {
					want, bits = p.Identity, p.Prefix.Bits()
				}
			}
			for _, s := range all {
				if !a.Less(s.first) && !s.last.Less(a) && s.identity != want {
					t.Fatalf("%v: %s is %d instead of %d", prefixes, a, s.identity, want)
				}
			}
		}
		for _, p := range prefixes {
			for _, a := range []netip.Addr{p.Prefix.Addr(), p.Prefix.Addr().Prev(), lastOf(p.Prefix), lastOf(p.Prefix).Next()} {
				if a.IsValid() {
					check(a)
				}
			}
		}
	}
}

// TestBlocks holds the blocks of a function to the function.
func TestBlocks(t *testing.T) {
	cell := func(p model.Proto, lo, hi uint16, v model.Verdict) hostpolicy.Cell {
		return hostpolicy.Cell{Ports: model.PortRange{Proto: p, Lo: lo, Hi: hi}, Verdict: v}
	}
	for _, f := range []hostpolicy.Func{
		{cell(0, 0, 65535, model.Deny)},
		{cell(0, 0, 65535, model.Allow), cell(6, 0, 79, model.Deny), cell(6, 80, 80, model.Allow), cell(6, 81, 90, model.Allow), cell(6, 91, 65535, model.Deny)},
		{cell(0, 0, 65535, model.WouldDeny), cell(1, 0, 65535, model.Allow), cell(2, 0, 9, model.Allow), cell(2, 10, 65535, model.Deny), cell(255, 0, 65535, model.Deny)},
	} {
		all := blocks(f)
		for p := range 256 {
			for _, port := range []uint16{0, 9, 10, 79, 80, 81, 90, 91, 65535} {
				want, found := f.Cell(model.Proto(p), port).Verdict, 0
				for _, b := range all {
					if int(b.proto) <= p && p <= int(b.lastProto) && b.ports.Lo <= port && port <= b.ports.Hi {
						found++
						if b.verdict != want {
							t.Errorf("%v: %d/%d is %s instead of %s", f, p, port, b.verdict, want)
						}
					}
				}
				if found != 1 {
					t.Errorf("%v: %d blocks have %d/%d", f, found, p, port)
				}
			}
		}
	}
}
