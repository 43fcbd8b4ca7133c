package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

// TestPartitionAgreesWithContains compares the netset of addresses at the edges of every prefix with what each
// network says of itself.
func TestPartitionAgreesWithContains(t *testing.T) {
	checked := 0
	for seed := uint64(0); seed < 300; seed++ {
		docs, _, _ := policytest.Generate(seed, policytest.Small)
		rules, l := lower(docs, policytest.Now)
		if len(l.errs) > 0 {
			t.Fatal(l.errs)
		}
		p := newPartition(docs, &rules)
		probe := func(a netip.Addr) {
			if !a.IsValid() {
				return
			}
			checked++
			var want []string
			for _, name := range p.names {
				n := l.networks[name]
				if n == nil {
					n = &model.Network{CIDRs: []netip.Prefix{netip.MustParsePrefix(name)}}
				}
				if n.Contains(a) {
					want = append(want, name)
				}
			}
			if got := p.netsets[p.netsetOf(p.cellOf(a))].names; !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s is in %v, networks say %v", seed, a, got, want)
			}
		}
		for i := range p.cells {
			first := p.cells[i].prefix.Addr()
			last := lastAddr(p.cells[i].prefix)
			for _, a := range []netip.Addr{first, first.Prev(), first.Next(), last, last.Prev(), last.Next()} {
				probe(a)
			}
		}
	}
	if checked < 10_000 {
		t.Errorf("only %d addresses probed", checked)
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestUnmapPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"::ffff:198.51.100.77/120": "198.51.100.0/24",
		"::ffff:0.0.0.0/96":        "0.0.0.0/0",
		"10.1.2.3/8":               "10.0.0.0/8",
		"fd00::1/64":               "fd00::/64",
	} {
		if got := unmapPrefix(netip.MustParsePrefix(in)); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func randomStrokes(r *rand.Rand) []stroke {
	protos := []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP}
	edges := []uint16{0, 1, 2, 100, 101, 65534, 65535}
	var out []stroke
	for range r.IntN(12) {
		lo, hi := edges[r.IntN(len(edges))], edges[r.IntN(len(edges))]
		s := stroke{model.PortRange{Proto: protos[r.IntN(3)], Lo: min(lo, hi), Hi: max(lo, hi)}, model.Verdict(r.IntN(3)), uint32(r.IntN(3))}
		if r.IntN(10) == 0 {
			s.ports = model.AnyPort
		}
		out = append(out, s)
	}
	return append(out, stroke{model.AnyPort, model.Deny, 0})
}

// TestPainterKeepsTheFirst compares painted functions with asking the strokes one by one.
func TestPainterKeepsTheFirst(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var p painter
	f := newFunctionBuilder()
	for i := range 3 {
		f.name(model.RuleID(fmt.Sprint("rule-", i)))
	}
	for range 5_000 {
		strokes := randomStrokes(r)
		p.start()
		for _, s := range strokes {
			p.paint(s)
		}
		fn := f.intern(p.finish())
		for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, model.ProtoSCTP} {
			for _, port := range []uint16{0, 1, 2, 3, 99, 100, 101, 102, 65533, 65534, 65535} {
				first := strokes[slices.IndexFunc(strokes, func(s stroke) bool { return s.ports.Contains(proto, port) })]
				got := decide(f.of(fn), proto, port)
				public := f.funcs[fn].Cell(proto, port)
				if got.verdict != first.verdict || got.rule != first.rule ||
					public.Verdict != first.verdict || public.Rule != f.names[first.rule] {
					t.Fatalf("%v\n%s/%d: %v and %v, want %v", strokes, proto, port, *got, *public, first)
				}
			}
		}
		for i, c := range f.of(fn) { // nothing is said twice
			if i > 1 && c.ports.Proto == f.of(fn)[i-1].ports.Proto && c.verdict == f.of(fn)[i-1].verdict && c.rule == f.of(fn)[i-1].rule {
				t.Fatalf("cells %v are not merged", f.of(fn))
			}
		}
	}
}

func TestMostPermissiveIsPointwise(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	b := &tableBuilder{functions: newFunctionBuilder(), maxOf: map[[2]int32]int32{}}
	for i := range 3 {
		b.functions.name(model.RuleID(fmt.Sprint("rule-", i)))
	}
	make := func() int32 {
		b.paint.start()
		for _, s := range randomStrokes(r) {
			b.paint.paint(s)
		}
		return b.functions.intern(b.paint.finish())
	}
	for range 3_000 {
		x, y := make(), make()
		if x == y {
			continue
		}
		max := b.mostPermissive(x, y)
		if again := b.mostPermissive(x, y); again != max {
			t.Fatalf("the second answer is another")
		}
		for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, model.ProtoSCTP} {
			for _, port := range []uint16{0, 1, 2, 3, 99, 100, 101, 102, 65533, 65534, 65535} {
				want := decide(b.functions.of(x), proto, port)
				if other := decide(b.functions.of(y), proto, port); other.verdict > want.verdict {
					want = other
				}
				if got := decide(b.functions.of(max), proto, port); got.verdict != want.verdict || got.rule != want.rule {
					t.Fatalf("%s/%d: %v, want %v", proto, port, *got, *want)
				}
			}
		}
	}
}

func TestFindRow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 2_000 {
		identities := 1 + r.IntN(3000)
		tab := table{def: -7}
		want := map[int32]int32{}
		share := r.Float64()
		skewed := r.IntN(2) == 0
		for p := range identities {
			if r.Float64() < share && (!skewed || p < identities/8) {
				tab.rows = append(tab.rows, row{uint32(p), int32(p * 3)})
				want[int32(p)] = int32(p * 3)
			}
		}
		direct := tab
		direct.index(identities)
		for p := int32(-1); p < int32(identities); p++ {
			w, ok := want[p]
			if !ok {
				w = tab.def
			}
			if got, at := tab.find(p, identities), direct.find(p, identities); got != w || at != w {
				t.Fatalf("%d identities, %d rows: peer %d gives %d, directly %d, want %d", identities, len(tab.rows), p, got, at, w)
			}
		}
	}
}

func TestLabelIndexFindsWhatMatches(t *testing.T) {
	for seed := uint64(0); seed < 100; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Small)
		var sets []model.Labels
		for i := range inv.Instances {
			sets = append(sets, inv.Instances[i].Labels)
		}
		x := newLabelIndex(sets)
		for i := range docs.Segments {
			s := &docs.Segments[i].Selector
			var want []int32
			for k, l := range sets {
				if s.Matches(l) {
					want = append(want, int32(k))
				}
			}
			if got := x.find(s); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %q selects %v, want %v", seed, s, got, want)
			}
		}
	}
}

func TestMayBeAddress(t *testing.T) {
	for name, want := range map[string]bool{
		"10.0.0.1": true, "fd00::1": true, "::": true, "::ffff:10.0.0.1": true, "ab.cd": true,
		"web-1": false, "cafe": false, "node-1/x.service": false, "": false, "10": false,
	} {
		if got := MayBeAddress(name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}
