package prove_test

import (
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/prove"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

// TestManyHopsAgree compares ways over many hops with the transitive closure of what the evaluator says of every pair of
// actors.
func TestManyHopsAgree(t *testing.T) {
	size := policytest.Small
	size.Guardrails, size.Hosts, size.Policies = 4, 6, 6
	held, violated, long := 0, 0, 0
	seeds := uint64(120)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		docs, inv, _ := policytest.Generate(seed, size)
		for i := range docs.Guardrails {
			docs.Guardrails[i].Via = model.ViaAny
		}
		for i := range inv.Instances { // the evaluator is asked by address: every workload has one of its own
			x := &inv.Instances[i]
			x.Unit, x.Host = "", x.Name
			if len(x.Addresses) > 1 {
				x.Addresses = x.Addresses[:1]
			}
		}
		inv.Instances = slices.DeleteFunc(inv.Instances, func(x model.Instance) bool { return strings.Contains(x.Name, "app") })
		w := world(t, docs, inv)
		closure := newClosure(t, w)
		for i, g := range prove.Guardrails(w) {
			hops := closure.shortest(&docs.Guardrails[i])
			if g.Undecided != "" || g.Holds && hops > 0 || g.TodayOnly != (g.TodayWhy != "") {
				t.Fatalf("seed %d: %s: %+v, but the shortest way has %d hops", seed, g.Name, g, hops)
			}
			if hops == 0 {
				if !g.Holds && !g.Counterexample.Hypothetical {
					t.Fatalf("seed %d: %s: there is no way today, but %s", seed, g.Name, g.Counterexample)
				}
				held++
				continue
			}
			violated++
			if hops > 1 {
				long++
			}
			if got := max(1, len(g.Counterexample.Hops)); got != hops {
				t.Fatalf("seed %d: %s: a way of %d hops, the shortest has %d: %s", seed, g.Name, got, hops, g.Counterexample)
			}
			for k, h := range g.Counterexample.Hops {
				if k > 0 && g.Counterexample.Hops[k-1].To != h.From || h.EgressRule == "" {
					t.Fatalf("seed %d: %s is no way", seed, g.Counterexample)
				}
			}
		}
	}
	if !testing.Short() && (held < 20 || violated < 50 || long < 5) {
		t.Errorf("%d held, %d violated, %d of them over several hops: too few of something", held, violated, long)
	}
}

// closure knows who reaches whom in one hop, on any port and on each port there is to tell apart.
type closure struct {
	w      *compile.World
	u      *reach.Universe
	ports  []model.PortRange
	atoms  []*model.Process
	direct [][][]passes // by source, destination and port
}

// passes says for which processes each end lets a flow pass, a bit for each atom.
type passes [2]uint64

func newClosure(t *testing.T, w *compile.World) *closure {
	c := &closure{w: w, u: reach.New(w), atoms: atoms(w.Documents())}
	edges := map[model.PortRange]bool{{Proto: 47}: true}
	add := func(refs []model.PortRef) {
		for _, p := range borders(w.Documents(), &model.Guardrail{On: refs}) {
			edges[p] = true
			for _, at := range []int{int(p.Lo) - 1, int(p.Lo) + 1} {
				if at >= 0 && at <= 65535 {
					edges[model.PortRange{Proto: p.Proto, Lo: uint16(at), Hi: uint16(at)}] = true
				}
			}
		}
	}
	for _, p := range w.Documents().Policies {
		for _, r := range p.Rules {
			add(r.On)
		}
	}
	for _, s := range w.Documents().Segments {
		add(s.Services)
	}
	for _, g := range w.Documents().Guardrails {
		add(g.On)
	}
	for p := range edges {
		if _, always := essential.Match(p.Proto, p.Lo); !always {
			c.ports = append(c.ports, p)
		}
	}
	e := verdict.New(w)
	for i := range c.u.Actors {
		a := &c.u.Actors[i]
		c.direct = append(c.direct, make([][]passes, len(c.u.Actors)))
		for j := range c.u.Actors {
			b := &c.u.Actors[j]
			if i == j || a.Domain != "" || !a.Owned() && !b.Owned() || a.Addr.IsValid() && b.Addr.IsValid() && a.Addr.Is4() != b.Addr.Is4() {
				continue
			}
			c.direct[i][j] = make([]passes, len(c.ports))
			for k, p := range c.ports {
				for n, process := range c.atoms {
					v, err := e.Judge(&model.Flow{
						From: a.Exactly(), To: b.Exactly(), Proto: p.Proto, Port: p.Lo, FromProcess: process, ToProcess: process, ToDomain: b.Name,
					})
					if err != nil {
						t.Fatal(err)
					}
					if strings.HasPrefix(string(v.Egress.Rule), "essential/") || strings.HasPrefix(string(v.Ingress.Rule), "essential/") {
						continue
					}
					for end, says := range [2]model.EndVerdict{v.Egress, v.Ingress} {
						if says.Verdict == model.Allow {
							c.direct[i][j][k][end] |= 1 << n
						}
					}
				}
			}
		}
	}
	return c
}

func (c *closure) mask(list []*model.Process) uint64 {
	out := uint64(0)
	for _, p := range list {
		out |= 1 << slices.Index(c.atoms, p)
	}
	return out
}

// shortest returns the hops of the shortest way that the guardrail forbids; 0 if there is none.
func (c *closure) shortest(g *model.Guardrail) int {
	best := 0
	var from, to []uint64 // by actor: the processes that the guardrail means
	for i := range c.u.Actors {
		a := &c.u.Actors[i]
		from, to = append(from, c.mask(meant(c.w.Documents(), g.From, a, c.atoms))), append(to, c.mask(meant(c.w.Documents(), g.To, a, c.atoms)))
		if a.Domain != "" {
			from[i] = 0
		}
	}
	for start := range c.u.Actors {
		if from[start] == 0 {
			continue
		}
		level := []int{start}
		seen := map[int]bool{}
		for hops := 1; len(level) > 0 && (best == 0 || hops < best); hops++ {
			var next []int
			for _, at := range level {
				source := ^uint64(0)
				if hops == 1 {
					source = from[start]
				}
				for b := range c.u.Actors {
					last, any := false, false
					for k, p := range c.ports {
						if c.direct[at][b] == nil || c.direct[at][b][k][0]&source == 0 || c.direct[at][b][k][1] == 0 {
							continue
						}
						any = true
						last = last || c.direct[at][b][k][1]&to[b] != 0 && on(c.w.Documents(), g, p)
					}
					if last && b != start {
						best = hops
					}
					if any && !seen[b] && c.u.Actors[b].Owned() {
						seen[b] = true
						next = append(next, b)
					}
				}
			}
			level = next
		}
	}
	return best
}

func on(docs *model.Documents, g *model.Guardrail, p model.PortRange) bool {
	return slices.ContainsFunc(g.On, func(r model.PortRef) bool {
		if r.Service == "" {
			return r.Range.Contains(p.Proto, p.Lo)
		}
		return slices.ContainsFunc(docs.Services, func(s model.Service) bool {
			return s.Name == r.Service && slices.ContainsFunc(s.Ports, func(x model.PortRange) bool { return x.Contains(p.Proto, p.Lo) })
		})
	})
}
