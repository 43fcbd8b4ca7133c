package compile_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle/full"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/portmap"
	"bulkhead/internal/corpus"
)

// losslessly compares, for some workloads of a world at every address, their policy sets with those written out in full
// by the oracle: over all peers that there are, all protocols and ports and all kinds of process, not by sampling. So is
// what a kernel is given of it, and what the evaluator reads. It returns how many verdicts it has compared.
func losslessly(t *testing.T, w *compile.World, name string, some func() bool) (verdicts int) {
	t.Helper()
	all := full.Write(w)
	index := map[model.IdentityID]int32{0: compile.None}
	for i := range int32(w.Identities()) {
		index[w.IdentityID(i)] = i
	}
	compare := func(what string, got, want *hostpolicy.PolicySet) {
		t.Helper()
		seen := restrict(got, all)
		if x := seen.Differs(want); x != nil {
			t.Fatalf("%s, %s: compressed and in full: %s", name, what, x)
		}
		lowered := lowered(seen)
		if x := lowered.Differs(want); x != nil {
			t.Fatalf("%s, %s: lowered and in full: %s", name, what, x)
		}
	}
	inv := w.Inventory()
	for i := range inv.Instances {
		inst := &inv.Instances[i]
		if !inst.Managed || !some() {
			continue
		}
		wl := w.Workload(inst.Name)
		for k := range wl.Points {
			at := &wl.Points[k]
			want, n := all.Set(inst, at.Addr)
			verdicts += n
			compare(inst.Name+" at "+at.Addr.String(), w.PolicySet(at), want)
			if seat, shared := w.FindAddr(at.Addr); seat != nil && !shared {
				evaluated(t, w, seat, want, all, index)
			}
		}
		p, ok := w.HostPolicy(inst.Host)
		if !ok {
			continue
		}
		s := slices.IndexFunc(p.Subjects, func(s hostpolicy.Subject) bool { return s.Workload == inst.Name })
		want, n := all.Isolation(inst)
		verdicts += n
		compare(inst.Name+" isolated", p.Set(p.Subjects[s].Isolation), want)
	}
	return verdicts
}

// restrict leaves out the rows of peers that nobody is, and gives those that have none the default's.
func restrict(s *hostpolicy.PolicySet, all *full.Written) *hostpolicy.PolicySet {
	out := &hostpolicy.PolicySet{}
	for _, d := range model.Directions {
		t := s.Table(d)
		r := out.Table(d)
		r.Funcs = t.Funcs
		peers := all.Peers(d)
		for _, p := range t.Peers {
			if _, ok := slices.BinarySearch(peers, p.Peer); ok {
				r.Peers = append(r.Peers, p)
			}
		}
		if len(peers) > 0 && peers[0] == 0 {
			continue
		}
		// Every address is in some network, so nobody is judged by the default alone.
		r.Funcs = append([]hostpolicy.Func{{{Ports: model.AnyPort}}}, t.Funcs...)
		r.Peers = nil
		for _, id := range peers {
			i, ok := slices.BinarySearchFunc(t.Peers, id, func(p hostpolicy.PeerFunc, id model.IdentityID) int {
				if p.Peer < id {
					return -1
				} else if p.Peer > id {
					return 1
				}
				return 0
			})
			fn := uint32(0)
			if ok {
				fn = t.Peers[i].Func
			}
			r.Peers = append(r.Peers, hostpolicy.PeerFunc{Peer: id, Func: fn + 1})
		}
	}
	return out
}

// lowered returns the set as the entries that a kernel is given say it.
func lowered(s *hostpolicy.PolicySet) *hostpolicy.PolicySet {
	out := &hostpolicy.PolicySet{}
	for _, d := range model.Directions {
		t, r := s.Table(d), out.Table(d)
		r.Peers = t.Peers
		for _, f := range t.Funcs {
			r.Funcs = append(r.Funcs, portmap.Raise(&f[0], portmap.Lower(f)))
		}
	}
	return out
}

