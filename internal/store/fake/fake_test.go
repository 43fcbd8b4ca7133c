package fake

import (
	"errors"
	"testing"

	"bulkhead/internal/store"
	"bulkhead/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return &Store{} })
}

func TestFailChangesNothing(t *testing.T) {
	s := &Store{}
	s.Fail(store.ErrFull)
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.PutAgent(store.Agent{Host: "h"}) }); !errors.Is(err, store.ErrFull) {
		t.Fatalf("update: %v, want ErrFull", err)
	}
	s.Fail(nil)
	if err := s.View(t.Context(), func(r store.Reader) error { _, err := r.Agent("h"); return err }); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("agent: %v, want ErrNotFound", err)
	}
}
