package flows_test

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/flowstore/fake"
)

// TestRecordedProcesses: a recorded flow says which executable it was, so that rules for some are judged as they were kept.
func TestRecordedProcesses(t *testing.T) {
	w := world.New(world.Config{}, slog.New(slog.DiscardHandler))
	if err := w.Load(nil, []inventory.Report{{Host: "a", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}, nil); err != nil {
		t.Fatal(err)
	}
	snapshot := w.Snapshot()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	store := &fake.Store{}
	record := func(port uint16, path string) flowstore.Record {
		return flowstore.Record{
			Key: flowstore.Key{
				Host: "a", Direction: model.Egress, Workload: "a", Source: netip.MustParseAddr("10.0.0.1"), Dest: netip.MustParseAddr("192.0.2.1"),
				Proto: model.ProtoTCP, Port: port, Process: "x", Path: path, Verdict: model.Allow,
			},
			Sums: flowstore.Sums{First: at, Last: at, Connections: 1},
		}
	}
	if _, err := store.Append(t.Context(), []flowstore.Batch{{Host: "a", Records: []flowstore.Record{record(80, "/usr/bin/x"), record(81, "")}}}); err != nil {
		t.Fatal(err)
	}
	i := flows.New(flows.Config{}, store, w.Snapshot, slog.New(slog.DiscardHandler))
	got, err := i.Recorded(t.Context(), at.Add(-time.Hour), snapshot)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, f := range got {
		switch {
		case f.From.Workload != "a" || f.ToProcess != nil:
			t.Errorf("got %+v", f)
		case f.Port == 80 && (f.FromProcess == nil || *f.FromProcess != model.Process{Path: "/usr/bin/x"}):
			t.Errorf("process %v", f.FromProcess)
		case f.Port == 81 && f.FromProcess != nil:
			t.Errorf("a process of which nothing is known: %v", f.FromProcess)
		}
	}
}
