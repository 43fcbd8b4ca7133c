package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

func world(t testing.TB, docs *model.Documents, inv *model.Inventory, controllers ...netip.AddrPort) *compile.World {
	t.Helper()
	w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now, Controllers: controllers})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// end returns the actor as an evaluator takes it; ok is false if no flow can name exactly this actor.
func end(w *compile.World, a *reach.Actor) (model.End, bool) {
	if a.Addr.IsValid() {
		if len(w.Owners(a.Addr)) < 2 {
			return model.End{Addr: a.Addr}, true
		}
	}
	wl := w.Workload(a.Workload)
	return model.End{Workload: a.Workload}, wl != nil && len(wl.Points) == 1
}

// TestEvaluatorAgrees holds what the universe says of every pair of actors to the evaluator.
func TestEvaluatorAgrees(t *testing.T) {
	pairs, essentials := 0, 0
	for seed := range uint64(150) {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		var controllers []netip.AddrPort
		if seed%2 == 0 {
			controllers = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.200:443")}
			if a := inv.Instances[0].Addresses; len(a) > 0 {
				controllers = append(controllers, netip.AddrPortFrom(a[0], 8443))
			}
		}
		w := world(t, docs, inv, controllers...)
		e := verdict.New(w)
		u := reach.New(w)
		checkClasses(t, u)
		var ports []model.PortRange
		for i := range flows {
			ports = append(ports, model.PortRange{Proto: flows[i].Proto, Lo: flows[i].Port, Hi: flows[i].Port})
		}
		ports = append(ports[:12], model.PortRange{Proto: model.ProtoTCP, Lo: 443, Hi: 443}, model.PortRange{Proto: model.ProtoTCP, Lo: 8443, Hi: 8443})
		for a := range u.Classes {
			src := u.From(int32(a))
			for b := range u.Classes {
				src.Each(int32(b), func(p *reach.Pair, where reach.Where) {
					x := u.Example(u.Classes[a].Members, u.Classes[b].Members, where)
					if x == nil {
						t.Fatalf("seed %d: a pair without an example", seed)
					}
					from, ok1 := end(w, x[0])
					to, ok2 := end(w, x[1])
					if !ok1 || !ok2 {
						return
					}
					joint := u.Joint(p.Egress[0], p.Ingress[0])
					for k, port := range ports {
						if _, always := essential.Match(port.Proto, port.Lo); always {
							continue
						}
						want, err := e.Judge(&model.Flow{
							From: from, To: to, Proto: port.Proto, Port: port.Lo, FromProcess: flows[k].FromProcess, ToProcess: flows[k].ToProcess,
							ToDomain: x[1].Name,
						})
						if err != nil {
							t.Fatalf("seed %d: %v", seed, err)
						}
						got := model.FlowVerdict{
							Verdict: u.At(joint, port.Proto, port.Lo, flows[k].FromProcess, flows[k].ToProcess).Verdict(),
							Egress:  model.EndVerdict{Verdict: u.At(p.Egress[0], port.Proto, port.Lo, flows[k].FromProcess, flows[k].ToProcess).Verdict(), Rule: want.Egress.Rule},
							Ingress: model.EndVerdict{Verdict: u.At(p.Ingress[0], port.Proto, port.Lo, flows[k].FromProcess, flows[k].ToProcess).Verdict(), Rule: want.Ingress.Rule},
						}
						if got != want {
							t.Fatalf("seed %d: %s to %s on %v (place %v): got %+v, want %+v", seed, from, to, port, where, got, want)
						}
						policyEssential := strings.HasPrefix(string(want.Egress.Rule), "essential/") || strings.HasPrefix(string(want.Ingress.Rule), "essential/")
						if want.Verdict == model.Allow && policyEssential != (u.At(joint, port.Proto, port.Lo, flows[k].FromProcess, flows[k].ToProcess) == reach.Essential) {
							t.Fatalf("seed %d: %s to %s on %v: essential %v, rules %s and %s", seed, from, to, port, !policyEssential, want.Egress.Rule, want.Ingress.Rule)
						}
						if policyEssential {
							essentials++
						}
						pairs++
					}
				})
			}
		}
	}
	if pairs < 100_000 || essentials < 100 {
		t.Fatalf("only %d pairs and %d essentials were checked", pairs, essentials)
	}
}

