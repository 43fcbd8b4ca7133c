package prove

// clause forbids a part of the space: where all of its literals hold. They are kept as the conjunctions they come from.
type clause struct {
	parts [4]conjunction
}

// open returns how many literals of the clause hold in a part of the box only, and the first of them. never is true if
// one holds nowhere: the clause then forbids nothing in the box.
func (b *box) open(c *clause) (n int, first *literal, never bool) {
	for _, part := range c.parts {
		for i := range part {
			some, all := b.test(&part[i])
			if !some {
				return 0, nil, true
			}
			if !all {
				if n == 0 {
					first = &part[i]
				}
				n++
			}
		}
	}
	return n, first, false
}

// meetsClause reports whether every literal of the clause holds somewhere in the box.
func (b *box) meetsClause(c *clause) bool {
	for _, part := range c.parts {
		if !b.meets(part) {
			return false
		}
	}
	return true
}

// answer is what a search came to.
type answer uint8

const (
	nothing answer = iota
	found
	exhausted // the search was given up
)

// solver looks for a point of a box that no clause forbids: DPLL, over variables of more than two values.
type solver struct {
	*box
	steps int // left: tests of a clause
	// spare are, by variable, values that selectors seldom ask for. Where none of the clauses that are left asks for one, a
	// variable may take it without loss.
	spare [][]int32
}

// solve narrows the box to a part that no clause forbids. It changes the list. If the answer is found, the box is left
// narrow: undo takes it back. Otherwise the box is as it was.
func (s *solver) solve(clauses []*clause) answer {
	mark := s.mark()
	clauses, ok := s.propagate(clauses)
	if !ok {
		s.undo(mark)
		return s.none()
	}
	for s.relax(clauses) {
		if clauses, ok = s.propagate(clauses); !ok {
			s.undo(mark)
			return s.none()
		}
	}
	if len(clauses) == 0 {
		return found
	}
	best, fewest := 0, 0
	for i := range clauses {
		if n, _, _ := s.open(clauses[i]); fewest == 0 || n < fewest {
			best, fewest = i, n
		}
	}
	chosen := clauses[best]
	rest := make([]*clause, 0, len(clauses)-1)
	out := s.branch(chosen, func() answer {
		rest = append(append(rest[:0], clauses[:best]...), clauses[best+1:]...)
		return s.solve(rest)
	})
	if out != found {
		s.undo(mark)
	}
	return out
}

// branch tries each way in which the clause is not met: the first literal fails; the first holds and the second fails;
// and so on.
func (s *solver) branch(c *clause, then func() answer) answer {
	for _, part := range c.parts {
		for i := range part {
			if _, all := s.test(&part[i]); all {
				continue
			}
			mark := s.mark()
			s.narrow(&part[i], false)
			if out := then(); out != nothing {
				return out
			}
			s.undo(mark)
			if !s.narrow(&part[i], true) {
				return nothing
			}
		}
	}
	return nothing
}

func (s *solver) none() answer {
	if s.steps <= 0 {
		return exhausted
	}
	return nothing
}

// propagate drops clauses that forbid nothing and applies those that leave one way. ok is false if nothing is left, or
// if the search must be given up.
func (s *solver) propagate(clauses []*clause) (left []*clause, ok bool) {
	for changed := true; changed; {
		changed = false
		kept := clauses[:0]
		for i := range clauses {
			if s.steps--; s.steps <= 0 {
				return nil, false
			}
			n, first, never := s.open(clauses[i])
			switch {
			case never:
			case n == 0:
				return nil, false
			case n == 1:
				if !s.narrow(first, false) {
					return nil, false
				}
				changed = true
			default:
				kept = append(kept, clauses[i])
			}
		}
		clauses = kept
	}
	return clauses, true
}

// relax gives a variable a spare value that meets no literal of the clauses, if there is one: that can only help. It
// reports whether it did.
func (s *solver) relax(clauses []*clause) bool {
	var touched []int32
	asked := map[int32][]*literal{}
	for _, c := range clauses {
		for _, part := range c.parts {
			for k := range part {
				l := &part[k]
				if len(s.spare[l.variable]) == 0 || s.domains[l.variable].count == 1 {
					continue
				}
				if asked[l.variable] == nil {
					touched = append(touched, l.variable)
				}
				asked[l.variable] = append(asked[l.variable], l)
			}
		}
	}
	done := false
	for _, v := range touched {
		for _, value := range s.spare[v] {
			if s.domains[v].has(value) && !anyMet(asked[v], value) {
				s.fix(v, value)
				done = true
				break
			}
		}
	}
	return done
}

func anyMet(list []*literal, value int32) bool {
	for _, l := range list {
		if l.met(value) {
			return true
		}
	}
	return false
}

// met reports whether the value meets the literal.
func (l *literal) met(value int32) bool {
	if l.bits != nil {
		return l.bits[value/64]&(1<<(value%64)) != 0
	}
	for _, v := range l.values {
		if v == value {
			return !l.not
		}
	}
	return l.not
}
