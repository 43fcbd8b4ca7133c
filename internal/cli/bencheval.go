package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// evalBench is what `bench eval -o json` prints.
type evalBench struct {
	Workloads   int   `json:"workloads"`
	Rules       int   `json:"rules"`
	Flows       int   `json:"flows"`
	Processors  int   `json:"processors"`
	InputBytes  int64 `json:"input_bytes"`  // the flows
	OutputBytes int64 `json:"output_bytes"` // the verdicts

	// The command, from its start to its end.
	Seconds          float64 `json:"seconds"`
	CPUSeconds       float64 `json:"cpu_seconds"` // of all processors
	FlowsPerSecond   float64 `json:"flows_per_second"`
	MaxResidentBytes int64   `json:"max_resident_bytes"`

	// Its parts, each alone on one processor. Those of a flow are processor time.
	ParseSeconds     float64 `json:"parse_seconds"` // the documents
	CompileSeconds   float64 `json:"compile_seconds"`
	LineNanoseconds  float64 `json:"line_ns"` // read, judge and write one flow
	LineAllocations  float64 `json:"line_allocations"`
	JudgeNanoseconds float64 `json:"judge_ns"` // the evaluator alone, one flow after the other
	JudgeAllocations float64 `json:"judge_allocations"`
	BatchNanoseconds float64 `json:"batch_ns"` // a flow, judged in batches as eval does
	BatchAllocations float64 `json:"batch_allocations"`
}

func (a *app) benchEvalCommand() *cobra.Command {
	var sizes benchSizes
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "How many flows a second eval judges",
		Long: `Make up documents and flows as files, run bulkhead eval on them, and print how long it takes and how
many flows a second that is. Then measure its parts alone, on one processor: parsing and compiling the
documents, one line of flows, and the evaluator.
The documents and flows depend on the sizes alone; bulkhead bench gen writes them for you.`,
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
			v := &evalBench{Workloads: sizes.workloads, Rules: sizes.rules, Flows: sizes.flows, Processors: runtime.GOMAXPROCS(0)}
			bar := newProgress(cmd.ErrOrStderr(), "measuring", 0)
			err = v.run(cmd.Context(), dir)
			bar.finish()
			if err != nil {
				return err
			}
			return a.print(cmd, v, v.text)
		},
	}
	sizes.register(cmd)
	return cmd
}

// run measures on the files of dir.
func (v *evalBench) run(ctx context.Context, dir string) error {
	if err := v.runCommand(ctx, dir); err != nil {
		return err
	}
	return v.runParts(dir)
}

// runCommand runs this program as a user does.
func (v *evalBench) runCommand(ctx context.Context, dir string) error {
	program, err := os.Executable()
	if err != nil {
		return cannotf("find this program: %w", err)
	}
	in, out := filepath.Join(dir, benchFlows), filepath.Join(dir, "verdicts.jsonl")
	verdicts, err := os.Create(out)
	if err != nil {
		return cannotf("write the verdicts: %w", err)
	}
	defer verdicts.Close()
	eval := exec.CommandContext(ctx, program, "eval", "-f", filepath.Join(dir, benchDocuments), "--flows", in)
	var complaint bytes.Buffer
	eval.Args[0] = os.Args[0]
	eval.Stdout, eval.Stderr = verdicts, &complaint
	start := time.Now()
	err = eval.Run()
	v.Seconds = time.Since(start).Seconds()
	if err != nil {
		return cannotf("run bulkhead eval: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	v.FlowsPerSecond = float64(v.Flows) / v.Seconds
	v.CPUSeconds = (eval.ProcessState.UserTime() + eval.ProcessState.SystemTime()).Seconds()
	if u, ok := eval.ProcessState.SysUsage().(*syscall.Rusage); ok {
		v.MaxResidentBytes = u.Maxrss * 1024
	}
	for path, size := range map[string]*int64{in: &v.InputBytes, out: &v.OutputBytes} {
		info, err := os.Stat(path)
		if err != nil {
			return cannotRead(err)
		}
		*size = info.Size()
	}
	return nil
}

// runParts measures what eval is made of.
func (v *evalBench) runParts(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, benchDocuments))
	if err != nil {
		return cannotRead(err)
	}
	start := time.Now()
	docs, err := policy.Parse([]policy.File{{Name: benchDocuments, Data: data}})
	if err != nil {
		return fmt.Errorf("the documents of the bench: %w", err)
	}
	v.ParseSeconds = time.Since(start).Seconds()
	start = time.Now()
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		return fmt.Errorf("the workloads of the bench: %w", err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{Now: start})
	if err != nil {
		return fmt.Errorf("compile the bench: %w", err)
	}
	v.CompileSeconds = time.Since(start).Seconds()
	lines, err := firstLines(filepath.Join(dir, benchFlows), measuredFlows)
	if err != nil {
		return err
	}
	return v.runFlows(w, lines)
}

