package flows

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// source hands on the events of a channel.
type source chan *dataplane.Event

func (s source) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	for {
		select {
		case e := <-s:
			fn(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func event(kind dataplane.EventKind, ms int64) *dataplane.Event {
	return &dataplane.Event{
		Kind: kind, Time: time.UnixMilli(ms), Workload: "api", Dir: model.Egress, Proto: model.ProtoTCP, Port: 5432,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:5432"),
		Verdict: model.Allow, Rule: "p/r", Process: dataplane.Process{Name: "app", UID: 7},
	}
}

func TestEventsOfOneEdgeAreSummedUp(t *testing.T) {
	a := newAggregator("node", 10, newProcesses())
	opened := event(dataplane.EventOpen, 100)
	opened.BytesSent, opened.PacketsSent = 5, 1
	a.add(opened, 3)
	seen := event(dataplane.EventOpen, 90)
	seen.Existing = true
	a.add(seen, 3)
	again := event(dataplane.EventOpen, 120)
	again.Rejudged = true
	a.add(again, 4)
	for _, kind := range []dataplane.EventKind{dataplane.EventUpdate, dataplane.EventClose} {
		e := event(kind, 150)
		e.BytesSent, e.BytesReceived, e.PacketsRecv = 10, 20, 2
		e.Local = netip.MustParseAddrPort("10.0.0.1:40001") // another connection of the same edge
		a.add(e, 4)
	}
	got, lost := a.take()
	want := []*pb.FlowRecord{{
		Workload: "api", Direction: pb.Direction_DIRECTION_EGRESS, LocalAddr: []byte{10, 0, 0, 1}, RemoteAddr: []byte{10, 0, 0, 2},
		Proto: 6, Port: 5432, Process: &pb.FlowProcess{Name: "app", Uid: 7}, Verdict: pb.Verdict_VERDICT_ALLOW, Rule: "p/r",
		FirstMs: 90, LastMs: 150, Connections: 2, Existing: 1, BytesSent: 25, BytesReceived: 40, PacketsSent: 1, PacketsReceived: 4, Revision: 4,
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || lost != 0 {
		t.Errorf("%d lost, records (-want +got):\n%s", lost, diff)
	}
	if again, _ := a.take(); len(again) != 0 {
		t.Errorf("the next window begins with %v", again)
	}
}

func TestWithoutPolicyFlowsAreTheHosts(t *testing.T) {
	a := newAggregator("node", 10, newProcesses())
	e := event(dataplane.EventOpen, 1)
	e.Workload = ""
	a.add(e, 0)
	if got, _ := a.take(); len(got) != 1 || got[0].Workload != "node" {
		t.Errorf("records %v, want one of the host", got)
	}
}

func TestDeniedAttemptsAreCounted(t *testing.T) {
	a := newAggregator("node", 10, newProcesses())
	for _, n := range []uint64{0, 1, 7} {
		e := event(dataplane.EventDeny, 1)
		e.Verdict, e.Rule, e.Count = model.Deny, "default-deny", n
		a.add(e, 1)
	}
	got, _ := a.take()
	if len(got) != 1 || got[0].Connections != 9 || got[0].Verdict != pb.Verdict_VERDICT_DENY {
		t.Errorf("records %v, want one of 9 attempts", got)
	}
}

func TestEdgesThatDiffer(t *testing.T) {
	changes := map[string]func(*dataplane.Event){
		"workload":        func(e *dataplane.Event) { e.Workload = "web" },
		"direction":       func(e *dataplane.Event) { e.Dir = model.Ingress },
		"protocol":        func(e *dataplane.Event) { e.Proto = model.ProtoUDP },
		"port":            func(e *dataplane.Event) { e.Port = 1 },
		"local address":   func(e *dataplane.Event) { e.Local = netip.MustParseAddrPort("10.0.0.9:40000") },
		"remote address":  func(e *dataplane.Event) { e.Remote = netip.MustParseAddrPort("10.0.0.9:5432") },
		"remote workload": func(e *dataplane.Event) { e.RemoteWorkload = "db" },
		"verdict":         func(e *dataplane.Event) { e.Verdict = model.WouldDeny },
		"rule":            func(e *dataplane.Event) { e.Rule = "p/other" },
		"process":         func(e *dataplane.Event) { e.Process.Name = "curl" },
		"user":            func(e *dataplane.Event) { e.Process.UID = 0 },
	}
	for name, change := range changes {
		a := newAggregator("node", 10, newProcesses())
		a.add(event(dataplane.EventOpen, 1), 1)
		other := event(dataplane.EventOpen, 1)
		change(other)
		a.add(other, 1)
		if got, _ := a.take(); len(got) != 2 {
			t.Errorf("another %s: %d records, want 2", name, len(got))
		}
	}
	a := newAggregator("node", 10, newProcesses())
	a.add(event(dataplane.EventOpen, 1), 1)
	mapped := event(dataplane.EventOpen, 1)
	mapped.Remote = netip.MustParseAddrPort("[::ffff:10.0.0.2]:5432")
	a.add(mapped, 1)
	if got, _ := a.take(); len(got) != 1 {
		t.Errorf("an IPv4-mapped address makes %d records, want 1", len(got))
	}
}

func TestOverflowIsCounted(t *testing.T) {
	a := newAggregator("node", 4, newProcesses())
	for i := range 10 {
		e := event(dataplane.EventOpen, 1)
		e.Port = uint16(i)
		a.add(e, 1)
	}
	select {
	case <-a.full:
	default:
		t.Error("nobody was told that the window fills up")
	}
	got, lost := a.take()
	if len(got) != 4 || lost != 6 || a.lostEver() != 6 {
		t.Errorf("%d records and %d lost, want 4 and 6", len(got), lost)
	}
}

func TestProcessPath(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := newProcesses()
	if got := p.path(uint32(os.Getpid()), 0); got != exe {
		t.Errorf("path %q, want %q", got, exe)
	}
	if got := p.path(uint32(os.Getpid()), 1); got != "" {
		t.Errorf("a process that started at another time has path %q", got)
	}
	if got := p.path(1<<30, 0); got != "" {
		t.Errorf("a process that is not there has path %q", got)
	}
	for i := range uint32(3 * generation) {
		p.path(1<<30+i, 1)
	}
	if n := len(p.young) + len(p.old); n > 2*generation {
		t.Errorf("%d processes are remembered", n)
	}
}

func TestStartedAt(t *testing.T) {
	stat := []byte("42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1000 100 18446744073709551615")
	cases := []struct {
		start uint64
		want  bool
	}{{123_450_000_000, true}, {123_459_999_999, true}, {123_461_000_000, true}, {123_480_000_000, false}, {1, false}}
	for _, c := range cases {
		if got := startedAt(stat, c.start); got != c.want {
			t.Errorf("startedAt(%d) = %t", c.start, got)
		}
	}
	if startedAt([]byte("42 (x"), 5) {
		t.Error("a truncated line matches")
	}
}

func collector(t *testing.T, cfg Config, s Source) (*Collector, *Spool) {
	t.Helper()
	spool := open(t, t.TempDir(), 1<<20)
	return New(cfg, s, spool, func() uint64 { return 9 }, slog.New(slog.DiscardHandler), func(string, string) {}), spool
}

func TestWindowsAndBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(source)
		c, spool := collector(t, Config{Window: time.Second, MaxEdges: 100, MaxBatch: 3}, events)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for i := range 7 {
			e := event(dataplane.EventOpen, 1)
			e.Port = uint16(i)
			events <- e
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		var sizes []int
		for _, b := range all(t, spool) {
			sizes = append(sizes, len(b.Records))
		}
		if !slices.Equal(sizes, []int{3, 3, 1}) {
			t.Errorf("batches of %v, want 3, 3 and 1", sizes)
		}
		events <- event(dataplane.EventOpen, 2)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := all(t, spool); len(got) != 4 || got[3].Records[0].Revision != 9 {
			t.Errorf("%d batches after the end, want the rest of the window too", len(got))
		}
	})
}

func TestFullWindowEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(source)
		c, spool := collector(t, Config{Window: time.Hour, MaxEdges: 8, MaxBatch: 100}, events)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for i := range 40 {
			e := event(dataplane.EventOpen, 1)
			e.Port = uint16(i)
			events <- e
			synctest.Wait()
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range all(t, spool) {
			n += len(b.Records)
		}
		if n != 40 || c.Lost() != 0 {
			t.Errorf("%d records and %d lost, want all 40", n, c.Lost())
		}
	})
}

// failing fails at first and works later.
type failing struct {
	source
	failures atomic.Int32
}

func (f *failing) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	if f.failures.Add(-1) >= 0 {
		return errors.New("the ring is broken")
	}
	return f.source.Events(ctx, fn)
}

func TestSourceThatFailsIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &failing{source: make(source)}
		src.failures.Store(2)
		c, spool := collector(t, Config{Window: time.Second, MaxEdges: 8, MaxBatch: 8}, src)
		var problems []string
		c.report = func(key, text string) { problems = append(problems, fmt.Sprintf("%s=%s", key, text)) }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		src.source <- event(dataplane.EventOpen, 1)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(all(t, spool)) != 1 {
			t.Error("the event after the failures is missing")
		}
		if i := slices.Index(problems, "events="); i < 0 || !strings.Contains(problems[0], "ring is broken") {
			t.Errorf("problems %v: want the failure, then its end", problems)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	a := newAggregator("node", 1000, newProcesses())
	e := event(dataplane.EventUpdate, 1)
	e.Process.PID = uint32(os.Getpid())
	b.ReportAllocs()
	for b.Loop() {
		a.add(e, 1)
	}
}

func BenchmarkSpool(b *testing.B) {
	s, err := OpenSpool(filepath.Join(b.TempDir(), "spool"), 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	records := some(500)
	r := s.Reader()
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Append(records, 0); err != nil {
			b.Fatal(err)
		}
		batch, err := r.Next()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Ack(batch.Sequence); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/record")
}
