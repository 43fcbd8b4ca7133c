package standalone

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/internal/core/policy"
)

// TestRetryIsNotPutOff is about what failed while something else happens all the time, as the looks at the directory do: it is
// tried again when its time has come, not when nothing else has happened for so long.
func TestRetryIsNotPutOff(t *testing.T) {
	reported := map[string]string{}
	dir := t.TempDir()
	k := New(Config{Dir: dir, Data: filepath.Join(dir, "none"), Retry: time.Minute}, Deps{
		Log: slog.New(slog.DiscardHandler), Report: func(key, text string) { reported[key] = text },
	})
	k.accepted = &version{number: 1, files: []policy.File{{Name: "a.yaml"}}}
	k.save()
	if !k.unsaved || reported[problemStore] == "" {
		t.Fatal("it was kept where there is no directory")
	}
	began := time.Now()
	for _, after := range []time.Duration{0, 20 * time.Second, 50 * time.Second} {
		if wait := k.next(began.Add(after)); wait > time.Minute-after {
			t.Errorf("after %v the wait is still %v", after, wait)
		}
		k.tick(t.Context(), began.Add(after)) // something else
	}
	k.cfg.Data = dir
	k.tick(t.Context(), began.Add(50*time.Second))
	if !k.unsaved {
		t.Error("it was tried before its time")
	}
	k.tick(t.Context(), began.Add(2*time.Minute))
	if k.unsaved || reported[problemStore] != "" {
		t.Errorf("it was not tried again: %q", reported[problemStore])
	}
	if k.load(); k.accepted == nil || k.accepted.number != 1 {
		t.Error(errors.New("it cannot be read back"))
	}
}
