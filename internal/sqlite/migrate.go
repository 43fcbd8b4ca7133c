package sqlite

import (
	"database/sql"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

type migration struct {
	number int
	name   string
	sql    string
}

// migrate runs the migrations that the file has not seen. A file that has seen more than there are is from a newer
// version and is left alone.
func migrate(db *sql.DB, files fs.FS, newer error) error {
	list, err := migrations(files)
	if err != nil {
		return err
	}
	if _, err := db.Exec(`CREATE TABLE IF NOT EXISTS schema_version (number INTEGER PRIMARY KEY, name TEXT NOT NULL)`); err != nil {
		return err
	}
	var have int
	if err := db.QueryRow(`SELECT COALESCE(MAX(number), 0) FROM schema_version`).Scan(&have); err != nil {
		return err
	}
	if have > len(list) {
		return fmt.Errorf("%w: its schema is %d and this program knows %d; start the newer program again", newer, have, len(list))
	}
	for _, m := range list[have:] {
		if err := m.run(db); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
	}
	return nil
}

func (m *migration) run(db *sql.DB) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after the commit
	if _, err := tx.Exec(m.sql); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO schema_version (number, name) VALUES (?, ?)`, m.number, m.name); err != nil {
		return err
	}
	return tx.Commit()
}

// migrations returns the files in order. They must be numbered from 0001 without gaps.
func migrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	var list []migration
	for i, name := range names { // Glob sorts
		digits, _, _ := strings.Cut(name, "_")
		n, err := strconv.Atoi(digits)
		if err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %s: expected number %04d", name, i+1)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		list = append(list, migration{number: n, name: name, sql: string(text)})
	}
	return list, nil
}
