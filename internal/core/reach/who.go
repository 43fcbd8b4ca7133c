package reach

import (
	"slices"
	"strings"
)

// Processes is a set of pairs of processes in words: those at the source that are one of From and those at the
// destination that are one of To, "unit payapi.service and user pay" or "every process but path /usr/bin/curl". An end
// for which nil stands may be any process.
type Processes struct {
	From, To []string
	Who      Who // the set
}

// Processes returns disjoint parts that together are the set, sorted by what they say.
func (u *Universe) Processes(w Who) []Processes {
	if w == Everybody {
		return []Processes{{Who: Everybody}}
	}
	s := u.functions.choices
	var out []Processes
	for _, to := range s.destinations(choice(w)) {
		from := s.leading(choice(w), to)
		out = append(out, Processes{From: s.describe(from, 0), To: s.describe(to, perEnd), Who: s.and(Who(from), Who(to))})
	}
	slices.SortFunc(out, func(a, b Processes) int {
		if c := slices.Compare(a.From, b.From); c != 0 {
			return c
		}
		return slices.Compare(a.To, b.To)
	})
	return out
}

// Others returns the pairs that are not in the set.
func (u *Universe) Others(w Who) Who { return Who(u.functions.choices.not(choice(w))) }

// destinations lists the distinct sets of processes at the destination that some process at the source leads to.
func (s *choices) destinations(c choice) []choice {
	var out []choice
	seen := map[choice]bool{}
	var visit func(choice)
	visit = func(c choice) {
		if seen[c] || c == choice(Nobody) {
			return
		}
		seen[c] = true
		q := s.all[c]
		if q.field >= perEnd {
			out = append(out, c)
			return
		}
		for _, a := range q.cases {
			visit(a.then)
		}
		visit(q.others)
	}
	visit(c)
	return out
}

// leading returns the processes at the source that lead to the set of processes at the destination.
func (s *choices) leading(c, to choice) choice {
	q := s.all[c]
	if q.field >= perEnd {
		return choice(in(c == to))
	}
	cases := make([]answer, len(q.cases))
	for i, a := range q.cases {
		cases[i] = answer{a.value, s.leading(a.then, to)}
	}
	return s.intern(q.field, cases, s.leading(q.others, to))
}

func (s *choices) not(c choice) choice {
	return s.apply(hasLevel+uint16(Deny), c, choice(Everybody), func(a, _ Level) Level { return in(a == Deny) })
}

// term is a set of processes of one end: what each field is, or what it is not; a field that says neither is anything.
type term [perEnd]struct {
	is    int32 // noValue for none
	isNot []int32
}

// describe returns the alternatives that together mean the processes of an end whose first field is that; nil if they are
// all. What is true of a process that no constraint names is said by its exceptions where that is no longer.
func (s *choices) describe(c choice, first uint8) []string {
	if c == choice(Everybody) {
		return nil
	}
	named := s.terms(c, first)
	if (s.at(c, nil, nil)) == Level(Nobody) {
		return s.texts(named, first)
	}
	excepted := s.terms(s.not(c), first)
	if length(excepted) > length(named) {
		return s.texts(named, first)
	}
	return []string{"every process but " + strings.Join(s.texts(excepted, first), " or ")}
}

func length(list []term) int {
	n := 0
	for i := range list {
		for f := range list[i] {
			if list[i][f].is != noValue {
				n++
			}
			n += len(list[i][f].isNot)
		}
	}
	return n
}

// terms covers a set by terms that are as wide as can be, none of which is within the others.
func (s *choices) terms(c choice, first uint8) []term {
	var out []term
	var walk func(choice, term)
	walk = func(at choice, t term) {
		switch {
		case at == choice(Everybody):
			out = append(out, s.widen(c, t, first))
			return
		case at < levels:
			return
		}
		q := s.all[at]
		f := q.field - first
		var not []int32
		for _, a := range q.cases {
			one := t
			one[f].is = a.value
			walk(a.then, one)
			not = append(not, a.value)
		}
		t[f].isNot = not
		walk(q.others, t)
	}
	var all term
	for f := range all {
		all[f].is = noValue
	}
	walk(c, all)
	return s.needed(out, first)
}

// widen leaves out of a term within the set what need not be said.
func (s *choices) widen(c choice, t term, first uint8) term {
	for f := range t {
		for _, v := range t[f].isNot {
			wider := t
			wider[f].isNot = slices.DeleteFunc(slices.Clone(t[f].isNot), func(x int32) bool { return x == v })
			if s.within(&wider, c, first) {
				t = wider
			}
		}
	}
	for f := range t {
		wider := t
		wider[f].is = noValue
		if t[f].is != noValue && s.within(&wider, c, first) {
			t = wider
		}
	}
	return t
}

// within reports whether all of the term is in the set.
func (s *choices) within(t *term, c choice, first uint8) bool {
	if c < levels {
		return c == choice(Everybody)
	}
	q := &s.all[c]
	says := &t[q.field-first]
	if says.is != noValue {
		return s.within(t, s.given(c, q.field, says.is), first)
	}
	for _, a := range q.cases {
		if !slices.Contains(says.isNot, a.value) && !s.within(t, a.then, first) {
			return false
		}
	}
	return s.within(t, q.others, first)
}

// mostTerms bounds the search for terms that others make needless.
const mostTerms = 64

// needed leaves out terms that are within the others, and sorts what is left.
func (s *choices) needed(list []term, first uint8) []term {
	out := list
	for i := 0; i < len(out) && len(list) <= mostTerms; {
		rest := choice(Nobody)
		for k := range out {
			if k != i {
				rest = choice(s.or(Who(rest), s.meaning(&out[k], first)))
			}
		}
		if s.within(&out[i], rest, first) {
			out = slices.Delete(out, i, i+1)
		} else {
			i++
		}
	}
	return out
}

// meaning returns the set that the term means.
func (s *choices) meaning(t *term, first uint8) Who {
	out := choice(Everybody)
	for f := perEnd - 1; f >= 0; f-- {
		field := first + uint8(f)
		if t[f].is != noValue {
			out = s.intern(field, []answer{{t[f].is, out}}, choice(Nobody))
			continue
		}
		not := slices.Clone(t[f].isNot)
		slices.Sort(not)
		cases := make([]answer, len(not))
		for i, v := range not {
			cases[i] = answer{v, choice(Nobody)}
		}
		out = s.intern(field, cases, out)
	}
	return Who(out)
}

// texts writes terms, sorted.
func (s *choices) texts(list []term, first uint8) []string {
	out := make([]string, len(list))
	for i := range list {
		var is, not []string
		for f, name := range [perEnd]string{"unit", "path", "user"} {
			if list[i][f].is != noValue {
				is = append(is, name+" "+s.names[list[i][f].is])
			}
			for _, v := range list[i][f].isNot {
				not = append(not, "not "+name+" "+s.names[v])
			}
		}
		slices.Sort(not)
		out[i] = strings.Join(append(is, not...), " and ")
	}
	slices.Sort(out)
	return out
}
