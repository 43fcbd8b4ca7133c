// Package sqlite opens SQLite files the way Bulkhead keeps its state in them: readable by nobody else, with a
// write-ahead log, one writer and several readers, a schema that is brought up to date by numbered migrations, and
// errors that say what to do. The stores on SQLite are built on it; it knows nothing about what they keep.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"time"

	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"
)

// Errors are the sentinels that a port wants to see for what can go wrong with a file.
type Errors struct {
	Full    error // no room left
	Busy    error // locked by somebody else
	Corrupt error // not readable
	Newer   error // the schema is from the future
}

// Options says how to open a file.
type Options struct {
	// Migrations holds NNNN_name.sql files that are run in order, each once.
	Migrations fs.FS
	// Durable makes every commit survive the loss of power; else it survives the death of the process only.
	Durable bool
	// Wait is how long to wait for a lock; 0 means five seconds.
	Wait time.Duration
	// MaxPages bounds the size of the file; 0 leaves it unbounded.
	MaxPages int
	// Errors are wrapped by Wrap. All must be set.
	Errors Errors
}

// DB is an open file.
type DB struct {
	write  *sql.DB // one connection
	read   *sql.DB
	errors Errors
}

const readers = 4

// Open opens the file, makes it if there is none, and brings its schema up to date.
func Open(path string, o Options) (*DB, error) {
	db := &DB{errors: o.Errors}
	// SQLite gives its other files the mode of the main one.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if db.write, err = sql.Open("sqlite", dsn(path, o, false)); err != nil {
		return nil, db.Wrap("open database "+path, err)
	}
	db.write.SetMaxOpenConns(1)
	if db.read, err = sql.Open("sqlite", dsn(path, o, true)); err != nil {
		return nil, errors.Join(db.Wrap("open database "+path, err), db.Close())
	}
	db.read.SetMaxOpenConns(readers)
	if err := db.prepare(o); err != nil {
		return nil, errors.Join(db.Wrap("open database "+path, err), db.Close())
	}
	return db, nil
}

func dsn(path string, o Options, readOnly bool) string {
	wait := o.Wait
	if wait == 0 {
		wait = 5 * time.Second
	}
	q := url.Values{}
	pragma := func(name, value string) { q.Add("_pragma", name+"("+value+")") }
	pragma("busy_timeout", strconv.FormatInt(wait.Milliseconds(), 10))
	pragma("cache_size", "-16384") // 16 MiB a connection
	pragma("temp_store", "MEMORY")
	if readOnly {
		pragma("query_only", "1")
	} else {
		pragma("journal_mode", "WAL")
		if o.Durable {
			pragma("synchronous", "FULL")
		} else {
			pragma("synchronous", "NORMAL")
		}
		if o.MaxPages > 0 {
			pragma("max_page_count", strconv.Itoa(o.MaxPages))
		}
		q.Set("_txlock", "immediate")
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

func (db *DB) prepare(o Options) error {
	var verdict string
	if err := db.write.QueryRow(`PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s; restore the file from a backup", o.Errors.Corrupt, verdict)
	}
	return migrate(db.write, o.Migrations, o.Errors.Newer)
}

// View runs fn in a transaction that sees one state and cannot write.
func (db *DB) View(ctx context.Context, fn func(*sql.Tx) error) error {
	return db.run(ctx, db.read, fn)
}

// Update runs fn in a transaction that is alone in writing, and commits it if fn returns nil.
func (db *DB) Update(ctx context.Context, fn func(*sql.Tx) error) error {
	return db.run(ctx, db.write, fn)
}

func (db *DB) run(ctx context.Context, pool *sql.DB, fn func(*sql.Tx) error) error {
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return db.Wrap("begin", err)
	}
	if err := fn(tx); err != nil {
		if back := tx.Rollback(); back != nil && !errors.Is(back, sql.ErrTxDone) {
			return errors.Join(err, db.Wrap("roll back", back))
		}
		return err
	}
	return db.Wrap("commit", tx.Commit())
}

// Close closes the file.
func (db *DB) Close() error {
	var errs []error
	for _, pool := range []*sql.DB{db.read, db.write} { // the writer last: it folds the log into the file
		if pool != nil {
			errs = append(errs, pool.Close())
		}
	}
	return errors.Join(errs...)
}

// Wrap says what was done when the error came up, and wraps the sentinel that fits it. A nil error stays nil.
func (db *DB) Wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	if class := db.class(err); class != nil && !errors.Is(err, class) {
		return fmt.Errorf("%s: %w: %w", doing, class, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (db *DB) class(err error) error {
	var e *driver.Error
	if !errors.As(err, &e) {
		return nil
	}
	if e.Code() == codes.SQLITE_IOERR_SHMSIZE { // no room for the memory that readers and writer share
		return db.errors.Full
	}
	switch e.Code() & 0xff { // the primary code
	case codes.SQLITE_FULL:
		return db.errors.Full
	case codes.SQLITE_BUSY, codes.SQLITE_LOCKED:
		return db.errors.Busy
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB:
		return db.errors.Corrupt
	}
	return nil
}
