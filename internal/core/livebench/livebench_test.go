package livebench_test

import (
	"flag"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/livebench"
)

// As many as the 99th percentile of the rarer kinds asks for.
var benchSamples = flag.Int("live.samples", 400, "samples of the commonest kinds of change")

// clocks are processor time: others may be at work on the machine.
var clocks = livebench.Clocks{Thread: clock(unix.CLOCK_THREAD_CPUTIME_ID), Process: clock(unix.CLOCK_PROCESS_CPUTIME_ID)}

func clock(id int32) func() time.Duration {
	return func() time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(id, &t); err != nil {
			panic(err)
		}
		return time.Duration(t.Nano())
	}
}

func TestRun(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := livebench.Run(estate.Size{Workloads: 1000, LabelSets: 100, Rules: 1000}, 30, 1000, clocks)
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
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, s := range []estate.Size{
		{Workloads: 1_000, LabelSets: 100, Rules: 1_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(s.String(), func(b *testing.B) {
			for b.Loop() {
				r, err := livebench.Run(s, *benchSamples, 50, clocks)
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("build %v", r.Build)
				for _, f := range r.Figures {
					b.Logf("%-34s n %4d  apply %9v %9v %9v  all threads %9v  one %9v %9v  all %9v %9v %9v  hosts %6d", f.Kind, f.Samples,
						micro(f.Apply.P50), micro(f.Apply.P99), micro(f.Apply.Max), micro(f.Process.P99), micro(f.One.P50), micro(f.One.P99),
						micro(f.All.P50), micro(f.All.P99), micro(f.All.Max), f.Hosts)
				}
			}
		})
	}
}
