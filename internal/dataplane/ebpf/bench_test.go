package ebpf

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

var benchRounds = flag.Int("dataplane.rounds", 0, "rounds of TestOverhead; 0 skips it")

// withPeers is a policy in which everybody may talk to everybody, by a row of its own for each of n addresses.
func withPeers(n int) *hostpolicy.Policy {
	p := &hostpolicy.Policy{Host: "h"}
	f := cells(
		cell("any", model.Deny, model.RuleDefaultDeny), cell("tcp/0-9999", model.Deny, model.RuleDefaultDeny),
		cell("tcp/10000-65535", model.Allow, "p/high"), cell("udp", model.Allow, "p/udp"),
	)
	t := hostpolicy.Table{Funcs: []hostpolicy.Func{cells(cell("any", model.Deny, model.RuleDefaultDeny)), f}}
	add := func(a netip.Addr, id model.IdentityID) {
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(a, 32), Identity: id})
		t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: id, Func: 1})
	}
	for i, a := range []string{dataplanetest.Near4, dataplanetest.Far4} {
		add(netip.MustParseAddr(a), model.IdentityID(i+1))
	}
	for i := range n {
		add(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), model.IdentityID(i+100))
	}
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	set := hostpolicy.PolicySet{Ingress: t, Egress: t}
	set.ID = set.ContentID()
	p.Sets = []hostpolicy.PolicySet{set}
	p.Subjects = []hostpolicy.Subject{
		{Workload: "h", Identity: 10, Set: set.ID, Isolation: set.ID},
		{Workload: "h/a", Unit: "a", Identity: 11, Set: set.ID, Isolation: set.ID},
	}
	return p
}

// detachAll takes the programs out, attachAll puts them back.
func (d *Dataplane) detachAll(t testing.TB) {
	t.Helper()
	for name, l := range d.links {
		if err := l.Unpin(); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		delete(d.links, name)
	}
}

func (d *Dataplane) attachAll(t testing.TB) {
	t.Helper()
	for _, a := range attachments {
		if err := d.attach(a); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOverhead times what policy costs: rounds of one configuration after the other, in changing order, because the
// machine is never quiet. The figure of a configuration is the 20th percentile over the rounds of each round's median.
func TestOverhead(t *testing.T) {
	if *benchRounds == 0 {
		t.Skip("run with -dataplane.rounds=15")
	}
	bed := dataplanetest.NewBed(t)
	d := bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) }).(*Dataplane)
	ctx, cancel := context.WithCancel(t.Context())
	events, done := 0, make(chan error)
	go func() { done <- d.Events(ctx, func(*dataplane.Event) { events++ }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		t.Logf("%d events", events)
	}()
	far, near := bed.StartFar(), bed.Start("one")
	near.ServeMeasures(dataplanetest.Near4, 20000)
	far.ServeMeasures(dataplanetest.Far4, 20000)
	units := map[string][]string{"a": {bed.Unit("one")}}
	apply := func(n int) {
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: withPeers(n), Units: units}); err != nil {
			t.Fatal(err)
		}
	}
	type config struct {
		name   string
		begin  func()
		client bool // the client is the end that is judged
	}
	attached := func(n int) func() { return func() { d.attachAll(t); apply(n) } }
	configs := []config{
		{"none, client", func() { d.detachAll(t) }, true},
		{"client, 10 peers", attached(10), true},
		{"client, 100000 peers", attached(100_000), true},
		{"none, server", func() { d.detachAll(t) }, false},
		{"server, 10 peers", attached(10), false},
		{"server, 100000 peers", attached(100_000), false},
	}
	times := map[string]map[dataplanetest.Measure][]time.Duration{}
	for round := range *benchRounds {
		for i := range configs {
			c := configs[(i+round)%len(configs)]
			c.begin()
			if times[c.name] == nil {
				times[c.name] = map[dataplanetest.Measure][]time.Duration{}
			}
			for _, m := range dataplanetest.Measures {
				var took time.Duration
				if c.client {
					took = near.Measure(m, dataplanetest.Far4, 20000, 120*time.Millisecond)
				} else {
					took = far.Measure(m, dataplanetest.Near4, 20000, 120*time.Millisecond)
				}
				times[c.name][m] = append(times[c.name][m], took)
			}
		}
	}
	d.attachAll(t)
	figure := func(name string, m dataplanetest.Measure) time.Duration {
		all := times[name][m]
		sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
		return all[len(all)/5]
	}
	for _, m := range dataplanetest.Measures {
		for _, c := range configs {
			base := "none, server"
			if c.client {
				base = "none, client"
			}
			fmt.Printf("%-17s %-22s %10v  %.3f\n", m, c.name, figure(c.name, m),
				float64(figure(c.name, m))/float64(figure(base, m)))
		}
	}
}

