// Package rivals measures the dataplanes against what an expert does by hand: no policy at all, nftables with sets,
// iptables with one rule after the other and with ipset.
package rivals

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/dataplane/nft"
)

var (
	rounds = flag.Int("rivals.rounds", 0, "rounds of the measurements; 0 skips them")
	length = flag.Duration("rivals.length", 40*time.Millisecond, "how long a measure is repeated in one round")
)

func TestMain(m *testing.M) { dataplanetest.Main(m) }

// rival is a way to enforce PeersPolicy.
type rival struct {
	name  string
	peers int
	// install enforces it on the host on which it is called; nil: there is no policy.
	install func(t *testing.T, b *dataplanetest.Bed, far bool, peers int)
}

func contestants() []rival {
	return []rival{
		{"no policy", 0, nil},
		{"bulkhead eBPF", 10, dataplaneOf(openEBPF)},
		{"bulkhead eBPF", 100_000, dataplaneOf(openEBPF)},
		{"bulkhead nftables", 10, dataplaneOf(openNftables)},
		{"bulkhead nftables", 10_000, dataplaneOf(openNftables)},
		{"nftables, sets", 10, tool("nft -f -", nftSets)},
		{"nftables, sets", 100_000, tool("nft -f -", nftSets)},
		{"iptables, linear", 10, tool("iptables-legacy-restore", iptablesLinear)},
		{"iptables, linear", 1000, tool("iptables-legacy-restore", iptablesLinear)},
		{"iptables, ipset", 100_000, installIPSet},
	}
}

func openEBPF(at dataplanetest.Place) (dataplane.Dataplane, error) {
	cfg := ebpf.DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS = at.CgroupRoot, at.BPFFS
	return ebpf.Open(cfg)
}

func openNftables(dataplanetest.Place) (dataplane.Dataplane, error) {
	return nft.Open(nft.DefaultConfig())
}

