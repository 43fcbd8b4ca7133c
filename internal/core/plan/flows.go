package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

// flowKey is what the verdict of a recorded flow depends on.
type flowKey struct {
	from, to         string
	fromAddr, toAddr netip.Addr
	proto            model.Proto
	port             uint16
	domain           string
	processes        [2]model.Process // the zero value where it is not known: it meets no constraint either
}

func keyOf(f *model.Flow) flowKey {
	k := flowKey{from: f.From.Workload, to: f.To.Workload, fromAddr: f.From.Addr, toAddr: f.To.Addr, proto: f.Proto, port: f.Port, domain: f.ToDomain}
	for i, p := range []*model.Process{f.FromProcess, f.ToProcess} {
		if p != nil {
			k.processes[i] = *p
		}
	}
	return k
}

// effect is what a change does to a flow, the worst first.
type effect uint8

const (
	broken effect = iota
	wouldBreak
	restored
	cleared
)

func effectOf(before, after model.Verdict) effect {
	switch {
	case after == model.Deny:
		return broken
	case before == model.Deny:
		return restored
	case after == model.WouldDeny:
		return wouldBreak
	}
	return cleared
}

type changedFlow struct {
	Flow
	effect effect
}

// judgeFlows judges every recorded flow in both worlds. Records of one flow are joined.
func judgeFlows(before, after *verdict.Evaluator, flows []model.RecordedFlow, limit int) Flows {
	c := comparison{out: Flows{Changed: []Flow{}}, byKey: map[flowKey]int{}}
	batches := [2]*verdict.Batch{before.NewBatch(), after.NewBatch()}
	var judged [2][verdict.BatchSize]verdict.Judged
	together := make([]*model.Flow, 0, verdict.BatchSize)
	for part := range slices.Chunk(flows, verdict.BatchSize) {
		together = together[:0]
		for i := range part {
			together = append(together, &part[i].Flow)
		}
		for i, b := range batches {
			b.Judge(judged[i][:], together)
		}
		for i := range part {
			c.compare(&part[i], &judged[0][i], &judged[1][i])
		}
	}
	out, changed := c.out, c.changed
	for i := range changed {
		switch changed[i].effect {
		case broken:
			out.Broken++
		case wouldBreak:
			out.WouldBreak++
		case restored:
			out.Restored++
		case cleared:
			out.Cleared++
		}
	}
	slices.SortFunc(changed, compareChanged)
	for i := range changed[:min(limit, len(changed))] {
		out.Changed = append(out.Changed, changed[i].Flow)
	}
	out.Omitted = len(changed) - len(out.Changed)
	return out
}

// comparison gathers what becomes of flows.
type comparison struct {
	out     Flows // without Changed
	byKey   map[flowKey]int
	changed []changedFlow
}

func (c *comparison) compare(f *model.RecordedFlow, was, is *verdict.Judged) {
	if is.Err != nil {
		c.out.Unknown++
		return
	}
	if was.Err != nil { // the workload is new: until now, nothing judged it
		was = &verdict.Judged{FlowVerdict: unjudged}
	}
	c.out.Judged++
	if was.Verdict == is.Verdict {
		return
	}
	key := keyOf(&f.Flow)
	n, ok := c.byKey[key]
	if !ok {
		n = len(c.changed)
		c.byKey[key] = n
		c.changed = append(c.changed, changedFlow{newFlow(f, was.FlowVerdict, is.FlowVerdict), effectOf(was.Verdict, is.Verdict)})
	}
	c.changed[n].add(f)
}

var unjudged = model.Join(
	model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged},
	model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged},
)

func compareChanged(a, b changedFlow) int {
	return cmp.Or(
		cmp.Compare(a.effect, b.effect), b.LastSeen.Compare(a.LastSeen), cmp.Compare(b.Connections, a.Connections),
		strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), strings.Compare(a.On, b.On),
	)
}

func newFlow(f *model.RecordedFlow, was, is model.FlowVerdict) Flow {
	out := Flow{
		From: f.From.String(), To: f.To.String(), On: model.PortRange{Proto: f.Proto, Lo: f.Port, Hi: f.Port}.String(),
		Before: diff.NewVerdict(was), After: diff.NewVerdict(is), DecidedBy: is.Egress.Rule,
		FromProcess: cmp.Or(f.FromName, processText(f.FromProcess)), ToProcess: cmp.Or(f.ToName, processText(f.ToProcess)),
		ToDomain: f.ToDomain,
	}
	if is.Ingress.Verdict < is.Egress.Verdict {
		out.DecidedBy = is.Ingress.Rule
	}
	if is.Verdict == model.Allow && is.Egress.Rule == model.RuleUnmanaged {
		out.DecidedBy = is.Ingress.Rule
	}
	return out
}

func (c *changedFlow) add(f *model.RecordedFlow) {
	c.Connections += max(f.Connections, 1)
	if f.Last.After(c.LastSeen) || c.LastSeen.IsZero() {
		c.LastSeen = f.Last
	}
	c.FromProcess, c.ToProcess = cmp.Or(c.FromProcess, f.FromName), cmp.Or(c.ToProcess, f.ToName)
}
