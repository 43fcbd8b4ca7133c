package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"bulkhead/internal/flowstore"
)

// recordsPerRoll bounds how long one transaction of the roller keeps others from writing.
const recordsPerRoll = 200_000

// cacheLimit bounds the ids that the roller remembers between transactions.
const cacheLimit = 500_000

// roller sums recent windows up by hour. Only one goroutine at a time does so.
type roller struct {
	mu      sync.Mutex
	names   map[string]int64
	edges   map[flowstore.Key]int64
	inHour  map[int64]int // rows of the hours met since the program started
	cleaned time.Time     // when edges and names without a sum were last removed
}

// Maintain implements flowstore.Store.
func (s *Store) Maintain(ctx context.Context, now time.Time) error {
	s.roller.mu.Lock()
	defer s.roller.mu.Unlock()
	for {
		more, err := s.roll(ctx)
		if err != nil {
			s.roller.forget() // ids of a transaction that was rolled back must not be used again
			return err
		}
		if !more {
			break
		}
	}
	if err := s.prune(ctx, now); err != nil {
		return err
	}
	if now.Sub(s.roller.cleaned) < time.Hour {
		return nil
	}
	if err := s.clean(ctx, now); err != nil {
		return err
	}
	s.roller.cleaned = now
	return nil
}

func (r *roller) forget() { r.names, r.edges, r.inHour = nil, nil, nil }

type bucket struct {
	hour int64
	key  flowstore.Key
}

