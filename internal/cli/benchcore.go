package cli

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
)

// coreBench is what `bench core -o json` prints.
type coreBench struct {
	Processors int            `json:"processors"`
	Runs       int            `json:"runs"` // of each world; times are those of the quickest
	Worlds     []compileBench `json:"worlds"`
	Large      *largeBench    `json:"large"` // the largest world that was asked for
}

// compileBench is what one world costs.
type compileBench struct {
	Workloads int `json:"workloads"`
	LabelSets int `json:"label_sets"`
	Rules     int `json:"rules"`

	CompileSeconds    float64 `json:"compile_seconds"`
	CompileCPUSeconds float64 `json:"compile_cpu_seconds"`
	PeakHeapBytes     uint64  `json:"peak_heap_bytes"` // while compiling, documents and inventory included
	WorldBytes        uint64  `json:"world_bytes"`     // what the compiled world holds, without them
	PolicySets        int     `json:"policy_sets"`
	Rows              int     `json:"rows"`

	JudgeNanoseconds float64 `json:"judge_ns"` // one flow between any two workloads, on one processor
	BatchNanoseconds float64 `json:"batch_ns"` // the same in batches, as eval and plan judge
	JudgeAllocations float64 `json:"judge_allocations"`
}

// benchLabelSets are how many label sets workloads have in the worlds that bench core measures.
var benchLabelSets = map[int]int{1_000: 100, 10_000: 1_000, 100_000: 5_000}

func (a *app) benchCoreCommand() *cobra.Command {
	workloads, rules, runs, samples := []int{1_000, 10_000, 100_000}, []int{100, 1_000, 10_000}, 3, liveSamples
	cmd := &cobra.Command{
		Use:   "core",
		Short: "Time and memory of a full compile, of single changes, the evaluator, proofs and a plan",
		Long: `Compile made-up worlds from scratch and print the time, the greatest heap while compiling, and what
judging one flow costs in each. An app has five roles in two environments, at two sites; a tenth of the
hosts run two units that share their addresses. Times are those of the quickest of some runs; judging is
the median of some rounds over flows between any two workloads, one by one and in batches.

In the largest world also: the processor time of each kind of single change until the delta of any host
can be drawn, and of drawing those of one host and of all; 100 guardrails proved, and a plan against a million recorded flows.`,
		Example: `  bulkhead bench core
  bulkhead bench core --workloads 100000 --rules 10000 -o json`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if runs < 1 || samples < 1 || slices.Min(workloads) < 1 || slices.Min(rules) < 1 {
				return usagef("use at least one workload, one rule, one run and one sample")
			}
			v := &coreBench{Processors: runtime.GOMAXPROCS(0), Runs: runs}
			bar := newProgress(cmd.ErrOrStderr(), "measuring", int64(len(workloads)*len(rules)+1))
			defer bar.finish()
			for _, w := range workloads {
				for _, r := range rules {
					if err := cmd.Context().Err(); err != nil {
						return err
					}
					b, err := benchCompile(estate.Size{Workloads: w, LabelSets: labelSetsOf(w), Rules: r}, runs)
					if err != nil {
						return err
					}
					v.Worlds = append(v.Worlds, *b)
					bar.add(1)
				}
			}
			most := slices.Max(workloads)
			large, err := benchLarge(estate.Size{Workloads: most, LabelSets: labelSetsOf(most), Rules: slices.Max(rules)}, samples)
			if err != nil {
				return err
			}
			v.Large = large
			bar.add(1)
			return a.print(cmd, v, v.text)
		},
	}
	cmd.Flags().IntVar(&samples, "samples", samples, "how often the commonest kinds of single change are measured")
	cmd.Flags().IntSliceVar(&workloads, "workloads", workloads, "how many workloads, one size or several")
	cmd.Flags().IntSliceVar(&rules, "rules", rules, "how many rules, one size or several")
	cmd.Flags().IntVar(&runs, "runs", runs, "how often each world is compiled")
	return cmd
}

// labelSetsOf returns how many label sets a world of so many workloads has: ten workloads share one, and more do in a
// large world.
func labelSetsOf(workloads int) int {
	if n, ok := benchLabelSets[workloads]; ok {
		return n
	}
	return min(max(workloads/10, 10), 5_000)
}

