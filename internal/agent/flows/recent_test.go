package flows

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

func TestRecentSumsUpWhatIsSeen(t *testing.T) {
	a := newAggregator("node", 10, newProcesses())
	open := event(dataplane.EventOpen, 100)
	a.add(open, 1)
	end := event(dataplane.EventClose, 300)
	end.BytesSent, end.BytesReceived = 7, 9
	a.add(end, 1)
	denied := event(dataplane.EventDeny, 200)
	denied.Verdict, denied.Rule, denied.Count, denied.Workload = model.Deny, model.RuleDefaultDeny, 5, ""
	a.add(denied, 1)
	a.take() // the end of the window is none of what is remembered
	a.add(denied, 1)

	passed := Seen{
		Workload: "api", Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2"), Dir: model.Egress,
		Proto: model.ProtoTCP, Port: 5432, Verdict: model.Allow, Rule: "p/r", Process: "app", UID: 7,
		Connections: 1, BytesSent: 7, BytesReceived: 9, First: time.UnixMilli(100), Last: time.UnixMilli(300), Sequence: 2,
	}
	dropped := passed
	dropped.Workload, dropped.Verdict, dropped.Rule, dropped.Connections = "node", model.Deny, model.RuleDefaultDeny, 10
	dropped.BytesSent, dropped.BytesReceived, dropped.First, dropped.Last, dropped.Sequence = 0, 0, time.UnixMilli(200), time.UnixMilli(200), 4
	for _, c := range []struct {
		since  uint64
		denied bool
		want   []Seen
	}{
		{0, false, []Seen{passed, dropped}},
		{0, true, []Seen{dropped}},
		{2, false, []Seen{dropped}},
		{4, false, nil},
	} {
		if diff := cmp.Diff(c.want, a.recent.Since(c.since, c.denied), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("since %d, denied %v (-want +got):\n%s", c.since, c.denied, diff)
		}
	}
}

// TestRecentIsBounded scans ports until what is remembered is full, and more.
func TestRecentIsBounded(t *testing.T) {
	r := newRecent(10)
	at := func(port uint16, v model.Verdict) {
		e := event(dataplane.EventOpen, int64(port))
		r.add(edge{workload: "api", port: port, verdict: v}, e)
	}
	at(443, model.Allow)
	for port := range uint16(1000) {
		at(port, model.Deny)
		at(5, model.WouldDeny) // asked for again and again, so it is not the oldest
	}
	got := r.Since(0, false)
	if len(got) != 11 || len(r.denied.edges) != 10 || len(r.passed.edges) != 1 || r.denied.order.Len() != 10 {
		t.Fatalf("%d remembered, of them %d denied", len(got), len(r.denied.edges))
	}
	if got[0].Port != 443 || got[0].Verdict != model.Allow {
		t.Errorf("the scan pushed out what passed: %+v", got[0])
	}
	last := got[len(got)-1]
	if last.Port != 5 || last.Verdict != model.WouldDeny || last.Connections != 1000 {
		t.Errorf("the last is %+v", last)
	}
	if p := got[1].Port; p != 991 {
		t.Errorf("the oldest denied is port %d, want 991", p)
	}
}
