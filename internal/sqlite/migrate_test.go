package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

var sentinels = Errors{
	Full: errors.New("full"), Busy: errors.New("busy"), Corrupt: errors.New("corrupt"), Newer: errors.New("newer"),
}

// schema returns numbered migrations.
func schema(statements ...string) fs.FS {
	files := fstest.MapFS{}
	for i, s := range statements {
		files[fmt.Sprintf("%04d_step.sql", i+1)] = &fstest.MapFile{Data: []byte(s)}
	}
	return files
}

const (
	first  = `CREATE TABLE host (name TEXT PRIMARY KEY); INSERT INTO host VALUES ('a'), ('b');`
	second = `ALTER TABLE host ADD COLUMN labels TEXT NOT NULL DEFAULT '{}'; UPDATE host SET labels = '{"app":"pay"}' WHERE name = 'a';`
	broken = `ALTER TABLE host ADD COLUMN zone TEXT; DELETE FROM host; INSERT INTO nowhere VALUES (1);`
)

func openFile(path string, migrations fs.FS) (*DB, error) {
	return Open(path, Options{Migrations: migrations, Durable: true, Errors: sentinels})
}

// value returns the only value of a query on the file.
func value(t *testing.T, path string, migrations fs.FS, query string) (text string, err error) {
	t.Helper()
	db, err := openFile(path, migrations)
	if err != nil {
		return "", err
	}
	err = db.View(context.Background(), func(tx *sql.Tx) error { return tx.QueryRow(query).Scan(&text) })
	return text, errors.Join(err, db.Close())
}

// TestUpgrade opens a file that an older version has written: its schema is brought up to date, once, and what is in it
// stays.
func TestUpgrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if got, err := value(t, path, schema(first), `SELECT count(*) FROM host`); err != nil || got != "2" {
		t.Fatalf("the older version: %s, %v", got, err)
	}
	for range 2 {
		if got, err := value(t, path, schema(first, second), `SELECT group_concat(name || labels) FROM host`); err != nil || got != `a{"app":"pay"},b{}` {
			t.Fatalf("the newer version: %s, %v", got, err)
		}
	}
	if got, err := value(t, path, schema(first, second), `SELECT group_concat(number || name) FROM schema_version`); err != nil || got != "10001_step.sql,20002_step.sql" {
		t.Errorf("schema versions %s, %v", got, err)
	}
}

// TestDowngrade opens a file that a newer version has written: it is left alone, and the error says what to do.
func TestDowngrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if _, err := value(t, path, schema(first, second), `SELECT count(*) FROM host`); err != nil {
		t.Fatal(err)
	}
	_, err := openFile(path, schema(first))
	if !errors.Is(err, sentinels.Newer) || !strings.Contains(err.Error(), "its schema is 2 and this program knows 1; start the newer program again") {
		t.Errorf("the older version: %v", err)
	}
	if got, err := value(t, path, schema(first, second), `SELECT count(*) FROM host`); err != nil || got != "2" {
		t.Errorf("the newer version afterwards: %s, %v", got, err)
	}
}

// TestUpgradeThatFails leaves the file as it was: the older version goes on with it.
func TestUpgradeThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if _, err := value(t, path, schema(first), `SELECT count(*) FROM host`); err != nil {
		t.Fatal(err)
	}
	if _, err := openFile(path, schema(first, broken)); err == nil || !strings.Contains(err.Error(), "migration 0002_step.sql") {
		t.Errorf("a migration that fails: %v", err)
	}
	if got, err := value(t, path, schema(first), `SELECT group_concat(name) FROM host`); err != nil || got != "a,b" {
		t.Errorf("the older version afterwards: %s, %v", got, err)
	}
}

func TestMigrationsMustBeNumbered(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"a gap":     {"0001_a.sql": {}, "0003_b.sql": {}},
		"no number": {"first.sql": {}},
		"from zero": {"0000_a.sql": {}},
	} {
		if _, err := openFile(filepath.Join(t.TempDir(), "a.db"), files); err == nil || !strings.Contains(err.Error(), "expected number") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
