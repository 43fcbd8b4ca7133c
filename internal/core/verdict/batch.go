package verdict

import (
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// BatchSize is how many flows a Batch judges side by side.
const BatchSize = 64

// Batch judges many flows by one evaluator, with the answers that Judge gives. In a large world most of what a flow costs
// is waiting for memory. A batch takes each step of judging for all of its flows before the next step, so that they wait
// together; and what differs from one end to the next, so that a processor would have to guess it, it sorts first. It must not
// be used by several goroutines at once.
type Batch struct {
	e      *Evaluator
	ends   [2 * BatchSize]*model.End   // two of a flow: whence and where to
	places [2 * BatchSize]uint32       // by end
	spots  [2 * BatchSize]compile.Spot // by end
	asked  [2 * BatchSize]compile.Question
	named  list // ends that may be named by their workload
	either list // ends that give an address, and may be named all the same
	plain  list // ends by IPv4 address
	more   list // questions that the default may not answer, then those that are answered by port
	closer list // flows that take a closer look
	flows  [BatchSize]judging

	warmed uint32 // what was read ahead of its time; nobody reads it
}

// list is some of the ends, the questions or the flows of a batch.
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

// judging is a flow that takes a closer look.
type judging struct {
	connection
	rules [2]model.RuleID // by direction: what lets it pass, so that nobody is asked
}

// Judged is what became of a flow: Err is set if it could not be judged.
type Judged struct {
	model.FlowVerdict
	Err error
}

// NewBatch returns a batch that judges by the evaluator.
func (e *Evaluator) NewBatch() *Batch { return &Batch{e: e} }

// Judge judges flows, at most BatchSize of them, into as many places of out: each as Evaluator.Judge would.
func (b *Batch) Judge(out []Judged, flows []*model.Flow) {
	b.sort(flows)
	b.find(2 * len(flows))
	b.ask(out, flows)
	w, warmed, asked := b.e.world, uint32(0), b.asked[:2*len(flows)]
	for i := range asked {
		w.Look(&asked[i])
	}
	b.more.n = 0
	for i := range asked {
		b.more.add(i, asked[i].More())
	}
	for _, i := range b.more.all() {
		warmed += w.TouchRow(&asked[i])
	}
	for _, i := range b.more.all() {
		w.Seek(&asked[i])
	}
	b.warmed += warmed
	b.more.n = 0
	for i := range asked {
		b.more.add(i, w.ByPort(&asked[i]))
	}
	for _, i := range b.more.all() {
		f := flows[i/2]
		w.Narrow(&asked[i], f.Proto, f.Port)
	}
	b.answer(out, flows)
}

// sort lists the ends by how they may be found: by name, or by address as Evaluator.byAddress says.
func (b *Batch) sort(flows []*model.Flow) {
	warmed := uint32(0)
	for _, f := range flows {
		warmed += warmText(f.From.Workload) + warmText(f.To.Workload)
	}
	b.warmed += warmed
	b.named.n, b.plain.n, b.either.n = 0, 0, 0
	for i, f := range flows {
		b.sortEnd(2*i, &f.From)
		b.sortEnd(2*i+1, &f.To)
	}
	names := bit(b.e.world.HasAddressNames())
	for _, k := range b.either.all() {
		end := b.ends[k]
		text := end.Workload
		byAddress := bit(text == "") | bit(compile.MayBeAddress(text))&^names
		b.plain.add(int(k), byAddress&bit(end.Addr.Is4()))
		b.named.add(int(k), 1-byAddress)
	}
}

func (b *Batch) sortEnd(k int, end *model.End) {
	b.ends[k], b.spots[k] = end, compile.Spot{}
	given := bit(end.Addr.IsValid()) | bit(end.Workload == "")
	b.either.add(k, given)
	b.named.add(k, 1-given)
}

// find finds the ends at first sight.
func (b *Batch) find(ends int) {
	w, warmed := b.e.world, uint32(0)
	for _, k := range b.named.all() {
		b.places[k] = w.PlaceOfName(b.ends[k].Workload)
	}
	for _, k := range b.plain.all() {
		b.places[k] = w.PlaceOfAddr(b.ends[k].Addr)
	}
	for _, k := range b.named.all() {
		warmed += w.TouchName(b.places[k])
	}
	for _, k := range b.plain.all() {
		warmed += w.TouchAddr(b.places[k])
	}
	for _, k := range b.named.all() {
		b.spots[k] = w.SpotOfName(b.places[k], b.ends[k].Workload)
	}
	for _, k := range b.plain.all() {
		b.spots[k] = w.SpotOfAddr(b.places[k], b.ends[k].Addr)
	}
	for k := range ends {
		warmed += w.TouchClass(b.spots[k])
	}
	b.warmed += warmed
}

// ask asks the policy sets of the flows' ends, two questions a flow.
func (b *Batch) ask(out []Judged, flows []*model.Flow) {
	b.closer.n = 0
	for i, f := range flows {
		if special(f) || !b.e.world.AskBoth(&b.asked[2*i], &b.asked[2*i+1], b.spots[2*i], b.spots[2*i+1]) {
			b.closer.add(i, 1)
		}
	}
	for _, i := range b.closer.all() {
		j := &b.flows[i]
		out[i].Err = b.e.resolve(flows[i], &j.connection)
		for d := range j.rules {
			q := &b.asked[2*int(i)+1-d]
			b.e.world.AskNothing(q)
			if out[i].Err == nil {
				j.rules[d] = b.e.ask(&j.connection, model.Direction(d), q)
			}
		}
	}
}

// answer says what the answers to all questions come to.
func (b *Batch) answer(out []Judged, flows []*model.Flow) {
	w, closer := b.e.world, b.closer.all()
	for i, f := range flows {
		if len(closer) == 0 || int(closer[0]) != i {
			o := &out[i]
			o.Egress = w.Answer(&b.asked[2*i], f.FromProcess)
			o.Ingress = w.Answer(&b.asked[2*i+1], f.ToProcess)
			o.Verdict, o.Err = min(o.Egress.Verdict, o.Ingress.Verdict), nil
			continue
		}
		closer = closer[1:]
		if out[i].Err != nil {
			out[i].FlowVerdict = model.FlowVerdict{}
			continue
		}
		out[i].FlowVerdict = model.Join(b.end(i, model.Egress), b.end(i, model.Ingress))
	}
}

// end returns the verdict at one end of a flow that took a closer look.
func (b *Batch) end(flow int, d model.Direction) model.EndVerdict {
	j := &b.flows[flow]
	if rule := j.rules[d]; rule != "" {
		return model.EndVerdict{Verdict: model.Allow, Rule: rule}
	}
	return b.e.world.Answer(&b.asked[2*flow+1-int(d)], j.process(d))
}

// warmText reads the beginning of a text.
func warmText(s string) uint32 {
	if s == "" {
		return 0
	}
	return uint32(s[0])
}
