package apply_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/tinydisk"
)

// TestFullDisk is about policy and isolation that come while there is no room: they hold, that is told, and they are kept
// as soon as there is room.
func TestFullDisk(t *testing.T) {
	tinydisk.Run(t, 256<<10, func(t *testing.T, d *tinydisk.Disk) {
		h := &host{dp: agenttest.NewDataplane()}
		h.Applier = apply.New(apply.Config{Host: "node-1", Dir: d.Dir, Keep: 5 * time.Millisecond}, h.dp, slog.New(slog.DiscardHandler), h.problems.Report)
		h.set(t, agenttest.Policy(1, "db.service"))
		d.Fill()
		h.set(t, agenttest.Policy(2, "db.service"))
		if err := h.Isolate(t.Context(), "node-1/db.service", true, apply.ByHost, nothing); err != nil {
			t.Fatal(err)
		}
		if h.Current().Policy.Revision != 2 || !h.dp.IsIsolated("node-1/db.service") {
			t.Errorf("in force: revision %d, isolated %v", h.Current().Policy.Revision, h.Isolated())
		}
		problems := strings.Join(h.problems.List(), "\n")
		for _, want := range []string{
			"revision 2 is in force but could not be kept on disk", "isolation is in force but could not be kept on disk", "no space left on device",
		} {
			if !strings.Contains(problems, want) {
				t.Errorf("problems %q do not say %q", problems, want)
			}
		}
		// What was there is still whole.
		if again, err := start(t, d.Dir, agenttest.NewDataplane(), nil); err != nil || again.Current().Policy.Revision != 1 {
			t.Errorf("a restart finds %v, %v; want revision 1", again.Current(), err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		time.Sleep(30 * time.Millisecond) // it tries, and there is still no room
		if len(h.problems.List()) != 2 {
			t.Errorf("problems %v", h.problems.List())
		}
		d.Free()
		for deadline := time.Now().Add(time.Minute); len(h.problems.List()) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("problems %v although there is room", h.problems.List())
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		again, err := start(t, d.Dir, agenttest.NewDataplane(), nil)
		if err != nil || again.Current().Policy.Revision != 2 || !slices.Equal(again.Isolated(), []string{"node-1/db.service"}) {
			t.Errorf("a restart finds %v, isolated %v, %v; want revision 2 and the isolation", again.Current(), again.Isolated(), err)
		}
	})
}
