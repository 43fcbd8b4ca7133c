package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
)

const hour = int64(time.Hour / time.Millisecond)

// Scan implements flowstore.Store.
func (s *Store) Scan(ctx context.Context, since, until time.Time, fn func(*flowstore.Record) error) error {
	return s.db.View(ctx, func(tx *sql.Tx) error {
		var rolled, horizon int64
		if err := tx.QueryRowContext(ctx, `SELECT rolled, horizon_ms FROM state`).Scan(&rolled, &horizon); err != nil {
			return s.db.Wrap("read flow records", err)
		}
		emit := func(r *flowstore.Record) error {
			if !r.Overlaps(since, until) {
				return nil
			}
			return fn(r)
		}
		if !since.IsZero() && since.UnixMilli() >= horizon {
			return s.scanRecent(ctx, tx, `last_ms >= ?`, since.UnixMilli(), emit)
		}
		if err := s.scanHourly(ctx, tx, since, emit); err != nil {
			return err
		}
		return s.scanRecent(ctx, tx, `id > ?`, rolled, emit)
	})
}

func (s *Store) scanRecent(ctx context.Context, tx *sql.Tx, where string, arg int64, fn func(*flowstore.Record) error) error {
	rows, err := tx.QueryContext(ctx, `SELECT host, data FROM recent WHERE `+where, arg)
	if err != nil {
		return s.db.Wrap("read flow records", err)
	}
	defer rows.Close()
	for rows.Next() {
		var host string
		var data sql.RawBytes
		if err := rows.Scan(&host, &data); err != nil {
			return s.db.Wrap("read flow records", err)
		}
		if err := decode(host, data, fn); err != nil {
			return err
		}
	}
	return s.db.Wrap("read flow records", rows.Err())
}

// scanHourly sums up by edge in the database, which is cheaper than to hand every hour over.
func (s *Store) scanHourly(ctx context.Context, tx *sql.Tx, since time.Time, fn func(*flowstore.Record) error) error {
	names, err := s.names(ctx, tx)
	if err != nil {
		return err
	}
	from, fromHour := int64(0), int64(0)
	if !since.IsZero() {
		from = since.UnixMilli()
		fromHour = from/hour - 1 // a window may begin in the hour before
	}
	rows, err := tx.QueryContext(ctx, `
		WITH sums AS (
			SELECT edge, MIN(first_ms) AS first_ms, MAX(last_ms) AS last_ms, SUM(connections) AS connections,
				SUM(existing) AS existing, SUM(bytes_to_server) AS bytes_to_server, SUM(bytes_to_client) AS bytes_to_client,
				SUM(packets_to_server) AS packets_to_server, SUM(packets_to_client) AS packets_to_client
			FROM hourly WHERE hour >= ? AND last_ms >= ? GROUP BY edge)
		SELECT host, workload, peer, source, dest, process, path, rule, uid, port, proto, flags, first_ms, last_ms,
			connections, existing, bytes_to_server, bytes_to_client, packets_to_server, packets_to_client
		FROM sums JOIN edge ON edge.id = sums.edge`, fromHour, from)
	if err != nil {
		return s.db.Wrap("read flow sums", err)
	}
	defer rows.Close()
	for rows.Next() {
		var (
			r                                                          flowstore.Record
			host, workload, peer, source, dest, process, path, rule, f int64
			first, last                                                int64
		)
		if err := rows.Scan(&host, &workload, &peer, &source, &dest, &process, &path, &rule, &r.UID, &r.Port, &r.Proto, &f,
			&first, &last, &r.Connections, &r.Existing, &r.BytesToServer, &r.BytesToClient,
			&r.PacketsToServer, &r.PacketsToClient); err != nil {
			return s.db.Wrap("read flow sums", err)
		}
		if err := setFlags(&r.Key, uint64(f)); err != nil {
			return err
		}
		r.Host, r.Workload, r.Peer = names[host], names[workload], names[peer]
		r.Process, r.Path, r.Rule = names[process], names[path], model.RuleID(names[rule])
		if r.Source, err = netip.ParseAddr(names[source]); err == nil {
			r.Dest, err = netip.ParseAddr(names[dest])
		}
		if err != nil {
			return fmt.Errorf("read flow sums: %w: %w", flowstore.ErrCorrupt, err)
		}
		r.First, r.Last = fromMillis(first), fromMillis(last)
		if err := fn(&r); err != nil {
			return err
		}
	}
	return s.db.Wrap("read flow sums", rows.Err())
}

func (s *Store) names(ctx context.Context, tx *sql.Tx) (map[int64]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT id, text FROM name`)
	if err != nil {
		return nil, s.db.Wrap("read names", err)
	}
	defer rows.Close()
	names := map[int64]string{}
	for rows.Next() {
		var id int64
		var text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, s.db.Wrap("read names", err)
		}
		names[id] = text
	}
	return names, s.db.Wrap("read names", rows.Err())
}
