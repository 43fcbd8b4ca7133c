package model

import (
	"fmt"
	"slices"
	"strings"
)

// Op is the operator of one requirement of a selector.
type Op uint8

// The operators of the Kubernetes label-selector grammar. "=" and "==" are OpIn with one value; "!=" is OpNotIn.
// As in Kubernetes, OpNotIn also matches where the key is absent.
const (
	OpIn Op = iota
	OpNotIn
	OpExists
	OpNotExists
)

// Requirement is one condition of a selector. Values are sorted and distinct; Exists and NotExists have none.
type Requirement struct {
	Key    string
	Op     Op
	Values []string
}

// Matches reports whether the labels meet the requirement.
func (r *Requirement) Matches(l Labels) bool {
	v, ok := l[r.Key]
	switch r.Op {
	case OpIn:
		return ok && slices.Contains(r.Values, v)
	case OpNotIn:
		return !ok || !slices.Contains(r.Values, v)
	case OpExists:
		return ok
	case OpNotExists:
		return !ok
	}
	return false
}

// String returns the requirement in the grammar.
func (r *Requirement) String() string {
	switch r.Op {
	case OpIn:
		if len(r.Values) == 1 {
			return r.Key + "=" + r.Values[0]
		}
		return r.Key + " in (" + strings.Join(r.Values, ",") + ")"
	case OpNotIn:
		if len(r.Values) == 1 {
			return r.Key + "!=" + r.Values[0]
		}
		return r.Key + " notin (" + strings.Join(r.Values, ",") + ")"
	case OpExists:
		return r.Key
	}
	return "!" + r.Key
}

// Selector is a conjunction of requirements in the Kubernetes label-selector grammar, sorted by key, operator and
// values. The zero value selects every workload.
type Selector struct {
	Requirements []Requirement
}

// Matches reports whether the labels meet every requirement.
func (s *Selector) Matches(l Labels) bool {
	for i := range s.Requirements {
		if !s.Requirements[i].Matches(l) {
			return false
		}
	}
	return true
}

// Empty reports whether the selector has no requirement, and so selects everything.
func (s *Selector) Empty() bool { return len(s.Requirements) == 0 }

// String returns the canonical form: selectors with the same requirements have equal strings.
func (s Selector) String() string {
	parts := make([]string, len(s.Requirements))
	for i := range s.Requirements {
		parts[i] = s.Requirements[i].String()
	}
	return strings.Join(parts, ",")
}

// Contradiction returns why no label set can ever meet the selector, or "" if one can. It is exact: every key is
// free to take any value or to be absent.
func (s *Selector) Contradiction() string {
	for i := 0; i < len(s.Requirements); {
		j := i
		for j < len(s.Requirements) && s.Requirements[j].Key == s.Requirements[i].Key {
			j++
		}
		if why := contradiction(s.Requirements[i:j]); why != "" {
			return why
		}
		i = j
	}
	return ""
}

func contradiction(rs []Requirement) string {
	var (
		key               = rs[0].Key
		present, absent   bool
		restricted        bool
		candidates        []string
		excluded          = map[string]bool{}
		conflictDescribed = make([]string, len(rs))
	)
	for i := range rs {
		r := &rs[i]
		conflictDescribed[i] = r.String()
		switch r.Op {
		case OpIn:
			present = true
			if !restricted {
				restricted, candidates = true, slices.Clone(r.Values)
			} else {
				candidates = slices.DeleteFunc(candidates, func(v string) bool { return !slices.Contains(r.Values, v) })
			}
		case OpNotIn:
			for _, v := range r.Values {
				excluded[v] = true
			}
		case OpExists:
			present = true
		case OpNotExists:
			absent = true
		}
	}
	never := present && absent
	if restricted && !never {
		left := slices.DeleteFunc(slices.Clone(candidates), func(v string) bool { return excluded[v] })
		never = len(left) == 0
	}
	if !never {
		return ""
	}
	return fmt.Sprintf("no workload can have %q meet %s at once", key, strings.Join(conflictDescribed, " and "))
}

// ParseSelector parses the Kubernetes label-selector grammar, with keys as CheckSelectorKey takes them. The error names the offending part and its column
// (from 1) within s.
func ParseSelector(s string) (Selector, error) {
	p := selectorParser{in: s}
	sel, err := p.parse()
	if err != nil {
		return Selector{}, err
	}
	return NewSelector(sel.Requirements...), nil
}

