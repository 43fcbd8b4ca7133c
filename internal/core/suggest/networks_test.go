package suggest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func TestNetworks(t *testing.T) {
	var many, internet, six []string
	for i := range 64 {
		many = append(many, fmt.Sprintf("10.200.7.%d web-%d tcp/443 9", i*3, i%2+1))
		internet = append(internet, fmt.Sprintf("%d.0.113.%d web-%d tcp/443 9", 40+i, i, i%2+1))
	}
	for i := range 5 {
		six = append(six, fmt.Sprintf("fd00:1::%x:%x web-%d tcp/443 9", i*4711, i, i%2+1))
	}
	for _, c := range []struct {
		name   string
		flows  []string
		cidrs  string
		except int
	}{
		{"few addresses are themselves", []string{"10.200.0.1 web-1 tcp/443 9", "10.200.0.9 web-2 tcp/443 9"}, "[10.200.0.1/32 10.200.0.9/32]", 0},
		{"four in a row are a prefix", []string{"10.200.0.4 web-1 tcp/443 9", "10.200.0.5 web-1 tcp/443 9", "10.200.0.6 web-2 tcp/443 9", "10.200.0.7 web-2 tcp/443 9"}, "[10.200.0.4/30]", 0},
		{"many of a /24 are the /24", many, "[10.200.7.0/24]", 0},
		{"another address inside splits it", append(slices.Clone(many), "10.200.7.1 db-1 tcp/22 9"), "", 0},
		{"one IPv6 link", six, "[fd00:1::/64]", 0},
		{"clients from everywhere", internet, "[0.0.0.0/0]", 8},
	} {
		p := suggest(t, flows(c.flows...), inventoryOf(estate()...), Options{})
		n := p.Documents.Networks[len(p.Documents.Networks)-1]
		for _, x := range p.Documents.Networks {
			if x.Name == "callers-of-portal-web" {
				n = x
			}
		}
		if c.cidrs == "" {
			if n.Contains(netip.MustParseAddr("10.200.7.1")) || !n.Contains(netip.MustParseAddr("10.200.7.3")) {
				t.Errorf("%s: %v", c.name, n.CIDRs)
			}
			continue
		}
		if got := fmt.Sprint(n.CIDRs); got != c.cidrs || len(n.Except) != c.except {
			t.Errorf("%s: got %s except %v, want %s and %d exceptions", c.name, got, n.Except, c.cidrs, c.except)
		}
		for i := range estate() {
			if n.Contains(estate()[i].Addresses[0]) {
				t.Errorf("%s: holds the workload %s", c.name, estate()[i].Name)
			}
		}
	}
}

// TestPrefixes: every address is covered, and no prefix is wider than what was seen speaks for.
func TestPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		var seen, known []netip.Addr
		for range 1 + rng.IntN(200) {
			a := netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(3)), byte(rng.IntN(256))})
			known = append(known, a)
			if rng.IntN(5) > 0 {
				seen = append(seen, a)
			}
		}
		for _, list := range []*[]netip.Addr{&seen, &known} {
			slices.SortFunc(*list, netip.Addr.Compare)
			*list = slices.Compact(*list)
		}
		got := prefixes(seen, known)
		covered := 0
		for _, p := range got {
			n := 0
			for _, a := range known {
				if !p.Contains(a) {
					continue
				}
				if _, ok := slices.BinarySearchFunc(seen, a, netip.Addr.Compare); !ok {
					t.Fatalf("%v holds %v, which was not seen", p, a)
				}
				n++
			}
			covered += n
			if size := 1 << (32 - p.Bits()); n*prefixShare < size {
				t.Fatalf("%v stands on %d addresses", p, n)
			}
		}
		if covered != len(seen) {
			t.Fatalf("%v covers %d of %d addresses", got, covered, len(seen))
		}
	}
}
