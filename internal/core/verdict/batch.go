package verdict

import (
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// BatchSize is how many flows a Batch judges side by side.
const BatchSize = 32

// Batch judges many flows by one evaluator, with the answers that Judge gives. In a large world most of what a flow costs
// is waiting for memory. A batch takes each step of judging for all of its flows before the next step, so that they wait
// together. It must not be used by several goroutines at once.
type Batch struct {
	e      *Evaluator
	flows  [BatchSize]judging
	asked  [2 * BatchSize]compile.Question
	small  bool  // judge one by one
	warmed int32 // what was read ahead of its time; nobody reads it
}

// judging is a flow of a batch, on its way.
type judging struct {
	connection
	asked [2]int32        // by direction: its question; None if none was asked
	rules [2]model.RuleID // what lets it pass where none was asked
}

// Judged is what became of a flow: Err is set if it could not be judged.
type Judged struct {
	model.FlowVerdict
	Err error
}

// worthWaiting is of how many workloads a processor keeps everything at hand: there is nothing to wait for, and steps only
// cost.
const worthWaiting = 5_000

// NewBatch returns a batch that judges by the evaluator.
func (e *Evaluator) NewBatch() *Batch {
	return &Batch{e: e, small: len(e.world.Inventory().Instances) < worthWaiting}
}

// Judge judges flows, at most BatchSize of them, into as many places of out: each as Evaluator.Judge would.
func (b *Batch) Judge(out []Judged, flows []*model.Flow) {
	if !b.small {
		b.inSteps(out, flows)
		return
	}
	for i, f := range flows {
		out[i].FlowVerdict, out[i].Err = b.e.Judge(f)
	}
}

func (b *Batch) inSteps(out []Judged, flows []*model.Flow) {
	w, all := b.e.world, b.flows[:len(flows)]
	warmed := int32(0)
	for _, f := range flows {
		warmed += warmText(f.From.Workload) + warmText(f.To.Workload)
	}
	for i, f := range flows {
		c := &all[i].connection
		b.e.trace(&f.From, &c.from)
		b.e.trace(&f.To, &c.to)
	}
	for i := range all {
		c := &all[i].connection
		w.Follow(&c.from.trace)
		w.Follow(&c.to.trace)
	}
	for i := range all {
		c := &all[i].connection
		warmed += w.Warm(&c.from.trace) + w.Warm(&c.to.trace)
	}
	asked := b.ask(out, flows)
	for i := range asked {
		w.Open(&asked[i])
	}
	for i := range asked {
		w.Look(&asked[i])
	}
	for i := range asked {
		warmed += w.WarmRow(&asked[i])
	}
	for i := range asked {
		warmed += w.Settle(&asked[i])
	}
	b.warmed = warmed
	for i := range all {
		if out[i].Err == nil {
			out[i].FlowVerdict = model.Join(b.end(&all[i], model.Egress), b.end(&all[i], model.Ingress))
		}
	}
}

// ask finds the ends of the flows and asks their policy sets. It returns the questions.
func (b *Batch) ask(out []Judged, flows []*model.Flow) []compile.Question {
	n := int32(0)
	for i, f := range flows {
		j := &b.flows[i]
		if err := b.e.find(f, &j.connection); err != nil {
			out[i] = Judged{Err: err}
			continue
		}
		out[i].Err = nil
		for d := range j.asked {
			q := &b.asked[n]
			j.asked[d] = n
			if j.rules[d] = b.e.ask(&j.connection, model.Direction(d), q); j.rules[d] != "" {
				j.asked[d] = compile.None
				continue
			}
			n++
		}
	}
	return b.asked[:n]
}

func (b *Batch) end(j *judging, d model.Direction) model.EndVerdict {
	if j.asked[d] == compile.None {
		return model.EndVerdict{Verdict: model.Allow, Rule: j.rules[d]}
	}
	return b.e.answer(&j.connection, d, &b.asked[j.asked[d]])
}

// warmText reads the beginning of a text.
func warmText(s string) int32 {
	if s == "" {
		return 0
	}
	return int32(s[0])
}