// measuredFlows is how many flows the measurement of one line, and of the evaluator, goes over: more than a processor
// keeps at hand.
const measuredFlows = 1 << 16

func firstLines(path string, n int) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cannotRead(err)
	}
	defer f.Close()
	var lines [][]byte
	scanner := bufio.NewScanner(f)
	for len(lines) < n && scanner.Scan() {
		lines = append(lines, []byte(scanner.Text()))
	}
	if err := scanner.Err(); err != nil {
		return nil, cannotRead(err)
	}
	return lines, nil
}

func (v *evalBench) runFlows(w *compile.World, lines [][]byte) error {
	judge := newFlowJudge(w)
	flows := make([]model.Flow, len(lines))
	for i, line := range lines {
		if err := judge.parser.Parse(line, &flows[i]); err != nil {
			return fmt.Errorf("the flows of the bench: %w", err)
		}
	}
	var answers []byte
	ok := make([]bool, maxTogether)
	whole, err := measure(len(lines)/maxTogether, func(i int) error {
		answers = judge.judge(answers[:0], lines[i*maxTogether:][:maxTogether], ok)
		if slices.Contains(ok, false) {
			return errors.New(string(answers))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("the flows of the bench: %w", err)
	}
	alone, together, err := measureJudge(w, flows)
	if err != nil {
		return fmt.Errorf("the flows of the bench: %w", err)
	}
	v.LineNanoseconds, v.LineAllocations = round(whole.nanoseconds/maxTogether), round(whole.allocations/maxTogether)
	v.JudgeNanoseconds, v.JudgeAllocations = alone.nanoseconds, alone.allocations
	v.BatchNanoseconds, v.BatchAllocations = together.nanoseconds, together.allocations
	return nil
}

// measureJudge measures what judging one flow costs, one by one and in batches.
func measureJudge(w *compile.World, flows []model.Flow) (alone, together measured, err error) {
	e := verdict.New(w)
	alone, err = measure(len(flows), func(i int) error {
		_, err := e.Judge(&flows[i])
		return err
	})
	if err != nil {
		return measured{}, measured{}, err
	}
	batch, part, judged := e.NewBatch(), make([]*model.Flow, verdict.BatchSize), make([]verdict.Judged, verdict.BatchSize)
	together, err = measure(len(flows)/len(part), func(i int) error {
		for k := range part {
			part[k] = &flows[i*len(part)+k]
		}
		batch.Judge(judged, part)
		for k := range judged {
			if judged[k].Err != nil {
				return judged[k].Err
			}
		}
		return nil
	})
	n := float64(len(part))
	return alone, measured{nanoseconds: round(together.nanoseconds / n), allocations: round(together.allocations / n)}, err
}

func (v *evalBench) text(p *page) {
	p.line("bulkhead eval: %s over %s and %s, %s", count(int64(v.Flows), "flow"), count(v.Workloads, "workload"), count(v.Rules, "rule"),
		count(v.Processors, "processor"))
	p.line("from start to end   %8.3f s    %s flows a second", v.Seconds, thousands(uint64(v.FlowsPerSecond)))
	p.line("processor time      %8.3f s    of all processors", v.CPUSeconds)
	p.line("resident memory     %8s      at most; %s in, %s out", byteSize(uint64(v.MaxResidentBytes)), byteSize(uint64(v.InputBytes)), byteSize(uint64(v.OutputBytes)))
	p.heading("Its parts, each alone on one processor")
	p.line("parse documents     %8.3f s", v.ParseSeconds)
	p.line("compile             %8.3f s", v.CompileSeconds)
	p.line("one line            %8.1f ns   %.2f allocations, to read, judge and write it", v.LineNanoseconds, v.LineAllocations)
	p.line("the evaluator alone %8.1f ns   %.2f allocations a flow, in batches as eval judges", v.BatchNanoseconds, v.BatchAllocations)
	p.line("                    %8.1f ns   %.2f allocations a flow, one by one", v.JudgeNanoseconds, v.JudgeAllocations)
}
