package compile

import "bulkhead/internal/core/model"

// Question asks what a policy set says about a peer. It is answered in steps, each of which reads what the step before has
// found: whoever takes each step for many questions waits for memory once a step, and not once a question.
//
//	Ask, AskBoth or AskNothing → Look, then Seek if there is More, then Narrow if it goes ByPort → Answer
type Question struct {
	missing uint64 // bits of the peer, of which Look takes away those that the filter has
	peer    uint32 // the number of identities, which is nobody's, for what is no identity
	home    uint32 // slot where the search of the peer begins
	listed  uint32 // word of the common table that has the peer's bit, until Look; then not 0 if that is set
	fn      int32  // where the cells begin, of the default until Seek; the cell after Narrow
	at      uint32 // class of the subject<<1 | direction
}

// Ask begins: what does the policy set of the seat say, in this direction, about the identity of that index?
func (w *World) Ask(q *Question, at *Seat, d model.Direction, peer int32) {
	w.lookup.ask(q, at.class, d, w.lookup.peer(peer))
}

// AskNothing makes a question of which every step can be taken, and that nobody answers.
func (w *World) AskNothing(q *Question) { w.lookup.ask(q, closer, model.Ingress, 0) }

// Look finds out whether the table may have more than a default for the peer. Nothing depends on what it reads, so the
// processor need not guess it and may look for the next question meanwhile.
func (w *World) Look(q *Question) { w.lookup.look(q) }

// More returns 1 if the table may have more than a default for the peer, else 0.
func (q *Question) More() int {
	more := int(q.listed)
	if q.missing == 0 {
		more = 1
	}
	return more
}

// TouchRow reads what Seek will read, for the most part, where there may be more. What it returns means nothing, but that it has
// been read.
func (w *World) TouchRow(q *Question) uint32 { return uint32(w.lookup.touch(q)) }

// Seek finds the function that judges the peer where there may be more than a default.
func (w *World) Seek(q *Question) { w.lookup.seek(q) }

// ByPort returns 1 if the function that was found tells ports apart, else 0.
func (w *World) ByPort(q *Question) int { return w.judges.byPort(q.fn) }

// Narrow finds what a function that tells ports apart says of one.
func (w *World) Narrow(q *Question, proto model.Proto, port uint16) {
	q.fn = w.judges.find(q.fn, proto, port)
}

// Answer says what has been found, for a process at the seat; nil if it is not known.
func (w *World) Answer(q *Question, process *model.Process) model.EndVerdict {
	verdict, rule := w.judges.decide(w.functions, q.fn, process)
	return model.EndVerdict{Verdict: verdict, Rule: w.functions.names[rule]}
}

// Settle takes all steps after Look.
func (w *World) Settle(q *Question, proto model.Proto, port uint16, process *model.Process) model.EndVerdict {
	if q.More() != 0 {
		w.Seek(q)
	}
	if w.ByPort(q) != 0 {
		w.Narrow(q, proto, port)
	}
	return w.Answer(q, process)
}

// judges is every function in the form that the evaluator reads: eight cells to a line of memory.
type judges struct {
	cells []piece
	when  []int32 // parallel to cells; read where a cell has alternatives
}

// piece is what holds from a protocol and port on. Of each function the first cell is for the protocols that the others do
// not name, and from is how many others there are.
type piece struct {
	from uint32 // protocol<<16 | port
	says uint32 // number of the rule<<ruleShift | hasAlternatives | verdict
}

const (
	verdictBits     = 3
	hasAlternatives = 4
	ruleShift       = 3
	lineOfCells     = 8
)

// newJudges returns the functions, and where in cells each begins. A function that fits into a line of memory is in one.
func newJudges(f *functions) (*judges, []int32) {
	starts := make([]int32, len(f.funcs))
	n := 0
	for fn := range starts {
		size := len(f.of(int32(fn)))
		if size <= lineOfCells && n%lineOfCells+size > lineOfCells {
			n += lineOfCells - n%lineOfCells
		}
		starts[fn] = int32(n)
		n += size
	}
	j := &judges{cells: make([]piece, n)}
	if len(f.alternatives) > 0 {
		j.when = make([]int32, n)
	}
	for fn, at := range starts {
		strokes := f.of(int32(fn))
		for i := range strokes {
			s := &strokes[i]
			c := &j.cells[int(at)+i]
			c.says = s.rule<<ruleShift | uint32(s.verdict)
			if c.from = portKey(s.ports.Proto, s.ports.Lo); i == 0 {
				c.from = uint32(len(strokes) - 1)
			}
			if s.when != noAlternative {
				c.says |= hasAlternatives
				j.when[int(at)+i] = s.when
			}
		}
	}
	return j, starts
}

func portKey(proto model.Proto, port uint16) uint32 { return uint32(proto)<<16 | uint32(port) }

// byPort returns 1 if the function has several cells. Most have one.
func (j *judges) byPort(fn int32) int {
	if j.cells[fn].from != 0 {
		return 1
	}
	return 0
}

// decide returns what a cell comes to. It allocates nothing.
func (j *judges) decide(f *functions, cell int32, process *model.Process) (model.Verdict, uint32) {
	says := j.cells[cell].says
	verdict, rule := model.Verdict(says&verdictBits), says>>ruleShift
	if says&hasAlternatives != 0 {
		return f.choose(verdict, rule, j.when[cell], process)
	}
	return verdict, rule
}

// find returns the cell of a function of several that holds the port. It is hostpolicy.Func.Cell on the compact form.
func (j *judges) find(fn int32, proto model.Proto, port uint16) int32 {
	key := portKey(proto, port)
	n := int(j.cells[fn].from)
	others := j.cells[fn+1:][:n]
	lo := 0 // how many of the others begin at the port or before
	if n > 2*lineOfCells {
		for hi := n; lo < hi; {
			if mid := int(uint(lo+hi) >> 1); others[mid].from <= key {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
	} else {
		for i := range others { // nothing to guess for the processor
			if others[i].from <= key {
				lo = i + 1
			}
		}
	}
	if lo > 0 && others[lo-1].from>>16 == uint32(proto) {
		return fn + int32(lo)
	}
	return fn
}
