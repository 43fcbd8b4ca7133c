package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/status"
)

func TestGuard(t *testing.T) {
	dp, told := agenttest.NewDataplane(), 0
	var problems status.Problems
	g := &guard{dp: dp, log: slog.New(slog.DiscardHandler), report: problems.Report, tell: func() { told++ }}
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	step := func(after time.Duration, toldNow int, want ...string) {
		t.Helper()
		g.look(t.Context(), start.Add(after))
		got := problems.List()
		if len(got) != len(want) || told != toldNow {
			t.Fatalf("after %v: %q, told %d times", after, got, told)
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("after %v: %q does not say %q", after, got[i], want[i])
			}
		}
	}
	step(0, 0)
	dp.Tamper("rows had been changed", nil)
	step(time.Second, 1, "at 2026-11-29T12:00:01Z somebody with root's rights changed the dataplane; it was put back: rows had been changed")
	step(time.Minute, 1, "12:00:01Z")
	dp.Tamper("", errors.New("no bpffs"))
	step(2*time.Minute, 1, "could not be looked at or put back: no bpffs", "12:00:01Z")
	dp.Tamper("", nil)
	step(time.Hour, 1, "12:00:01Z")
	step(time.Hour+2*time.Second, 1)
	for i := range guardNames + 3 {
		dp.Tamper(fmt.Sprintf("thing %d", i), nil)
	}
	step(2*time.Hour, 2, "thing 7; and 3 more")
	if last := g.last.Load(); last == nil || !last.at.Equal(start.Add(2*time.Hour)) {
		t.Errorf("%+v", last)
	}
}
