// Package audit says what of the controller's doings goes into the audit log, and keeps those who are refused from
// filling the disk with it. The log itself is the store's: an append-only chain of hashes.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"bulkhead/internal/store"
)

// The actions in the log.
const (
	Start            = "controller.start"
	Apply            = "policy.apply"
	Rollback         = "policy.rollback"
	Enroll           = "agent.enroll"
	Connect          = "agent.connect" // only when denied
	RevokeAgent      = "agent.revoke"
	BreakGlass       = "agent.break-glass" // a host lets everything pass, or does so no longer
	Tampered         = "agent.tampered"    // an agent has put back what somebody changed in the kernel
	AllowAgent       = "agent.allow"       // a revocation is lifted
	CreateToken      = "token.create"
	RevokeToken      = "token.revoke"
	SetQuarantine    = "quarantine.set"
	LiftQuarantine   = "quarantine.lift"
	ExpireQuarantine = "quarantine.expire"
	Login            = "api.login" // only when denied
)

// System is the actor of what the controller does by itself.
const System = "controller"

// Log writes the entries that no change carries with it: denials. Changes append their entry in the transaction that
// makes them, so that neither is there without the other.
type Log struct {
	store store.Store
	log   *slog.Logger
	now   func() time.Time

	mu         sync.Mutex
	allowance  float64
	filled     time.Time
	suppressed int
}

// Denials that strangers cause may come in floods; these bound how many are stored.
const (
	burst     = 50
	perSecond = 2
)

// New returns a log on the store.
func New(s store.Store, log *slog.Logger, now func() time.Time) *Log {
	return &Log{store: s, log: log, now: now, allowance: burst, filled: now()}
}

// Denied records that somebody tried something and was refused. In a flood only some are recorded; the next entry
// then says how many were not.
func (l *Log) Denied(ctx context.Context, actor, action, subject, detail string) {
	l.log.Warn("denied", "actor", actor, "action", action, "subject", subject, "detail", detail)
	skipped, ok := l.admit()
	if !ok {
		return
	}
	if skipped > 0 {
		detail = fmt.Sprintf("%s (and %d denials before this one that are not listed)", detail, skipped)
	}
	// A client that hangs up must not keep its refusal out of the log.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := l.store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.AppendAudit(store.AuditEntry{
			Time: l.now(), Actor: clip(actor), Action: action, Subject: clip(subject), Detail: clip(detail), Denied: true,
		})
		return err
	})
	if err != nil {
		l.log.Error("a denial could not be written to the audit log", "action", action, "error", err)
	}
}

// admit takes one entry from the allowance, and returns how many were refused since the last one admitted.
func (l *Log) admit() (skipped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.allowance = min(burst, l.allowance+now.Sub(l.filled).Seconds()*perSecond)
	l.filled = now
	if l.allowance < 1 {
		l.suppressed++
		return 0, false
	}
	l.allowance--
	skipped, l.suppressed = l.suppressed, 0
	return skipped, true
}

const maxText = 2000

// clip bounds what strangers can make the log hold.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return s[:maxText] + "…"
}

// List returns the newest entries first, at most limit of them (0: all), and whether the chain holds from the first
// entry to the last.
func List(r store.Reader, limit int) (entries []store.AuditEntry, intact bool, err error) {
	if err := store.VerifyAudit(r); err == nil {
		intact = true
	} else if !errors.Is(err, store.ErrCorrupt) {
		return nil, false, err
	}
	var ring []store.AuditEntry
	next := 0
	if err := r.Audit(func(e *store.AuditEntry) error {
		if limit == 0 || len(ring) < limit {
			ring = append(ring, *e)
			return nil
		}
		ring[next] = *e
		next = (next + 1) % limit
		return nil
	}); err != nil {
		return nil, false, err
	}
	for i := range ring {
		entries = append(entries, ring[(next+len(ring)-1-i)%len(ring)])
	}
	return entries, intact, nil
}