func benchCompile(size estate.Size, runs int) (*compileBench, error) {
	docs, inv := estate.Make(size)
	b := &compileBench{Workloads: len(inv.Instances), LabelSets: countLabelSets(inv), Rules: size.Rules}
	var w *compile.World
	for run := range runs {
		w = nil
		runtime.GC() // collects what earlier runs left; its memory is used again, as a controller's is
		before := heap()
		busy, err := cpuTime()
		if err != nil {
			return nil, err
		}
		peak := watchHeap()
		start := time.Now()
		w, err = compile.Compile(docs, inv, compile.Options{Now: start})
		took := time.Since(start).Seconds()
		b.PeakHeapBytes = max(b.PeakHeapBytes, peak())
		if err != nil {
			return nil, fmt.Errorf("compile the bench: %w", err)
		}
		spent, err := cpuTime()
		if err != nil {
			return nil, err
		}
		if run == 0 || took < b.CompileSeconds {
			b.CompileSeconds, b.CompileCPUSeconds = took, (spent - busy).Seconds()
		}
		runtime.GC()
		if after := heap(); after > before {
			b.WorldBytes = after - before
		}
	}
	b.PolicySets, b.Rows = w.Sets(), w.Rows()
	alone, together, err := measureJudge(w, anyFlows(w, inv))
	b.JudgeNanoseconds, b.BatchNanoseconds = alone.nanoseconds, together.nanoseconds
	b.JudgeAllocations = max(alone.allocations, together.allocations)
	runtime.KeepAlive(docs)
	return b, err
}

func countLabelSets(inv *model.Inventory) int {
	seen := map[string]bool{}
	for i := range inv.Instances {
		seen[inv.Instances[i].Labels.String()] = true
	}
	return len(seen)
}

// anyFlows returns flows between any two workloads on ports that rules name, one half by name, the other by address.
func anyFlows(w *compile.World, inv *model.Inventory) []model.Flow {
	rng := rand.New(rand.NewPCG(1, 2))
	ports := []uint16{443, 8443, 5432, 6379, 5672, 8080}
	end := func() model.End {
		inst := &inv.Instances[rng.IntN(len(inv.Instances))]
		if len(inst.Addresses) > 0 && rng.IntN(2) == 0 && len(w.Owners(inst.Addresses[0])) == 1 {
			return model.End{Workload: inst.Addresses[0].String(), Addr: inst.Addresses[0]}
		}
		return model.End{Workload: inst.Name}
	}
	flows := make([]model.Flow, measuredFlows)
	for i := range flows {
		flows[i] = model.Flow{From: end(), To: end(), Proto: model.ProtoTCP, Port: ports[rng.IntN(len(ports))]}
	}
	return flows
}

const heapObjects = "/memory/classes/heap/objects:bytes"

// heap returns the bytes of all objects on the heap, those included that are not collected yet.
func heap() uint64 {
	s := []metrics.Sample{{Name: heapObjects}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// watchHeap looks at the heap again and again, until the function that it returns is called for the greatest value.
func watchHeap() (peak func() uint64) {
	most := heap()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				most = max(most, heap())
			}
		}
	})
	return func() uint64 {
		close(stop)
		watching.Wait()
		return max(most, heap())
	}
}

func (v *coreBench) text(p *page) {
	t := newTable(">WORKLOADS", ">LABEL SETS", ">RULES", ">COMPILE", ">CPU", ">PEAK HEAP", ">WORLD", ">POLICY SETS", ">ROWS", ">JUDGE", ">IN BATCHES", ">ALLOCATIONS")
	for i := range v.Worlds {
		b := &v.Worlds[i]
		t.add(thousands(uint64(b.Workloads)), thousands(uint64(b.LabelSets)), thousands(uint64(b.Rules)),
			fmt.Sprintf("%.3f s", b.CompileSeconds), fmt.Sprintf("%.3f s", b.CompileCPUSeconds), byteSize(b.PeakHeapBytes), byteSize(b.WorldBytes),
			thousands(uint64(b.PolicySets)), thousands(uint64(b.Rows)), fmt.Sprintf("%.0f ns", b.JudgeNanoseconds), fmt.Sprintf("%.0f ns", b.BatchNanoseconds),
			strings.TrimSuffix(fmt.Sprintf("%.2f", b.JudgeAllocations), ".00"))
	}
	p.table(t, "nothing was measured")
	p.line("")
	p.line("Full compile, quickest of %s. CPU is the time of all %s in it.", count(v.Runs, "run"), count(v.Processors, "processor"))
	v.Large.text(p)
}
