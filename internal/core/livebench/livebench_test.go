package livebench_test

import (
	"flag"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/livebench"
)

// As many as the 99th percentile of the rarer kinds asks for.
var benchSamples = flag.Int("live.samples", 400, "samples of the commonest kinds of change")

// clock is the time of the processors that this process has used: others may be at work on the machine.
func clock() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

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

func micro(d time.Duration) time.Duration { return d.Round(100 * time.Nanosecond) }

// BenchmarkLive prints the processor time of each kind of single change.
func BenchmarkLive(b *testing.B) {
	for _, s := range []estate.Size{
		{Workloads: 1_000, LabelSets: 100, Rules: 1_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(s.String(), func(b *testing.B) {
			for b.Loop() {
				r, err := livebench.Run(s, *benchSamples, 50, clock)
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("build %v", r.Build)
				for _, f := range r.Figures {
					b.Logf("%-34s n %4d  apply %9v %9v %9v  one %9v %9v  all %9v %9v %9v  hosts %6d", f.Kind, f.Samples,
						micro(f.Apply.P50), micro(f.Apply.P99), micro(f.Apply.Max), micro(f.One.P50), micro(f.One.P99),
						micro(f.All.P50), micro(f.All.P99), micro(f.All.Max), f.Hosts)
				}
			}
		})
	}
}
