package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/policy"
)

// evalBench is what `bench eval -o json` prints.
type evalBench struct {
	Workloads      int     `json:"workloads"`
	Rules          int     `json:"rules"`
	Flows          int64   `json:"flows"`
	Processors     int     `json:"processors"`
	InputBytes     int64   `json:"input_bytes"`
	OutputBytes    int64   `json:"output_bytes"`
	ParseSeconds   float64 `json:"parse_seconds"`   // documents
	CompileSeconds float64 `json:"compile_seconds"` //
	EvalSeconds    float64 `json:"eval_seconds"`    // read, judge and write all flows
	CPUSeconds     float64 `json:"cpu_seconds"`     // of all processors, in EvalSeconds
	TotalSeconds   float64 `json:"total_seconds"`
	FlowsPerSecond float64 `json:"flows_per_second"` // of EvalSeconds
	Unreadable     int64   `json:"unreadable"`
}

func (a *app) benchCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use:   "bench",
		Short: "Measure this build on this machine",
	}, a.benchEvalCommand(), a.benchGenCommand())
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

func (a *app) benchEvalCommand() *cobra.Command {
	var sizes benchSizes
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "How many flows a second eval judges",
		Long: `Make up documents and flows, judge the flows as bulkhead eval does, from a file to a file,
and print the rate. The documents and flows depend on the sizes alone.`,
		Example: `  bulkhead bench eval
  bulkhead bench eval --workloads 10000 --rules 5000 --flows 5000000 -o json`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := sizes.check(); err != nil {
				return err
			}
			dir, err := os.MkdirTemp("", "bulkhead-bench-")
			if err != nil {
				return cannotf("make a place for the flows: %w", err)
			}
			defer os.RemoveAll(dir)
			if err := writeBench(dir, &sizes); err != nil {
				return err
			}
			v, err := runEvalBench(cmd.Context(), dir, &sizes)
			if err != nil {
				return err
			}
			return a.print(cmd, v, func(p *page) { printEvalBench(p, v) })
		},
	}
	sizes.register(cmd)
	return cmd
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

// runEvalBench does what eval does and takes the time of each part.
func runEvalBench(ctx context.Context, dir string, sizes *benchSizes) (*evalBench, error) {
	data, err := os.ReadFile(filepath.Join(dir, benchDocuments))
	if err != nil {
		return nil, cannotRead(err)
	}
	start := time.Now()
	docs, err := policy.Parse([]policy.File{{Name: benchDocuments, Data: data}})
	if err != nil {
		return nil, fmt.Errorf("the documents of the bench: %w", err)
	}
	parsed := time.Now()
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("the workloads of the bench: %w", err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{Now: start})
	if err != nil {
		return nil, fmt.Errorf("compile the bench: %w", err)
	}
	compiled := time.Now()
	in, err := os.Open(filepath.Join(dir, benchFlows))
	if err != nil {
		return nil, cannotRead(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(dir, "verdicts.jsonl"))
	if err != nil {
		return nil, cannotf("write the verdicts: %w", err)
	}
	defer out.Close()
	busy, err := cpuTime()
	if err != nil {
		return nil, err
	}
	stats, err := evalFlows(ctx, w, in, out, nil)
	if err != nil {
		return nil, cannotf("judge the flows of the bench: %w", err)
	}
	end := time.Now()
	spent, err := cpuTime()
	if err != nil {
		return nil, err
	}
	v := &evalBench{
		Workloads: len(inv.Instances), Rules: sizes.rules, Flows: stats.Lines, Processors: runtime.GOMAXPROCS(0),
		ParseSeconds: parsed.Sub(start).Seconds(), CompileSeconds: compiled.Sub(parsed).Seconds(),
		EvalSeconds: end.Sub(compiled).Seconds(), CPUSeconds: (spent - busy).Seconds(), TotalSeconds: end.Sub(start).Seconds(), Unreadable: stats.Bad,
	}
	v.FlowsPerSecond = float64(v.Flows) / v.EvalSeconds
	for f, size := range map[*os.File]*int64{in: &v.InputBytes, out: &v.OutputBytes} {
		info, err := f.Stat()
		if err != nil {
			return nil, cannotRead(err)
		}
		*size = info.Size()
	}
	return v, nil
}

// cpuTime returns the processor time that this process has used so far.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, cannotf("read the processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func printEvalBench(p *page, v *evalBench) {
	p.line("%s over %s and %s, %s", count(v.Flows, "flow"), count(v.Workloads, "workload"), count(v.Rules, "rule"),
		count(v.Processors, "processor"))
	p.line("parse documents  %8.3f s", v.ParseSeconds)
	p.line("compile          %8.3f s", v.CompileSeconds)
	p.line("judge            %8.3f s   %s flows a second, %s in, %s out", v.EvalSeconds, thousands(uint64(v.FlowsPerSecond)),
		byteSize(uint64(v.InputBytes)), byteSize(uint64(v.OutputBytes)))
	p.line("                 %8.3f s   of processor time, %.0f ns a flow", v.CPUSeconds, v.CPUSeconds*1e9/float64(v.Flows))
	p.line("all              %8.3f s", v.TotalSeconds)
	if v.Unreadable > 0 {
		p.line("%s could not be read", count(v.Unreadable, "flow"))
	}
}