// checkClasses: every actor is in exactly one class.
func checkClasses(t *testing.T, u *reach.Universe) {
	t.Helper()
	seen := make([]bool, len(u.Actors))
	for i := range u.Classes {
		for _, m := range u.Classes[i].Members {
			if seen[m] {
				t.Fatalf("actor %d is in two classes", m)
			}
			seen[m] = true
		}
	}
	if slices.Contains(seen, false) {
		t.Fatal("an actor is in no class")
	}
}

// TestEveryMemberAgrees: what is true of a class is true of each of its members, in two worlds at once.
func TestEveryMemberAgrees(t *testing.T) {
	checked := 0
	for seed := range uint64(60) {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		other, _, _ := policytest.Generate(seed+1000, policytest.Small)
		changed := *docs
		changed.Policies = nil
		if seed%2 == 0 {
			changed.Segments = other.Segments[:min(2, len(other.Segments))]
			for i := range changed.Segments {
				changed.Segments[i].Services = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: 443, Hi: 443}}}
			}
		}
		worlds := []*compile.World{world(t, docs, inv), world(t, &changed, inv)}
		u := reach.New(worlds...)
		for i := range u.Actors {
			for j := range u.Actors {
				a, b := &u.Actors[i], &u.Actors[j]
				if a.Owned() && a.Workload == b.Workload || !a.Owned() && !b.Owned() || a.Addr.IsValid() && b.Addr.IsValid() && a.Addr.Is4() != b.Addr.Is4() || a.Domain != "" {
					continue
				}
				from, ok1 := end(worlds[0], a)
				to, ok2 := end(worlds[0], b)
				if !ok1 || !ok2 {
					continue
				}
				p := pairOf(u, int32(i), int32(j))
				if p == nil {
					t.Fatalf("seed %d: nothing is said about %s and %s", seed, from, to)
				}
				for k, w := range worlds {
					e := verdict.New(w)
					joint := u.Joint(p.Egress[k], p.Ingress[k])
					f := flows[(i+j)%len(flows)]
					if _, always := essential.Match(f.Proto, f.Port); always {
						continue
					}
					want, err := e.Judge(&model.Flow{
						From: from, To: to, Proto: f.Proto, Port: f.Port, FromProcess: f.FromProcess, ToProcess: f.ToProcess, ToDomain: b.Name,
					})
					if err != nil {
						t.Fatal(err)
					}
					if got := u.At(joint, f.Proto, f.Port, f.FromProcess, f.ToProcess).Verdict(); got != want.Verdict {
						t.Fatalf("seed %d world %d: %s to %s on %v/%d: %v, want %v", seed, k, from, to, f.Proto, f.Port, got, want.Verdict)
					}
					checked++
				}
			}
		}
	}
	if checked < 10_000 {
		t.Fatalf("only %d were checked", checked)
	}
}

// pairOf returns what the universe says about two actors.
func pairOf(u *reach.Universe, a, b int32) *reach.Pair {
	near := u.Example([]int32{a}, []int32{b}, reach.SameHost) != nil
	var out *reach.Pair
	u.From(u.ClassOf(a)).Each(u.ClassOf(b), func(p *reach.Pair, where reach.Where) {
		if where == reach.Anywhere || near == (where == reach.SameHost) {
			out = &reach.Pair{Egress: slices.Clone(p.Egress), Ingress: slices.Clone(p.Ingress)}
		}
	})
	return out
}

func TestPorts(t *testing.T) {
	tcp := func(lo, hi uint16) model.PortRange { return model.PortRange{Proto: model.ProtoTCP, Lo: lo, Hi: hi} }
	for _, c := range []struct {
		ports reach.Ports
		want  string
	}{
		{reach.Ports{Rest: true}, "[any]"},
		{reach.Ports{Ranges: []model.PortRange{tcp(443, 443), tcp(8000, 8100)}}, "[https tcp/8000-8100]"},
		{reach.Ports{Rest: true, Ranges: []model.PortRange{tcp(443, 443), tcp(8000, 8100)}}, "[any but https, tcp/8000-8100]"},
		{reach.Ports{Ranges: []model.PortRange{tcp(0, 65535)}}, "[tcp]"},
	} {
		if got := fmt.Sprint(c.ports.Strings(map[model.PortRange]string{tcp(443, 443): "https"})); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		first, ok := c.ports.First()
		if !ok || !c.ports.Contains(first.Proto, first.Lo) {
			t.Errorf("%s: first port %v is not in it", c.want, first)
		}
	}
	if _, ok := (&reach.Ports{}).First(); ok {
		t.Error("the empty set has a port")
	}
}
