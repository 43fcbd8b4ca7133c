package portmap_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

func cell(on string, v model.Verdict, rule model.RuleID) hostpolicy.Cell {
	p, err := model.ParsePortRange(on)
	if err != nil {
		panic(err)
	}
	return hostpolicy.Cell{Ports: p, Verdict: v, Rule: rule}
}

func text(entries []portmap.Entry) []string {
	out := []string{}
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%s %d/%d %s", e.Proto, e.Port, e.Bits, e.Cell.Rule))
	}
	return out
}

func TestLower(t *testing.T) {
	deny := func(on string) hostpolicy.Cell { return cell(on, model.Deny, "d") }
	allow := func(on string) hostpolicy.Cell { return cell(on, model.Allow, "a") }
	for _, tt := range []struct {
		name string
		f    hostpolicy.Func
		want []string
	}{
		{"nothing but the default", hostpolicy.Func{deny("any")}, []string{}},
		{"one port", hostpolicy.Func{deny("any"), deny("tcp/0-442"), allow("tcp/443"), deny("tcp/444-65535")}, []string{"tcp 443/16 a"}},
		{"the first port", hostpolicy.Func{deny("any"), allow("tcp/0"), deny("tcp/1-65535")}, []string{"tcp 0/16 a"}},
		{"the last port", hostpolicy.Func{deny("any"), deny("tcp/0-65534"), allow("tcp/65535")}, []string{"tcp 65535/16 a"}},
		{"a whole protocol", hostpolicy.Func{deny("any"), allow("tcp")}, []string{"tcp 0/0 a"}},
		{"a whole protocol as the default", hostpolicy.Func{deny("any"), deny("tcp")}, []string{}},
		{"all but one port", hostpolicy.Func{deny("any"), allow("tcp/0-442"), deny("tcp/443"), allow("tcp/444-65535")}, []string{"tcp 0/0 a", "tcp 443/16 d"}},
		{"unprivileged ports", hostpolicy.Func{deny("any"), deny("tcp/0-1023"), allow("tcp/1024-65535")}, []string{"tcp 0/0 a", "tcp 0/6 d"}},
		{"an aligned range", hostpolicy.Func{deny("any"), deny("tcp/0-8191"), allow("tcp/8192-8447"), deny("tcp/8448-65535")}, []string{"tcp 8192/8 a"}},
		{"a range", hostpolicy.Func{deny("any"), deny("tcp/0-7999"), allow("tcp/8000-8100"), deny("tcp/8101-65535")},
			[]string{"tcp 8000/10 a", "tcp 8064/11 a", "tcp 8096/14 a", "tcp 8100/16 a"}},
		{"a range but for its last port", hostpolicy.Func{deny("any"), deny("tcp/0-8191"), allow("tcp/8192-8446"), deny("tcp/8447-65535")},
			[]string{"tcp 8192/8 a", "tcp 8447/16 d"}},
		{"neighbours with names of their own stay exact", hostpolicy.Func{deny("any"), deny("tcp/0-95"), allow("tcp/96"), cell("tcp/97", model.Allow, "b"), deny("tcp/98-65535")},
			[]string{"tcp 96/16 a", "tcp 97/16 b"}},
		{"a rule of another name", hostpolicy.Func{deny("any"), cell("udp", model.Deny, "b")}, []string{"udp 0/0 b"}},
		{"two protocols", hostpolicy.Func{deny("any"), allow("tcp"), deny("udp/0-52"), allow("udp/53"), deny("udp/54-65535")}, []string{"tcp 0/0 a", "udp 53/16 a"}},
	} {
		if got := text(portmap.Lower(tt.f)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// lookUp returns what a target finds for every port of a protocol: the entry with most bits, or the default.
func lookUp(f hostpolicy.Func, entries []portmap.Entry) []*hostpolicy.Cell {
	found := slices.Repeat([]*hostpolicy.Cell{&f[0]}, 65536)
	for bits := range 17 {
		for _, e := range entries {
			if e.Bits == bits {
				for port := range 1 << (16 - bits) {
					found[int(e.Port)+port] = e.Cell
				}
			}
		}
	}
	return found
}

// TestLowerIsExactAndLeast compares random functions with what their entries say, of every port, and the number of
// entries with the least that a slow search over the whole tree of ports finds.
func TestLowerIsExactAndLeast(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 15
	}
	nested, processes := 0, 0
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 7))
		f := generate(r)
		entries := portmap.Lower(f)
		if again := portmap.Lower(f); !slices.Equal(text(again), text(entries)) {
			t.Fatalf("seed %d: lowered in two ways", seed)
		}
		if x := portmap.Raise(&f[0], entries).Differs(f); x != nil {
			t.Fatalf("seed %d: raised again: %s", seed, x)
		}
		protos := []model.Proto{99}
		for _, c := range f[1:] {
			if !slices.Contains(protos, c.Ports.Proto) {
				protos = append(protos, c.Ports.Proto)
			}
			processes += len(c.When)
		}
		for _, proto := range protos {
			var own []portmap.Entry
			for _, e := range entries {
				if e.Proto == proto {
					own = append(own, e)
				}
			}
			ranges := 0
			for i := range own {
				if own[i].IsRange() {
					ranges++
					for k := range own[:i] {
						if own[k].IsRange() && own[k].Bits < own[i].Bits && own[i].Port&(^uint16(0)<<(16-own[k].Bits)) == own[k].Port {
							nested++
						}
					}
				}
			}
			for port, got := range lookUp(f, own) {
				want := f.Cell(proto, uint16(port))
				if got.Verdict != want.Verdict || got.Rule != want.Rule || !slices.Equal(got.When, want.When) {
					t.Fatalf("seed %d %s/%d: %v, want %v\n%v\n%q", seed, proto, port, got, want, f, text(own))
				}
			}
			if n, least := len(own), fewest(f, proto); n*scale+ranges != least {
				t.Fatalf("seed %d %s: %d entries, %d ranges among them; %d and %d are enough\n%v\n%q", seed, proto, n, ranges, least/scale, least%scale, f, text(own))
			}
		}
	}
	if nested < 15 || processes < 50 {
		t.Errorf("ranges within ranges %d times, alternatives %d times: the functions test little", nested, processes)
	}
}