// roll sums up the next recent rows in one transaction, and says whether there may be more.
func (s *Store) roll(ctx context.Context) (more bool, err error) {
	r := &s.roller
	if r.edges == nil || len(r.edges) > cacheLimit || len(r.names) > cacheLimit {
		r.forget()
		r.names, r.edges, r.inHour = map[string]int64{}, map[flowstore.Key]int64{}, map[int64]int{}
	}
	sums, upTo, more, err := s.pending(ctx)
	if err != nil || upTo == 0 {
		return false, err
	}
	return more, s.db.Update(ctx, func(tx *sql.Tx) error {
		w, err := newRollWriter(ctx, s, tx)
		if err != nil {
			return s.db.Wrap("sum up flow records", err)
		}
		defer w.close()
		for b, sum := range sums {
			if err := w.add(b, sum); err != nil {
				return s.db.Wrap("sum up flow records", err)
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE state SET rolled = ?, lost = lost + ?`, upTo, w.lost)
		return s.db.Wrap("sum up flow records", err)
	})
}

// counted are the sums of one bucket, and of how many records they are.
type counted struct {
	flowstore.Sums
	records int64
}

// pending sums up the next recent rows in memory. upTo is the id of the last of them; 0: there are none.
func (s *Store) pending(ctx context.Context) (sums map[bucket]*counted, upTo int64, more bool, err error) {
	sums = map[bucket]*counted{}
	err = s.db.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT id, host, data FROM recent WHERE id > (SELECT rolled FROM state) ORDER BY id`)
		if err != nil {
			return s.db.Wrap("read flow records", err)
		}
		defer rows.Close()
		records := 0
		for rows.Next() {
			if records >= recordsPerRoll {
				more = true
				return nil
			}
			var host string
			var data sql.RawBytes
			if err := rows.Scan(&upTo, &host, &data); err != nil {
				return s.db.Wrap("read flow records", err)
			}
			if err := decode(host, data, func(r *flowstore.Record) error {
				b := bucket{hour: r.First.UnixMilli() / hour, key: r.Key}
				sum := sums[b]
				if sum == nil {
					sum = &counted{}
					sums[b] = sum
				}
				sum.Add(&r.Sums)
				sum.records++
				records++
				return nil
			}); err != nil {
				return err
			}
		}
		return s.db.Wrap("read flow records", rows.Err())
	})
	return sums, upTo, more, err
}

// rollWriter writes sums within one transaction.
type rollWriter struct {
	ctx    context.Context
	tx     *sql.Tx
	roller *roller
	limit  int
	lost   int64

	addName, findName, addEdge, findEdge, update, insert, count *sql.Stmt
}

func newRollWriter(ctx context.Context, s *Store, tx *sql.Tx) (*rollWriter, error) {
	w := &rollWriter{ctx: ctx, tx: tx, roller: &s.roller, limit: s.options.EdgesPerHour}
	var errs []error
	prepare := func(into **sql.Stmt, query string) {
		stmt, err := tx.PrepareContext(ctx, query)
		*into = stmt
		errs = append(errs, err)
	}
	const where = ` WHERE host = ? AND workload = ? AND peer = ? AND source = ? AND dest = ? AND process = ? AND path = ?
		AND rule = ? AND uid = ? AND port = ? AND proto = ? AND flags = ?`
	prepare(&w.findName, `SELECT id FROM name WHERE text = ?`)
	prepare(&w.addName, `INSERT INTO name (text) VALUES (?)`)
	prepare(&w.findEdge, `SELECT id FROM edge`+where)
	prepare(&w.addEdge, `INSERT INTO edge (host, workload, peer, source, dest, process, path, rule, uid, port, proto, flags)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`)
	prepare(&w.update, `UPDATE hourly SET first_ms = MIN(first_ms, ?3), last_ms = MAX(last_ms, ?4),
		connections = connections + ?5, existing = existing + ?6, bytes_to_server = bytes_to_server + ?7,
		bytes_to_client = bytes_to_client + ?8, packets_to_server = packets_to_server + ?9,
		packets_to_client = packets_to_client + ?10 WHERE hour = ?1 AND edge = ?2`)
	prepare(&w.insert, `INSERT INTO hourly (hour, edge, first_ms, last_ms, connections, existing, bytes_to_server,
		bytes_to_client, packets_to_server, packets_to_client) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`)
	prepare(&w.count, `SELECT COUNT(*) FROM hourly WHERE hour = ?`)
	if err := errors.Join(errs...); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *rollWriter) close() {
	for _, s := range []*sql.Stmt{w.addName, w.findName, w.addEdge, w.findEdge, w.update, w.insert, w.count} {
		if s != nil {
			s.Close() // the transaction ends it in any case
		}
	}
}

// add adds the sums to those of their hour, or leaves them out if the hour has too many edges already.
func (w *rollWriter) add(b bucket, sum *counted) error {
	edge, err := w.edge(&b.key)
	if err != nil {
		return err
	}
	args := []any{b.hour, edge, sum.First.UnixMilli(), sum.Last.UnixMilli(), int64(sum.Connections), int64(sum.Existing),
		int64(sum.BytesToServer), int64(sum.BytesToClient), int64(sum.PacketsToServer), int64(sum.PacketsToClient)}
	res, err := w.update.ExecContext(w.ctx, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err
	}
	have, ok := w.roller.inHour[b.hour]
	if !ok {
		if err := w.count.QueryRowContext(w.ctx, b.hour).Scan(&have); err != nil {
			return err
		}
	}
	if have >= w.limit {
		w.roller.inHour[b.hour] = have
		w.lost += sum.records
		return nil
	}
	w.roller.inHour[b.hour] = have + 1
	_, err = w.insert.ExecContext(w.ctx, args...)
	return err
}

func (w *rollWriter) name(text string) (int64, error) {
	if id, ok := w.roller.names[text]; ok {
		return id, nil
	}
	var id int64
	err := w.findName.QueryRowContext(w.ctx, text).Scan(&id)
	if err == sql.ErrNoRows {
		var res sql.Result
		if res, err = w.addName.ExecContext(w.ctx, text); err == nil {
			id, err = res.LastInsertId()
		}
	}
	if err != nil {
		return 0, err
	}
	w.roller.names[text] = id
	return id, nil
}

func (w *rollWriter) edge(k *flowstore.Key) (int64, error) {
	if id, ok := w.roller.edges[*k]; ok {
		return id, nil
	}
	args := make([]any, 0, 12)
	for _, text := range [...]string{k.Host, k.Workload, k.Peer, k.Source.String(), k.Dest.String(), k.Process, k.Path, string(k.Rule)} {
		id, err := w.name(text)
		if err != nil {
			return 0, err
		}
		args = append(args, id)
	}
	args = append(args, int64(k.UID), int64(k.Port), int64(k.Proto), int64(flagsOf(k)))
	var id int64
	err := w.findEdge.QueryRowContext(w.ctx, args...).Scan(&id)
	if err == sql.ErrNoRows {
		var res sql.Result
		if res, err = w.addEdge.ExecContext(w.ctx, args...); err == nil {
			id, err = res.LastInsertId()
		}
	}
	if err != nil {
		return 0, err
	}
	w.roller.edges[*k] = id
	return id, nil
}

// prune forgets recent windows that are too old or too many, as far as they are summed up.
func (s *Store) prune(ctx context.Context, now time.Time) error {
	horizon := now.Add(-s.options.Recent).UnixMilli()
	return s.db.Update(ctx, func(tx *sql.Tx) error {
		exec := func(query string, args ...any) error {
			_, err := tx.ExecContext(ctx, query, args...)
			return s.db.Wrap("forget old flow records", err)
		}
		if err := exec(`UPDATE state SET horizon_ms = MAX(horizon_ms, ?)`, horizon); err != nil {
			return err
		}
		var records int64
		if err := tx.QueryRowContext(ctx, `SELECT COALESCE(SUM(records), 0) FROM recent`).Scan(&records); err != nil {
			return s.db.Wrap("forget old flow records", err)
		}
		if records > s.options.RecentRecords {
			// Of the latest rows, keep as many as fit; the horizon moves behind the first that does not.
			if err := exec(`UPDATE state SET horizon_ms = MAX(horizon_ms, COALESCE((SELECT MAX(last_ms) + 1 FROM (
				SELECT last_ms, SUM(records) OVER (ORDER BY last_ms DESC, id DESC) AS so_far FROM recent)
				WHERE so_far > ?), 0))`, s.options.RecentRecords); err != nil {
				return err
			}
		}
		return exec(`DELETE FROM recent WHERE last_ms < (SELECT horizon_ms FROM state) AND id <= (SELECT rolled FROM state)`)
	})
}

// clean forgets sums that are too old, and the edges and names that nothing needs any more.
func (s *Store) clean(ctx context.Context, now time.Time) error {
	oldest := now.Add(-s.options.Retention).UnixMilli()
	return s.db.Update(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM hourly WHERE hour < ?`, oldest/hour)
		if err != nil {
			return s.db.Wrap("forget old flow sums", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM seen WHERE at_ms < ?`, oldest); err != nil {
			return s.db.Wrap("forget old flow sums", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return s.db.Wrap("forget old flow sums", err)
		}
		s.roller.forget()
		for _, query := range []string{
			`DELETE FROM edge WHERE id NOT IN (SELECT edge FROM hourly)`,
			`DELETE FROM name WHERE id NOT IN (
				SELECT host FROM edge UNION SELECT workload FROM edge UNION SELECT peer FROM edge UNION SELECT source FROM edge
				UNION SELECT dest FROM edge UNION SELECT process FROM edge UNION SELECT path FROM edge UNION SELECT rule FROM edge)`,
		} {
			if _, err := tx.ExecContext(ctx, query); err != nil {
				return s.db.Wrap("forget old flow sums", err)
			}
		}
		return nil
	})
}
