package cli

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/policy"
)

// BenchmarkEval judges flows from memory to nowhere: 1,000 workloads, 1,000 rules, 100,000 flows a run.
func BenchmarkEval(b *testing.B) {
	made := newBenchWorld(1000, 1000, 100_000)
	var yaml, flows bytes.Buffer
	if err := made.writeDocuments(&yaml); err != nil {
		b.Fatal(err)
	}
	if err := made.writeFlows(&flows); err != nil {
		b.Fatal(err)
	}
	docs, err := policy.Parse([]policy.File{{Name: benchDocuments, Data: yaml.Bytes()}})
	if err != nil {
		b.Fatal(err)
	}
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{Now: time.Now()})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(flows.Len()))
	b.ReportAllocs()
	for b.Loop() {
		stats, err := evalFlows(context.Background(), w, bytes.NewReader(flows.Bytes()), io.Discard, nil)
		if err != nil || stats.Lines != 100_000 || stats.Bad != 0 {
			b.Fatalf("%+v, %v", stats, err)
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "flows/s")
}
