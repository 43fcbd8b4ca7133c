package prove

import (
	"fmt"
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

// everywhere is the inventory of everything that could exist, where workloads have an address in every cell, or none.
func everywhere(docs *model.Documents, cells []reach.Cell) *model.Inventory {
	inv := &model.Inventory{}
	single := everything(docs, cells)
	byLabels := map[string]*model.Instance{}
	for i := range single.Instances {
		x := single.Instances[i]
		if len(x.Addresses) == 0 {
			inv.Instances = append(inv.Instances, x)
			continue
		}
		name := fmt.Sprint("m", x.Name[:3], x.Labels)
		if byLabels[name] == nil {
			y := x
			y.Name, y.Addresses = name, nil
			byLabels[name] = &y
		}
		byLabels[name].Addresses = append(byLabels[name].Addresses, x.Addresses...)
	}
	for _, x := range byLabels {
		inv.Instances = append(inv.Instances, *x)
	}
	slices.SortFunc(inv.Instances, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) })
	for i := range inv.Instances {
		if x := &inv.Instances[i]; x.Quarantine.Level == model.QuarantineRestrict {
			x.Quarantine.Level = model.QuarantineNone // what it leaves may be anything
		}
		inv.Instances[i].Quarantine.InUse = nil
	}
	return inv
}

// hopsOf judges every two ends that could meet, at every port of the probes: who lets whom pass, on which.
type hopsOf struct {
	things []thing
	of     []int // by thing: its workload, or -1
	passes map[[2]int][2][]bool
}

func judgeAll(t *testing.T, w *compile.World, cells []reach.Cell, probes []model.PortRange, processes []*model.Process) *hopsOf {
	t.Helper()
	h := &hopsOf{passes: map[[2]int][2][]bool{}}
	for i := range w.Inventory().Instances {
		x := &w.Inventory().Instances[i]
		if len(x.Addresses) == 0 {
			h.things, h.of = append(h.things, thing{name: x.Name, labels: x.Labels, owned: true}), append(h.of, i)
		}
		for _, a := range x.Addresses {
			h.things, h.of = append(h.things, thing{name: x.Name, labels: x.Labels, owned: true, addr: a}), append(h.of, i)
		}
	}
	for i := range cells {
		h.things, h.of = append(h.things, thing{addr: cells[i].Addr, domain: nameOf(cells[i].Domain)}), append(h.of, -1)
	}
	e := verdict.New(w)
	end := func(x *thing) model.End {
		if x.addr.IsValid() {
			return model.End{Addr: x.addr}
		}
		return model.End{Workload: x.name}
	}
	for i := range h.things {
		for j := range h.things {
			a, b := &h.things[i], &h.things[j]
			if a.domain != "" || a.owned && a.name == b.name || !a.owned && !b.owned || a.addr.IsValid() && b.addr.IsValid() && a.addr.Is4() != b.addr.Is4() {
				continue
			}
			if !a.addr.IsValid() && b.addr.IsValid() != a.addr.IsValid() && b.owned || a.addr.IsValid() && !b.addr.IsValid() && a.owned {
				continue // a name would choose the address
			}
			var out [2][]bool
			for k := range out {
				out[k] = make([]bool, len(probes))
			}
			any := false
			for k, p := range probes {
				if _, always := essential.Match(p.Proto, p.Lo); always {
					continue
				}
				var best [2]model.Verdict
				for _, process := range processes {
					v, err := e.Judge(&model.Flow{
						From: end(a), To: end(b), Proto: p.Proto, Port: p.Lo, ToDomain: b.domain, FromProcess: process, ToProcess: process,
					})
					if err != nil {
						t.Fatal(err)
					}
					if strings.HasPrefix(string(v.Egress.Rule), "essential/") || strings.HasPrefix(string(v.Ingress.Rule), "essential/") {
						continue
					}
					best[0], best[1] = max(best[0], v.Egress.Verdict), max(best[1], v.Ingress.Verdict)
				}
				out[0][k], out[1][k] = min(best[0], best[1]) == model.Allow, min(best[0], best[1]) != model.Deny
				any = any || out[1][k]
			}
			if any {
				h.passes[[2]int{i, j}] = out
			}
		}
	}
	return h
}

