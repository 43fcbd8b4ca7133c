package world

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// used returns the processor time of the thread: others may be at work on the machine. It includes the help with collecting
// garbage that is asked of who makes it.
func used(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// large is a world of an estate, whose hosts all have agents that hold what they should.
type large struct {
	*World
	b        *testing.B
	reports  []inventory.Report
	docs     *model.Documents
	revision uint64
	poked    int
}

// newLarge makes a world of an estate: its hosts and units are reported, its devices declared.
func newLarge(b *testing.B, size estate.Size) *large {
	docs, inv := estate.Make(size)
	docs.Workloads = nil
	l := &large{b: b}
	for i := range inv.Instances {
		switch inst := &inv.Instances[i]; {
		case inst.IsUnit():
			docs.Workloads = append(docs.Workloads, model.Workload{
				Meta: model.Meta{Name: inst.Name, Labels: inst.Labels}, Managed: true, Unit: &model.Unit{Host: inst.Host, Name: inst.Unit},
			})
			r := &l.reports[len(l.reports)-1]
			for _, at := range inst.Listening {
				r.Listeners = append(r.Listeners, inventory.ListenerReport{Unit: inst.Unit, Listener: at})
			}
		case !inst.Managed:
			docs.Workloads = append(docs.Workloads, model.Workload{Meta: model.Meta{Name: inst.Name, Labels: inst.Labels}, Addresses: inst.Addresses})
		default:
			l.reports = append(l.reports, inventory.Report{Host: inst.Name, Labels: inst.Labels, Addresses: inst.Addresses})
		}
	}
	l.docs = docs
	l.World = New(Config{Now: func() time.Time { return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC) }}, slog.New(slog.DiscardHandler))
	stored := l.documents()
	start := used(b)
	if err := l.Load(stored, l.reports, nil); err != nil {
		b.Fatal(err)
	}
	b.Logf("loaded in %v", (used(b) - start).Round(time.Millisecond))
	for i := range l.reports {
		host := l.reports[i].Host
		l.Watch(host, func() { l.poked++ })
		l.Wanted(host)
	}
	return l
}

// documents returns the present ones as the store gives them: parsed anew.
func (l *large) documents() *Documents {
	l.revision++
	d, err := NewDocuments(l.revision, fmt.Sprint(l.revision), string(policy.Marshal(l.docs)))
	if err != nil {
		l.b.Fatal(err)
	}
	return d
}

// took is how long the parts of changes of one kind took.
type took struct{ ready, drawn, told, agents []time.Duration }

// follow makes a change and draws for the host that it is about, then tells all others.
func (l *large) follow(t *took, host string, change func() (begin time.Duration)) {
	l.poked = 0
	has := l.Draw(host, l.Wanted(host)).Want
	begin := change()
	l.compiling.Lock()
	if err := l.advance(l.changes(), nil); err != nil {
		l.b.Fatal(err)
	}
	l.compiling.Unlock()
	t.ready = append(t.ready, used(l.b)-begin)
	d := l.Draw(host, has)
	t.drawn = append(t.drawn, used(l.b)-begin)
	l.spread()
	t.told = append(t.told, used(l.b)-begin)
	t.agents = append(t.agents, time.Duration(l.poked))
	if d.Step == nil {
		l.b.Fatalf("%s is sent the whole policy", host)
	}
}

func (l *large) report(of func(*inventory.Report), samples int) (t took) {
	for k := range samples {
		r := &l.reports[(k*7919+5)%len(l.reports)]
		of(r)
		l.follow(&t, r.Host, func() time.Duration {
			begin := used(l.b)
			l.SetReport(*r)
			return begin
		})
	}
	return t
}

// scratch is what a change cost before policy followed changes: everything is compiled, and then the policy of a host drawn.
func (l *large) scratch(samples int) (t took) {
	for k := range samples {
		begin := used(l.b)
		w, err := l.inputs(l.World.docs.Parsed).compile()
		if err != nil {
			l.b.Fatal(err)
		}
		t.ready = append(t.ready, used(l.b)-begin)
		p, _ := w.HostPolicy(l.reports[(k*7919+5)%len(l.reports)].Host)
		p.Hash()
		t.drawn = append(t.drawn, used(l.b)-begin)
	}
	t.told, t.agents = t.ready, []time.Duration{time.Duration(len(l.reports))}
	return t
}

func at(list []time.Duration, percent int) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[min(len(list)*percent/100, len(list)-1)]
}

// BenchmarkChange prints the processor time that it takes from a change of the world until what it means for any host can be drawn, until it
// has been drawn for the host that it is about, and until every agent that it concerns has been told to draw; beside what
// compiling everything from scratch takes. All hosts have agents; documents are parsed anew.
func BenchmarkChange(b *testing.B) {
	for _, size := range []estate.Size{
		{Workloads: 10_000, LabelSets: 1_000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(size.String(), func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			l := newLarge(b, size)
			for b.Loop() {
				l.measure()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func (l *large) measure() {
	show := func(kind string, t took) {
		ms := func(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/1e6) }
		l.b.Logf("%-26s n %4d  ready %9s %9s  drawn %9s %9s  told %9s %9s ms (p50, p99)  agents told %6d (p50)", kind, len(t.ready),
			ms(at(t.ready, 50)), ms(at(t.ready, 99)), ms(at(t.drawn, 50)), ms(at(t.drawn, 99)), ms(at(t.told, 50)), ms(at(t.told, 99)), int(at(t.agents, 50)))
	}
	n := 200
	port := uint16(20_000)
	show("report: another port", l.report(func(r *inventory.Report) {
		port++
		r.Listeners = append(slices.Clone(r.Listeners), inventory.ListenerReport{Listener: model.Listener{Proto: model.ProtoTCP, Port: port}})
	}, n))
	show("report: another address", l.report(func(r *inventory.Report) {
		port++
		a := r.Addresses[0].As4()
		r.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, a[1]&0xf0 | 14, byte(port >> 8), byte(port)})}
	}, n))
	var hold, lift took
	for k := range n {
		host := l.reports[(k*104_729+11)%len(l.reports)].Host
		l.follow(&hold, host, func() time.Duration {
			begin := used(l.b)
			l.SetLease(inventory.Lease{Workload: host, Level: model.QuarantineIsolate})
			return begin
		})
		l.follow(&lift, host, func() time.Duration {
			begin := used(l.b)
			l.DropLease(host)
			return begin
		})
	}
	show("quarantine", hold)
	show("quarantine lifted", lift)
	var rule took
	for k := range n / 10 {
		p := &l.docs.Policies[(k*31+3)%len(l.docs.Policies)]
		r := slices.IndexFunc(p.Rules, func(r model.Rule) bool { return strings.Contains(r.From[0].Workloads.String(), "role") })
		port++
		p.Rules = slices.Clone(p.Rules)
		p.Rules[r].On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}}}
		docs := l.documents()
		host := l.meantBy(&p.Rules[r])
		l.follow(&rule, host, func() time.Duration {
			begin := used(l.b)
			l.mu.Lock()
			l.World.docs = docs
			l.changed()
			l.mu.Unlock()
			return begin
		})
	}
	show("a rule changes its port", rule)
	show("everything from scratch", l.scratch(5))
}

// meantBy returns a host that the rule is about.
func (l *large) meantBy(r *model.Rule) string {
	for i := range l.reports {
		if r.From[0].Workloads.Matches(l.reports[i].Labels) {
			return l.reports[i].Host
		}
	}
	return l.reports[0].Host
}
