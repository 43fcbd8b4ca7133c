package flows

import (
	"context"
	"slices"
	"time"

	"bulkhead/internal/flowstore"
)

// follower gets copies of the records that are taken in.
type follower struct {
	records chan []flowstore.Record
	lost    uint64 // guarded by Ingester.mu
}

const followQueue = 256

func (i *Ingester) follow() *follower {
	f := &follower{records: make(chan []flowstore.Record, followQueue)}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.followers[f] = struct{}{}
	return f
}

func (i *Ingester) unfollow(f *follower) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.followers, f)
}

// tell hands batches that were stored to those who follow. A follower that is too slow loses records, and is told how
// many.
func (i *Ingester) tell(batches []flowstore.Batch, repeated []int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for f := range i.followers {
		for k := range batches {
			if len(batches[k].Records) == 0 || slices.Contains(repeated, k) {
				continue
			}
			select {
			case f.records <- batches[k].Records:
			default:
				f.lost += uint64(len(batches[k].Records))
			}
		}
	}
}

func (i *Ingester) lostBy(f *follower) uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := f.lost
	f.lost = 0
	return n
}

// Follow timing: records of both ends arrive apart, as their agents' windows end apart.
const (
	followTick = time.Second
	followHold = 7 * time.Second
)

// Follow calls begin, and then send every second with the edges that have come in since before begin was called, until
// ctx ends or one of them returns an error. Edges of which only one end has spoken are held back some seconds for the
// other.
func (i *Ingester) Follow(ctx context.Context, begin func() error, send func(edges []flowstore.Edge, lost uint64) error) error {
	f := i.follow()
	defer i.unfollow(f)
	if err := begin(); err != nil {
		return err
	}
	tick := time.NewTicker(followTick)
	defer tick.Stop()
	var waiting flowstore.Joiner
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case records := <-f.records:
			now := i.cfg.Now()
			for k := range records {
				waiting.AddAt(&records[k], now)
			}
		case <-tick.C:
			edges := waiting.Take(i.cfg.Now().Add(-followHold))
			lost := i.lostBy(f)
			if len(edges) == 0 && lost == 0 {
				continue
			}
			if err := send(edges, lost); err != nil {
				return err
			}
		}
	}
}
