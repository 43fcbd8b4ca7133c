package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

func (a *app) evalCommand() *cobra.Command {
	var (
		f     sceneFlags
		flows string
	)
	cmd := &cobra.Command{
		Use:   "eval --flows FILE|-",
		Short: "A verdict for every flow of a JSON-lines file",
		Long: `Judge every flow of a JSON-lines file. One object a line is read,
  {"from": "portal-1", "to": "10.0.3.7", "proto": "tcp", "port": 5432}
(a name is a workload's, everything else an address; ICMP has icmp_type and icmp_code instead
of port), and one object a line is written in the same order:
  {"verdict": "deny", "egress": {"verdict": "allow", "rule": "payments/api-reads-db"},
   "ingress": {"verdict": "deny", "rule": "default-deny"}}
For a line that cannot be read or judged it is {"error": "..."}; the others are still judged and
the exit status is 1. Blank lines are left out. What bulkhead flows -o json prints can be read.`,
		Example: `  bulkhead eval -f policy/ --flows flows.jsonl > verdicts.jsonl
  bulkhead flows --since 7d -o json | bulkhead eval -f policy/ --flows - | sort | uniq -c
  bulkhead eval -f policy/ --flows flows.jsonl --quarantine portal-1=isolate`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flows == "" {
				return usagef("eval needs --flows: which flows?")
			}
			if a.output == formatYAML {
				return usagef("eval writes JSON lines; -o yaml is not for it")
			}
			if err := onlyOneStdin(append([]string{flows}, f.files...)...); err != nil {
				return err
			}
			s, err := a.scene(cmd, &f, "nothing was judged")
			if err != nil {
				return err
			}
			w, err := s.world(cmd, "nothing was judged")
			if err != nil {
				return err
			}
			in, size, err := open(cmd, flows)
			if err != nil {
				return err
			}
			defer in.Close()
			bar := newProgress(cmd.ErrOrStderr(), "judging", size)
			stats, err := evalFlows(cmd.Context(), w, in, cmd.OutOrStdout(), bar)
			bar.finish()
			if err != nil {
				return evalStopped(flows, stats, err)
			}
			if stats.Bad > 0 {
				return nof("%s of %s could not be read or judged; the first is line %d of %s",
					thousands(uint64(stats.Bad)), count(stats.Lines, "flow"), stats.FirstBad, flows)
			}
			return nil
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&flows, "flows", "", "JSON lines: a file or - for standard input")
	return cmd
}

// evalFlows judges every flow of in on as many workers as there are processors.
func evalFlows(ctx context.Context, w *compile.World, in io.Reader, out io.Writer, bar *progress) (lineStats, error) {
	judges := make([]lineJudge, max(1, runtime.GOMAXPROCS(0)))
	for i := range judges {
		judges[i] = newFlowJudge(w)
	}
	return judgeLines(ctx, in, out, judges, bar)
}

// evalStopped says why not all flows were judged.
func evalStopped(flows string, stats lineStats, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	return cannotf("stopped after %s of %s: %w", count(stats.Lines, "flow"), flows, err)
}

// flowJudge judges flows; each worker has its own.
type flowJudge struct {
	batch  *verdict.Batch
	parser flowline.Parser
	read   [maxTogether]model.Flow
	errs   [maxTogether]error          // by line: why it could not be read
	flows  []*model.Flow               // those that could
	judged [maxTogether]verdict.Judged // parallel to flows
}

func newFlowJudge(w *compile.World) *flowJudge { return &flowJudge{batch: verdict.New(w).NewBatch()} }

func (j *flowJudge) judge(dst []byte, lines [][]byte, ok []bool) []byte {
	j.flows = j.flows[:0]
	for i, line := range lines {
		ok[i] = false
		if j.errs[i] = j.parser.Parse(line, &j.read[i]); j.errs[i] == nil {
			j.flows = append(j.flows, &j.read[i])
		}
	}
	j.batch.Judge(j.judged[:], j.flows)
	next := 0
	for i := range lines {
		err := j.errs[i]
		if err == nil {
			v := &j.judged[next]
			next++
			if ok[i] = v.Err == nil; ok[i] {
				dst = append(flowline.AppendVerdict(dst, v.FlowVerdict), '\n')
				continue
			}
			err = v.Err
		}
		dst = append(flowline.AppendError(dst, err), '\n')
	}
	return dst
}

func (j *flowJudge) tooLong(dst []byte) []byte {
	return append(flowline.AppendError(dst, fmt.Errorf("the line is longer than %d bytes", maxLine)), '\n')
}
