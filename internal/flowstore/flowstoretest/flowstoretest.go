// Package flowstoretest holds what every flowstore.Store must do, as one suite that each implementation runs.
package flowstoretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
)

// Run runs the suite. Each test gets a store of its own from open, which closes it when the test ends. The store
// must keep sums for retention, and single windows for less than that.
func Run(t *testing.T, open func(t *testing.T, retention time.Duration) flowstore.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s flowstore.Store)
	}{
		{"EveryFieldComesBack", everyField},
		{"Empty", empty},
		{"Duplicates", duplicates},
		{"Ranges", ranges},
		{"SumsAreKept", sumsAreKept},
		{"LateRecords", lateRecords},
		{"Retention", retention},
		{"ErrorOfTheCaller", errorOfTheCaller},
		{"Concurrent", concurrent},
		{"EndedContext", endedContext},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t, keep)) })
	}
}

// keep is the retention that the suite asks for.
const keep = 10 * 24 * time.Hour

var now = time.Now().UTC().Truncate(time.Hour).Add(30 * time.Minute)

// Record returns a record of one connection at a time, from web-1 to db-1.
func Record(at time.Time) flowstore.Record {
	return flowstore.Record{
		Key: flowstore.Key{
			Host: "node-1", Direction: model.Egress, Workload: "web-1", Peer: "db-1",
			Source: netip.MustParseAddr("10.0.0.1"), Dest: netip.MustParseAddr("10.0.0.2"), Proto: model.ProtoTCP, Port: 5432,
			Process: "web", Path: "/usr/bin/web", UID: 33, Verdict: model.Allow, Rule: "shop/web-to-db",
		},
		Sums: flowstore.Sums{
			First: at, Last: at.Add(2 * time.Second), Connections: 1, BytesToServer: 100, BytesToClient: 2000,
			PacketsToServer: 3, PacketsToClient: 4,
		},
	}
}

func appendTo(t *testing.T, s flowstore.Store, sequence uint64, records ...flowstore.Record) flowstore.Appended {
	t.Helper()
	done, err := s.Append(t.Context(), []flowstore.Batch{{Host: "node-1", Instance: "a", Sequence: sequence, Records: records}})
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return done
}

func scan(t *testing.T, s flowstore.Store, since, until time.Time) []flowstore.Record {
	t.Helper()
	var list []flowstore.Record
	if err := s.Scan(t.Context(), since, until, func(r *flowstore.Record) error {
		list = append(list, *r)
		return nil
	}); err != nil {
		t.Fatalf("scan: %v", err)
	}
	slices.SortFunc(list, func(a, b flowstore.Record) int {
		return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Direction, b.Direction))
	})
	return list
}

func maintain(t *testing.T, s flowstore.Store, at time.Time) {
	t.Helper()
	if err := s.Maintain(t.Context(), at); err != nil {
		t.Fatalf("maintain: %v", err)
	}
}