// generate makes a function of few outcomes, with cells at edges that are near each other and near powers of two.
func generate(r *rand.Rand) hostpolicy.Func {
	outcome := func(ports model.PortRange) hostpolicy.Cell {
		c := hostpolicy.Cell{Ports: ports, Verdict: model.Verdict(r.IntN(3)), Rule: model.RuleID("abc"[r.IntN(3):][:1])}
		if r.IntN(6) == 0 {
			c.When = []hostpolicy.Alternative{{Process: model.Process{Unit: "u"}, Verdict: model.Allow, Rule: model.RuleID("xy"[r.IntN(2):][:1])}}
		}
		return c
	}
	f := hostpolicy.Func{outcome(model.AnyPort)}
	for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP}[:1+r.IntN(2)] {
		edges := []int{65536}
		for range r.IntN(24) {
			edges = append(edges, min(65535, max(1, 1<<r.IntN(17)+r.IntN(9)-4)), 1+r.IntN(65535))
		}
		slices.Sort(edges)
		lo := 0
		for _, end := range slices.Compact(edges) {
			f = append(f, outcome(model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(end - 1)}))
			lo = end
		}
	}
	return f
}

const scale = 1 << 20

// fewest returns the least number of entries, times scale, and of ranges among those: for each node of the whole tree and
// each outcome, what it costs if the outcome holds around it.
func fewest(f hostpolicy.Func, proto model.Proto) int {
	var outcomes []*hostpolicy.Cell
	number := func(c *hostpolicy.Cell) int {
		for i, o := range outcomes {
			if o.Verdict == c.Verdict && o.Rule == c.Rule && slices.Equal(o.When, c.When) {
				return i
			}
		}
		outcomes = append(outcomes, c)
		return len(outcomes) - 1
	}
	for i := range f {
		number(&f[i])
	}
	level := make([][]int, 65536) // by port and outcome that holds around it
	for port := range level {
		is := number(f.Cell(proto, uint16(port)))
		level[port] = make([]int, len(outcomes))
		for o := range outcomes {
			if o != is {
				level[port][o] = scale
			}
		}
	}
	for bits := 15; bits >= 0; bits-- {
		up := make([][]int, len(level)/2)
		entry := scale + 1
		if bits == 0 {
			entry = scale
		}
		for i := range up {
			up[i] = make([]int, len(outcomes))
			for o := range outcomes {
				up[i][o] = level[2*i][o] + level[2*i+1][o]
			}
			replaced := entry + slices.Min(up[i])
			for o := range outcomes {
				up[i][o] = min(up[i][o], replaced)
			}
		}
		level = up
	}
	return level[0][number(&f[0])]
}