// open opens a dataplane; its events are read, as an agent does.
func open(t testing.TB, b *dataplanetest.Bed, far bool, at func(dataplanetest.Place) (dataplane.Dataplane, error)) dataplane.Dataplane {
	on := b.Open
	if far {
		on = b.OpenFar
	}
	d := on(func(t testing.TB, place dataplanetest.Place) dataplane.Dataplane {
		d, err := at(place)
		if errors.Is(err, dataplane.ErrUnsupported) {
			dataplanetest.Cannot(t, "bpf", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Remove(); err != nil {
				t.Error(err)
			}
		})
		return d
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Events(ctx, func(*dataplane.Event) {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return d
}

func dataplaneOf(at func(dataplanetest.Place) (dataplane.Dataplane, error)) func(*testing.T, *dataplanetest.Bed, bool, int) {
	return func(t *testing.T, b *dataplanetest.Bed, far bool, peers int) {
		d := open(t, b, far, at)
		state := &dataplane.State{Policy: dataplanetest.PeersPolicy(peers)}
		if !far {
			state.Units = map[string][]string{"a": {b.Unit("one")}}
		}
		if _, err := d.Apply(t.Context(), state); err != nil {
			t.Fatal(err)
		}
	}
}

// tool feeds a ruleset to a program.
func tool(command string, ruleset func(int) string) func(*testing.T, *dataplanetest.Bed, bool, int) {
	return func(t *testing.T, b *dataplanetest.Bed, far bool, peers int) {
		feed(t, b, far, command, ruleset(peers))
	}
}

func installIPSet(t *testing.T, b *dataplanetest.Bed, far bool, peers int) {
	feed(t, b, far, "ipset restore", ipset(peers))
	feed(t, b, far, "iptables-legacy-restore", iptablesHead+iptablesSet)
}

// feed runs a command on a host and returns how long it took.
func feed(t testing.TB, b *dataplanetest.Bed, far bool, command, input string) time.Duration {
	t.Helper()
	words := strings.Fields(command)
	if _, err := exec.LookPath(words[0]); err != nil {
		dataplanetest.Cannot(t, "rivals", fmt.Errorf("%w; make bench-dataplane installs it", err))
	}
	var took time.Duration
	b.On(far, func() {
		c := exec.Command(words[0], words[1:]...)
		c.Stdin = strings.NewReader(input)
		start := time.Now()
		out, err := c.CombinedOutput()
		took = time.Since(start)
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	})
	return took
}

// ends are at which ends policy is enforced: at the one that opens flows, at the other, at both.
type ends struct {
	name      string
	near, far bool
	opens     bool // near is the end that opens
}

var allEnds = []ends{{"client", true, false, true}, {"server", true, false, false}, {"both", true, true, true}}

type lab struct{ near, far *dataplanetest.Process }

func newLab(t *testing.T, r rival, both bool) *lab {
	b := dataplanetest.NewBed(t)
	if r.install != nil {
		r.install(t, b, false, r.peers)
		if both {
			r.install(t, b, true, r.peers)
		}
	}
	l := &lab{b.Start("one"), b.StartFar()}
	l.near.ServeMeasures(dataplanetest.Near4, dataplanetest.MeasurePort)
	l.far.ServeMeasures(dataplanetest.Far4, dataplanetest.MeasurePort)
	return l
}

func (l *lab) measure(m dataplanetest.Measure, e ends) float64 {
	p, to := l.near, dataplanetest.Far4
	if !e.opens {
		p, to = l.far, dataplanetest.Near4
	}
	each, _ := p.Measure(m, to, dataplanetest.MeasurePort, *length)
	return float64(each)
}

// TestRivals times what each costs. The contestants take turns, round after round, because the machine is never quiet. A
// figure is the 20th percentile over the rounds of each round's 20th percentile. The ratio of a round is to the mean of two
// measurements without policy in the same round, one at its begin and one at its end; its median and quartiles over the
// rounds follow. "Noise" is what the same comparison gives for no policy.
func TestRivals(t *testing.T) {
	if *rounds == 0 {
		t.Skip("run make bench-dataplane")
	}
	all := contestants()
	labs := map[bool][]*lab{}
	for _, both := range []bool{false, true} {
		for _, r := range all {
			if both && r.install == nil {
				labs[both] = append(labs[both], labs[false][0])
				continue
			}
			labs[both] = append(labs[both], newLab(t, r, both))
		}
	}
	fmt.Printf("%-15s %-7s %-17s %8s %10s %7s  %s\n", "", "at", "", "peers", "time", "ratio", "median of the rounds [quartiles]")
	for _, m := range dataplanetest.Measures {
		for _, e := range allEnds {
			times := make([][]float64, len(all))
			ratios := make([][]float64, len(all))
			for range *rounds {
				var round []float64
				for _, l := range labs[e.far] {
					round = append(round, l.measure(m, e))
				}
				again := labs[e.far][0].measure(m, e)
				for i, took := range round {
					times[i] = append(times[i], took)
					ratios[i] = append(ratios[i], 2*took/(round[0]+again))
				}
				ratios[0][len(ratios[0])-1] = again / round[0]
				times[0] = append(times[0], again)
			}
			none := quantile(times[0], 0.2)
			for i, r := range all {
				each := quantile(times[i], 0.2)
				what := fmt.Sprintf("%.3f [%.3f %.3f]", quantile(ratios[i], 0.5), quantile(ratios[i], 0.25), quantile(ratios[i], 0.75))
				if i == 0 {
					what += " noise"
				}
				fmt.Printf("%-15s %-7s %-17s %8d %10v %7.3f  %s\n", m, e.name, r.name, r.peers, time.Duration(each), each/none, what)
			}
		}
	}
}

func quantile(all []float64, q float64) float64 {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[int(q*float64(len(all)-1))]
}

// TestRivalUpdates times loading many peers, and changing one of them afterwards: at best of several, with the start of
// the program for what is one.
func TestRivalUpdates(t *testing.T) {
	if *rounds == 0 {
		t.Skip("run make bench-dataplane")
	}
	const peers, times = 100_000, 7
	var b *dataplanetest.Bed
	best := func(once func() time.Duration) time.Duration {
		least := once()
		for range times - 1 {
			least = min(least, once())
		}
		return least
	}
	fmt.Printf("%-17s %8s %12s %12s\n", "", "peers", "load all", "change one")
	print := func(name string, peers int, load, change time.Duration) {
		fmt.Printf("%-17s %8d %12v %12v\n", name, peers, load.Round(100*time.Microsecond), change.Round(10*time.Microsecond))
	}

	var load, one time.Duration
	for _, own := range []struct {
		name  string
		at    func(dataplanetest.Place) (dataplane.Dataplane, error)
		peers int
	}{{"bulkhead eBPF", openEBPF, peers}, {"bulkhead nftables", openNftables, 10_000}} {
		d := open(t, dataplanetest.NewBed(t), false, own.at)
		policies := []*dataplane.State{{Policy: dataplanetest.PeersPolicy(0)}, {Policy: dataplanetest.PeersPolicy(own.peers)}}
		apply := func(s *dataplane.State) time.Duration {
			st, err := d.Apply(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			return st.Took
		}
		load = best(func() time.Duration { apply(policies[0]); return apply(policies[1]) })
		flip := 0
		one = best(func() time.Duration {
			flip++
			policies[1].Policy.Addresses[0].Identity = model.IdentityID(100 + flip%2)
			return apply(policies[1])
		})
		print(own.name, own.peers, load, one)
	}

	b = dataplanetest.NewBed(t)
	ruleset := nftSets(peers)
	load = best(func() time.Duration {
		feed(t, b, false, "nft flush ruleset", "")
		return feed(t, b, false, "nft -f -", ruleset)
	})
	one = best(func() time.Duration {
		feed(t, b, false, "nft add element ip fw peers { 12.0.0.1 }", "")
		return feed(t, b, false, "nft delete element ip fw peers { 12.0.0.1 }", "")
	})
	print("nftables, sets", peers, load, one)

	b = dataplanetest.NewBed(t)
	set := ipset(peers)
	first := true
	load = best(func() time.Duration {
		if !first {
			feed(t, b, false, "ipset destroy peers", "")
		}
		first = false
		return feed(t, b, false, "ipset restore", set)
	})
	one = best(func() time.Duration {
		feed(t, b, false, "ipset add peers 12.0.0.1", "")
		return feed(t, b, false, "ipset del peers 12.0.0.1", "")
	})
	print("iptables, ipset", peers, load, one)

	b = dataplanetest.NewBed(t)
	linear := iptablesLinear(1000)
	load = best(func() time.Duration { return feed(t, b, false, "iptables-legacy-restore", linear) })
	one = best(func() time.Duration {
		feed(t, b, false, "iptables-legacy -A INPUT -s 12.0.0.1 -j SERVICES", "")
		return feed(t, b, false, "iptables-legacy -D INPUT -s 12.0.0.1 -j SERVICES", "")
	})
	print("iptables, linear", 1000, load, one)
}

// TestRivalCuts times how long it takes from a call that denies connections until all of them have been reset at this end: at
// best of several. Rulesets by hand do not reset any.
func TestRivalCuts(t *testing.T) {
	if *rounds == 0 {
		t.Skip("run make bench-dataplane")
	}
	const times = 3
	fmt.Printf("%-17s %12s %12s\n", "", "connections", "cut")
	for _, own := range []struct {
		name string
		at   func(dataplanetest.Place) (dataplane.Dataplane, error)
	}{{"bulkhead eBPF", openEBPF}, {"bulkhead nftables", openNftables}} {
		b := dataplanetest.NewBed(t)
		d := open(t, b, false, own.at)
		near, far := b.Start("one"), b.StartFar()
		server := far.Listen("tcp4", fmt.Sprintf("%s:%d", dataplanetest.Far4, dataplanetest.MeasurePort))
		units := map[string][]string{"a": {b.Unit("one")}}
		allow, deny := dataplanetest.PeersPolicy(10), dataplanetest.PeersPolicy(10)
		deny.Addresses = slices.DeleteFunc(deny.Addresses, func(a hostpolicy.Address) bool {
			return a.Prefix.Addr() == netip.MustParseAddr(dataplanetest.Far4)
		})
		for _, n := range []int{1, 1000, 10_000} {
			least := time.Duration(math.MaxInt64)
			for range times {
				if _, err := d.Apply(t.Context(), &dataplane.State{Policy: allow, Units: units}); err != nil {
					t.Fatal(err)
				}
				many := near.DialMany("tcp4", server.Addr, n)
				st, err := d.Apply(t.Context(), &dataplane.State{Policy: deny, Units: units})
				if err != nil || st.Reset != n {
					t.Fatalf("%s, %d connections: %+v, %v", own.name, n, st, err)
				}
				least = min(least, st.Took)
				many.Close()
			}
			fmt.Printf("%-17s %12d %12v\n", own.name, n, least.Round(100*time.Microsecond))
		}
	}
}
