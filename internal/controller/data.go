package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/flowstore"
	flowsqlite "bulkhead/internal/flowstore/sqlite"
	"bulkhead/internal/store"
	statesqlite "bulkhead/internal/store/sqlite"
)

// Files in the data directory.
const (
	stateFile = "state.db"
	flowsFile = "flows.db"
)

// lockFile takes the lock that ends with the process.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another controller uses %s; one directory is for one controller", filepath.Dir(path))
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

func openStore(dir string) (store.Store, error) {
	s, err := statesqlite.Open(filepath.Join(dir, stateFile), statesqlite.Options{})
	if err != nil {
		return nil, fmt.Errorf("state of the controller: %w", err)
	}
	return s, nil
}

// openFlows opens the flow history. Policy must not depend on it: a damaged file is moved aside, and where none can
// be opened the records are counted as lost.
func openFlows(dir string, now time.Time, log *slog.Logger) flowstore.Store {
	path := filepath.Join(dir, flowsFile)
	s, err := flowsqlite.Open(path, flowsqlite.DefaultOptions())
	if errors.Is(err, flowstore.ErrCorrupt) || errors.Is(err, flowstore.ErrNewer) {
		aside := fmt.Sprintf("%s.unusable-%s", path, now.UTC().Format("20060102T150405Z"))
		log.Error("the flow history cannot be used; it is moved aside and a new one begins", "error", err, "moved_to", aside)
		if err = moveAside(path, aside); err == nil {
			s, err = flowsqlite.Open(path, flowsqlite.DefaultOptions())
		}
	}
	if err != nil {
		log.Error("there is no flow history; records are lost until the controller is restarted", "error", err)
		return noFlows{err}
	}
	return s
}

// moveAside renames a database and the files that belong to it.
func moveAside(path, aside string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// noFlows stands for a flow history that could not be opened.
type noFlows struct{ err error }

func (n noFlows) Append(context.Context, []flowstore.Batch) (flowstore.Appended, error) {
	return flowstore.Appended{}, n.err
}

func (n noFlows) Scan(context.Context, time.Time, time.Time, func(*flowstore.Record) error) error {
	return n.err
}

func (n noFlows) Maintain(context.Context, time.Time) error      { return nil }
func (n noFlows) Stats(context.Context) (flowstore.Stats, error) { return flowstore.Stats{}, n.err }
func (n noFlows) Close() error                                   { return nil }
