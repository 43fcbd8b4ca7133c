package ebpf

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

var (
	benchRounds = flag.Int("dataplane.rounds", 0, "rounds of TestProgramTimes; 0 skips it")
	benchOnly   = flag.String("dataplane.measure", "", "the one measure that it makes, instead of all")
)

func measures() []dataplanetest.Measure {
	if *benchOnly != "" {
		return []dataplanetest.Measure{dataplanetest.Measure(*benchOnly)}
	}
	return dataplanetest.Measures
}

// overheadLab is two hosts, one of which has a dataplane.
type overheadLab struct {
	d         *Dataplane
	near, far *dataplanetest.Process
}

// newOverheadLab makes a lab whose policy has so many peers.
func newOverheadLab(t *testing.T, peers int) *overheadLab {
	d, bed := openForTest(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Events(ctx, func(*dataplane.Event) {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: dataplanetest.PeersPolicy(peers), Units: units}); err != nil {
		t.Fatal(err)
	}
	return serveMeasures(&overheadLab{d: d, near: bed.Start("one"), far: bed.StartFar()})
}

func serveMeasures(l *overheadLab) *overheadLab {
	l.near.ServeMeasures(dataplanetest.Near4, 20000)
	l.far.ServeMeasures(dataplanetest.Far4, 20000)
	return l
}

func (l *overheadLab) measure(m dataplanetest.Measure, client bool) (each time.Duration, n int) {
	const length = 50 * time.Millisecond
	if client {
		return l.near.Measure(m, dataplanetest.Far4, 20000, length)
	}
	return l.far.Measure(m, dataplanetest.Near4, 20000, length)
}

// BenchmarkApply times a policy of n peers, all of them new, and the change of one address among them.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		d, _ := openForTest(b, nil)
		b.Run(fmt.Sprintf("all/%d", n), func(b *testing.B) {
			policies := []*hostpolicy.Policy{dataplanetest.PeersPolicy(n), dataplanetest.PeersPolicy(0)}
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
			p := dataplanetest.PeersPolicy(n)
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
	if _, err := d.Apply(b.Context(), &dataplane.State{Policy: dataplanetest.PeersPolicy(1000)}); err != nil {
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

// BenchmarkCut times a policy that denies n live connections, which are reset when it returns.
func BenchmarkCut(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		d, bed := openForTest(b, nil)
		lab := newLab(bed)
		allow, deny := &dataplane.State{Policy: onePort(lab.allowed.Port())}, &dataplane.State{Policy: onePort(1)}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				if _, err := d.Apply(b.Context(), allow); err != nil {
					b.Fatal(err)
				}
				many := lab.near.DialMany("tcp4", lab.allowed.Addr, n)
				b.StartTimer()
				st, err := d.Apply(b.Context(), deny)
				if err != nil || st.Reset != n {
					b.Fatalf("%+v, %v", st, err)
				}
				b.StopTimer()
				many.Close()
				b.StartTimer()
			}
		})
		if err := d.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJudge times the slow path in the kernel: a verdict from identities and rows.
func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		d, _ := openForTest(b, nil)
		if _, err := d.Apply(b.Context(), &dataplane.State{Policy: dataplanetest.PeersPolicy(n)}); err != nil {
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

// TestProgramTimes prints, for one repetition of each measure, how often each program runs and how long that takes: the
// shortest of many rounds, less what an empty program takes, which is the measurement itself.
func TestProgramTimes(t *testing.T) {
	if *benchRounds == 0 {
		t.Skip("run with -dataplane.rounds=15")
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Skip(err)
	}
	defer stats.Close()
	l := newOverheadLab(t, 1000)
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	at, err := link.AttachCgroup(link.CgroupOptions{Path: l.d.cfg.CgroupRoot, Attach: ebpf.AttachCGroupInetEgress, Program: empty})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	programs := maps.Clone(l.d.programs)
	programs["empty"] = empty
	type cost struct{ runs, each float64 } // for one repetition, and of one run in nanoseconds
	read := func() map[string]cost {
		all := map[string]cost{}
		for name, p := range programs {
			s, err := p.Stats()
			if err != nil {
				t.Fatal(err)
			}
			all[name] = cost{float64(s.RunCount), float64(s.Runtime)}
		}
		return all
	}
	for _, m := range measures() {
		for _, client := range []bool{true, false} {
			best := map[string]cost{}
			for range *benchRounds {
				before := read()
				_, n := l.measure(m, client)
				for name, after := range read() {
					runs, took := after.runs-before[name].runs, after.each-before[name].each
					if c := best[name]; runs > float64(n)/2 && runs > 20 && (c.each == 0 || took/runs < c.each) {
						best[name] = cost{runs / float64(n), took / runs}
					}
				}
			}
			base, total := best["empty"].each, 0.0
			fmt.Printf("%s, judged at the %s (an empty program: %.0f ns):\n", m, map[bool]string{true: "client", false: "server"}[client], base)
			for _, name := range slices.Sorted(maps.Keys(best)) {
				if name != "empty" {
					c := best[name]
					total += c.runs * (c.each - base)
					fmt.Printf("  %-24s %5.2f runs of %5.0f ns\n", strings.TrimPrefix(name, "bulkhead_"), c.runs, c.each-base)
				}
			}
			fmt.Printf("  %-24s %5.0f ns\n", "in all", total)
		}
	}
}
