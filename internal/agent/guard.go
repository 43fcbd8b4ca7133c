package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"bulkhead/internal/dataplane"
)

// guard sees to it that what the dataplane has put into the kernel stays as it is.
type guard struct {
	dp     dataplane.Dataplane
	log    *slog.Logger
	report func(key, text string)
	tell   func() // the controller, now

	last atomic.Pointer[tampering]
}

// tampering is what somebody else had changed in the kernel, and when that was found and put back.
type tampering struct {
	at    time.Time
	found string
}

const (
	// guardEvery is how often the guard looks. What is found is put back within a second.
	guardEvery = 500 * time.Millisecond
	// guardTells is for how long a problem tells of what was found.
	guardTells = time.Hour
	// guardNames is how many findings of one look are told; there may be one for each thing in the kernel.
	guardNames = 8
)

// Keys under which the guard reports.
const (
	problemTampered = "tampered"
	problemGuard    = "guard"
)

// run looks until ctx ends.
func (g *guard) run(ctx context.Context) error {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.look(ctx, time.Now())
		}
	}
}

func (g *guard) look(ctx context.Context, now time.Time) {
	found, err := g.dp.Repair(ctx)
	if ctx.Err() != nil {
		return
	}
	switch {
	case err != nil:
		g.log.Error("what is in the kernel could not be looked at or put back", "error", err)
		g.report(problemGuard, fmt.Sprintf("what is in the kernel could not be looked at or put back: %v", err))
	default:
		g.report(problemGuard, "")
	}
	if len(found) == 0 {
		if t := g.last.Load(); t != nil && now.Sub(t.at) > guardTells {
			g.report(problemTampered, "")
		}
		return
	}
	for _, what := range found {
		g.log.Warn("somebody changed the dataplane; it was put back", "found", what)
	}
	text := strings.Join(found[:min(len(found), guardNames)], "; ")
	if more := len(found) - guardNames; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	g.last.Store(&tampering{now, text})
	g.report(problemTampered, fmt.Sprintf("at %s somebody with root's rights changed the dataplane; it was put back: %s",
		now.UTC().Format(time.RFC3339), text))
	g.tell()
}