// BenchmarkApply times a policy of n peers, all of them new, and the change of one address among them.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		d, _ := openForTest(b, nil)
		b.Run(fmt.Sprintf("all/%d", n), func(b *testing.B) {
			policies := []*hostpolicy.Policy{withPeers(n), withPeers(0)}
			for i := range 2 * b.N {
				if i%2 == 1 {
					b.StopTimer()
				}
				if _, err := d.Apply(b.Context(), &dataplane.State{Policy: policies[i%2]}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("one of/%d", n), func(b *testing.B) {
			p := withPeers(n)
			for i := range b.N {
				p.Addresses[0].Identity = model.IdentityID(100 + i%2)
				if _, err := d.Apply(b.Context(), &dataplane.State{Policy: p}); err != nil {
					b.Fatal(err)
				}
			}
		})
		if err := d.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIsolate times isolating a host whose connections are open, and lifting it again.
func BenchmarkIsolate(b *testing.B) {
	d, bed := openForTest(b, nil)
	lab := newLab(bed)
	if _, err := d.Apply(b.Context(), &dataplane.State{Policy: withPeers(1000)}); err != nil {
		b.Fatal(err)
	}
	lab.near.MustDial("tcp4", lab.allowed.Addr)
	for b.Loop() {
		for _, on := range []bool{true, false} {
			if err := d.Isolate(b.Context(), "h", on); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkJudge times the slow path in the kernel: a verdict from identities and rows.
func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		d, _ := openForTest(b, nil)
		if _, err := d.Apply(b.Context(), &dataplane.State{Policy: withPeers(n)}); err != nil {
			b.Fatal(err)
		}
		p := newProber(b, d)
		p.ask(&hostpolicy.Packet{
			Workload: "h", Dir: model.Egress, Local: netip.MustParseAddr(dataplanetest.Near4),
			Remote: netip.MustParseAddr(dataplanetest.Far4), Proto: model.ProtoTCP, Port: 20000,
		})
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			if _, err := p.p.Run(&ebpf.RunOptions{Data: packet, Repeat: uint32(b.N)}); err != nil {
				b.Fatal(err)
			}
		})
		if err := d.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestProgramTimes prints how long each program takes and how often it runs for one repetition of each measure.
func TestProgramTimes(t *testing.T) {
	if *benchRounds == 0 {
		t.Skip("run with -dataplane.rounds=15")
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Skip(err)
	}
	defer stats.Close()
	d, bed := openForTest(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Events(ctx, func(*dataplane.Event) {}) }()
	far, near := bed.StartFar(), bed.Start("one")
	near.ServeMeasures(dataplanetest.Near4, 20000)
	far.ServeMeasures(dataplanetest.Far4, 20000)
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: withPeers(1000), Units: units}); err != nil {
		t.Fatal(err)
	}
	type sum struct {
		runs uint64
		took time.Duration
	}
	read := func() map[string]sum {
		all := map[string]sum{}
		for name, p := range d.programs {
			s, err := p.Stats()
			if err != nil {
				t.Fatal(err)
			}
			all[name] = sum{s.RunCount, s.Runtime}
		}
		return all
	}
	for _, m := range dataplanetest.Measures {
		for _, client := range []bool{true, false} {
			best := map[string]time.Duration{}
			for range *benchRounds {
				before := read()
				if client {
					near.Measure(m, dataplanetest.Far4, 20000, 60*time.Millisecond)
				} else {
					far.Measure(m, dataplanetest.Near4, 20000, 60*time.Millisecond)
				}
				for name, after := range read() {
					if n := after.runs - before[name].runs; n > 20 {
						each := (after.took - before[name].took) / time.Duration(n)
						if best[name] == 0 || each < best[name] {
							best[name] = each
						}
					}
				}
			}
			fmt.Printf("%-17s client %-5v %v\n", m, client, best)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
