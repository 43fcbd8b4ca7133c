package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"
)

// AuditEntry is one line of the audit log. Hash covers the entry and the hash before it, so no entry can be changed,
// left out or put elsewhere without all later hashes being wrong.
type AuditEntry struct {
	Number  uint64 // from 1, without gaps
	Time    time.Time
	Actor   string // who
	Action  string // what, such as policy.apply
	Subject string // to whom or what
	Detail  string // in words
	Denied  bool   // it was tried and refused
	Hash    string
}

// AuditHead is how far the audit log goes. It is kept apart from the entries so that a log which was cut short shows.
type AuditHead struct {
	Number uint64
	Hash   string
}

// Chain returns the entry as it follows head: with its number and hash, and its time in whole milliseconds.
func Chain(head AuditHead, e AuditEntry) AuditEntry {
	e.Number = head.Number + 1
	e.Time = Millis(e.Time)
	h := sha256.New()
	var buf []byte
	for _, s := range []string{head.Hash, e.Actor, e.Action, e.Subject, e.Detail} {
		buf = binary.AppendUvarint(buf[:0], uint64(len(s)))
		h.Write(append(buf, s...))
	}
	buf = binary.BigEndian.AppendUint64(buf[:0], e.Number)
	buf = binary.BigEndian.AppendUint64(buf, uint64(e.Time.UnixMilli()))
	if e.Denied {
		buf = append(buf, 1)
	}
	h.Write(buf)
	e.Hash = hex.EncodeToString(h.Sum(nil))
	return e
}

// VerifyAudit follows the chain from the first entry to the head. The error names the first entry that does not fit.
func VerifyAudit(r Reader) error {
	want, err := r.AuditHead()
	if err != nil {
		return err
	}
	var head AuditHead
	if err := r.Audit(func(e *AuditEntry) error {
		next := Chain(head, *e)
		if next.Number != e.Number || next.Hash != e.Hash {
			return fmt.Errorf("audit entry %d does not follow entry %d: %w", e.Number, head.Number, ErrCorrupt)
		}
		head = AuditHead{Number: e.Number, Hash: e.Hash}
		return nil
	}); err != nil {
		return err
	}
	if head != want {
		return fmt.Errorf("the audit log ends at entry %d and should end at %d: %w", head.Number, want.Number, ErrCorrupt)
	}
	return nil
}

// Millis returns the time as stores keep it: in UTC, in whole milliseconds. The zero time stays zero.
func Millis(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMilli(t.UnixMilli()).UTC()
}
