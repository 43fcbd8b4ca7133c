package story

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/lab/fabric"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

func (st *story) breach(ctx context.Context, s *Step) error {
	from := st.s.Workload(scenario.ParseID(st.s.Story.Breach.From))
	st.tell(s, fmt.Sprintf("A harmless worm starts in %s and tries every address and port of the lab; what it takes joins in. "+
		"Management ports and data stores let it in, services that ask who calls do not. First with enforcement off, then on.", from),
		"bulkhead lab attack "+st.s.Name, "bulkhead flows --verdict deny")
	start := time.Now().UnixNano()

	st.doing("the worm, enforcement off")
	if err := st.setMode(ctx, "everything observed again", model.ModeObserve); err != nil {
		return err
	}
	off, err := st.attack(ctx)
	if err != nil {
		return err
	}
	st.doing("healing %d workloads", len(off.Taken))
	if err := st.heal(ctx, off); err != nil {
		return err
	}
	st.doing("the worm, enforcement on")
	if err := st.setMode(ctx, "everything enforced again", model.ModeEnforce); err != nil {
		return err
	}
	began := time.Now()
	on, err := st.attack(ctx)
	if err != nil {
		return err
	}
	if err := rest(ctx, enforcePause); err != nil {
		return err
	}
	calls, bad, err := st.failed(began.UnixNano())
	if err != nil {
		return err
	}
	for i := range bad {
		s.problem("%s: %s (%s)", describe(&bad[i]), bad[i].Outcome, bad[i].Err)
	}
	st.doing("looking for every stopped attempt in the flows")
	stops, problems, err := st.stops(ctx, on, began)
	if err != nil {
		return err
	}
	s.Problems = append(s.Problems, problems...)
	if err := st.agree(s, start); err != nil {
		return err
	}
	if err := st.heal(ctx, on); err != nil {
		return err
	}
	st.breachFigures(s, off, on, stops, calls, len(bad))
	return nil
}

func (st *story) breachFigures(s *Step, off, on *rig.Attack, stops *stops, calls, failed int) {
	all := len(st.workloads())
	reached := map[string]bool{}
	for i := range on.Entries {
		if e := &on.Entries[i]; e.Outcome == traffic.OK {
			reached[e.Dst.String()] = true
		}
	}
	s.figure("workloads", "workloads in the lab", all, "", "")
	s.figure("taken_without", "taken without enforcement", len(off.Taken), "", fmt.Sprintf("in %.1f s, with %s attempts", off.Took.Seconds(), thousands(off.Attempts)))
	s.figure("taken_with", "taken with enforcement", len(on.Taken), "", "the one where it began is counted")
	s.figure("attempts", "attempts with enforcement", on.Attempts, "", "")
	s.figure("stopped", "of them stopped", stops.stopped, "", "")
	s.figure("stopped_recorded", "of them in bulkhead flows", stops.recorded, "", "by "+strings.Join(stops.rules, ", "))
	s.figure("reached", "services reached, as policy allows", len(reached), "", "they held")
	s.figure("requests", "legitimate requests meanwhile", calls, "", fmt.Sprintf("%d failed", failed))
	if len(on.Taken) != 1 {
		s.problem("with enforcement the worm took %s", strings.Join(on.Taken, ", "))
	}
	if 2*len(off.Taken) <= all {
		s.problem("without enforcement the worm took only %d of %d workloads: the lab proves little", len(off.Taken), all)
	}
	s.Summary = fmt.Sprintf("the worm took %d of %d workloads without Bulkhead and %d with it; %s of %s stopped attempts are on record",
		len(off.Taken), all, len(on.Taken), thousands(stops.recorded), thousands(stops.stopped))
}

// workloads returns every workload of the scenario that runs something.
func (st *story) workloads() map[scenario.ID]bool {
	out := map[scenario.ID]bool{}
	for _, p := range st.s.Placed() {
		out[p.ID] = true
	}
	return out
}

func (st *story) setMode(ctx context.Context, what string, mode model.Mode) error {
	docs := st.segmentsIn(mode, func(n string) bool { return slices.Contains(st.s.Story.Enforce, n) })
	return st.change(ctx, what, func(ctx context.Context) error {
		// The documents of the target expect enforcement; with it off they fail, as they should.
		_, err := st.rig.API.Apply(ctx, &pb.ApplyRequest{Files: rig.Files(asFile("segments.yaml", docs)), Note: what, Force: mode != model.ModeEnforce})
		if err != nil {
			return fmt.Errorf("apply (%s): %w", what, err)
		}
		return nil
	})
}

func (st *story) attack(ctx context.Context) (*rig.Attack, error) {
	return st.rig.Attack(ctx, st.s.Story.Breach.From)
}

