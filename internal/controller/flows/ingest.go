// Package flows takes flow records in from agents, names both ends, and answers questions about who talked to whom.
package flows

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/flowstore"
)

// Config says how flows are taken in. Zero fields take the defaults.
type Config struct {
	Queue    int              // batches that may wait to be written; default 1024
	Group    int              // records that are written in one go, about; default 50,000
	Maintain time.Duration    // how often the store is maintained; default 5 s
	Now      func() time.Time // default time.Now
}

// Counters count what became of flow records since the start.
type Counters struct {
	Taken     atomic.Uint64 // stored
	LostHere  atomic.Uint64 // not stored, because the store failed
	LostAgent atomic.Uint64 // dropped at agents before they were sent
	Rejected  atomic.Uint64 // not believed: an agent spoke of what is not its own
	Repeated  atomic.Uint64 // batches that had been seen
	Failures  atomic.Uint64 // of the store
	Shifted   atomic.Uint64 // records from the future, moved to the present
}

// Lost is how many records are missing from the history.
func (c *Counters) Lost() uint64 { return c.LostHere.Load() + c.LostAgent.Load() + c.Rejected.Load() }

// Ingester takes flow records in.
type Ingester struct {
	cfg      Config
	store    flowstore.Store
	snapshot func() *world.Snapshot
	log      *slog.Logger
	queue    chan job
	counters Counters

	mu        sync.Mutex
	followers map[*follower]struct{}
	complain  time.Time // when a failure of the store may be logged again
}

// job is a batch on its way into the store.
type job struct {
	batch flowstore.Batch
	done  func()
}

// New returns an ingester. snapshot returns the world of the moment.
func New(cfg Config, store flowstore.Store, snapshot func() *world.Snapshot, log *slog.Logger) *Ingester {
	if cfg.Queue == 0 {
		cfg.Queue = 1024
	}
	if cfg.Group == 0 {
		cfg.Group = 50_000
	}
	if cfg.Maintain == 0 {
		cfg.Maintain = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Ingester{
		cfg: cfg, store: store, snapshot: snapshot, log: log,
		queue: make(chan job, cfg.Queue), followers: map[*follower]struct{}{},
	}
}

// Counters returns the counters, which go on counting.
func (i *Ingester) Counters() *Counters { return &i.counters }

// Submit takes a batch of the host's agent. It waits while too many batches are on their way. done is called once
// the batch is stored, or given up and counted: then the agent may forget it.
func (i *Ingester) Submit(ctx context.Context, host, instance string, b *pb.FlowBatch, done func()) error {
	i.counters.LostAgent.Add(b.GetLost())
	j := job{done: done, batch: flowstore.Batch{
		Host: host, Instance: instance, Sequence: b.GetSequence(), Records: i.resolve(host, b.GetRecords()),
	}}
	select {
	case i.queue <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run writes what is submitted until ctx ends, and then what has been submitted until then.
func (i *Ingester) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			select {
			case j := <-i.queue:
				i.write(ctx, i.gather(j))
			case <-ctx.Done():
				i.drain()
				return nil
			}
		}
	})
	g.Go(func() error {
		tick := time.NewTicker(i.cfg.Maintain)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := i.store.Maintain(ctx, i.cfg.Now()); err != nil && ctx.Err() == nil {
					i.failed("maintain", err)
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

const drainTime = 3 * time.Second

func (i *Ingester) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for {
		select {
		case j := <-i.queue:
			i.write(ctx, i.gather(j))
		default:
			return
		}
	}
}

// gather returns the job and those that wait behind it, up to a group.
func (i *Ingester) gather(first job) []job {
	jobs := []job{first}
	for n := len(first.batch.Records); n < i.cfg.Group; {
		select {
		case j := <-i.queue:
			jobs = append(jobs, j)
			n += len(j.batch.Records)
		default:
			return jobs
		}
	}
	return jobs
}

const (
	tries      = 3
	retryAfter = 100 * time.Millisecond
)

func (i *Ingester) write(ctx context.Context, jobs []job) {
	batches := make([]flowstore.Batch, len(jobs))
	records := 0
	for k := range jobs {
		batches[k] = jobs[k].batch
		records += len(jobs[k].batch.Records)
	}
	// What has been taken from the queue is written also when the controller is about to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var done flowstore.Appended
	var err error
	for range tries {
		if done, err = i.store.Append(ctx, batches); err == nil || !errors.Is(err, flowstore.ErrBusy) {
			break
		}
		time.Sleep(retryAfter)
	}
	if err != nil {
		i.counters.LostHere.Add(uint64(records))
		i.failed("append", err)
	} else {
		i.counters.Taken.Add(uint64(done.Records))
		i.counters.Repeated.Add(uint64(len(done.Repeated)))
		i.tell(batches, done.Repeated)
	}
	for _, j := range jobs {
		j.done()
	}
}

// failed counts a failure of the store, and logs one of them a minute.
func (i *Ingester) failed(doing string, err error) {
	i.counters.Failures.Add(1)
	i.mu.Lock()
	now := i.cfg.Now()
	quiet := now.Before(i.complain)
	if !quiet {
		i.complain = now.Add(time.Minute)
	}
	i.mu.Unlock()
	if !quiet {
		i.log.Error("the flow store fails; records are lost and counted", "doing", doing, "error", err,
			"lost", i.counters.LostHere.Load())
	}
}
