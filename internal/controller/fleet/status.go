package fleet

import (
	"context"
	"fmt"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/store"
)

// status takes what an agent says of itself every few seconds. What root did on its host goes into the audit log.
func (s *session) status(m *pb.AgentStatus) {
	for _, e := range s.takeStatus(m) {
		s.fleet.auditHost(s.host, e)
	}
}

// hostEvent is something that root did on a host, for the audit log.
type hostEvent struct{ action, detail string }

// takeStatus keeps the status and returns what is new in it for the audit log.
func (s *session) takeStatus(m *pb.AgentStatus) (news []hostEvent) {
	f := s.fleet
	a := f.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return nil
	}
	m.Problems = clipAll(m.GetProblems())
	m.GlassReason, m.Tampered = clip(m.GetGlassReason()), clip(m.GetTampered())
	a.status, a.stored.LastSeen = m, f.cfg.Now()
	a.tell()
	if differs(a.glass, m.GetGlassUntilMs()) {
		a.glass = m.GetGlassUntilMs()
		detail := "policy is in force again"
		if a.glass != 0 {
			detail = fmt.Sprintf("everything passes until %s: %s", timeOf(a.glass), m.GetGlassReason())
		}
		news = append(news, hostEvent{audit.BreakGlass, detail})
	}
	if m.GetTamperedAtMs() > a.tampered {
		a.tampered = m.GetTamperedAtMs()
		news = append(news, hostEvent{audit.Tampered, fmt.Sprintf("put back at %s: %s", timeOf(a.tampered), m.GetTampered())})
	}
	return news
}

func timeOf(ms uint64) string { return time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339) }

// differs reports whether two times in Unix milliseconds, 0 for none, are not the same but for the agent's rounding.
func differs(a, b uint64) bool {
	return (a == 0) != (b == 0) || max(a, b)-min(a, b) > 5000
}

// auditHost records what root did on a host.
func (f *Fleet) auditHost(host string, e hostEvent) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := f.store.Update(ctx, func(tx store.Tx) error {
		_, err := tx.AppendAudit(store.AuditEntry{Time: f.cfg.Now(), Actor: "root@" + host, Action: e.action, Subject: host, Detail: e.detail})
		return err
	})
	if err != nil {
		f.log.Error("what root did on a host could not be written to the audit log", "host", host, "action", e.action, "detail", e.detail, "error", err)
	}
}

// Limits on texts of agents.
const (
	maxText  = 1000
	maxTexts = 100
)

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}

func clipAll(list []string) []string {
	if len(list) > maxTexts {
		list = list[:maxTexts]
	}
	out := make([]string, len(list))
	for i := range list {
		out[i] = clip(list[i])
	}
	return out
}
