package flows

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "bulkhead/api/bulkhead/v1"
)

func open(t *testing.T, dir string, limit int64) *Spool {
	t.Helper()
	s, err := OpenSpool(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// some returns n records that take about a hundred bytes each.
func some(n int) []*pb.FlowRecord {
	out := make([]*pb.FlowRecord, n)
	for i := range out {
		out[i] = &pb.FlowRecord{Workload: fmt.Sprintf("w%d", i), Rule: strings.Repeat("r", 90)}
	}
	return out
}

func add(t *testing.T, s *Spool, n int, lost uint64) {
	t.Helper()
	if err := s.Append(some(n), lost); err != nil {
		t.Fatal(err)
	}
}

// all reads what a new reader finds.
func all(t *testing.T, s *Spool) (batches []*pb.FlowBatch) {
	t.Helper()
	for r := s.Reader(); ; {
		b, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return batches
		}
		batches = append(batches, b)
	}
}

func sequences(batches []*pb.FlowBatch) (out []uint64) {
	for _, b := range batches {
		out = append(out, b.Sequence)
	}
	return out
}

func TestSpoolKeepsUntilAcknowledged(t *testing.T) {
	s := open(t, t.TempDir(), 1<<20)
	for range 3 {
		add(t, s, 2, 0)
	}
	if got := sequences(all(t, s)); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("batches %v, want 1 to 3", got)
	}
	if err := s.Ack(2); err != nil {
		t.Fatal(err)
	}
	if got := sequences(all(t, s)); !slices.Equal(got, []uint64{3}) {
		t.Errorf("after an acknowledgement of 2: %v, want 3", got)
	}
	for _, early := range []uint64{1, 4, 1 << 60} { // said before; never sent
		if err := s.Ack(early); err != nil {
			t.Fatal(err)
		}
	}
	if got := sequences(all(t, s)); !slices.Equal(got, []uint64{3}) {
		t.Errorf("after senseless acknowledgements: %v, want 3", got)
	}
	if err := s.Ack(3); err != nil {
		t.Fatal(err)
	}
	if len(all(t, s)) != 0 || s.Backlog() != 0 {
		t.Errorf("%d bytes are left after everything was acknowledged", s.Backlog())
	}
}

