package verdict

import (
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// BatchSize is how many flows a Batch judges side by side.
const BatchSize = 32

// Batch judges many flows by one evaluator, with the answers that Judge gives. In a large world most of what a flow costs
// is waiting for memory. A batch takes each step of judging for all of its flows before the next step, so that they wait
// together; and what differs from one end to the next, so that a processor would have to guess it, it sorts first. It must not
// be used by several goroutines at once.
type Batch struct {
	e      *Evaluator
	ends   [2 * BatchSize]batchEnd // two of a flow: whence and where to
	named  list                    // ends that may be named by their workload
	plain  list                    // ends by address
	either list                    // ends that give an address, and may be named all the same
	flows  [BatchSize]judging
	asked  [2 * BatchSize]compile.Question
	small  bool // judge one by one

	warmed int32 // what was read ahead of its time; nobody reads it
}

// batchEnd is one end of a flow, on its way to its seat.
type batchEnd struct {
	end   *model.End
	trace compile.Trace
	seat  compile.Seat
	found bool // the seat is the end's; else it takes a closer look
	given bool
}

// list is some of the ends of a batch.
type list struct {
	at [2 * BatchSize]uint8
	n  int
}

// add adds one if yes is 1, and not if it is 0. No branch depends on it, which a processor would have to guess.
func (l *list) add(k, yes int) {
	l.at[uint(l.n)%uint(len(l.at))] = uint8(k)
	l.n += yes
}

func (l *list) all() []uint8 { return l.at[:l.n] }

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
	b.sort(flows)
	b.seat()
	asked := b.ask(out, flows)
	w, warmed := b.e.world, int32(0)
	for i := range asked {
		w.Open(&asked[i])
	}
	for i := range asked {
		w.Look(&asked[i])
	}
	more := &b.named // whose ends are found
	more.n = 0
	for i := range asked {
		more.add(i, asked[i].More())
	}
	for _, i := range more.all() {
		warmed += w.TouchRow(&asked[i])
	}
	for _, i := range more.all() {
		w.Seek(&asked[i])
	}
	for i := range asked {
		warmed += w.TouchFunction(&asked[i])
	}
	b.warmed += warmed
	for i := range flows {
		if out[i].Err == nil {
			j := &b.flows[i]
			out[i].FlowVerdict = model.Join(b.end(j, model.Egress), b.end(j, model.Ingress))
		}
	}
}

// sort lists the ends by how they may be found: by name, or by address as Evaluator.named says.
func (b *Batch) sort(flows []*model.Flow) {
	warmed := int32(0)
	for i, f := range flows {
		b.ends[2*i].end, b.ends[2*i+1].end = &f.From, &f.To
		warmed += warmText(f.From.Workload) + warmText(f.To.Workload)
	}
	b.warmed += warmed
	b.named.n, b.plain.n, b.either.n = 0, 0, 0
	for k := range 2 * len(flows) {
		end := b.ends[k].end
		given := bit(end.Addr.IsValid()) | bit(end.Workload == "")
		b.either.add(k, given)
		b.named.add(k, 1-given)
	}
	names := bit(b.e.world.HasAddressNames())
	for _, k := range b.either.all() {
		text := b.ends[k].end.Workload
		plain := bit(text == "") | bit(compile.MayBeAddress(text))&^names
		b.plain.add(int(k), plain)
		b.named.add(int(k), 1-plain)
	}
}

// seat looks where the ends may be found, and there.
func (b *Batch) seat() {
	w, warmed := b.e.world, int32(0)
	for _, k := range b.named.all() {
		e := &b.ends[k]
		e.given, e.trace = false, w.TraceName(e.end.Workload)
	}
	for _, k := range b.plain.all() {
		e := &b.ends[k]
		e.given, e.trace = true, w.TraceAddr(plain(e.end.Addr))
	}
	for _, k := range b.named.all() {
		warmed += w.TouchName(&b.ends[k].trace)
	}
	for _, k := range b.plain.all() {
		warmed += w.TouchAddr(&b.ends[k].trace)
	}
	for _, k := range b.named.all() {
		w.ProbeName(&b.ends[k].trace)
	}
	for _, k := range b.plain.all() {
		w.ProbeAddr(&b.ends[k].trace)
	}
	for _, k := range b.named.all() {
		warmed += w.TouchSeat(&b.ends[k].trace) + w.TouchText(&b.ends[k].trace)
	}
	for _, k := range b.plain.all() {
		warmed += w.TouchSeat(&b.ends[k].trace)
	}
	b.warmed += warmed
	for _, k := range b.named.all() {
		e := &b.ends[k]
		e.found = w.SitName(&e.seat, &e.trace, e.end.Workload)
	}
	for _, k := range b.plain.all() {
		e := &b.ends[k]
		e.found = w.SitAddr(&e.seat, &e.trace)
	}
}

// ask asks the policy sets of the flows' ends. It returns the questions.
func (b *Batch) ask(out []Judged, flows []*model.Flow) []compile.Question {
	n := int32(0)
	for i, f := range flows {
		j, from, to := &b.flows[i], &b.ends[2*i], &b.ends[2*i+1]
		if from.found && to.found {
			j.flow = f
			j.from = party{from.end, &from.seat, from.given}
			j.to = party{to.end, &to.seat, to.given}
			b.e.join(&j.connection)
		} else if err := b.e.resolve(f, &j.connection); err != nil {
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
