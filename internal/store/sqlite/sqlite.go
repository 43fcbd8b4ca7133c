// Package sqlite keeps the controller's state in one SQLite file. Every commit is on the disk before it counts.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"io/fs"
	"time"

	"bulkhead/internal/sqlite"
	"bulkhead/internal/store"
)

//go:embed migrations/*.sql
var embedded embed.FS

// Options says how to open a file. The zero value is right outside tests.
type Options struct {
	Wait     time.Duration // for a lock; 0 means five seconds
	MaxPages int           // bound on the size of the file; 0: none
}

// Store is a store.Store in one file.
type Store struct{ db *sqlite.DB }

var _ store.Store = (*Store)(nil)

// Open opens the file and makes it if there is none. Errors: store.ErrCorrupt, store.ErrNewer, store.ErrBusy,
// store.ErrFull, and those of the file system.
func Open(path string, o Options) (*Store, error) {
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := sqlite.Open(path, sqlite.Options{
		Migrations: migrations, Durable: true, Wait: o.Wait, MaxPages: o.MaxPages,
		Errors: sqlite.Errors{Full: store.ErrFull, Busy: store.ErrBusy, Corrupt: store.ErrCorrupt, Newer: store.ErrNewer},
	})
	if err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Reader) error) error {
	return s.db.View(ctx, func(t *sql.Tx) error { return fn(&tx{ctx: ctx, db: s.db, tx: t}) })
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	return s.db.Update(ctx, func(t *sql.Tx) error { return fn(&tx{ctx: ctx, db: s.db, tx: t}) })
}

// Close implements store.Store.
func (s *Store) Close() error { return s.db.Close() }

// tx is one transaction. It carries the context because it lives no longer than the call that made it.
type tx struct {
	ctx context.Context
	db  *sqlite.DB
	tx  *sql.Tx
}

func (t *tx) exec(doing, query string, args ...any) (int64, error) {
	res, err := t.tx.ExecContext(t.ctx, query, args...)
	if err != nil {
		return 0, t.db.Wrap(doing, err)
	}
	n, err := res.RowsAffected()
	return n, t.db.Wrap(doing, err)
}

// row scans the only row of a query; without one the error is store.ErrNotFound.
func (t *tx) row(doing, query string, args []any, into ...any) error {
	err := t.tx.QueryRowContext(t.ctx, query, args...).Scan(into...)
	if err == sql.ErrNoRows {
		err = store.ErrNotFound
	}
	return t.db.Wrap(doing, err)
}

// each calls fn for each row of a query.
func (t *tx) each(doing, query string, args []any, fn func(scan func(...any) error) error) error {
	rows, err := t.tx.QueryContext(t.ctx, query, args...)
	if err != nil {
		return t.db.Wrap(doing, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(func(into ...any) error { return t.db.Wrap(doing, rows.Scan(into...)) }); err != nil {
			return err
		}
	}
	return t.db.Wrap(doing, rows.Err())
}
