package cli

import (
	"github.com/spf13/cobra"

	"bulkhead/internal/core/prove"
)

// testView is what `test -o json` prints.
type testView struct {
	OK           bool              `json:"ok"`
	Guardrails   []prove.Guardrail `json:"guardrails"`
	Expectations []prove.Case      `json:"expectations"`
}

func (a *app) testCommand() *cobra.Command {
	var (
		f      sceneFlags
		update bool
	)
	cmd := &cobra.Command{
		Use:   "test [TEST...]",
		Short: "Run expectations, guardrails and test files, with counterexamples",
		Long: `Run every case of every Expectation, and prove every Guardrail over all workloads and
addresses. A guardrail that fails shows a flow that should never be allowed, with the rules
that allow it.

With TEST, a file or a directory of files named *.txtar, run those instead: each holds
documents and what is expected of them, as docs/policy.md describes. --update writes what is
into what is expected; read the difference before you keep it.

Exit status 1 if a case or a guardrail fails.`,
		Example: `  bulkhead test -f policy/
  bulkhead test -f policy/ -o json
  bulkhead test -f policy/ --quarantine pay-db-1=isolate
  bulkhead test tests/                               # every *.txtar below it
  bulkhead test tests/payments.txtar --update`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return a.testFiles(cmd, args, update)
			case update:
				return usagef("--update goes with test files: bulkhead test FILE.txtar --update")
			}
			s, err := a.scene(cmd, &f, "nothing was tested")
			if err != nil {
				return err
			}
			w, err := s.world(cmd, "nothing was tested")
			if err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "proving", 0)
			v := &testView{OK: true, Guardrails: prove.Guardrails(w), Expectations: prove.Expectations(w)}
			bar.finish()
			v.judge()
			if err := a.print(cmd, v, v.text); err != nil {
				return err
			}
			return answer(v.OK)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&update, "update", false, "write what is into what TEST expects")
	return cmd
}

// judge fills what follows from the rest.
func (v *testView) judge() {
	if v.Guardrails == nil {
		v.Guardrails = []prove.Guardrail{}
	}
	if v.Expectations == nil {
		v.Expectations = []prove.Case{}
	}
	for i := range v.Guardrails {
		v.OK = v.OK && v.Guardrails[i].Holds
	}
	for i := range v.Expectations {
		v.OK = v.OK && v.Expectations[i].Pass
	}
}

func (v *testView) text(p *page) {
	held, met := 0, 0
	for i := range v.Guardrails {
		g := &v.Guardrails[i]
		switch {
		case !g.Holds:
			p.line("%s: %s guardrail %s: %s", g.At, p.paint("FAIL", red), g.Name, g.Why())
			continue
		case !g.Enforced:
			p.line("%s: %s guardrail %s holds by policy, but is not enforced yet: %s", g.At, p.paint("note", yellow), g.Name, g.Why())
		}
		held++
	}
	for i := range v.Expectations {
		c := &v.Expectations[i]
		if !c.Pass {
			p.line("%s: %s expectation %s: %s", c.At, p.paint("FAIL", red), c.Expectation, c)
			continue
		}
		met++
	}
	if len(v.Guardrails)+len(v.Expectations) == 0 {
		p.line("There is nothing to test: no Guardrail and no Expectation.")
		return
	}
	p.line("%d of %s, %d of %s", held, count(len(v.Guardrails), "guardrail"), met, count(len(v.Expectations), "expected verdict"))
}
