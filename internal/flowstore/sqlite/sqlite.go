// Package sqlite keeps flow history in one SQLite file. Recent windows are stored batch by batch as they come, which
// is cheap; in the background they are summed up by hour and edge. What was asked for lately is answered from the
// batches exactly, the rest from the sums.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"io/fs"
	"time"

	"bulkhead/internal/flowstore"
	"bulkhead/internal/sqlite"
)

//go:embed migrations/*.sql
var embedded embed.FS

// Options says how much a store keeps.
type Options struct {
	Recent        time.Duration // how long windows are kept one by one
	RecentRecords int64         // and how many at most
	Retention     time.Duration // how long sums are kept
	EdgesPerHour  int           // more distinct edges than this in one hour are left out of its sums, and counted
	MaxPages      int           // bound on the size of the file; 0: none
}

// DefaultOptions returns what suits a controller.
func DefaultOptions() Options {
	return Options{Recent: time.Hour, RecentRecords: 4_000_000, Retention: 30 * 24 * time.Hour, EdgesPerHour: 2_000_000}
}

// Store is a flowstore.Store in one file.
type Store struct {
	db      *sqlite.DB
	options Options
	roller  roller
}

var _ flowstore.Store = (*Store)(nil)

// Open opens the file and makes it if there is none. Errors: those of flowstore and of the file system.
func Open(path string, o Options) (*Store, error) {
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqlite.Open(path, sqlite.Options{
		Migrations: migrations, MaxPages: o.MaxPages,
		Errors: sqlite.Errors{Full: flowstore.ErrFull, Busy: flowstore.ErrBusy, Corrupt: flowstore.ErrCorrupt, Newer: flowstore.ErrNewer},
	})
	if err != nil {
		return nil, err
	}
	return &Store{db: db, options: o}, nil
}

// Close implements flowstore.Store.
func (s *Store) Close() error { return s.db.Close() }

// Append implements flowstore.Store.
func (s *Store) Append(ctx context.Context, batches []flowstore.Batch) (flowstore.Appended, error) {
	var done flowstore.Appended
	type encoded struct {
		data []byte
		last time.Time
	}
	values := make([]encoded, len(batches)) // outside of the transaction: writers wait for each other
	for i := range batches {
		values[i].data, values[i].last = encode(batches[i].Records)
	}
	err := s.db.Update(ctx, func(tx *sql.Tx) error {
		done = flowstore.Appended{}
		see, err := tx.PrepareContext(ctx, `INSERT INTO seen (host, instance, sequence, at_ms) VALUES (?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET sequence = excluded.sequence, at_ms = excluded.at_ms
			WHERE excluded.sequence > sequence`)
		if err != nil {
			return s.db.Wrap("append flow records", err)
		}
		defer see.Close()
		insert, err := tx.PrepareContext(ctx, `INSERT INTO recent (host, last_ms, records, data) VALUES (?, ?, ?, ?)`)
		if err != nil {
			return s.db.Wrap("append flow records", err)
		}
		defer insert.Close()
		for i := range batches {
			b, v := &batches[i], &values[i]
			res, err := see.ExecContext(ctx, b.Host, b.Instance, int64(b.Sequence), time.Now().UnixMilli())
			if err != nil {
				return s.db.Wrap("append flow records", err)
			}
			if n, err := res.RowsAffected(); err != nil {
				return s.db.Wrap("append flow records", err)
			} else if n == 0 {
				done.Repeated = append(done.Repeated, i)
				continue
			}
			if len(b.Records) == 0 {
				continue
			}
			if _, err := insert.ExecContext(ctx, b.Host, v.last.UnixMilli(), len(b.Records), v.data); err != nil {
				return s.db.Wrap("append flow records", err)
			}
			done.Records += len(b.Records)
		}
		return nil
	})
	if err != nil {
		return flowstore.Appended{}, err
	}
	return done, nil
}

// Stats implements flowstore.Store.
func (s *Store) Stats(ctx context.Context) (flowstore.Stats, error) {
	var st flowstore.Stats
	err := s.db.View(ctx, func(tx *sql.Tx) error {
		var oldest, oldestHour sql.NullInt64
		var lost int64
		for query, into := range map[string]any{
			`SELECT COALESCE(SUM(records), 0) FROM recent`: &st.Recent,
			`SELECT COUNT(*) FROM hourly`:                  &st.Hourly,
			`SELECT MIN(last_ms) FROM recent`:              &oldest,
			`SELECT MIN(hour) * 3600000 FROM hourly`:       &oldestHour,
			`SELECT lost FROM state`:                       &lost,
		} {
			if err := tx.QueryRowContext(ctx, query).Scan(into); err != nil {
				return s.db.Wrap("count flow records", err)
			}
		}
		st.Lost = uint64(lost)
		if oldestHour.Valid && (!oldest.Valid || oldestHour.Int64 < oldest.Int64) {
			oldest = oldestHour
		}
		if oldest.Valid {
			st.Oldest = fromMillis(oldest.Int64)
		}
		return nil
	})
	return st, err
}
