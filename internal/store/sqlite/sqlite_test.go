package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/store"
	"bulkhead/internal/store/storetest"
)

func open(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, filepath.Join(t.TempDir(), "state.db"), Options{}) })
}

func appendRevision(ctx context.Context, s store.Store, text string) (number uint64, err error) {
	err = s.Update(ctx, func(tx store.Tx) error {
		base := uint64(0)
		if newest, err := tx.Revision(0); err == nil {
			base = newest.Number
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if number, err = tx.AppendRevision(base, store.Revision{Documents: text, Time: time.Now()}); err != nil {
			return err
		}
		_, err := tx.AppendAudit(store.AuditEntry{Action: "policy.apply", Subject: fmt.Sprint(number), Time: time.Now()})
		return err
	})
	return number, err
}

func TestFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{})
	if _, err := appendRevision(t.Context(), s, "x"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v, %v; want the database and its log", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", f, info.Mode().Perm())
		}
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with space?&#.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appendRevision(t.Context(), s, "documents"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	if err := s.View(t.Context(), func(r store.Reader) error {
		rev, err := r.Revision(0)
		if err == nil && rev.Documents != "documents" {
			t.Errorf("documents %q", rev.Documents)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestKilledWriterLosesNothing kills a process that appends revisions. Every revision that it reported as accepted
// must be there, whole, and nothing may be half there.
func TestKilledWriterLosesNothing(t *testing.T) {
	const role = "BULKHEAD_TEST_WRITER"
	if path := os.Getenv(role); path != "" {
		writeUntilKilled(path)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	accepted := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledWriterLosesNothing$")
		cmd.Env = append(os.Environ(), role+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 15+7*round && lines.Scan(); n++ {
			var number int
			if _, err := fmt.Sscanf(lines.Text(), "accepted %d", &number); err != nil {
				t.Fatalf("writer said %q", lines.Text())
			}
			if number != accepted+1 {
				t.Fatalf("writer accepted %d after %d", number, accepted)
			}
			accepted = number
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it had written before it died counts as accepted
			if _, err := fmt.Sscanf(lines.Text(), "accepted %d", &accepted); err != nil {
				break // cut off in the middle of the line
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer ended by itself")
		}
		accepted = checkAccepted(t, path, accepted)
	}
}

// checkAccepted returns how many revisions there are: those that were accepted and at most one more, which was
// committed and not reported any more.
func checkAccepted(t *testing.T, path string, accepted int) int {
	t.Helper()
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var newest int
	if err := s.View(t.Context(), func(r store.Reader) error {
		rev, err := r.Revision(0)
		if err != nil {
			return err
		}
		newest = int(rev.Number)
		for n := uint64(1); n <= rev.Number; n++ {
			rev, err := r.Revision(n)
			if err != nil {
				return err
			}
			if want := writerText(int(n)); rev.Documents != want {
				t.Errorf("revision %d has %d bytes, want %d", n, len(rev.Documents), len(want))
			}
		}
		head, err := r.AuditHead()
		if err == nil && head.Number != rev.Number {
			t.Errorf("%d audit entries for %d revisions", head.Number, rev.Number)
		}
		if err != nil {
			return err
		}
		return store.VerifyAudit(r)
	}); err != nil {
		t.Fatal(err)
	}
	if newest < accepted || newest > accepted+1 {
		t.Fatalf("newest revision is %d after %d were accepted", newest, accepted)
	}
	return newest
}

func writerText(n int) string { return strings.Repeat(fmt.Sprintf("%d,", n), 3000) }

func writeUntilKilled(path string) {
	s, err := Open(path, Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	next := 1
	if err := s.View(context.Background(), func(r store.Reader) error {
		if rev, err := r.Revision(0); err == nil {
			next = int(rev.Number) + 1
		}
		return nil
	}); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	for ; ; next++ {
		n, err := appendRevision(context.Background(), s, writerText(next))
		if err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		fmt.Println("accepted", n)
	}
}

func TestFullStoreRefusesAndKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{MaxPages: 64})
	accepted := uint64(0)
	var err error
	for err == nil {
		var n uint64
		if n, err = appendRevision(t.Context(), s, strings.Repeat("x", 9000)); err == nil {
			accepted = n
		}
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("error of a full store: %v, want ErrFull", err)
	}
	if accepted == 0 {
		t.Fatal("nothing was accepted before the store was full")
	}
	if err := s.View(t.Context(), func(r store.Reader) error {
		newest, err := r.Revision(0)
		if err != nil {
			return err
		}
		if newest.Number != accepted || len(newest.Documents) != 9000 {
			t.Errorf("newest revision is %d with %d bytes, want %d", newest.Number, len(newest.Documents), accepted)
		}
		return store.VerifyAudit(r)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLockedStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path, Options{Wait: 20 * time.Millisecond})
	other, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxOpenConns(1)
	if _, err := other.Exec(`BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	if _, err := appendRevision(t.Context(), s, "x"); !errors.Is(err, store.ErrBusy) {
		t.Fatalf("append to a locked store: %v, want ErrBusy", err)
	}
	if _, err := other.Exec(`ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if n, err := appendRevision(t.Context(), s, "x"); err != nil || n != 1 {
		t.Fatalf("append after the lock is gone: %d, %v", n, err)
	}
}

func TestDamagedFile(t *testing.T) {
	t.Run("not a database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("not a database", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Options{}); !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Fatalf("open: %v, want ErrCorrupt with the path", err)
		}
	})
	t.Run("a page overwritten", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.db")
		s, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := appendRevision(t.Context(), s, strings.Repeat("y", 5000)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range []int64{1, 2, 3, 4} {
			if _, err := f.WriteAt([]byte(strings.Repeat("\xff", 4096)), page*4096); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, Options{}); !errors.Is(err, store.ErrCorrupt) {
			t.Fatalf("open: %v, want ErrCorrupt", err)
		}
	})
}

func TestNewerSchemaIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO schema_version (number, name) VALUES (99, 'future')`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, store.ErrNewer) {
		t.Fatalf("open: %v, want ErrNewer", err)
	}
}

// TestTamperingShows changes the audit log behind the back of the program, in every way there is.
func TestTamperingShows(t *testing.T) {
	for name, statements := range map[string][]string{
		"changed":        {`UPDATE audit SET detail = 'nothing happened' WHERE number = 2`},
		"removed":        {`DELETE FROM audit WHERE number = 2`},
		"cut short":      {`DELETE FROM audit WHERE number = 3`},
		"emptied":        {`DELETE FROM audit`},
		"head moved too": {`DELETE FROM audit WHERE number = 3`, `UPDATE audit_head SET number = 2`},
		"denied flipped": {`UPDATE audit SET denied = 1 WHERE number = 1`},
		"time changed":   {`UPDATE audit SET time_ms = time_ms + 1 WHERE number = 1`},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "state.db"), Options{})
			for range 3 {
				if _, err := appendRevision(t.Context(), s, "x"); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.View(t.Context(), store.VerifyAudit); err != nil {
				t.Fatalf("before: %v", err)
			}
			err := s.db.Update(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec(statements[0]); return err })
			if err == nil {
				t.Fatal("the database lets the audit log be changed")
			}
			if err := s.db.Update(t.Context(), func(tx *sql.Tx) error {
				for _, q := range append([]string{`DROP TRIGGER audit_is_immutable`, `DROP TRIGGER audit_stays`}, statements...) {
					if _, err := tx.Exec(q); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := s.View(t.Context(), store.VerifyAudit); !errors.Is(err, store.ErrCorrupt) {
				t.Fatalf("after: %v, want ErrCorrupt", err)
			}
		})
	}
}

func BenchmarkAppendRevision(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	text := strings.Repeat("x", 10_000)
	for b.Loop() {
		if _, err := appendRevision(b.Context(), s, text); err != nil {
			b.Fatal(err)
		}
	}
}
