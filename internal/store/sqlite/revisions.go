package sqlite

import "bulkhead/internal/store"

const revisionHead = `SELECT number, hash, author, note, time_ms, count`

// Revision implements store.Reader.
func (t *tx) Revision(number uint64) (*store.Revision, error) {
	query, args := revisionHead+`, documents FROM revision ORDER BY number DESC LIMIT 1`, []any(nil)
	if number != 0 {
		query, args = revisionHead+`, documents FROM revision WHERE number = ?`, []any{int64(number)}
	}
	var r store.Revision
	var ms int64
	if err := t.row("read revision", query, args,
		&r.Number, &r.Hash, &r.Author, &r.Note, &ms, &r.Count, &r.Documents); err != nil {
		return nil, err
	}
	r.Time = fromMillis(ms)
	return &r, nil
}

// Revisions implements store.Reader.
func (t *tx) Revisions(limit int) ([]store.Revision, error) {
	if limit == 0 {
		limit = -1
	}
	var list []store.Revision
	err := t.each("list revisions", revisionHead+` FROM revision ORDER BY number DESC LIMIT ?`, []any{limit},
		func(scan func(...any) error) error {
			var r store.Revision
			var ms int64
			if err := scan(&r.Number, &r.Hash, &r.Author, &r.Note, &ms, &r.Count); err != nil {
				return err
			}
			r.Time = fromMillis(ms)
			list = append(list, r)
			return nil
		})
	return list, err
}

// AppendRevision implements store.Tx.
func (t *tx) AppendRevision(base uint64, r store.Revision) (uint64, error) {
	var newest uint64
	if err := t.row("read newest revision", `SELECT COALESCE(MAX(number), 0) FROM revision`, nil, &newest); err != nil {
		return 0, err
	}
	if newest != base {
		return 0, store.ErrConflict
	}
	_, err := t.exec("append revision",
		`INSERT INTO revision (number, hash, author, note, time_ms, count, documents) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		int64(base+1), r.Hash, r.Author, r.Note, millis(r.Time), r.Count, r.Documents)
	return base + 1, err
}
