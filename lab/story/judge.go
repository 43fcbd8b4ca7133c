package story

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// era is a stretch of time in which one policy was in force everywhere: from the moment when every agent had
// acknowledged it to the moment before the next change was asked for.
type era struct {
	from, to int64 // nanoseconds since 1970; to 0 while it lasts
	what     string
	judge    *verdict.Evaluator
}

// beginEra starts an era with what the controller holds now. Every agent must have acknowledged it.
func (st *story) beginEra(ctx context.Context, what string) error {
	w, err := st.rig.API.World(ctx)
	if err != nil {
		return err
	}
	world, err := compile.Compile(w.Documents, w.Inventory, w.Options)
	if err != nil {
		return fmt.Errorf("compile revision %d: %w", w.Revision, err)
	}
	st.eras = append(st.eras, era{from: time.Now().UnixNano(), what: what, judge: verdict.New(world)})
	return nil
}

// endEra ends the present era. It is called before anything is changed.
func (st *story) endEra() {
	if n := len(st.eras); n > 0 && st.eras[n-1].to == 0 {
		st.eras[n-1].to = time.Now().UnixNano()
	}
}

// change ends the era, makes a change, waits until every agent agrees and begins the next era.
func (st *story) change(ctx context.Context, what string, do func(context.Context) error) error {
	st.endEra()
	if err := do(ctx); err != nil {
		return err
	}
	if err := st.rig.Agree(ctx, agreeTime); err != nil {
		return err
	}
	return st.beginEra(ctx, what)
}

// agreeTime is how long the agents get to acknowledge a change. It ends what hangs; the real times are figures.
const agreeTime = 20 * time.Second

// agreement is how the kernel and the evaluator compare over some entries.
type agreement struct {
	judged   int // requests within eras
	allowed  int
	denied   int
	problems []string
}

// compare judges every request since the given time that lies within an era, and compares with what became of it.
func (st *story) compare(since int64) (*agreement, error) {
	if err := st.rig.Book.Update(); err != nil {
		return nil, err
	}
	arrived := map[string]bool{} // requests that some service answered
	for _, e := range st.rig.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleServed && e.ID != "" }) {
		arrived[e.ID] = true
	}
	a := &agreement{}
	requests := st.rig.Book.Entries(func(e *traffic.Entry) bool {
		return e.Start >= since && (e.Role == traffic.RoleCall || e.Role == traffic.RoleProbe || e.Role == traffic.RoleScan)
	})
	for i := range requests {
		e := &requests[i]
		era := st.eraOf(e)
		if era == nil {
			continue
		}
		expected, certain, err := st.expect(era, e)
		if err != nil {
			return nil, fmt.Errorf("judge %s: %w", describe(e), err)
		}
		a.judged++
		if expected.Verdict == model.Deny {
			a.denied++
		} else {
			a.allowed++
		}
		if why := disagree(e, expected.Verdict, certain, arrived[e.ID]); why != "" {
			a.problems = append(a.problems, fmt.Sprintf("%s: the evaluator says %s (%s, %s), %s [%s]", describe(e), expected.Verdict,
				expected.Egress.Rule, expected.Ingress.Rule, why, era.what))
		}
	}
	return a, nil
}

func (st *story) eraOf(e *traffic.Entry) *era {
	for i := range st.eras {
		x := &st.eras[i]
		if e.Start >= x.from && (x.to == 0 || e.End <= x.to) {
			return x
		}
	}
	return nil
}

// expect asks the evaluator about the request. certain is false where nobody listens at the destination: then no
// socket of the destination is there to judge, and only a denial at the source shows.
func (st *story) expect(x *era, e *traffic.Entry) (v model.FlowVerdict, certain bool, err error) {
	proto, err := model.ParseProto(e.Proto)
	if err != nil {
		return v, false, err
	}
	flow := model.Flow{From: st.end(scenario.ParseID(e.From), e.Src.Addr()), Proto: proto, Port: e.Dst.Port()}
	host := st.hostAt(e.Dst.Addr())
	if host == nil {
		flow.To = model.End{Addr: e.Dst.Addr()}
		v, err = x.judge.Judge(&flow)
		return v, false, err
	}
	port := scenario.Port{Proto: proto, Port: e.Dst.Port()}
	if id, listens := st.s.OwnerOf(host.Name, port); listens {
		flow.To = st.end(id, e.Dst.Addr())
		v, err = x.judge.Judge(&flow)
		return v, true, err
	}
	// Nobody listens: the address alone is known, and stands for the most permissive of the workloads that share it.
	// The caller itself is not behind a port that it does not serve, unless it is alone there.
	owners := x.judge.World().Owners(e.Dst.Addr())
	if len(owners) > 1 {
		owners = slices.DeleteFunc(slices.Clone(owners), func(w *compile.Workload) bool { return w.Name == flow.From.Workload })
	}
	if len(owners) == 0 {
		flow.To = model.End{Addr: e.Dst.Addr()}
		v, err = x.judge.Judge(&flow)
		return v, false, err
	}
	for i, o := range owners {
		flow.To = model.End{Workload: o.Name}
		one, err := x.judge.Judge(&flow)
		if err != nil {
			return v, false, err
		}
		if i == 0 || one.Egress.Verdict > v.Egress.Verdict {
			v = one
		}
	}
	v.Verdict = v.Egress.Verdict
	return v, false, nil
}

