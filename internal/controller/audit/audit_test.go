package audit

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/store"
	"bulkhead/internal/store/fake"
)

func list(t *testing.T, s store.Store, limit int) (entries []store.AuditEntry, intact bool) {
	t.Helper()
	if err := s.View(t.Context(), func(r store.Reader) (err error) {
		entries, intact, err = List(r, limit)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return entries, intact
}

func TestListNewestFirst(t *testing.T) {
	s := &fake.Store{}
	if entries, intact := list(t, s, 0); len(entries) != 0 || !intact {
		t.Errorf("an empty log: %v, intact %v", entries, intact)
	}
	for i := range 7 {
		if err := s.Update(t.Context(), func(tx store.Tx) error {
			_, err := tx.AppendAudit(store.AuditEntry{Subject: fmt.Sprint(i + 1)})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for limit, want := range map[int]string{0: "7 6 5 4 3 2 1", 1: "7", 3: "7 6 5", 7: "7 6 5 4 3 2 1", 9: "7 6 5 4 3 2 1"} {
		entries, intact := list(t, s, limit)
		var got []string
		for _, e := range entries {
			got = append(got, e.Subject)
		}
		if strings.Join(got, " ") != want || !intact {
			t.Errorf("limit %d: %v, intact %v; want %s", limit, got, intact, want)
		}
	}
}

func TestFloodOfDenials(t *testing.T) {
	s := &fake.Store{}
	now := time.Now()
	l := New(s, slog.New(slog.DiscardHandler), func() time.Time { return now })
	for i := range 500 {
		l.Denied(t.Context(), "10.0.0.9", Enroll, "host", fmt.Sprint("try ", i))
	}
	entries, _ := list(t, s, 0)
	if len(entries) != burst || entries[0].Detail != "try 49" || !entries[0].Denied {
		t.Fatalf("%d entries of a flood, the last %q; want %d", len(entries), entries[0].Detail, burst)
	}
	now = now.Add(time.Second)
	l.Denied(t.Context(), strings.Repeat("x", 10_000), Login, "y", "after")
	entries, intact := list(t, s, 1)
	if !strings.Contains(entries[0].Detail, "450 denials") || len(entries[0].Actor) > maxText+10 || !intact {
		t.Errorf("after the flood: %+v", entries[0])
	}
	all, _ := list(t, s, 0)
	if !slices.ContainsFunc(all, func(e store.AuditEntry) bool { return e.Detail == "try 0" }) {
		t.Error("the first denial is missing")
	}
}