// NewSelector returns the selector that all requirements make, in canonical order. It may reorder them; the values of
// each are sorted and distinct already.
func NewSelector(requirements ...Requirement) Selector {
	slices.SortFunc(requirements, func(a, b Requirement) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.Op != b.Op {
			return int(a.Op) - int(b.Op)
		}
		return slices.Compare(a.Values, b.Values)
	})
	return Selector{slices.CompactFunc(requirements, func(a, b Requirement) bool {
		return a.Key == b.Key && a.Op == b.Op && slices.Equal(a.Values, b.Values)
	})}
}

// With returns the selector of what meets the requirements too.
func (s *Selector) With(more ...Requirement) Selector {
	return NewSelector(slices.Concat(s.Requirements, more)...)
}

// MustParseSelector is ParseSelector for literals in tests and tables; it panics on an error.
func MustParseSelector(s string) Selector {
	sel, err := ParseSelector(s)
	if err != nil {
		panic(err)
	}
	return sel
}

// SelectorError is an error within a selector string. Column counts from 1.
type SelectorError struct {
	Selector string
	Column   int
	Reason   string
}

// Error returns the reason with its place.
func (e *SelectorError) Error() string {
	return fmt.Sprintf("selector %q, column %d: %s", e.Selector, e.Column, e.Reason)
}

type selectorParser struct {
	in  string
	pos int
}

func (p *selectorParser) fail(at int, format string, args ...any) error {
	return &SelectorError{Selector: p.in, Column: at + 1, Reason: fmt.Sprintf(format, args...)}
}

func (p *selectorParser) space() {
	for p.pos < len(p.in) && (p.in[p.pos] == ' ' || p.in[p.pos] == '\t') {
		p.pos++
	}
}

func (p *selectorParser) word() string {
	start := p.pos
	for p.pos < len(p.in) && !strings.ContainsRune(" \t,=!()", rune(p.in[p.pos])) {
		p.pos++
	}
	return p.in[start:p.pos]
}

func (p *selectorParser) parse() (Selector, error) {
	var sel Selector
	p.space()
	if p.pos == len(p.in) {
		return sel, nil
	}
	for {
		r, err := p.requirement()
		if err != nil {
			return sel, err
		}
		sel.Requirements = append(sel.Requirements, r)
		p.space()
		if p.pos == len(p.in) {
			return sel, nil
		}
		if p.in[p.pos] != ',' {
			return sel, p.fail(p.pos, "expected ',' before %q", p.in[p.pos:])
		}
		p.pos++
		p.space()
		if p.pos == len(p.in) {
			return sel, p.fail(p.pos, "a condition is missing after ','")
		}
	}
}

func (p *selectorParser) requirement() (Requirement, error) {
	var r Requirement
	not := false
	if p.in[p.pos] == '!' {
		not = true
		p.pos++
		p.space()
	}
	at := p.pos
	r.Key = p.word()
	if r.Key == "" {
		return r, p.fail(at, "a label key is missing")
	}
	if err := CheckSelectorKey(r.Key); err != nil {
		return r, p.fail(at, "%v", err)
	}
	if not {
		r.Op = OpNotExists
		return r, nil
	}
	p.space()
	rest := p.in[p.pos:]
	switch {
	case rest == "" || rest[0] == ',':
		r.Op = OpExists
		return r, nil
	case strings.HasPrefix(rest, "!="):
		p.pos += 2
		r.Op = OpNotIn
	case strings.HasPrefix(rest, "=="):
		p.pos += 2
	case strings.HasPrefix(rest, "="):
		p.pos++
	default:
		at := p.pos
		switch op := p.word(); op {
		case "in":
		case "notin":
			r.Op = OpNotIn
		default:
			return r, p.fail(at, "expected =, !=, in or notin after %q; a label value has no spaces", r.Key)
		}
		return r, p.list(&r)
	}
	p.space()
	at = p.pos
	v := p.word()
	if err := CheckLabelValue(v); err != nil {
		return r, p.fail(at, "%v", err)
	}
	r.Values = []string{v}
	return r, nil
}

func (p *selectorParser) list(r *Requirement) error {
	p.space()
	if p.pos == len(p.in) || p.in[p.pos] != '(' {
		return p.fail(p.pos, "expected '(' and a list of values")
	}
	p.pos++
	for {
		p.space()
		at := p.pos
		v := p.word()
		if err := CheckLabelValue(v); err != nil {
			return p.fail(at, "%v", err)
		}
		r.Values = append(r.Values, v)
		p.space()
		if p.pos == len(p.in) {
			return p.fail(p.pos, "')' is missing")
		}
		switch p.in[p.pos] {
		case ',':
			p.pos++
		case ')':
			p.pos++
			slices.Sort(r.Values)
			r.Values = slices.Compact(r.Values)
			return nil
		default:
			return p.fail(p.pos, "expected ',' or ')'")
		}
	}
}