// heal restarts what the worm took, and waits until all is as before.
func (st *story) heal(ctx context.Context, a *rig.Attack) error {
	st.endEra()
	if err := st.rig.Pause(ctx); err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, id := range a.Taken {
		ids[id] = true
	}
	if err := st.rig.Heal(ctx, ids); err != nil {
		return err
	}
	// A restarted process takes a moment to answer on its control socket.
	err := fabric.WaitUntil(ctx, "the restart", agreeTime, 30*time.Millisecond, func() error { return st.rig.Resume(ctx) })
	if err != nil {
		return err
	}
	if err := errors.Join(st.rig.Settle(ctx), st.rig.Known(ctx, agreeTime), st.rig.Agree(ctx, agreeTime)); err != nil {
		return err
	}
	return st.beginEra(ctx, "healed")
}

// stops is what became of attempts that were stopped.
type stops struct {
	stopped  int
	recorded int      // of stopped, those that flows show with a rule
	rules    []string // with how many each stopped
}

// deniedBy reports whether the evaluator denies the attempt under the policy of its time.
func (st *story) deniedBy(e *traffic.Entry) (bool, error) {
	x := st.eraOf(e)
	if x == nil {
		return false, nil
	}
	v, _, err := st.expect(x, e)
	return v.Verdict == model.Deny, err
}

// destination is what an attempt was aimed at.
type destination struct {
	from string
	to   netip.Addr
	port scenario.Port
}

func (d destination) String() string { return fmt.Sprintf("%s → %s %s", d.from, d.to, d.port) }

// stops compares the attempts that did not arrive with the denials that flows show since then: per source, address and
// port the numbers must be equal, and each denial must name its rule.
func (st *story) stops(ctx context.Context, a *rig.Attack, since time.Time) (*stops, []string, error) {
	want := map[destination]int{}
	out := &stops{}
	for i := range a.Entries {
		e := &a.Entries[i]
		// An attempt that nothing of ours could see, between two devices or to nobody, is not one that was stopped.
		stopped, err := st.deniedBy(e)
		if err != nil {
			return nil, nil, err
		}
		if stopped && rig.Blocked(e.Outcome) {
			want[destination{st.nameOf(e.From, e.Src.Addr().String()), e.Dst.Addr(), portOf(e)}]++
			out.stopped++
		}
	}
	if out.stopped == 0 {
		return out, []string{"no attempt was stopped: the comparison proves nothing"}, nil
	}
	var problems []string
	err := fabric.WaitUntil(ctx, "a record of every stopped attempt", flushTime, 250*time.Millisecond, func() error {
		edges, err := st.rig.API.Flows(ctx, &pb.ListFlowsRequest{SinceMs: since.UnixMilli(), Verdicts: []pb.Verdict{pb.Verdict_VERDICT_DENY}})
		if err != nil {
			return err
		}
		got, rules, err := denials(edges, want)
		if err != nil {
			return err
		}
		problems = compareStops(want, got)
		out.recorded, out.rules = 0, nil
		for d, n := range want {
			out.recorded += min(n, got[d])
		}
		for rule, n := range rules {
			out.rules = append(out.rules, fmt.Sprintf("%s (%s)", rule, thousands(n)))
		}
		slices.Sort(out.rules)
		if len(problems) > 0 {
			return fmt.Errorf("%d differences", len(problems))
		}
		return nil
	})
	if err != nil && len(problems) == 0 {
		return nil, nil, err
	}
	return out, problems, nil
}

// denials sums what flows say of the destinations: attempts, and by which rule.
func denials(edges []*pb.Edge, want map[destination]int) (map[destination]int, map[string]int, error) {
	got, rules := map[destination]int{}, map[string]int{}
	for _, e := range edges {
		to, err := netip.ParseAddr(e.ToAddr)
		if err != nil {
			return nil, nil, err
		}
		d := destination{e.From, to, scenario.Port{Proto: model.Proto(e.Proto), Port: uint16(e.Port)}}
		if want[d] == 0 {
			continue
		}
		for _, end := range []*pb.EdgeEnd{e.Egress, e.Ingress} {
			if end != nil && end.Verdict == pb.Verdict_VERDICT_DENY && end.Rule != "" {
				got[d] += int(end.Connections)
				rules[end.Rule] += int(end.Connections)
				break
			}
		}
	}
	return got, rules, nil
}

func compareStops(want, got map[destination]int) []string {
	var problems []string
	for d, n := range want {
		if got[d] != n {
			problems = append(problems, fmt.Sprintf("%s: %d attempts stopped, %d on record", d, n, got[d]))
		}
	}
	slices.Sort(problems)
	return problems
}
