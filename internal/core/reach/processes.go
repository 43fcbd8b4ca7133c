package reach

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// What a function says at a port may depend on the processes at both ends. It is kept as a decision diagram: a node asks
// for the value of one field of one process, has a child for each value that makes a difference and one for all others,
// and leads to levels in the end. Fields are asked in one order, a child that says what the one for all others says is
// left out, and equal nodes are one. So two diagrams are one number if and only if they agree about every two processes
// there could be: for any list of values there is another one.

// choice is an interned diagram. The first numbers are the levels themselves: what depends on no process.
type choice int32

// Who is a set of pairs of processes: at the source and at the destination. A process that is not known is one of which
// no constraint names a field.
type Who int32

// The two sets that depend on no process.
const (
	Nobody    = Who(Deny)
	Everybody = Who(Allow)
)

const (
	levels   = choice(Essential) + 1
	perEnd   = 3 // fields of a process: unit, path and user
	fields   = 2 * perEnd
	noValue  = int32(-1) // one that no constraint names
	terminal = uint8(fields)
)

// question is a node of a diagram.
type question struct {
	field  uint8 // of the process at the source, then of the one at the destination; terminal of levels
	leads  uint8 // mask of the levels that it leads to
	others choice
	cases  []answer // sorted by value
}

type answer struct {
	value int32
	then  choice
}

// choices interns diagrams. Those of all worlds share one.
type choices struct {
	all    []question
	byKey  map[string]choice
	values map[string]int32
	names  []string // of values
	known  map[operation]choice
	key    []byte
}

// operation is one that was worked out: what is asked of two diagrams.
type operation struct {
	of   uint16
	a, b choice
}

func newChoices() *choices {
	s := &choices{byKey: map[string]choice{}, values: map[string]int32{}, known: map[operation]choice{}}
	for l := range levels {
		s.all = append(s.all, question{field: terminal, leads: 1 << l, others: l})
	}
	return s
}

// value numbers a value that some constraint names.
func (s *choices) value(text string) int32 {
	n, ok := s.values[text]
	if !ok {
		n = int32(len(s.names))
		s.values[text] = n
		s.names = append(s.names, text)
	}
	return n
}

// intern returns the node that asks for the field. The cases are sorted; it keeps a copy.
func (s *choices) intern(field uint8, cases []answer, others choice) choice {
	leads := s.all[others].leads
	s.key = binary.LittleEndian.AppendUint32(append(s.key[:0], field), uint32(others))
	n := 0
	for _, c := range cases {
		if c.then == others {
			continue
		}
		n++
		leads |= s.all[c.then].leads
		s.key = binary.LittleEndian.AppendUint32(s.key, uint32(c.value))
		s.key = binary.LittleEndian.AppendUint32(s.key, uint32(c.then))
	}
	if n == 0 {
		return others
	}
	if c, ok := s.byKey[string(s.key)]; ok {
		return c
	}
	id := choice(len(s.all))
	s.byKey[string(s.key)] = id
	kept := make([]answer, 0, n)
	for _, c := range cases {
		if c.then != others {
			kept = append(kept, c)
		}
	}
	s.all = append(s.all, question{field: field, leads: leads, others: others, cases: kept})
	return id
}

// given returns what a diagram says where a field that is asked no later than its first has the value.
func (s *choices) given(c choice, field uint8, value int32) choice {
	q := &s.all[c]
	if q.field != field {
		return c
	}
	i, ok := slices.BinarySearchFunc(q.cases, value, func(a answer, v int32) int { return int(a.value) - int(v) })
	if ok {
		return q.cases[i].then
	}
	return q.others
}

// condition is that a field has the value.
type condition struct {
	field uint8
	value int32
}

// conditions lists what a process at the end of the direction's subject must be, in the order of the fields.
func (s *choices) conditions(p *model.Process, d model.Direction) []condition {
	first := uint8(0)
	if d == model.Ingress {
		first = perEnd
	}
	var out []condition
	for i, v := range [perEnd]string{p.Unit, p.Path, p.User} {
		if v != "" {
			out = append(out, condition{first + uint8(i), s.value(v)})
		}
	}
	return out
}

// where returns the diagram that says then where the conditions hold, and what base says elsewhere.
func (s *choices) where(conditions []condition, then, base choice) choice {
	if len(conditions) == 0 {
		return then
	}
	c, q := conditions[0], s.all[base]
	if q.field < c.field {
		cases := make([]answer, len(q.cases))
		for i, a := range q.cases {
			cases[i] = answer{a.value, s.where(conditions, then, a.then)}
		}
		return s.intern(q.field, cases, s.where(conditions, then, q.others))
	}
	met := s.where(conditions[1:], then, s.given(base, c.field, c.value))
	if q.field > c.field {
		return s.intern(c.field, []answer{{c.value, met}}, base)
	}
	cases := slices.Clone(q.cases)
	i, ok := slices.BinarySearchFunc(cases, c.value, func(a answer, v int32) int { return int(a.value) - int(v) })
	if ok {
		cases[i].then = met
	} else {
		cases = slices.Insert(cases, i, answer{c.value, met})
	}
	return s.intern(c.field, cases, q.others)
}

// of returns what a compiled cell says in a direction, as the process of its subject is.
func (s *choices) of(c *hostpolicy.Cell, d model.Direction) choice {
	out := choice(levelOf(c.Verdict, c.Rule))
	for i := len(c.When) - 1; i >= 0; i-- { // the first that a process meets decides
		a := &c.When[i]
		out = s.where(s.conditions(&a.Process, d), choice(levelOf(a.Verdict, a.Rule)), out)
	}
	return out
}

