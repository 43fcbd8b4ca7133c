package compile_test

import (
	"fmt"
	"maps"
	"slices"
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
	kept := blocksKept{}
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
					kept.check(t, what, d.Addresses)
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
		kept.same(t)
	}
	t.Logf("%d deltas, %d without, %d also among all; slots of identities were freed %d times", drawn, quiet, each, recycled)
	if drawn < 100 || quiet < 100 || each < 10 || recycled < 10 || kept.again < 20 {
		t.Errorf("too few; %d blocks were shared", kept.again)
	}
}

// blocksKept are blocks of deltas, with what was in them when they were drawn.
type blocksKept struct {
	blocks map[*hostpolicy.Block]hostpolicy.Block
	again  int // that several deltas had in common
}

// check holds a delta to what its type promises.
func (k *blocksKept) check(t *testing.T, what string, d *hostpolicy.AddressDelta) {
	t.Helper()
	if k.blocks == nil {
		k.blocks = map[*hostpolicy.Block]hostpolicy.Block{}
	}
	if d == nil {
		return
	}
	entries, keys := 0, map[any]bool{}
	once := func(key any) {
		if keys[key] {
			t.Fatalf("%s: %v is twice in a delta", what, key)
		}
		keys[key] = true
	}
	for _, list := range [2][]*hostpolicy.Block{d.Upsert, d.Remove} {
		for _, b := range list {
			if entries += b.Len(); b.Len() == 0 {
				t.Fatalf("%s: an empty block", what)
			}
			if !slices.IsSortedFunc(b.Addresses, func(x, y hostpolicy.Address) int { return hostpolicy.CompareAddresses(&x, &y) }) ||
				!slices.IsSortedFunc(b.Ports, func(x, y hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&x, &y) }) {
				t.Fatalf("%s: a block is out of order: %v", what, b)
			}
			if _, known := k.blocks[b]; known {
				k.again++
			} else {
				k.blocks[b] = hostpolicy.Block{Addresses: slices.Clone(b.Addresses), Ports: slices.Clone(b.Ports)}
			}
		}
		for a := range hostpolicy.Addresses(list) {
			once(a.Prefix)
		}
		for o := range hostpolicy.Ports(list) {
			once([3]any{o.Addr, o.Proto, o.Port})
		}
	}
	if d.Len() != entries {
		t.Fatalf("%s: a delta of %d entries has %d", what, d.Len(), entries)
	}
}

// same reports blocks that have changed since, and forgets them.
func (k *blocksKept) same(t *testing.T) {
	t.Helper()
	for b, was := range k.blocks {
		if !slices.Equal(b.Addresses, was.Addresses) || !slices.Equal(b.Ports, was.Ports) {
			t.Fatalf("a block of a delta was %v, and is %v after later changes", was, *b)
		}
	}
	clear(k.blocks)
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
