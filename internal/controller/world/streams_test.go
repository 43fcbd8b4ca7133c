package world_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// stream is what the stream of an agent does: it looks when it is poked, and takes what it is sent.
type stream struct {
	host  string
	poked chan struct{}

	mu    sync.Mutex
	holds *hostpolicy.Policy
	has   *world.Outline
	steps int
	whole int
}

func newStream(host string) *stream { return &stream{host: host, poked: make(chan struct{}, 1)} }

func (s *stream) poke() {
	select {
	case s.poked <- struct{}{}:
	default:
	}
}

// look brings the agent to what it should have.
func (s *stream) look(w *world.World) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := w.Wanted(s.host)
	if want == nil {
		return nil
	}
	if s.holds != nil && want.Sum == s.has.Sum {
		s.has = want
		return nil
	}
	d := w.Draw(s.host, s.has)
	var err error
	if d.Step != nil {
		s.steps++
		s.holds, err = wire.ApplyDelta(s.holds, wire.StepToProto(d.Step))
	} else {
		s.whole++
		s.holds = d.Whole
	}
	if err != nil {
		return err
	}
	if sum := s.holds.Hash(); sum != d.Want.Sum {
		return fmt.Errorf("host %s holds %s and should hold %s", s.host, sum.Short(), d.Want.Sum.Short())
	}
	s.has = d.Want
	return nil
}

func (s *stream) sum() hostpolicy.Hash {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds == nil {
		return hostpolicy.Hash{}
	}
	return s.holds.Hash()
}

