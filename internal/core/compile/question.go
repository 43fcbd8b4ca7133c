package compile

import "bulkhead/internal/core/model"

// Question asks what a policy set says about a peer. It is answered in steps, each of which reads one thing that the step
// before has found: whoever takes each step for many questions waits for memory once a step, and not once a question.
//
//	Ask → Open → Look → Settle → Answer
type Question struct {
	table lookupTable
	at    int32 // number of the table among those of all sets
	peer  int32
	fn    int32 // where the cells begin: of the common function until Settle
	bit   uint8 // of the peer in the filter
	own   uint8 // not 0: the table may have a row of its own
}

// Ask begins: what does the policy set of the seat say, in this direction, about the identity of that index?
func (w *World) Ask(q *Question, at *Seat, d model.Direction, peer int32) {
	q.at, q.peer, q.bit = at.set*2+int32(d), peer, filterBit(peer)
}

// Open finds the table.
func (w *World) Open(q *Question) { q.table = w.lookup.sets[q.at] }

// Look finds out whether the table has a row of its own for the peer, and which one it has in common with others. Nothing
// depends on what it reads, so the processor need not guess it and may look for the next question meanwhile.
func (w *World) Look(q *Question) {
	q.fn, q.own = w.lookup.look(&q.table, q.peer, q.bit)
}

// WarmRow reads what Settle will read of a row. What it returns means nothing, but that it has been read.
func (w *World) WarmRow(q *Question) int32 {
	if q.own == 0 {
		return 0
	}
	return w.lookup.warm(&q.table, q.peer)
}

// Settle finds the function that judges the peer. What it returns means nothing, but that its beginning has been read.
func (w *World) Settle(q *Question) int32 {
	if q.own != 0 {
		q.fn = w.lookup.own(&q.table, q.peer, q.fn)
	}
	return int32(w.judges.cells[q.fn].from)
}

// Answer says what the function comes to on a port, for a process at the seat; nil if it is not known.
func (w *World) Answer(q *Question, proto model.Proto, port uint16, process *model.Process) model.EndVerdict {
	verdict, rule := w.judges.decide(w.functions, q.fn, proto, port, process)
	return model.EndVerdict{Verdict: verdict, Rule: w.functions.names[rule]}
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

// decide returns what the function that begins there comes to. It allocates nothing.
func (j *judges) decide(f *functions, fn int32, proto model.Proto, port uint16, process *model.Process) (model.Verdict, uint32) {
	at := j.find(fn, proto, port)
	says := j.cells[at].says
	verdict, rule := model.Verdict(says&verdictBits), says>>ruleShift
	if says&hasAlternatives != 0 {
		return f.choose(verdict, rule, j.when[at], process)
	}
	return verdict, rule
}

// find returns the cell of a function that holds the port. It is hostpolicy.Func.Cell on the compact form.
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
