package sqlite

import (
	"fmt"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
)

// Leases implements store.Reader.
func (t *tx) Leases() ([]store.Lease, error) {
	var list []store.Lease
	err := t.each("list leases", `SELECT workload, level, reason, by_whom, since_ms, until_ms, in_use FROM lease
		ORDER BY workload`, nil, func(scan func(...any) error) error {
		var (
			l            store.Lease
			level        uint8
			since, until int64
			used         string
			err          error
		)
		if err := scan(&l.Workload, &level, &l.Reason, &l.By, &since, &until, &used); err != nil {
			return err
		}
		l.Level = model.QuarantineLevel(level)
		if l.Level > model.QuarantineIsolate {
			return fmt.Errorf("lease of %s: level %d: %w", l.Workload, level, store.ErrCorrupt)
		}
		l.Since, l.Until = fromMillis(since), fromMillis(until)
		if l.InUse, err = inUseFromJSON(used); err != nil {
			return fmt.Errorf("lease of %s: %w", l.Workload, err)
		}
		list = append(list, l)
		return nil
	})
	return list, err
}

// PutLease implements store.Tx.
func (t *tx) PutLease(l store.Lease) error {
	used, err := inUseToJSON(l.InUse)
	if err != nil {
		return err
	}
	_, err = t.exec("write lease", `INSERT OR REPLACE INTO lease (workload, level, reason, by_whom, since_ms, until_ms, in_use)
		VALUES (?, ?, ?, ?, ?, ?, ?)`, l.Workload, uint8(l.Level), l.Reason, l.By, millis(l.Since), millis(l.Until), used)
	return err
}

// DropLease implements store.Tx.
func (t *tx) DropLease(workload string) error {
	n, err := t.exec("drop lease", `DELETE FROM lease WHERE workload = ?`, workload)
	if err == nil && n == 0 {
		return store.ErrNotFound
	}
	return err
}
