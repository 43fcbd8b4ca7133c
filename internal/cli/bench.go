package cli

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) benchCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use:   "bench",
		Short: "Measure this build on this machine",
	}, a.benchEvalCommand(), a.benchCoreCommand(), a.benchGenCommand())
}

// benchSizes are the flags that say how large the made-up world is.
type benchSizes struct{ workloads, rules, flows int }

func (b *benchSizes) register(cmd *cobra.Command) {
	cmd.Flags().IntVar(&b.workloads, "workloads", 1000, "how many workloads")
	cmd.Flags().IntVar(&b.rules, "rules", 1000, "how many rules")
	cmd.Flags().IntVar(&b.flows, "flows", 1_000_000, "how many flows")
}

func (b *benchSizes) check() error {
	const most = 1 << 24 // addresses of 10.0.0.0/8
	if b.workloads < 1 || b.workloads > most || b.rules < 1 || b.flows < 1 {
		return usagef("use at least one workload (at most %d), one rule and one flow", most)
	}
	return nil
}

func (a *app) benchGenCommand() *cobra.Command {
	var (
		sizes benchSizes
		out   string
	)
	cmd := &cobra.Command{
		Use:   "gen --out DIR",
		Short: "Write the documents and flows that bench eval measures with",
		Example: `  bulkhead bench gen --out /tmp/bench
  time bulkhead eval -f /tmp/bench --flows /tmp/bench/flows.jsonl > /dev/null`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usagef("bench gen needs --out: where to?")
			}
			if err := sizes.check(); err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return cannotf("write the bench: %w", err)
			}
			return writeBench(out, &sizes)
		},
	}
	sizes.register(cmd)
	cmd.Flags().StringVar(&out, "out", "", "the directory")
	return cmd
}

// The files of a bench.
const (
	benchDocuments = "world.yaml"
	benchFlows     = "flows.jsonl"
)

func writeBench(dir string, sizes *benchSizes) error {
	w := newBenchWorld(sizes.workloads, sizes.rules, sizes.flows)
	if err := writeTo(filepath.Join(dir, benchDocuments), w.writeDocuments); err != nil {
		return err
	}
	return writeTo(filepath.Join(dir, benchFlows), w.writeFlows)
}

func writeTo(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return cannotf("write the bench: %w", err)
	}
	if err := write(f); err != nil {
		f.Close()
		return cannotf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return cannotf("write %s: %w", path, err)
	}
	return nil
}

// cpuTime returns the processor time that this process has used so far.
func cpuTime() (time.Duration, error) {
	return clockTime(unix.CLOCK_PROCESS_CPUTIME_ID)
}

// threadTime returns the processor time that the calling thread has used so far.
func threadTime() (time.Duration, error) { return clockTime(unix.CLOCK_THREAD_CPUTIME_ID) }

func clockTime(clock int32) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, cannotf("read the processor time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// measured is what one operation costs.
type measured struct {
	nanoseconds float64 // the median of some rounds
	allocations float64
}

// benchRounds is how often a short measurement is repeated: what else the machine does falls on some rounds only.
const benchRounds = 9

// measure calls fn for each of n things on one thread, round after round, and takes the processor time of that thread:
// while it waits for a processor that something else has, no time passes.
func measure(n int, fn func(i int) error) (measured, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after runtime.MemStats
	rounds := make([]time.Duration, benchRounds)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for r := range rounds {
		start, err := threadTime()
		if err != nil {
			return measured{}, err
		}
		for i := range n {
			if err := fn(i); err != nil {
				return measured{}, err
			}
		}
		end, err := threadTime()
		if err != nil {
			return measured{}, err
		}
		rounds[r] = end - start
	}
	runtime.ReadMemStats(&after)
	slices.Sort(rounds)
	return measured{
		nanoseconds: round(float64(rounds[len(rounds)/2].Nanoseconds()) / float64(n)),
		allocations: round(float64(after.Mallocs-before.Mallocs) / float64(n*len(rounds))),
	}, nil
}

// round keeps two decimals: what is less comes from elsewhere in the program.
func round(x float64) float64 { return math.Round(x*100) / 100 }