// The operations that are remembered: joining two ends, and comparing two verdicts, from the number of
// compareFirst on, one for each pair of verdicts.
const (
	joinEnds uint16 = iota
	both
	either
	hasLevel     // one for each level
	compareFirst = hasLevel + uint16(levels)
)

// apply asks two diagrams together.
func (s *choices) apply(of uint16, a, b choice, leaf func(a, b Level) Level) choice {
	if a < levels && b < levels {
		return choice(leaf(Level(a), Level(b)))
	}
	k := operation{of, a, b}
	if out, ok := s.known[k]; ok {
		return out
	}
	x, y := s.all[a], s.all[b]
	field := min(x.field, y.field)
	var cases []answer
	i, j := 0, 0
	for {
		moreX, moreY := x.field == field && i < len(x.cases), y.field == field && j < len(y.cases)
		var value int32
		switch {
		case !moreX && !moreY:
			others := [2]choice{a, b}
			if x.field == field {
				others[0] = x.others
			}
			if y.field == field {
				others[1] = y.others
			}
			out := s.intern(field, cases, s.apply(of, others[0], others[1], leaf))
			s.known[k] = out
			return out
		case !moreY || moreX && x.cases[i].value <= y.cases[j].value:
			value = x.cases[i].value
		default:
			value = y.cases[j].value
		}
		if moreX && x.cases[i].value == value {
			i++
		}
		if moreY && y.cases[j].value == value {
			j++
		}
		cases = append(cases, answer{value, s.apply(of, s.given(a, field, value), s.given(b, field, value), leaf)})
	}
}

// join returns what is said over both ends: the stricter, where an essential at one end counts as allowed.
func (s *choices) join(a, b choice) choice {
	return s.apply(joinEnds, a, b, func(a, b Level) Level {
		l := min(a, b)
		if max(a, b) == Essential && l == Allow {
			l = Essential
		}
		return l
	})
}

func in(yes bool) Level {
	if yes {
		return Level(Everybody)
	}
	return Level(Nobody)
}

// turns returns for whom the verdict before is the one and the verdict after the other.
func (s *choices) turns(before, after choice, from, to model.Verdict) Who {
	of := compareFirst + uint16(from)*uint16(levels) + uint16(to)
	return Who(s.apply(of, before, after, func(b, a Level) Level { return in(b.Verdict() == from && a.Verdict() == to) }))
}

// whose returns for whom the level is that.
func (s *choices) whose(c choice, l Level) Who {
	if s.all[c].leads&(1<<l) == 0 {
		return Nobody
	}
	return Who(s.apply(hasLevel+uint16(l), c, choice(Everybody), func(a, _ Level) Level { return in(a == l) }))
}

func (s *choices) and(a, b Who) Who {
	switch {
	case a == Nobody || b == Everybody:
		return a
	case b == Nobody || a == Everybody:
		return b
	}
	return Who(s.apply(both, choice(a), choice(b), func(a, b Level) Level { return min(a, b) }))
}

func (s *choices) or(a, b Who) Who {
	return Who(s.apply(either, choice(a), choice(b), func(a, b Level) Level { return max(a, b) }))
}

// at returns the level for two processes; nil is one that is not known.
func (s *choices) at(c choice, from, to *model.Process) Level {
	values := [fields]string{}
	for end, p := range [2]*model.Process{from, to} {
		if p != nil {
			values[end*perEnd], values[end*perEnd+1], values[end*perEnd+2] = p.Unit, p.Path, p.User
		}
	}
	for c >= levels {
		q := &s.all[c]
		value, named := s.values[values[q.field]]
		if !named {
			value = noValue
		}
		c = s.given(c, q.field, value)
	}
	return Level(c)
}

// Running returns the pairs of processes that meet a constraint at each end; nil is none.
func (u *Universe) Running(from, to *model.Process) Who {
	s := u.functions.choices
	out := choice(Everybody)
	for d, p := range [2]*model.Process{model.Ingress: to, model.Egress: from} {
		if p != nil {
			out = choice(s.and(Who(out), Who(s.where(s.conditions(p, model.Direction(d)), choice(Everybody), choice(Nobody)))))
		}
	}
	return Who(out)
}

// And returns the pairs that are in both sets, Or those that are in either.
func (u *Universe) And(a, b Who) Who { return u.functions.choices.and(a, b) }

// Or returns the pairs that are in either set.
func (u *Universe) Or(a, b Who) Who { return u.functions.choices.or(a, b) }

// Holds reports whether the pair of processes is in the set; nil is a process that is not known.
func (u *Universe) Holds(w Who, from, to *model.Process) bool {
	return Who(u.functions.choices.at(choice(w), from, to)) == Everybody
}

// Sample returns a pair of the set that says as little as can be: nil for a process that need not be known. The set must
// not be empty.
func (u *Universe) Sample(w Who) (from, to *model.Process) {
	var out [2]model.Process
	s := u.functions.choices
	for c := choice(w); c >= levels; {
		q := &s.all[c]
		if s.all[q.others].leads&(1<<Allow) != 0 {
			c = q.others
			continue
		}
		for _, a := range q.cases {
			if s.all[a.then].leads&(1<<Allow) != 0 {
				p := &out[q.field/perEnd]
				*[perEnd]*string{&p.Unit, &p.Path, &p.User}[q.field%perEnd] = s.names[a.value]
				c = a.then
				break
			}
		}
	}
	for i, p := range [2]**model.Process{&from, &to} {
		if out[i] != (model.Process{}) {
			*p = &out[i]
		}
	}
	return from, to
}
