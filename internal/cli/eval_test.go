package cli

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/policy"
)

// benchCompiled returns a compiled bench world and some of its flows as lines.
func benchCompiled(t testing.TB, flows int) (*compile.World, []byte) {
	t.Helper()
	made := newBenchWorld(1000, 1000, flows)
	var yaml, lines bytes.Buffer
	if err := made.writeDocuments(&yaml); err != nil {
		t.Fatal(err)
	}
	if err := made.writeFlows(&lines); err != nil {
		t.Fatal(err)
	}
	docs, err := policy.Parse([]policy.File{{Name: benchDocuments, Data: yaml.Bytes()}})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return w, lines.Bytes()
}

// TestEvalMemoryIsFlat judges a stream of a million flows, and one of fifty thousand: neither input nor output is held,
// so the longer one needs no more memory.
func TestEvalMemoryIsFlat(t *testing.T) {
	const each = 50_000
	w, lines := benchCompiled(t, each)
	peakOf := func(times int) uint64 {
		runtime.GC()
		before := heap()
		peak := watchHeap()
		stats, err := evalFlows(context.Background(), w, &repeated{of: lines, times: times}, io.Discard, nil)
		most := peak()
		if err != nil || stats.Lines != int64(times*each) || stats.Bad != 0 {
			t.Fatalf("%+v, %v", stats, err)
		}
		return most - min(most, before)
	}
	short, long := peakOf(1), peakOf(20)
	const slack = 16 << 20 // garbage that is not collected yet
	if long > short+slack {
		t.Errorf("%d flows take %s of memory, %d take %s", each, byteSize(short), 20*each, byteSize(long))
	}
}

// repeated reads the same bytes again and again, and never more than a pipe would give.
type repeated struct {
	of    []byte
	times int
	at    int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.at == len(r.of) {
		r.at = 0
		r.times--
	}
	if r.times == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 64<<10)], r.of[r.at:])
	r.at += n
	return n, nil
}

// BenchmarkEval judges flows from memory to nowhere: 1,000 workloads, 1,000 rules, 100,000 flows a run.
func BenchmarkEval(b *testing.B) {
	const flows = 100_000
	w, lines := benchCompiled(b, flows)
	b.SetBytes(int64(len(lines)))
	b.ReportAllocs()
	for b.Loop() {
		stats, err := evalFlows(context.Background(), w, bytes.NewReader(lines), io.Discard, nil)
		if err != nil || stats.Lines != flows || stats.Bad != 0 {
			b.Fatalf("%+v, %v", stats, err)
		}
	}
	b.ReportMetric(float64(b.N)*flows/b.Elapsed().Seconds(), "flows/s")
}