// shortest returns the hops of the shortest way that the guardrail forbids; 0 for none.
func (h *hopsOf) shortest(docs *model.Documents, g *model.Guardrail, a aim, within []bool) int {
	next, last := make([][]int, len(h.things)), map[[2]int]bool{}
	for pair, list := range h.passes {
		if !slices.Contains(list[a], true) {
			continue
		}
		next[pair[0]] = append(next[pair[0]], pair[1])
		for k, in := range within {
			if in && list[a][k] {
				last[pair] = true
			}
		}
	}
	target := make([]bool, len(h.things))
	places := map[int][]int{} // by workload
	type state struct{ at, start int }
	var level []state
	for i := range h.things {
		x := &h.things[i]
		target[i] = meansFigure(docs, g.To, x.labels, x.owned, x.addr, x.domain, nil)
		if h.of[i] >= 0 {
			places[h.of[i]] = append(places[h.of[i]], i)
		}
		if x.domain == "" && meansFigure(docs, g.From, x.labels, x.owned, x.addr, "", nil) {
			level = append(level, state{i, h.end(i)})
		}
	}
	// A way may not end where it began. Of all ways to a workload, two that began elsewhere than one another are enough.
	seen := make([][]int, len(h.things))
	for hops := 1; len(level) > 0; hops++ {
		var then []state
		for _, s := range level {
			for _, to := range next[s.at] {
				if target[to] && h.end(to) != s.start && last[[2]int{s.at, to}] {
					return hops
				}
				if h.of[to] < 0 || len(seen[to]) == 2 || slices.Contains(seen[to], s.start) {
					continue
				}
				for _, i := range places[h.of[to]] { // goes on from any of its addresses
					seen[i] = append(seen[i], s.start)
					then = append(then, state{i, s.start})
				}
			}
		}
		level = then
	}
	return 0
}

// end numbers the ends: all addresses of a workload are one.
func (h *hopsOf) end(i int) int {
	if h.of[i] >= 0 {
		return h.of[i]
	}
	return -1 - i
}

// TestManyHopsOverEverything compares ways over classes of everything that could exist with those in a list of everything.
func TestManyHopsOverEverything(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 6
	}
	held, recorded, broken, long := 0, 0, 0, 0
	for seed := range seeds {
		docs, processes := generateSmall(seed+1000), everyProcess[:1]
		if seed%2 == 1 {
			docs, processes = generateMore(seed+1000), everyProcess
		}
		for i := range docs.Guardrails {
			g := &docs.Guardrails[i]
			g.Via = model.ViaAny
			for _, list := range [][]model.Peer{g.From, g.To} {
				for k := range list {
					list[k].Process = nil // TestManyHopsAgree asks about those
				}
			}
		}
		empty, err := compile.Compile(docs, &model.Inventory{}, compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		s := newSpace(empty)
		if len(s.cells) > 6 {
			continue // the list would be too long
		}
		full, err := compile.Compile(docs, everywhere(docs, s.cells), compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		var probes []model.PortRange
		for _, p := range s.cuts.pieces {
			if p.Proto == model.ProtoAny {
				p = model.PortRange{Proto: 47}
			}
			probes = append(probes, model.PortRange{Proto: p.Proto, Lo: p.Lo, Hi: p.Lo})
		}
		list := judgeAll(t, full, s.cells, probes, processes)
		for i, got := range Guardrails(empty) {
			g := &docs.Guardrails[i]
			ports := s.cuts.set(portsOf(docs, g.On))
			within := make([]bool, len(probes))
			for k := range within {
				within[k] = ports[k/64]&(1<<(k%64)) != 0
			}
			allow, would := list.shortest(docs, g, allowed, within), list.shortest(docs, g, passing, within)
			if got.Undecided != "" || got.TodayOnly || got.Holds != (allow == 0) || got.Holds && got.Enforced != (would == 0) {
				t.Fatalf("seed %d, %s: %+v (%s), but by the list the shortest ways have %d and %d hops", seed, g.Name, got, got.Why(), allow, would)
			}
			switch {
			case !got.Holds:
				broken++
				if allow > 1 {
					long++
				}
				if n := max(1, len(got.Counterexample.Hops)); n != allow {
					t.Fatalf("seed %d, %s: a way of %d hops, the shortest has %d: %s", seed, g.Name, n, allow, got.Counterexample)
				}
			case !got.Enforced:
				recorded++
			default:
				held++
			}
		}
	}
	if !testing.Short() && (held < 10 || recorded < 2 || broken < 20 || long < 2) {
		t.Errorf("%d held, %d only recorded, %d broken, %d of them over several hops: too few of something", held, recorded, broken, long)
	}
}
