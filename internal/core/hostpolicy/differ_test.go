package hostpolicy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"bulkhead/internal/core/model"
)

// randomFunc makes a total function of few outcomes over few ports, whose cells need not be merged.
func randomFunc(r *rand.Rand) Func {
	values := []string{"", "a", "b"}
	outcome := func(ports model.PortRange) Cell {
		c := Cell{Ports: ports, Verdict: model.Verdict(r.IntN(2)), Rule: model.RuleID("rs"[r.IntN(8)/7:][:1])}
		for range r.IntN(3) {
			p := model.Process{Unit: values[r.IntN(3)], User: values[r.IntN(3)]}
			if p != (model.Process{}) {
				c.When = append(c.When, Alternative{Process: p, Verdict: model.Verdict(r.IntN(2)), Rule: "w"})
			}
		}
		return c
	}
	f := Func{outcome(model.AnyPort)}
	for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP} {
		if r.IntN(3) == 0 {
			continue
		}
		lo := 0
		for lo < 3 && r.IntN(2) == 0 {
			f = append(f, outcome(model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(lo)}))
			lo++
		}
		f = append(f, outcome(model.PortRange{Proto: proto, Lo: uint16(lo), Hi: 65535}))
	}
	return f
}

// differBySearch asks about everything that the functions of randomFunc can tell apart.
func differBySearch(f, g Func) bool {
	processes := []*model.Process{nil}
	for _, unit := range []string{"", "a", "b", "c"} {
		for _, user := range []string{"", "a", "b", "c"} {
			processes = append(processes, &model.Process{Unit: unit, User: user, Path: "/bin/x"})
		}
	}
	for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP, 99} {
		for _, port := range []uint16{0, 1, 2, 3, 65535} {
			for _, p := range processes {
				if f.Cell(proto, port).For(p) != g.Cell(proto, port).For(p) {
					return true
				}
			}
		}
	}
	return false
}

func TestFuncDiffers(t *testing.T) {
	same, other := 0, 0
	for seed := range uint64(20000) {
		r := rand.New(rand.NewPCG(seed, 2))
		f := randomFunc(r)
		g := slices.Clone(f)
		switch r.IntN(3) {
		case 0:
			g = randomFunc(r)
		case 1: // the same in other words
			last := g[len(g)-1]
			if last.Ports.Proto == model.ProtoAny {
				break
			}
			g[len(g)-1].Ports.Hi = 999
			last.Ports.Lo = 1000
			last.When = append(slices.Clone(last.When), Alternative{Process: model.Process{Path: "/bin/y"}, Verdict: last.Verdict, Rule: last.Rule})
			g = append(g, last)
		case 2: // one cell of another outcome
			k := r.IntN(len(g))
			g[k].Verdict = model.Verdict(r.IntN(2))
			g[k].When = nil
		}
		x, y, want := f.Differs(g), g.Differs(f), differBySearch(f, g)
		if (x != nil) != want || (y != nil) != want {
			t.Fatalf("seed %d: %v and %v, want %t\n%v\n%v", seed, x, y, want, f, g)
		}
		if x == nil {
			same++
			continue
		}
		other++
		for _, port := range []uint16{x.Ports.Lo, x.Ports.Hi} { // the example is one
			proto := x.Ports.Proto
			if proto == model.ProtoAny {
				proto = 99
			}
			if a, b := f.Cell(proto, port).For(x.Process), g.Cell(proto, port).For(x.Process); a == b || x.Verdicts != [2]model.EndVerdict{a, b} {
				t.Fatalf("seed %d: %s, but %v and %v", seed, x, a, b)
			}
		}
	}
	if same < 1000 || other < 1000 {
		t.Errorf("%d the same, %d not", same, other)
	}
}

func TestPolicySetDiffers(t *testing.T) {
	all := func(rule model.RuleID) Func { return Func{{Ports: model.AnyPort, Verdict: model.Allow, Rule: rule}} }
	set := func(egress Table) *PolicySet {
		return &PolicySet{Ingress: Table{Funcs: []Func{all("in")}}, Egress: egress}
	}
	base := Table{Funcs: []Func{all("d"), all("a"), all("b")}, Peers: []PeerFunc{{1, 1}, {3, 2}, {5, 1}}}
	for _, c := range []struct {
		name  string
		other Table
		want  string
	}{
		{"the same", base, "<nil>"},
		{"functions in another order, one twice, one that nobody has, a row for the default",
			Table{Funcs: []Func{all("d"), all("b"), all("a"), all("a"), all("x"), all("d")}, Peers: []PeerFunc{{1, 2}, {2, 5}, {3, 1}, {5, 3}}}, "<nil>"},
		{"a row less", Table{Funcs: base.Funcs, Peers: base.Peers[:2]}, "egress with peer 0000000000000005 on any: allow by a, and allow by d"},
		{"a row more", Table{Funcs: base.Funcs, Peers: append([]PeerFunc{}, PeerFunc{0, 1}, base.Peers[0], base.Peers[1], base.Peers[2])}, "egress with peer 0000000000000000 on any: allow by d, and allow by a"},
		{"another rule", Table{Funcs: []Func{all("d"), all("a"), all("c")}, Peers: base.Peers}, "egress with peer 0000000000000003 on any: allow by b, and allow by c"},
		{"another default", Table{Funcs: []Func{all("e"), all("a"), all("b")}, Peers: base.Peers}, "egress with every other peer on any: allow by d, and allow by e"},
	} {
		x := set(base).Differs(set(c.other))
		text := "<nil>"
		if x != nil {
			text = x.String()
		}
		if text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
		if back := set(c.other).Differs(set(base)); (back == nil) != (x == nil) {
			t.Errorf("%s: the other way round %v", c.name, back)
		}
	}
	if x := set(base).Differs(&PolicySet{Ingress: Table{Funcs: []Func{all("out")}}, Egress: base}); x == nil || x.Dir != model.Ingress {
		t.Errorf("ingress: %v", x)
	}
	with := func(p model.Process) Func {
		return Func{{Ports: model.AnyPort, Rule: "d", When: []Alternative{{Process: p, Verdict: model.Allow, Rule: "w"}}}}
	}
	if x := with(model.Process{Unit: "a"}).Differs(with(model.Process{Unit: "b"})); x == nil || fmt.Sprint(x.Process) != "unit=a" {
		t.Errorf("processes: %v", x)
	}
}
