package sqlite

import (
	"errors"

	"bulkhead/internal/store"
)

// Audit implements store.Reader.
func (t *tx) Audit(fn func(*store.AuditEntry) error) error {
	return t.each("read audit log", `SELECT number, time_ms, actor, action, subject, detail, denied, hash FROM audit
		ORDER BY number`, nil, func(scan func(...any) error) error {
		var e store.AuditEntry
		var ms int64
		if err := scan(&e.Number, &ms, &e.Actor, &e.Action, &e.Subject, &e.Detail, &e.Denied, &e.Hash); err != nil {
			return err
		}
		e.Time = fromMillis(ms)
		return fn(&e)
	})
}

// AuditHead implements store.Reader.
func (t *tx) AuditHead() (store.AuditHead, error) {
	var h store.AuditHead
	err := t.row("read head of audit log", `SELECT number, hash FROM audit_head`, nil, &h.Number, &h.Hash)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return h, err
}

// AppendAudit implements store.Tx.
func (t *tx) AppendAudit(e store.AuditEntry) (store.AuditEntry, error) {
	head, err := t.AuditHead()
	if err != nil {
		return e, err
	}
	e = store.Chain(head, e)
	if _, err := t.exec("append to audit log", `INSERT INTO audit (number, time_ms, actor, action, subject, detail, denied, hash)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		int64(e.Number), millis(e.Time), e.Actor, e.Action, e.Subject, e.Detail, e.Denied, e.Hash); err != nil {
		return e, err
	}
	_, err = t.exec("move head of audit log", `INSERT OR REPLACE INTO audit_head (one, number, hash) VALUES (1, ?, ?)`,
		int64(e.Number), e.Hash)
	return e, err
}