func sum(list []flowstore.Record) (total flowstore.Sums) {
	for i := range list {
		total.Add(&list[i].Sums)
	}
	return total
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := gocmp.Diff(want, got, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// everyField stores records that differ in each field of the key, once as windows and once as sums.
func everyField(t *testing.T, s flowstore.Store) {
	base := Record(now.Add(-5 * 24 * time.Hour))
	var want []flowstore.Record
	add := func(change func(*flowstore.Record)) {
		r := base
		change(&r)
		r.First = base.First.Add(time.Duration(len(want)) * time.Millisecond) // to tell them apart
		want = append(want, r)
	}
	add(func(*flowstore.Record) {})
	add(func(r *flowstore.Record) { r.Direction = model.Ingress })
	add(func(r *flowstore.Record) { r.Workload = "web-2" })
	add(func(r *flowstore.Record) { r.Peer = "" })
	add(func(r *flowstore.Record) { r.Exact = true })
	add(func(r *flowstore.Record) { r.Source = netip.MustParseAddr("fd00::1") })
	add(func(r *flowstore.Record) { r.Dest = netip.MustParseAddr("0.0.0.0") })
	add(func(r *flowstore.Record) { r.Proto, r.Port = model.ProtoICMPv6, 65535 })
	add(func(r *flowstore.Record) { r.Process = "ünïcode\x00 \"" })
	add(func(r *flowstore.Record) { r.Path = "" })
	add(func(r *flowstore.Record) { r.UID = 1<<32 - 1 })
	add(func(r *flowstore.Record) { r.Verdict = model.Deny })
	add(func(r *flowstore.Record) { r.Verdict = model.WouldDeny })
	add(func(r *flowstore.Record) { r.Rule = "default-deny" })
	add(func(r *flowstore.Record) {
		r.Connections, r.Existing, r.BytesToServer, r.BytesToClient = 1<<40, 1<<39, 1<<50, 1<<51
		r.PacketsToServer, r.PacketsToClient, r.Port = 1<<41, 1<<42, 1
	})
	if done := appendTo(t, s, 1, want...); done.Records != len(want) {
		t.Errorf("appended %d records, want %d", done.Records, len(want))
	}
	diff(t, "windows", want, scan(t, s, time.Time{}, time.Time{}))
	maintain(t, s, now)
	diff(t, "sums", want, scan(t, s, time.Time{}, time.Time{}))
	st, err := s.Stats(t.Context())
	if err != nil || st.Recent+st.Hourly < int64(len(want)) || st.Oldest.After(base.Last) || st.Oldest.IsZero() {
		t.Errorf("stats %+v, %v", st, err)
	}
}

func empty(t *testing.T, s flowstore.Store) {
	maintain(t, s, now)
	if list := scan(t, s, time.Time{}, time.Time{}); len(list) != 0 {
		t.Errorf("an empty store returns %v", list)
	}
	if done := appendTo(t, s, 1); done.Records != 0 || done.Repeated != nil {
		t.Errorf("appending nothing: %+v", done)
	}
	st, err := s.Stats(t.Context())
	if err != nil || st != (flowstore.Stats{}) {
		t.Errorf("stats of an empty store: %+v, %v", st, err)
	}
	if _, err := s.Append(t.Context(), nil); err != nil {
		t.Errorf("append no batches: %v", err)
	}
}

func duplicates(t *testing.T, s flowstore.Store) {
	r := Record(now)
	appendTo(t, s, 1, r)
	appendTo(t, s, 5, r) // numbers may be left out
	for _, again := range []uint64{5, 1, 3, 0} {
		if done := appendTo(t, s, again, r); !slices.Equal(done.Repeated, []int{0}) || done.Records != 0 {
			t.Errorf("batch %d after 5: %+v, want a duplicate", again, done)
		}
	}
	done, err := s.Append(t.Context(), []flowstore.Batch{
		{Host: "node-1", Instance: "a", Sequence: 6, Records: []flowstore.Record{r}},
		{Host: "node-1", Instance: "a", Sequence: 6, Records: []flowstore.Record{r}},
		{Host: "node-1", Instance: "b", Sequence: 1, Records: []flowstore.Record{r}},
		{Host: "node-2", Instance: "a", Sequence: 1, Records: []flowstore.Record{r}},
	})
	if err != nil || done.Records != 3 || !slices.Equal(done.Repeated, []int{1}) {
		t.Errorf("another numbering: %+v, %v", done, err)
	}
	if got := sum(scan(t, s, time.Time{}, time.Time{})).Connections; got != 5 {
		t.Errorf("%d connections, want 5", got)
	}
}

func ranges(t *testing.T, s flowstore.Store) {
	var records []flowstore.Record
	for i := range 6 { // windows of two seconds, every ten seconds
		r := Record(now.Add(time.Duration(i) * 10 * time.Second))
		r.Port = uint16(i)
		records = append(records, r)
	}
	appendTo(t, s, 1, records...)
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	for round := range 2 {
		for _, c := range []struct {
			since, until time.Time
			want         []uint16
		}{
			{at(0), at(60), []uint16{0, 1, 2, 3, 4, 5}},
			{at(0), time.Time{}, []uint16{0, 1, 2, 3, 4, 5}},
			{at(12), at(30), []uint16{1, 2}}, // ends at 12: included; begins at 30: not
			{at(13), at(31), []uint16{2, 3}},
			{at(3), at(9), nil},
			{at(53), time.Time{}, nil},
			{at(-60), at(0), nil},
		} {
			var got []uint16
			for _, r := range scan(t, s, c.since, c.until) {
				got = append(got, r.Port)
			}
			diff(t, fmt.Sprintf("round %d, from %v to %v", round, c.since, c.until), c.want, got)
		}
		maintain(t, s, at(60)) // recent windows stay exact
	}
}

// sumsAreKept checks that what goes in comes out, however it is stored meanwhile.
func sumsAreKept(t *testing.T, s flowstore.Store) {
	const days, perDay = 5, 40
	var want flowstore.Sums
	sequence := uint64(0)
	for day := days; day >= 0; day-- {
		for i := range perDay {
			r := Record(now.Add(-time.Duration(day)*24*time.Hour - time.Duration(i)*7*time.Minute))
			r.Port = uint16(i % 3)
			want.Add(&r.Sums)
			sequence++
			appendTo(t, s, sequence, r)
		}
		maintain(t, s, now)
		if got := sum(scan(t, s, time.Time{}, time.Time{})); got != want {
			t.Fatalf("after day %d: %+v, want %+v", day, got, want)
		}
	}
	// The last day alone: what is older must not be in it, give or take the hour it begins in.
	got := sum(scan(t, s, now.Add(-24*time.Hour), time.Time{})).Connections
	if got < perDay || got > 2*perDay {
		t.Errorf("%d connections in the last day, want %d to %d", got, perDay, 2*perDay)
	}
}

// lateRecords appends what an agent had spooled for long, after the windows of that time are sums already.
func lateRecords(t *testing.T, s flowstore.Store) {
	old := now.Add(-48 * time.Hour)
	appendTo(t, s, 1, Record(old))
	maintain(t, s, now)
	appendTo(t, s, 2, Record(old.Add(time.Minute)))
	check := func() {
		t.Helper()
		if got := sum(scan(t, s, old.Add(-time.Hour), time.Time{})).Connections; got != 2 {
			t.Errorf("%d connections, want 2", got)
		}
		if got := scan(t, s, now.Add(-time.Hour), time.Time{}); len(got) != 0 {
			t.Errorf("late records are in the last hour: %v", got)
		}
	}
	check()
	maintain(t, s, now)
	check()
	maintain(t, s, now)
	check()
}

func retention(t *testing.T, s flowstore.Store) {
	appendTo(t, s, 1, Record(now.Add(-3*keep)))
	r := Record(now)
	r.Peer = "db-2"
	appendTo(t, s, 2, r)
	maintain(t, s, now.Add(-3*keep+time.Minute))
	maintain(t, s, now.Add(2*time.Hour)) // once more, later, for stores that clean up now and then
	list := scan(t, s, time.Time{}, time.Time{})
	if len(list) != 1 || list[0].Peer != "db-2" {
		t.Errorf("records after the retention: %v", list)
	}
	appendTo(t, s, 3, Record(now)) // what was forgotten may come again
	maintain(t, s, now.Add(2*time.Hour))
	if got := scan(t, s, time.Time{}, time.Time{}); len(got) != 2 {
		t.Errorf("%d records, want 2", len(got))
	}
}

func errorOfTheCaller(t *testing.T, s flowstore.Store) {
	appendTo(t, s, 1, Record(now), Record(now))
	stop := errors.New("stop")
	calls := 0
	err := s.Scan(t.Context(), time.Time{}, time.Time{}, func(*flowstore.Record) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("scan returned %v after %d calls, want the error of the caller after one", err, calls)
	}
}

func concurrent(t *testing.T, s flowstore.Store) {
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := Record(now.Add(time.Duration(i) * time.Second))
				b := flowstore.Batch{Host: fmt.Sprintf("node-%d", w), Sequence: uint64(i + 1), Records: []flowstore.Record{r}}
				if _, err := s.Append(t.Context(), []flowstore.Batch{b, b}); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 10 {
			if err := s.Maintain(t.Context(), now); err != nil {
				t.Errorf("maintain: %v", err)
			}
			scanErr := s.Scan(t.Context(), time.Time{}, time.Time{}, func(*flowstore.Record) error { return nil })
			if scanErr != nil {
				t.Errorf("scan: %v", scanErr)
			}
		}
	})
	wg.Wait()
	if got := sum(scan(t, s, time.Time{}, time.Time{})).Connections; got != writers*each {
		t.Errorf("%d connections, want %d", got, writers*each)
	}
}

func endedContext(t *testing.T, s flowstore.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(ctx, []flowstore.Batch{{Host: "h", Sequence: 1, Records: []flowstore.Record{Record(now)}}}); !errors.Is(err, context.Canceled) {
		t.Errorf("append with an ended context: %v", err)
	}
	if err := s.Scan(ctx, time.Time{}, time.Time{}, func(*flowstore.Record) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("scan with an ended context: %v", err)
	}
	if list := scan(t, s, time.Time{}, time.Time{}); len(list) != 0 {
		t.Errorf("an append that failed stored %v", list)
	}
}
