// Package flows turns the events of the dataplane into one record per edge and window, keeps the records in a spool on
// disk until the controller has acknowledged them, and remembers the edges that were seen last for who asks on this host.
//
// Every map, queue and file in here is bounded. What does not fit is dropped and counted; the count travels with the
// next batch.
package flows

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/dataplane"
)

// Config bounds what is kept.
type Config struct {
	Host     string        // whose flows they are that the dataplane names no workload for: there is no policy yet
	Window   time.Duration // how long an edge is summed up before it is told
	MaxEdges int           // edges in one window; more begin a new window early
	MaxBatch int           // records in one batch
}

// recentEdges is how many edges are remembered, of what passed and of what did not: some two megabytes each at most.
const recentEdges = 4096

// DefaultConfig returns the bounds of a server: at most some ten megabytes of memory.
func DefaultConfig() Config {
	return Config{Window: 5 * time.Second, MaxEdges: 16 << 10, MaxBatch: 500}
}

// Source is where events come from; a dataplane is one.
type Source interface {
	Events(ctx context.Context, fn func(*dataplane.Event)) error
}

// Sink takes records; a *Spool is one.
type Sink interface {
	// Append takes the records, and the number of those that were lost before it.
	Append(records []*pb.FlowRecord, lost uint64) error
	// Lost returns how many records it has dropped, and was told of as lost, since the start.
	Lost() uint64
}

// Nowhere is a sink of a host that has nobody to tell.
type Nowhere struct{}

// Append forgets the records.
func (Nowhere) Append([]*pb.FlowRecord, uint64) error { return nil }

// Lost returns zero.
func (Nowhere) Lost() uint64 { return 0 }

// Collector sums events up and hands the records to a sink.
type Collector struct {
	cfg      Config
	source   Source
	spool    Sink
	revision func() uint64
	log      *slog.Logger
	report   func(key, text string)
	edges    *aggregator
}

// New returns a collector. revision is asked for the policy in force; problems are reported under a key, and with an
// empty text when they are over.
func New(cfg Config, source Source, spool Sink, revision func() uint64, log *slog.Logger, report func(key, text string)) *Collector {
	return &Collector{
		cfg: cfg, source: source, spool: spool, revision: revision, log: log, report: report,
		edges: newAggregator(cfg.Host, cfg.MaxEdges, newProcesses()),
	}
}

// retryEvents is how long to wait before a source that failed is asked again.
const retryEvents = time.Second

// Run collects until ctx ends. What was collected until then is in the spool when it returns.
func (c *Collector) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.listen(ctx) })
	group.Go(func() error { return c.flushEachWindow(ctx) })
	err := group.Wait()
	c.flush()
	return err
}

func (c *Collector) listen(ctx context.Context) error {
	for {
		err := c.source.Events(ctx, func(e *dataplane.Event) { c.edges.add(e, c.revision()) })
		if ctx.Err() != nil {
			return nil
		}
		c.log.Error("events of the dataplane cannot be read", "error", err)
		c.report("events", fmt.Sprintf("flows are not recorded: %v", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryEvents):
		}
		c.report("events", "")
	}
}

func (c *Collector) flushEachWindow(ctx context.Context) error {
	ticker := time.NewTicker(c.cfg.Window)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-c.edges.full:
		}
		c.flush()
	}
}

// flush ends the window.
func (c *Collector) flush() {
	records, lost := c.edges.take()
	for len(records) > 0 || lost > 0 {
		n := min(len(records), c.cfg.MaxBatch)
		if err := c.spool.Append(records[:n], lost); err != nil {
			c.log.Error("flow records are lost", "records", n, "error", err)
			c.report("spool", fmt.Sprintf("flow records are lost: %v", err))
		} else {
			c.report("spool", "")
		}
		records, lost = records[n:], 0
	}
}

// Lost returns how many records have been dropped since the start.
func (c *Collector) Lost() uint64 { return c.spool.Lost() + c.edges.lostEver() }

// Recent returns the memory of the edges that were seen last.
func (c *Collector) Recent() *Recent { return c.edges.recent }

// record is a window's sum for one edge while it grows.
type record = pb.FlowRecord