// TestStreamsWhileTheWorldChanges is about many streams that draw while changes are compiled: all agents end where the world
// does, and none of them needs the whole policy a second time.
func TestStreamsWhileTheWorldChanges(t *testing.T) {
	const hosts = 200
	var reports []inventory.Report
	for i := range hosts {
		reports = append(reports, report(fmt.Sprintf("h-%d", i), []string{"web", "db"}[i%2], fmt.Sprintf("10.0.1.%d", i)))
	}
	w := load(t, world.Config{Coalesce: time.Millisecond, Rest: time.Millisecond}, documents(t, 1, basic), reports)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	streams := make([]*stream, hosts)
	for i := range streams {
		s := newStream(fmt.Sprintf("h-%d", i))
		streams[i] = s
		wg.Go(func() {
			defer w.Watch(s.host, s.poke)()
			for s.poke(); ; {
				select {
				case <-ctx.Done():
					return
				case <-s.poked:
				}
				if err := s.look(w); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for k := range 100 {
		i := k * 37 % hosts
		switch k % 5 {
		case 0, 1:
			w.SetReport(report(fmt.Sprintf("h-%d", i), []string{"db", "web"}[i%2], fmt.Sprintf("10.0.2.%d", i)))
		case 2:
			w.SetLease(inventory.Lease{Workload: fmt.Sprintf("h-%d", i), Level: model.QuarantineIsolate})
		case 3:
			w.SetReport(report(fmt.Sprintf("new-%d", k), "db", fmt.Sprintf("10.0.3.%d", k)))
		case 4:
			c, err := w.Try(documents(t, 0, strings.ReplaceAll(basic, "5432", fmt.Sprint(1000+k))))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Adopt(c, uint64(2+k)); err != nil {
				t.Fatal(err)
			}
		}
		w.Wanted(fmt.Sprintf("h-%d", (i+1)%hosts)) // somebody else asks too
	}
	flush(t, w)
	deadline := time.Now().Add(time.Minute)
	for _, s := range streams {
		for w.Wanted(s.host).Sum != s.sum() {
			if time.Now().After(deadline) {
				t.Fatalf("the agent of %s does not end where the world does", s.host)
			}
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	wg.Wait()
	steps := 0
	for _, s := range streams {
		if steps += s.steps; s.whole != 1 {
			t.Errorf("%s was sent the whole policy %d times", s.host, s.whole)
		}
	}
	if steps < hosts {
		t.Errorf("%d steps only", steps)
	}
}

// TestAnAgentThatIsFarBehind: what an agent missed is kept for a while and no longer; after that it is sent everything, and
// goes on from there.
func TestAnAgentThatIsFarBehind(t *testing.T) {
	w := load(t, world.Config{}, documents(t, 1, basic), []inventory.Report{report("db-1", "db", "10.0.0.2"), report("web-1", "web", "10.0.0.1")})
	s := newStream("db-1")
	stop := w.Watch(s.host, s.poke)
	look := func() {
		t.Helper()
		if err := s.look(w); err != nil {
			t.Fatal(err)
		}
	}
	missed := 0
	miss := func(n int) {
		for range n {
			missed++
			w.SetReport(report("web-1", "web", fmt.Sprintf("10.1.%d.%d", missed/250, missed%250)))
			flush(t, w)
		}
	}
	look()
	miss(100)
	look()
	if s.whole != 1 || s.steps != 1 {
		t.Errorf("after 100 changes: %d times everything, %d steps", s.whole, s.steps)
	}
	stop() // and it is back before it is forgotten
	miss(100)
	stop = w.Watch(s.host, s.poke)
	look()
	if s.whole != 1 || s.steps != 2 {
		t.Errorf("after 100 changes while it was away: %d times everything, %d steps", s.whole, s.steps)
	}
	miss(1000)
	look()
	if s.whole != 2 || s.steps != 2 {
		t.Errorf("after 1000 changes: %d times everything, %d steps", s.whole, s.steps)
	}
	miss(1)
	look()
	if s.whole != 2 || s.steps != 3 {
		t.Errorf("after one more: %d times everything, %d steps", s.whole, s.steps)
	}
	stop()
	miss(1000)
	defer w.Watch(s.host, s.poke)()
	look()
	if s.whole != 3 || s.steps != 3 {
		t.Errorf("after 1000 changes while it was away: %d times everything, %d steps", s.whole, s.steps)
	}
}

// TestStreamsWaitForTheirReport: a stream is poked when there is a snapshot that has its host's report, although that says
// nothing new, or changes nothing.
func TestStreamsWaitForTheirReport(t *testing.T) {
	w := load(t, world.Config{}, documents(t, 1, basic), []inventory.Report{report("web-1", "web", "10.0.0.1"), report("db-1", "db", "10.0.0.2")})
	s := newStream("web-1")
	defer w.Watch(s.host, s.poke)()
	w.SetReport(report("db-1", "db", "10.0.0.3")) // somebody else's change waits
	if since := w.SetReport(report("web-1", "web", "10.0.0.1")); !w.Snapshot().Has(since) {
		t.Error("what was said before waits for a snapshot")
	}
	since := w.SetReport(report("web-1", "web", "10.0.0.1", "127.0.0.1")) // which means nothing
	if w.Snapshot().Has(since) {
		t.Error("the snapshot has what came after it")
	}
	for len(s.poked) > 0 {
		<-s.poked
	}
	if flush(t, w); !w.Snapshot().Has(since) || len(s.poked) == 0 {
		t.Error("nobody tells the stream that the snapshot is there")
	}
}

// TestWhatCannotBeCompiledChangesNothing is about a report that policy cannot be compiled for: the peers of a workload are on
// more ports than fit.
func TestWhatCannotBeCompiledChangesNothing(t *testing.T) {
	var yaml strings.Builder
	yaml.WriteString(basic)
	yaml.WriteString("---\napiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: many}\nspec:\n  rules:\n")
	for k := range 60 {
		fmt.Fprintf(&yaml, "    - {name: r-%d, allow: {from: \"app=shop\", to: \"role=many\", on: [", k)
		for p := range 100 {
			fmt.Fprintf(&yaml, "tcp/%d, ", 1+(k*100+p)*3)
		}
		yaml.WriteString("udp/1]}}\n")
	}
	w := load(t, world.Config{}, documents(t, 1, yaml.String()), []inventory.Report{report("web-1", "web", "10.0.0.1"), report("db-1", "db", "10.0.0.2")})
	s := newStream("web-1")
	defer w.Watch(s.host, s.poke)()
	if err := s.look(w); err != nil {
		t.Fatal(err)
	}
	before, sum := w.Snapshot(), w.Wanted("web-1").Sum
	w.SetReport(report("many-1", "many", "10.0.0.3"))
	if err := w.Flush(); err == nil {
		t.Fatal("it compiles")
	}
	w.SetReport(report("db-1", "db", "10.0.0.4")) // waits, too
	if err := w.Flush(); err == nil {
		t.Fatal("it compiles")
	}
	if w.Snapshot() != before || w.Wanted("web-1").Sum != sum || w.Wanted("many-1") != nil {
		t.Error("something has changed")
	}
	w.DropReport("many-1")
	if flush(t, w); w.Snapshot().Instance("db-1").Addresses[0].String() != "10.0.0.4" {
		t.Error("what waited is lost")
	}
	if err := s.look(w); err != nil {
		t.Fatal(err)
	}
	if s.whole != 1 || s.steps != 1 {
		t.Errorf("%d times everything, %d steps", s.whole, s.steps)
	}
}
