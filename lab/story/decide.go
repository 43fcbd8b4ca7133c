package story

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
	"bulkhead/lab/scenario"
)

// mostClosed is how many examples of what closes are printed; all of it is in the plan.
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
	today, then, err := st.reachable(ctx)
	if err != nil {
		return err
	}
	st.printClosed(today, then)
	held, closed, opened := 0, pairs(p.Closed), pairs(p.Opened)
	for i := range p.Guardrails {
		g := &p.Guardrails[i]
		switch {
		case !g.Holds:
			s.problem("guardrail %s does not hold: %s", g.Name, g.Why())
		case !g.Enforced:
			s.problem("guardrail %s would not be enforced: %s", g.Name, g.Why())
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
	s.figure("pairs_closed", "pairs of workloads that lose ports", closed, "", fmt.Sprintf("%d that gain some", opened))
	s.figure("reachable_today", "services reachable today", len(today), "", "(workload, service that listens), of the whole lab")
	s.figure("reachable_then", "services reachable then", len(then), "", "")
	s.figure("guardrails", "guardrails proved", held, "", fmt.Sprintf("of %d", len(p.Guardrails)))
	s.figure("expectations", "expectations met", passed, "", fmt.Sprintf("of %d", len(p.Expectations)))
	s.Summary = fmt.Sprintf("%d of %d recorded flows would break; of %d reachable services %d stay so; %d of %d guardrails proved",
		p.Broken, p.Flows.Judged, len(today), len(then), held, len(p.Guardrails))
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

// service is something that listens, as one workload may reach it.
type service struct {
	from, to model.End
	port     scenario.Port
}

// reachable returns what each workload can reach of what really listens: today, and once all of it is enforced.
func (st *story) reachable(ctx context.Context) (today, then map[service]bool, err error) {
	w, err := st.rig.API.World(ctx)
	if err != nil {
		return nil, nil, err
	}
	now, err := compile.Compile(w.Documents, w.Inventory, w.Options)
	if err != nil {
		return nil, nil, err
	}
	after, err := compile.Compile(policy.Merge(w.Documents, policy.Merge(st.proposed, st.segmentsIn(model.ModeEnforce, nil))),
		relabelled(w.Inventory, st.proposed), w.Options)
	if err != nil {
		return nil, nil, err
	}
	if today, err = st.reach(verdict.New(now)); err != nil {
		return nil, nil, err
	}
	then, err = st.reach(verdict.New(after))
	return today, then, err
}

// relabelled returns the inventory with the labels that documents add.
func relabelled(inv *model.Inventory, docs *model.Documents) *model.Inventory {
	out := &model.Inventory{Instances: slices.Clone(inv.Instances)}
	for i := range out.Instances {
		inst := &out.Instances[i]
		for j := range docs.Workloads {
			if docs.Workloads[j].Name == inst.Name {
				inst.Labels = inst.Labels.With(docs.Workloads[j].Labels)
			}
		}
	}
	return out
}

func (st *story) reach(judge *verdict.Evaluator) (map[service]bool, error) {
	out := map[service]bool{}
	placed := st.s.Placed()
	for _, p := range placed {
		for _, q := range placed {
			for _, l := range q.Listen {
				s := service{from: st.end(p.ID, netip.Addr{}), to: st.end(q.ID, netip.Addr{}), port: l.Port}
				if p.ID == q.ID || out[s] {
					continue
				}
				v, err := judge.Judge(&model.Flow{From: s.from, To: s.to, Proto: l.Port.Proto, Port: l.Port.Port})
				if err != nil {
					return nil, err
				}
				if v.Verdict != model.Deny {
					out[s] = true
				}
			}
		}
	}
	return out, nil
}

// printClosed shows what closes for the workload in which the worm will begin.
func (st *story) printClosed(today, then map[service]bool) {
	st.still()
	from := st.end(scenario.ParseID(st.s.Story.Breach.From), netip.Addr{})
	var closes []string
	before, after := 0, 0
	for s := range today {
		if s.from != from {
			continue
		}
		before++
		if then[s] {
			after++
		} else {
			closes = append(closes, fmt.Sprintf("%s %s", s.to, s.port))
		}
	}
	slices.Sort(closes)
	st.line("   %s may reach %d services today and %d then. These close, among others:", from, before, after)
	for i, c := range closes {
		if i == mostClosed {
			break
		}
		st.line("     %s", c)
	}
	st.line("")
}
