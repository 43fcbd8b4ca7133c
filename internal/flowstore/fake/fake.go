// Package fake keeps flow history in memory, for tests of what stands on the store. It can be told to fail.
package fake

import (
	"context"
	"sync"
	"time"

	"bulkhead/internal/flowstore"
)

// Store is a flowstore.Store in memory. The zero value is empty, keeps everything and is ready.
type Store struct {
	// Retention is how long records are kept; 0: for ever. To be set before the store is used.
	Retention time.Duration

	mu      sync.RWMutex
	records []flowstore.Record
	seen    map[[2]string]uint64
	fail    error
}

var _ flowstore.Store = (*Store)(nil)

// Fail makes every later Append return err; nil ends that.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// Append implements flowstore.Store.
func (s *Store) Append(ctx context.Context, batches []flowstore.Batch) (flowstore.Appended, error) {
	if err := ctx.Err(); err != nil {
		return flowstore.Appended{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return flowstore.Appended{}, s.fail
	}
	if s.seen == nil {
		s.seen = map[[2]string]uint64{}
	}
	var done flowstore.Appended
	for i, b := range batches {
		numbering := [2]string{b.Host, b.Instance}
		if last, ok := s.seen[numbering]; ok && b.Sequence <= last {
			done.Repeated = append(done.Repeated, i)
			continue
		}
		s.seen[numbering] = b.Sequence
		for _, r := range b.Records {
			r.Host = b.Host
			r.First, r.Last = r.First.Truncate(time.Millisecond), r.Last.Truncate(time.Millisecond)
			s.records = append(s.records, r)
		}
		done.Records += len(b.Records)
	}
	return done, nil
}

// Scan implements flowstore.Store.
func (s *Store) Scan(ctx context.Context, since, until time.Time, fn func(*flowstore.Record) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.RLock()
	records := s.records[:len(s.records):len(s.records)]
	s.mu.RUnlock()
	for _, r := range records {
		if !r.Overlaps(since, until) {
			continue
		}
		if err := fn(&r); err != nil {
			return err
		}
	}
	return nil
}

// Maintain implements flowstore.Store.
func (s *Store) Maintain(_ context.Context, now time.Time) error {
	if s.Retention == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []flowstore.Record
	for _, r := range s.records {
		if !r.Last.Before(now.Add(-s.Retention)) {
			kept = append(kept, r)
		}
	}
	s.records = kept
	return nil
}

// Stats implements flowstore.Store.
func (s *Store) Stats(context.Context) (flowstore.Stats, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := flowstore.Stats{Recent: int64(len(s.records))}
	for _, r := range s.records {
		if st.Oldest.IsZero() || r.First.Before(st.Oldest) {
			st.Oldest = r.First
		}
	}
	return st, nil
}

// Close implements flowstore.Store.
func (s *Store) Close() error { return nil }