// decide answers one question about the policy set of a seat.
func decide(w *compile.World, at *compile.Seat, d model.Direction, peer int32, proto model.Proto, port uint16, process *model.Process) model.EndVerdict {
	var q compile.Question
	w.Ask(&q, at, d, peer)
	w.Look(&q)
	return w.Settle(&q, proto, port, process)
}

// evaluated compares what the evaluator's form says with the set in full.
func evaluated(t *testing.T, w *compile.World, at *compile.Seat, want *hostpolicy.PolicySet, all *full.Written, index map[model.IdentityID]int32) {
	t.Helper()
	for _, d := range model.Directions {
		table := want.Table(d)
		compare := func(peer model.IdentityID, f hostpolicy.Func) {
			for _, c := range f {
				proto := c.Ports.Proto
				if proto == model.ProtoAny {
					proto = 253
				}
				if got, want := decide(w, at, d, index[peer], proto, c.Ports.Hi, nil), c.For(nil); got != want {
					t.Fatalf("evaluator: %s with %s on %s: %v, want %v", d, peer, c.Ports, got, want)
				}
				for i := range c.When {
					a := &c.When[i]
					if got := decide(w, at, d, index[peer], proto, c.Ports.Lo, &a.Process); got != (model.EndVerdict{Verdict: a.Verdict, Rule: a.Rule}) {
						t.Fatalf("evaluator: %s with %s on %s for %s: %v, want %v", d, peer, c.Ports, &a.Process, got, a)
					}
				}
			}
		}
		if peers := all.Peers(d); len(peers) > 0 && peers[0] == 0 {
			compare(0, table.Funcs[0])
		}
		for _, p := range table.Peers {
			compare(p.Peer, table.Funcs[p.Func])
		}
	}
}

// wantVerdicts is how many verdicts of generated worlds are compared.
const wantVerdicts, wantVerdictsShort = 2_000_000, 150_000

// TestCompressionIsLossless holds the compressed form, the evaluator's, the kernel's and that of a live world to the
// oracle, over every verdict of some workloads of generated worlds.
func TestCompressionIsLossless(t *testing.T) {
	want := wantVerdicts
	if testing.Short() {
		want = wantVerdictsShort
	}
	verdicts, worlds := 0, 0
	for seed := uint64(0); verdicts < want; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		r := rand.New(rand.NewPCG(seed, 1))
		o := compile.Options{Now: policytest.Now, Controllers: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(256))}), 443)}}
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatal(err)
		}
		live, err := compile.NewLive(docs, inv, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range w.Hosts() {
			a, _ := w.HostPolicy(host)
			if b, ok := live.HostPolicy(host); !ok || a.Hash() != b.Hash() {
				t.Fatalf("seed %d: the live world gives host %s another policy", seed, host)
			}
		}
		verdicts += losslessly(t, w, fmt.Sprintf("seed %d", seed), func() bool { return r.IntN(12) == 0 })
		worlds++
	}
	t.Logf("%d verdicts in %d worlds", verdicts, worlds)
}

// TestCompressionIsLosslessOnCorpus is the same for every workload of every case of the corpus.
func TestCompressionIsLosslessOnCorpus(t *testing.T) {
	cases, verdicts := 0, 0
	err := filepath.WalkDir("../../corpus/testdata", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".txtar" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		c, err := corpus.Parse(path, data)
		if err != nil {
			return err
		}
		world, err := c.World()
		if err != nil {
			return nil // a case of documents that are refused
		}
		w, err := compile.Compile(world.Docs, world.Inventory, world.Options)
		if err != nil {
			return nil
		}
		if n := losslessly(t, w, path, func() bool { return true }); n > 0 {
			cases++
			verdicts += n
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if cases < 200 {
		t.Errorf("only %d cases with a workload", cases)
	}
	t.Logf("%d verdicts in %d cases", verdicts, cases)
}
