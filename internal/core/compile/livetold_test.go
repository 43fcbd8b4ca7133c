package compile_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
)

// TestToldAndOutline: a controller that draws nothing in between, but keeps what it is told of addresses, knows at any time
// what hosts lack: the rest follows from two outlines. Now and then it begins with a new Live, of which nobody has asked
// anything yet.
func TestToldAndOutline(t *testing.T) {
	seeds, steps := uint64(60), 40
	if testing.Short() {
		seeds = 15
	}
	type follower struct {
		outline *hostpolicy.Policy // of what it holds
		holds   *hostpolicy.Policy
		deltas  []*hostpolicy.AddressDelta
	}
	drawn, several, quiet, renewed := 0, 0, 0, 0
	kept := blocksKept{}
	for seed := range seeds {
		m := newMutator(5000 + seed)
		live, err := compile.NewLive(m.docs, m.inventory(), compile.Options{Now: m.now})
		if err != nil {
			t.Fatal(err)
		}
		held := map[string]*follower{}
		take := func(h string) {
			f := &follower{}
			f.holds, _ = live.HostPolicy(h)
			f.outline, _, _ = live.HostOutline(h)
			held[h] = f
		}
		for _, h := range live.Hosts() {
			take(h)
		}
		for k := range steps {
			what := fmt.Sprintf("seed %d, step %d", seed, k)
			docs, now, inst := m.docs, m.now, maps.Clone(m.inst)
			changes, err := live.Apply(m.step())
			if err != nil {
				m.docs, m.now, m.inst = docs, now, inst
				continue
			}
			for _, h := range changes.Left {
				delete(held, h)
			}
			for _, h := range changes.Joined {
				take(h)
			}
			early := map[string]bool{}
			for h, f := range held { // some are asked for ahead of the others
				if m.IntN(4) == 0 && !slices.Contains(changes.Joined, h) {
					early[h] = true
					if a, told := changes.Told(h); told {
						f.deltas = append(f.deltas, a)
					}
				}
			}
			for h, a := range changes.EachTold {
				kept.check(t, what, a)
				if again, told := changes.Told(h); !told || again != a {
					t.Fatalf("%s: host %s is told something else when it is asked for alone", what, h)
				}
				if !early[h] {
					held[h].deltas = append(held[h].deltas, a)
				}
			}
			if m.IntN(10) == 0 {
				renewed++
				if live, err = compile.NewLive(m.docs, m.inventory(), compile.Options{Now: m.now}); err != nil {
					t.Fatal(err)
				}
				continue
			}
			for _, h := range slices.Sorted(maps.Keys(held)) {
				f := held[h]
				if m.IntN(6) > 0 && k < steps-1 {
					continue
				}
				outline, sum, _ := live.HostOutline(h)
				want, _ := live.HostPolicy(h)
				if want.Hash() != sum {
					t.Fatalf("%s: host %s has outline %s, want %s", what, h, sum.Short(), want.Hash().Short())
				}
				if len(f.deltas) == 0 {
					quiet++
					if f.holds.Hash() != sum {
						t.Fatalf("%s: host %s should have something else, and was not told", what, h)
					}
					continue
				}
				drawn++
				if len(f.deltas) > 1 {
					several++
				}
				s := hostpolicy.Between(f.outline, outline)
				list := slices.DeleteFunc(slices.Clone(f.deltas), func(a *hostpolicy.AddressDelta) bool { return a == nil })
				d := &hostpolicy.Delta{Host: h, Subjects: s.Subjects, GoneSubjects: s.GoneSubjects, GoneSets: s.GoneSets,
					Addresses: hostpolicy.JoinAddresses(list), Domains: s.Domains, DomainsChanged: s.DomainsChanged}
				got, err := f.holds.Patch(d)
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range s.Sets {
					set, ok := live.HostSet(h, x.ID)
					if !ok || set.ID != x.ID {
						t.Fatalf("%s: host %s has no set %x", what, h, x.ID)
					}
					got.Sets = append(got.Sets, set)
				}
				slices.SortFunc(got.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
				if !equalPolicies(got, want) {
					t.Fatalf("%s: host %s, after %d changes:\ngot  %+v\nwant %+v", what, h, len(f.deltas), got, want)
				}
				f.holds, f.outline, f.deltas = want, outline, nil
			}
		}
		kept.same(t)
	}
	t.Logf("%d steps drawn, %d of them over several changes, %d hosts had nothing to draw, %d new worlds", drawn, several, quiet, renewed)
	if min(drawn, several, quiet, renewed) < 50 {
		t.Error("too few")
	}
	live, err := compile.NewLive(newMutator(1).docs, newMutator(1).inventory(), compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := live.HostOutline("nobody"); ok {
		t.Error("a host that is not there has an outline")
	}
	if _, ok := live.HostSet("nobody", 1); ok {
		t.Error("a host that is not there has a set")
	}
	if _, ok := live.HostSet(live.Hosts()[0], 1); ok || live.Functions() == 0 {
		t.Error("a set that nobody has")
	}
}
