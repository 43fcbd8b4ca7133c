package compile_test

import (
	"runtime"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
)

// BenchmarkCompile compiles whole estates. Beside time it reports what the finished world holds (MB-held), and how
// many policy sets and rows it has.
func BenchmarkCompile(b *testing.B) {
	for _, s := range []estate.Size{
		{Workloads: 1_000, LabelSets: 100, Rules: 100},
		{Workloads: 1_000, LabelSets: 100, Rules: 1_000},
		{Workloads: 1_000, LabelSets: 100, Rules: 10_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 100},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 1_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 100},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 1_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(s.String(), func(b *testing.B) {
			docs, inv := estate.Make(s)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.ReportAllocs()
			b.ResetTimer()
			var w *compile.World
			for b.Loop() {
				var err error
				if w, err = compile.Compile(docs, inv, compile.Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-held")
			b.ReportMetric(float64(w.Sets()), "sets")
			b.ReportMetric(float64(w.Rows()), "rows")
			runtime.KeepAlive(docs)
			runtime.KeepAlive(inv)
		})
	}
}

// BenchmarkHostPolicy makes what one agent is given, in a large estate: for hosts of every kind in turn.
func BenchmarkHostPolicy(b *testing.B) {
	s := estate.Size{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000}
	docs, inv := estate.Make(s)
	w, err := compile.Compile(docs, inv, compile.Options{})
	if err != nil {
		b.Fatal(err)
	}
	hosts := w.Hosts()
	rows, addresses, i := 0, 0, 0
	b.ReportAllocs()
	for b.Loop() {
		p, ok := w.HostPolicy(hosts[i*7919%len(hosts)])
		if !ok {
			b.Fatal("no policy")
		}
		i++
		addresses += len(p.Addresses)
		for k := range p.Sets {
			rows += len(p.Sets[k].Ingress.Peers) + len(p.Sets[k].Egress.Peers)
		}
	}
	b.ReportMetric(float64(rows)/float64(i), "rows/host")
	b.ReportMetric(float64(addresses)/float64(i), "addresses/host")
}