// end names a workload, or the address of a device that no document names.
func (st *story) end(id scenario.ID, addr netip.Addr) model.End {
	h := st.s.Host(id.Host)
	if h.Managed() || st.declared(id) {
		return model.End{Workload: st.s.Workload(id)}
	}
	if !addr.IsValid() {
		addr = h.Addresses[0]
	}
	return model.End{Addr: addr}
}

// declared reports whether a document names the host.
func (st *story) declared(id scenario.ID) bool {
	for i := range st.s.Docs.Workloads {
		if st.s.Docs.Workloads[i].Name == id.Host {
			return true
		}
	}
	return false
}

func (st *story) hostAt(addr netip.Addr) *scenario.Host {
	for i := range st.s.Hosts {
		for _, a := range st.s.Hosts[i].Addresses {
			if a == addr {
				return &st.s.Hosts[i]
			}
		}
	}
	return nil
}

// disagree says how an outcome contradicts a verdict, or "".
func disagree(e *traffic.Entry, v model.Verdict, certain, arrived bool) string {
	if v == model.Deny {
		switch {
		case arrived:
			return "and it was answered"
		case e.Outcome == traffic.OK:
			return "and it went through"
		case e.Outcome == traffic.Refused && certain:
			return "and it reached the other host, which refused it"
		}
		return ""
	}
	switch {
	case e.Outcome == traffic.Denied:
		return "and the kernel denied it"
	case certain && e.Role != traffic.RoleScan && e.Outcome != traffic.OK:
		// The worm is in a hurry and says things that services hang up on; of it, only denials count.
		return fmt.Sprintf("and the outcome was %s after %s (%s)", e.Outcome, e.Latency().Round(time.Millisecond), e.Err)
	}
	return ""
}

func describe(e *traffic.Entry) string {
	to := e.To
	if to == "" {
		to = e.Dst.Addr().String()
	}
	return fmt.Sprintf("%s %s → %s %s/%d at %s", e.Role, e.From, to, e.Proto, e.Dst.Port(), time.Unix(0, e.Start).Format("15:04:05.000"))
}

// agree adds the comparison of everything since the given time to the step.
func (st *story) agree(s *Step, since int64) error {
	a, err := st.compare(since)
	if err != nil {
		return err
	}
	s.figure("judged", "requests judged by the evaluator", a.judged, "", fmt.Sprintf("%s allowed, %s denied; the kernel said the same of %s",
		thousands(a.allowed), thousands(a.denied), thousands(a.judged-len(a.problems))))
	if a.judged == 0 {
		s.problem("no request could be compared with the evaluator")
	}
	s.Problems = append(s.Problems, a.problems...)
	return nil
}

// failed returns the calls since the given time that did not end well.
func (st *story) failed(since int64) (calls int, bad []traffic.Entry, err error) {
	if err := st.rig.Book.Update(); err != nil {
		return 0, nil, err
	}
	for _, e := range st.rig.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleCall && e.Start >= since }) {
		calls++
		if e.Outcome != traffic.OK {
			bad = append(bad, e)
		}
	}
	return calls, bad, nil
}

// noneFailed adds to the step how many legitimate requests there were and how many failed.
func (st *story) noneFailed(s *Step, since int64) (calls int, err error) {
	calls, bad, err := st.failed(since)
	if err != nil {
		return 0, err
	}
	s.figure("requests", "legitimate requests", calls, "", "")
	s.figure("requests_failed", "of them failed", len(bad), "", "")
	for i := range bad {
		s.problem("%s: %s after %s (%s)", describe(&bad[i]), bad[i].Outcome, bad[i].Latency().Round(time.Millisecond), bad[i].Err)
	}
	return calls, nil
}

// verdictName is the verdict as people read it.
func verdictName(v pb.Verdict) string {
	switch v {
	case pb.Verdict_VERDICT_DENY:
		return "deny"
	case pb.Verdict_VERDICT_WOULD_DENY:
		return "would-deny"
	}
	return "allow"
}
