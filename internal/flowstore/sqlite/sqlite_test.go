package sqlite

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/flowstore/flowstoretest"
)

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "flows.db"), o)
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
	flowstoretest.Run(t, func(t *testing.T, retention time.Duration) flowstore.Store {
		o := DefaultOptions()
		o.Retention = retention
		return open(t, o)
	})
}

func connections(t *testing.T, s *Store, since time.Time) (n uint64, rows int) {
	t.Helper()
	if err := s.Scan(t.Context(), since, time.Time{}, func(r *flowstore.Record) error {
		n += r.Connections
		rows++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n, rows
}

func TestReopenKeepsRecordsAndNumbering(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.db")
	now := time.Now()
	for round := range 3 {
		s, err := Open(path, DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		batch := []flowstore.Batch{{Host: "h", Instance: "i", Sequence: 1, Records: []flowstore.Record{flowstoretest.Record(now)}}}
		done, err := s.Append(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		if want := round == 0; (done.Records == 1) != want {
			t.Errorf("round %d: %+v", round, done)
		}
		if n, _ := connections(t, s, time.Time{}); n != 1 {
			t.Errorf("round %d: %d connections, want 1", round, n)
		}
		if round == 1 {
			if err := s.Maintain(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTooManyRecentRecords(t *testing.T) {
	o := DefaultOptions()
	o.RecentRecords = 25
	s := open(t, o)
	now := time.Now().Truncate(time.Hour).Add(20 * time.Minute)
	for i := range uint64(10) {
		r := flowstoretest.Record(now.Add(time.Duration(i) * time.Minute))
		if _, err := s.Append(t.Context(), []flowstore.Batch{{Host: "h", Sequence: i + 1, Records: []flowstore.Record{r, r, r, r, r}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Maintain(t.Context(), now.Add(10*time.Minute)); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.Recent != 25 || st.Hourly != 1 || st.Lost != 0 {
		t.Errorf("stats %+v, %v; want 25 recent records and one sum", st, err)
	}
	if n, _ := connections(t, s, now); n != 50 {
		t.Errorf("%d connections, want 50: what is not recent must come from the sums", n)
	}
	if n, rows := connections(t, s, now.Add(5*time.Minute)); n != 25 || rows != 25 {
		t.Errorf("%d connections in %d records since the fifth minute, want 25 in 25", n, rows)
	}
}

func TestTooManyEdgesInAnHourAreCounted(t *testing.T) {
	o := DefaultOptions()
	o.EdgesPerHour, o.Recent = 3, 0
	s := open(t, o)
	at := time.Now().Add(-2 * time.Hour)
	var records []flowstore.Record
	for port := range 8 {
		for range 2 {
			r := flowstoretest.Record(at)
			r.Port = uint16(port)
			records = append(records, r)
		}
	}
	if _, err := s.Append(t.Context(), []flowstore.Batch{{Host: "h", Sequence: 1, Records: records}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Maintain(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.Hourly != 3 || st.Lost != 10 || st.Recent != 0 {
		t.Errorf("stats %+v, %v; want 3 sums and 10 records lost", st, err)
	}
	if n, _ := connections(t, s, time.Time{}); n != 6 {
		t.Errorf("%d connections, want 6", n)
	}
}

func TestFullStore(t *testing.T) {
	o := DefaultOptions()
	o.MaxPages = 40
	s := open(t, o)
	stored := 0
	var err error
	for i := uint64(1); err == nil; i++ {
		var records []flowstore.Record
		for p := range 200 {
			r := flowstoretest.Record(time.Now())
			r.Process = fmt.Sprintf("process %d of batch %d", p, i)
			records = append(records, r)
		}
		var done flowstore.Appended
		done, err = s.Append(t.Context(), []flowstore.Batch{{Host: "h", Sequence: i, Records: records}})
		stored += done.Records
	}
	if !errors.Is(err, flowstore.ErrFull) {
		t.Fatalf("error of a full store: %v, want ErrFull", err)
	}
	if n, _ := connections(t, s, time.Time{}); int(n) != stored || stored == 0 {
		t.Errorf("%d connections after an append that failed, want %d", n, stored)
	}
	if err := s.Maintain(t.Context(), time.Now()); !errors.Is(err, flowstore.ErrFull) {
		t.Fatalf("maintain a full store: %v, want ErrFull", err)
	}
	if n, _ := connections(t, s, time.Time{}); int(n) != stored {
		t.Errorf("%d connections after a maintenance that failed, want %d", n, stored)
	}
}

func TestDamagedBatchIsAnError(t *testing.T) {
	records := []flowstore.Record{flowstoretest.Record(time.Now()), flowstoretest.Record(time.Now().Add(time.Second))}
	data, _ := encode(records)
	count := 0
	fn := func(*flowstore.Record) error { count++; return nil }
	if err := decode("node-1", data, fn); err != nil || count != 2 {
		t.Fatalf("decode: %v after %d records", err, count)
	}
	for cut := range data {
		if err := decode("node-1", data[:cut], fn); !errors.Is(err, flowstore.ErrCorrupt) {
			t.Errorf("cut to %d of %d bytes: %v, want ErrCorrupt", cut, len(data), err)
		}
	}
	if err := decode("node-1", append(data, 0), fn); !errors.Is(err, flowstore.ErrCorrupt) {
		t.Errorf("with a byte more: %v, want ErrCorrupt", err)
	}
}

func FuzzDecode(f *testing.F) {
	data, _ := encode([]flowstore.Record{flowstoretest.Record(time.Unix(1, 0)), {Key: flowstore.Key{Source: netip.IPv6Loopback(), Dest: netip.IPv6Loopback(), Verdict: model.Allow}}})
	f.Add(data)
	f.Add([]byte{encodingVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var records []flowstore.Record
		if err := decode("h", data, func(r *flowstore.Record) error { records = append(records, *r); return nil }); err != nil {
			if !errors.Is(err, flowstore.ErrCorrupt) {
				t.Fatalf("error %v", err)
			}
			return
		}
		again, _ := encode(records)
		i := 0
		if err := decode("h", again, func(r *flowstore.Record) error {
			if *r != records[i] {
				t.Errorf("record %d: %+v, want %+v", i, r, records[i])
			}
			i++
			return nil
		}); err != nil {
			t.Errorf("what was decoded cannot be decoded again: %v", err)
		}
	})
}

// traffic returns batches of 1,000 records over the given number of distinct edges of 20 hosts.
func traffic(batches, edges int, at time.Time) []flowstore.Batch {
	const hosts = 20
	out := make([]flowstore.Batch, batches)
	for i := range out {
		out[i] = flowstore.Batch{Host: fmt.Sprintf("node-%d", i%hosts), Sequence: uint64(i + 1)}
		for n := range 1000 {
			r := flowstoretest.Record(at.Add(time.Duration(i) * 10 * time.Millisecond))
			e := (i/hosts*1000+n)*hosts%edges + i%hosts
			r.Host = out[i].Host
			r.Workload, r.Peer = fmt.Sprintf("web-%d", e%300), fmt.Sprintf("db-%d", e%200)
			r.Source = netip.AddrFrom4([4]byte{10, 0, byte(e % 300 / 256), byte(e % 300)})
			r.Dest = netip.AddrFrom4([4]byte{10, 1, 0, byte(e % 200)})
			r.Port = uint16(e)
			out[i].Records = append(out[i].Records, r)
		}
	}
	return out
}

// BenchmarkIngest prints how many flow records a second the store takes in, sums included.
func BenchmarkIngest(b *testing.B) {
	s := open(b, DefaultOptions())
	const perRound = 100
	now := time.Now()
	records, sequence := 0, uint64(0)
	batches := traffic(perRound, 20_000, now)
	for b.Loop() {
		for i := range batches {
			sequence++
			batches[i].Sequence = sequence
		}
		for i := 0; i < perRound; i += 10 {
			done, err := s.Append(b.Context(), batches[i:i+10])
			if err != nil {
				b.Fatal(err)
			}
			records += done.Records
		}
		if err := s.Maintain(b.Context(), now); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkLastDay prints how long it takes to read a day of sums of 20,000 edges in each of 24 hours.
func BenchmarkLastDay(b *testing.B) {
	s := open(b, DefaultOptions())
	now := time.Now()
	for hour := range 24 {
		batches := traffic(20, 20_000, now.Add(-time.Duration(hour)*time.Hour))
		for i := range batches {
			batches[i].Sequence += uint64(hour * 1000)
		}
		if _, err := s.Append(b.Context(), batches); err != nil {
			b.Fatal(err)
		}
	}
	for range 2 {
		if err := s.Maintain(b.Context(), now); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		var j flowstore.Joiner
		if err := s.Scan(b.Context(), now.Add(-24*time.Hour), time.Time{}, func(r *flowstore.Record) error { j.Add(r); return nil }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(j.Edges())), "edges")
	}
}
