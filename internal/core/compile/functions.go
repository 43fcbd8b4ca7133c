package compile

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// functions holds each distinct function once, for all policy sets of a world.
type functions struct {
	names        []model.RuleID
	cells        []stroke // of all functions, one function after the other, in the order of hostpolicy.Func
	start        []uint32 // where in cells each function begins; one more than there are functions
	funcs        []hostpolicy.Func
	processes    []model.Process // distinct constraints
	alternatives []alternative
}

// alternative is what decides for the processes that meet a constraint, after those before it in a list that grows at
// its end: lists with a common beginning share it.
type alternative struct {
	before  int32 // the list that it is appended to; noAlternative
	process int32 // index into processes
	verdict model.Verdict
	rule    uint32
}

// noAlternative is the empty list.
const noAlternative = int32(-1)

// functionBuilder makes functions.
type functionBuilder struct {
	*functions
	byName        map[model.RuleID]uint32
	byKey         map[string]int32
	byProcess     map[model.Process]int32
	byAlternative map[alternative]int32
	key           []byte
}

func newFunctionBuilder() *functionBuilder {
	return &functionBuilder{
		functions:     &functions{start: []uint32{0}},
		byName:        map[model.RuleID]uint32{},
		byKey:         map[string]int32{},
		byProcess:     map[model.Process]int32{},
		byAlternative: map[alternative]int32{},
	}
}

// of returns the cells of a function.
func (f *functions) of(fn int32) []stroke { return f.cells[f.start[fn]:f.start[fn+1]] }

// choose returns what is said of a process of the subject, nil if it is not known, where a list of alternatives comes before
// a verdict. It allocates nothing.
func (f *functions) choose(verdict model.Verdict, rule uint32, list int32, process *model.Process) (model.Verdict, uint32) {
	for at := list; at != noAlternative; {
		a := &f.alternatives[at]
		if f.processes[a.process].Admits(process) {
			verdict, rule = a.verdict, a.rule // one that is asked before it may still win
		}
		at = a.before
	}
	return verdict, rule
}

// list returns the alternatives in the order in which they are asked.
func (f *functions) list(at int32) []alternative {
	var out []alternative
	for ; at != noAlternative; at = f.alternatives[at].before {
		out = append(out, f.alternatives[at])
	}
	slices.Reverse(out)
	return out
}

// name returns the index of a rule's name.
func (f *functionBuilder) name(id model.RuleID) uint32 {
	if i, ok := f.byName[id]; ok {
		return i
	}
	i := uint32(len(f.names))
	f.names = append(f.names, id)
	f.byName[id] = i
	return i
}

// process returns the index of a constraint.
func (f *functionBuilder) process(p model.Process) int32 {
	if i, ok := f.byProcess[p]; ok {
		return i
	}
	i := int32(len(f.processes))
	f.processes = append(f.processes, p)
	f.byProcess[p] = i
	return i
}

// alternative appends to a list. What an alternative before it decides already is left out.
func (f *functionBuilder) alternative(before, process int32, v model.Verdict, rule uint32) int32 {
	for at := before; at != noAlternative; at = f.alternatives[at].before {
		if earlier := &f.processes[f.alternatives[at].process]; earlier.Admits(&f.processes[process]) {
			return before
		}
	}
	a := alternative{before, process, v, rule}
	if i, ok := f.byAlternative[a]; ok {
		return i
	}
	i := int32(len(f.alternatives))
	f.alternatives = append(f.alternatives, a)
	f.byAlternative[a] = i
	return i
}

// trim leaves out the alternatives at the end of a list that say what holds without them.
func (f *functionBuilder) trim(list int32, v model.Verdict, rule uint32) int32 {
	for list != noAlternative && f.alternatives[list].verdict == v && f.alternatives[list].rule == rule {
		list = f.alternatives[list].before
	}
	return list
}

// intern returns the index of the function that the strokes of a finished painter make.
func (f *functionBuilder) intern(strokes []stroke) int32 {
	f.key = f.key[:0]
	for _, s := range strokes {
		f.key = append(f.key, byte(s.ports.Proto), byte(s.ports.Lo), byte(s.ports.Lo>>8), byte(s.ports.Hi), byte(s.ports.Hi>>8), byte(s.verdict))
		f.key = binary.LittleEndian.AppendUint32(f.key, s.rule)
		f.key = binary.LittleEndian.AppendUint32(f.key, uint32(s.when))
	}
	if i, ok := f.byKey[string(f.key)]; ok {
		return i
	}
	fn := make(hostpolicy.Func, len(strokes))
	for i, s := range strokes {
		fn[i] = hostpolicy.Cell{Ports: s.ports, Verdict: s.verdict, Rule: f.names[s.rule]}
		for _, a := range f.list(s.when) {
			fn[i].When = append(fn[i].When, hostpolicy.Alternative{Process: f.processes[a.process], Verdict: a.verdict, Rule: f.names[a.rule]})
		}
	}
	i := int32(len(f.funcs))
	f.byKey[string(f.key)] = i
	f.cells = append(f.cells, strokes...)
	f.start = append(f.start, uint32(len(f.cells)))
	f.funcs = append(f.funcs, fn)
	return i
}
