package livebench_test

import (
	"testing"
	"time"

	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/livebench"
)

var begin = time.Now()

func clock() time.Duration { return time.Since(begin) }

func TestRun(t *testing.T) {
	r, err := livebench.Run(estate.Size{Workloads: 1000, LabelSets: 100, Rules: 1000}, 30, 1000, clock)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Figures {
		if f.Samples == 0 || f.Hosts == 0 {
			t.Errorf("%+v", f)
		}
	}
}

// BenchmarkLive prints the latency of each kind of single change.
func BenchmarkLive(b *testing.B) {
	for _, s := range []estate.Size{
		{Workloads: 1_000, LabelSets: 100, Rules: 1_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(s.String(), func(b *testing.B) {
			for b.Loop() {
				r, err := livebench.Run(s, 400, 50, clock)
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("build %v, one host %v", r.Build, r.Host)
				for _, f := range r.Figures {
					b.Logf("%-40s n %4d  p50 %10v  p99 %10v  max %10v  hosts %6d", f.Kind, f.Samples, f.P50, f.P99, f.Max, f.Hosts)
				}
			}
		})
	}
}
