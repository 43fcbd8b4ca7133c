package compile_test

import (
	"fmt"
	"maps"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
)

// TestDeltasOnDemand draws, after each of many random changes, the deltas of a few hosts only and asks for the hashes of a
// few others: what nobody asked for in between must not be missing from what they are told.
func TestDeltasOnDemand(t *testing.T) {
	seeds, steps := uint64(60), 40
	if testing.Short() {
		seeds = 15
	}
	drawn, quiet, each, recycled := 0, 0, 0, 0
	for seed := range seeds {
		m := newMutator(1000 + seed)
		live, err := compile.NewLive(m.docs, m.inventory(), compile.Options{Now: m.now})
		if err != nil {
			t.Fatal(err)
		}
		for k := range steps {
			what := fmt.Sprintf("seed %d, step %d", seed, k)
			caughtUp := live.Recycled()
			before := map[string]*hostpolicy.Policy{}
			for range 3 {
				if hosts := live.Hosts(); len(hosts) > 0 {
					h := choose(m.Rand, hosts)
					before[h], _ = live.HostPolicy(h)
				}
			}
			docs, now, inst := m.docs, m.now, maps.Clone(m.inst)
			changes, err := live.Apply(m.step())
			if err != nil {
				m.docs, m.now, m.inst = docs, now, inst
				continue
			}
			if live.Recycled() > caughtUp {
				recycled++
			}
			deltas := map[string]*hostpolicy.Delta{}
			for h := range before {
				deltas[h] = changes.Delta(h)
			}
			if m.IntN(4) == 0 { // drawn alone or among all, a delta is the same
				for d := range changes.Each {
					if _, asked := before[d.Host]; asked {
						each++
						if one := deltas[d.Host]; one == nil || one.Base != d.Base || one.Result != d.Result {
							t.Fatalf("%s, host %s: %+v alone, %+v among all", what, d.Host, one, d)
						}
					}
				}
			}
			for h, was := range before {
				is, ok := live.HostPolicy(h)
				d := deltas[h]
				switch {
				case !ok:
					if d != nil {
						t.Fatalf("%s: a delta for host %s, which left", what, h)
					}
				case d == nil:
					quiet++
					if is.Hash() != was.Hash() {
						t.Fatalf("%s: no delta for host %s, which is told something else", what, h)
					}
				default:
					drawn++
					got, err := was.Patch(d)
					if err != nil || d.Base != was.Hash() || d.Result != is.Hash() || !equalPolicies(got, is) {
						t.Fatalf("%s, host %s: the delta leads elsewhere: %v\ngot  %+v\nwant %+v", what, h, err, got, is)
					}
				}
			}
			if hosts := live.Hosts(); len(hosts) > 0 {
				h := choose(m.Rand, hosts)
				p, _ := live.HostPolicy(h)
				if hash, _ := live.HostHash(h); hash != p.Hash() {
					t.Fatalf("%s, host %s: hash %s, want %s", what, h, hash.Short(), p.Hash().Short())
				}
			}
		}
	}
	t.Logf("%d deltas, %d without, %d also among all; slots of identities were freed %d times", drawn, quiet, each, recycled)
	if drawn < 100 || quiet < 100 || each < 10 || recycled < 10 {
		t.Error("too few")
	}
}

// TestChangesAreOfTheLatest: deltas that are asked for too late are an error of the program, not wrong ones.
func TestChangesAreOfTheLatest(t *testing.T) {
	m := newMutator(1)
	live, err := compile.NewLive(m.docs, m.inventory(), compile.Options{Now: m.now})
	if err != nil {
		t.Fatal(err)
	}
	first, err := live.Apply(&compile.Change{Now: m.now})
	if err != nil {
		t.Fatal(err)
	}
	if first.Len() != 0 {
		t.Errorf("%d hosts are told something although nothing changed", first.Len())
	}
	if _, err := live.Apply(&compile.Change{Now: m.now}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("changes were read after the next Apply")
		}
	}()
	first.Len()
}