func TestReaderFollowsWhatIsAppended(t *testing.T) {
	s := open(t, t.TempDir(), 1<<20)
	r := s.Reader()
	if b, err := r.Next(); b != nil || err != nil {
		t.Fatalf("an empty spool gave %v, %v", b, err)
	}
	for want := uint64(1); want < 50; want++ {
		add(t, s, 20, 0)
		<-s.More()
		b, err := r.Next()
		if err != nil || b.GetSequence() != want || len(b.Records) != 20 {
			t.Fatalf("batch %v, %v; want %d", b.GetSequence(), err, want)
		}
		if want%3 == 0 {
			if err := s.Ack(want); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestSpoolSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	add(t, s, 1, 0)
	add(t, s, 1, 5)
	instance := s.Instance()
	if err := s.Ack(1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, 1<<20)
	if s.Instance() != instance {
		t.Error("the numbering has another name although batches of it are left")
	}
	add(t, s, 1, 0)
	got := all(t, s)
	last := got[len(got)-1].Sequence
	if last <= 2 || got[len(got)-2].Sequence != 2 || got[len(got)-2].Lost != 5 {
		t.Errorf("batches %v after a restart, want 2 (with 5 lost) and a later one", sequences(got))
	}
	if err := s.Ack(last); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, 1<<20)
	if s.Instance() == instance {
		t.Error("the numbering begins again and has its old name")
	}
}

func TestFullSpoolDropsTheOldestAndCounts(t *testing.T) {
	s := open(t, t.TempDir(), minSpool)
	const batches, each = 200, 10
	for range batches {
		add(t, s, each, 0)
	}
	if got := s.Backlog(); got > minSpool || got < minSpool/2 {
		t.Errorf("%d bytes are kept, want up to %d", got, minSpool)
	}
	got := all(t, s)
	if got[len(got)-1].Sequence != batches {
		t.Errorf("the newest batch is %d, want %d", got[len(got)-1].Sequence, batches)
	}
	if !slices.IsSorted(sequences(got)) {
		t.Errorf("out of order: %v", sequences(got))
	}
	// What is there, what the batches that are there tell as lost, and what no batch has told yet is everything.
	var kept, told uint64
	for _, b := range got {
		kept += uint64(len(b.Records))
		told += b.Lost
	}
	if kept+s.Lost() != batches*each {
		t.Errorf("%d kept and %d lost, want %d together", kept, s.Lost(), batches*each)
	}
	if err := s.Ack(batches); err != nil {
		t.Fatal(err)
	}
	add(t, s, 0, 0)
	for _, b := range all(t, s) {
		told += b.Lost
	}
	if told != s.Lost() {
		t.Errorf("%d lost and %d of them told", s.Lost(), told)
	}
}

func TestReaderGoesOnWhereTheSpoolDropped(t *testing.T) {
	s := open(t, t.TempDir(), minSpool)
	r := s.Reader()
	add(t, s, 10, 0)
	if b, err := r.Next(); err != nil || b.GetSequence() != 1 {
		t.Fatalf("batch %v, %v", b, err)
	}
	for range 200 {
		add(t, s, 10, 0)
	}
	b, err := r.Next()
	if err != nil || b == nil || b.Sequence <= 2 {
		t.Fatalf("batch %v, %v; want the oldest that is left", b.GetSequence(), err)
	}
	for last := b.Sequence; ; last = b.Sequence {
		if b, err = r.Next(); err != nil {
			t.Fatal(err)
		}
		if b == nil {
			if last != 201 {
				t.Errorf("the last batch is %d, want 201", last)
			}
			return
		}
		if b.Sequence != last+1 {
			t.Fatalf("batch %d after %d", b.Sequence, last)
		}
	}
}

func TestTornTailIsCutOff(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	add(t, s, 3, 0)
	add(t, s, 3, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.flows"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{len(whole) - 1, len(whole)/2 + 5, len(whole)/2 + 40} {
		if err := os.WriteFile(files[0], whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir, 1<<20)
		if got := sequences(all(t, s)); !slices.Equal(got, []uint64{1}) {
			t.Errorf("cut at %d of %d: batches %v, want 1", n, len(whole), got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedBatchIsGivenUpAndCounted(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, minSpool)
	for range 20 {
		add(t, s, 10, 0)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.flows"))
	if err != nil || len(files) < 2 {
		t.Fatalf("files %v, %v; want several", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0xff
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []uint64
	failed := 0
	for r := s.Reader(); ; {
		b, err := r.Next()
		if err != nil {
			failed++
			continue
		}
		if b == nil {
			break
		}
		got = append(got, b.Sequence)
	}
	if failed != 1 || s.Lost() != 1 {
		t.Errorf("%d errors and %d lost, want one of each", failed, s.Lost())
	}
	if len(got) == 0 || got[len(got)-1] != 20 {
		t.Errorf("batches %v, want those up to 20", got)
	}
}

func TestSpoolThatCannotWriteCounts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, minSpool)
	if err := s.Append(some(1000), 0); err == nil {
		t.Fatal("a batch that is larger than half the spool was taken")
	}
	if s.Lost() != 1000 {
		t.Errorf("%d lost, want 1000", s.Lost())
	}
	add(t, s, 1, 0)
	if got := all(t, s); len(got) != 1 || got[0].Lost != 1000 || got[0].Sequence != 1 {
		t.Errorf("the next batch is %v, want number 1 with 1000 lost", got)
	}
	if _, err := OpenSpool(dir, 10); err == nil {
		t.Error("a spool of ten bytes was opened")
	}
}

func FuzzOpenSegment(f *testing.F) {
	dir := f.TempDir()
	s, err := OpenSpool(dir, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Append(some(2), 1); err != nil {
		f.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.flows"))
	if err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "00000000000000000001"+segmentSuffix)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		g, err := openSegment(path)
		if err != nil {
			t.Fatal(err)
		}
		defer g.close()
		if g.size > int64(len(data)) {
			t.Fatalf("%d bytes of frames in a file of %d", g.size, len(data))
		}
		g.count(0)
	})
}
