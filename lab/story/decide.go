package story

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
)

// mostClosed is how many of the communications that close are printed; all of them are in the plan.
const mostClosed = 6

func (st *story) decide(ctx context.Context, s *Step) error {
	st.tell(s, "What would change if all of that were enforced? The plan judges every recorded flow again, proves the guardrails "+
		"and runs the expectations. Nothing is touched.", "bulkhead plan -f enforced/")
	dir := filepath.Join(st.rig.Layout.Dir, "enforced")
	if err := st.writeEnforced(dir); err != nil {
		return err
	}
	st.doing("planning")
	p, err := st.plan(ctx, dir)
	if err != nil {
		return err
	}
	st.still()
	printClosed(st.teller, p.Closed)
	held, closed, opened := 0, pairs(p.Closed), pairs(p.Opened)
	for i := range p.Guardrails {
		g := &p.Guardrails[i]
		switch {
		case !g.Holds:
			s.problem("guardrail %s does not hold: %s", g.Name, g.Counterexample)
		case !g.Enforced:
			s.problem("guardrail %s would not be enforced: %s", g.Name, g.NotEnforced)
		default:
			held++
		}
	}
	passed := 0
	for i := range p.Expectations {
		if p.Expectations[i].Pass {
			passed++
		} else {
			s.problem("expectation failed: %s", p.Expectations[i].String())
		}
	}
	for i := range p.Flows.Changed {
		if f := &p.Flows.Changed[i]; f.After.Verdict == model.Deny.String() {
			s.problem("%s → %s on %s was recorded %d times and would be denied by %s", f.From, f.To, f.On, f.Connections, f.DecidedBy)
		}
	}
	if p.Flows.Unknown > 0 {
		s.problem("%d recorded flows cannot be judged", p.Flows.Unknown)
	}
	if p.Flows.Judged == 0 {
		s.problem("no recorded flow was judged")
	}
	if closed == 0 {
		s.problem("the plan closes nothing")
	}
	s.figure("flows_judged", "recorded flows judged again", p.Flows.Judged, "", "")
	s.figure("flows_broken", "of them would break", p.Broken, "", "")
	s.figure("pairs_closed", "pairs of workloads with ports that close", closed, "", fmt.Sprintf("%d that open", opened))
	s.figure("guardrails", "guardrails proved", held, "", fmt.Sprintf("of %d", len(p.Guardrails)))
	s.figure("expectations", "expectations met", passed, "", fmt.Sprintf("of %d", len(p.Expectations)))
	s.Summary = fmt.Sprintf("%d of %d recorded flows would break; ports between %d pairs close; %d of %d guardrails proved",
		p.Broken, p.Flows.Judged, closed, held, len(p.Guardrails))
	return nil
}

// writeEnforced writes what is to come: the proposal, every segment in mode enforce, and what must hold then.
func (st *story) writeEnforced(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	docs := policy.Merge(st.proposed, st.segmentsIn(model.ModeEnforce, nil))
	if err := os.WriteFile(filepath.Join(dir, "enforced.yaml"), policy.Marshal(docs), 0o644); err != nil {
		return err
	}
	for _, f := range st.s.Target {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.Name)), f.Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// plan runs bulkhead plan. That guardrails or expectations fail is an answer, not an error.
func (st *story) plan(ctx context.Context, dir string) (*plan.Plan, error) {
	out, err := st.cli(ctx, "plan", "-f", dir, "-o", "json")
	if code, ran := exitStatus(err); err != nil && !(ran && code == 1 && len(out) > 0) {
		return nil, err
	}
	var p plan.Plan
	if err := json.Unmarshal(out, &p); err != nil {
		return nil, fmt.Errorf("what plan printed: %w", err)
	}
	return &p, nil
}

func pairs(list []diff.Communication) int {
	n := 0
	for i := range list {
		n += list[i].Pairs
	}
	return n
}

func printClosed(t *teller, closed []diff.Communication) {
	for i := range closed {
		if i == mostClosed {
			t.line("   … and %d more kinds of communication close", len(closed)-i)
			break
		}
		c := &closed[i]
		t.line("   closes  %s", shorten(fmt.Sprintf("%s → %s on %s", strings.Join(c.From, " or "), strings.Join(c.To, " or "), strings.Join(c.On, ", ")), width-11))
	}
	if len(closed) > 0 {
		t.line("")
	}
}

// shorten cuts a line that is too long for the terminal.
func shorten(s string, at int) string {
	r := []rune(s)
	if len(r) <= at {
		return s
	}
	return string(r[:at-1]) + "…"
}
