package importer

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// selectorError is an error within a selector, at a column from 1.
type selectorError struct {
	column int
	msg    string
}

func (e *selectorError) Error() string { return fmt.Sprintf("column %d: %s", e.column, e.msg) }

// maxSelectorDepth keeps a hostile selector from the stack.
const maxSelectorDepth = 100

// parseExpr reads a selector.
func parseExpr(text string) (*expr, error) {
	p := &exprParser{in: text}
	if p.space(); p.at == len(text) {
		return &expr{op: exprTrue}, nil
	}
	e, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.at < len(text) {
		return nil, p.fail("expected && or || before %q", text[p.at:])
	}
	return e, nil
}

type exprParser struct {
	in string
	at int
}

func (p *exprParser) fail(format string, args ...any) error {
	return &selectorError{utf8.RuneCountInString(p.in[:p.at]) + 1, fmt.Sprintf(format, args...)}
}

func (p *exprParser) space() {
	for p.at < len(p.in) && strings.IndexByte(" \t\r\n", p.in[p.at]) >= 0 {
		p.at++
	}
}

// take reads the text if it comes next.
func (p *exprParser) take(text string) bool {
	p.space()
	if !strings.HasPrefix(p.in[p.at:], text) {
		return false
	}
	p.at += len(text)
	return true
}

// word reads a keyword of the grammar, which no other letter follows.
func (p *exprParser) word(text string) bool {
	before := p.at
	if p.take(text) && (p.at == len(p.in) || !isKeyByte(p.in[p.at])) {
		return true
	}
	p.at = before
	return false
}

func isKeyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_-./", c) >= 0
}

func (p *exprParser) or(depth int) (*expr, error) { return p.list(depth, "||", exprOr, p.and) }

func (p *exprParser) and(depth int) (*expr, error) { return p.list(depth, "&&", exprAnd, p.unary) }

func (p *exprParser) list(depth int, sep string, op exprOp, next func(int) (*expr, error)) (*expr, error) {
	first, err := next(depth)
	if err != nil {
		return nil, err
	}
	out := &expr{op: op, args: []*expr{first}}
	for p.take(sep) {
		e, err := next(depth)
		if err != nil {
			return nil, err
		}
		out.args = append(out.args, e)
	}
	if len(out.args) == 1 {
		return first, nil
	}
	return out, nil
}

func (p *exprParser) unary(depth int) (*expr, error) {
	if depth++; depth > maxSelectorDepth {
		return nil, p.fail("the selector is nested too deeply")
	}
	if p.take("!") {
		e, err := p.unary(depth)
		if err != nil {
			return nil, err
		}
		return notExpr(e), nil
	}
	if p.take("(") {
		e, err := p.or(depth)
		if err != nil {
			return nil, err
		}
		if !p.take(")") {
			return nil, p.fail("')' is missing")
		}
		return e, nil
	}
	return p.comparison()
}

func (p *exprParser) key() string {
	p.space()
	start := p.at
	for p.at < len(p.in) && isKeyByte(p.in[p.at]) {
		p.at++
	}
	return p.in[start:p.at]
}

func (p *exprParser) comparison() (*expr, error) {
	start := p.at
	key := p.key()
	if key == "" {
		return nil, p.fail("a label is missing")
	}
	switch {
	case (key == "all" || key == "global") && p.take("("):
		if !p.take(")") {
			return nil, p.fail("expected ) after %s(", key)
		}
		if key == "all" {
			return &expr{op: exprTrue}, nil
		}
		return &expr{op: exprGlobal}, nil
	case key == "has" && p.take("("):
		label := p.key()
		if label == "" || !p.take(")") {
			return nil, p.fail("expected a label and ) after has(")
		}
		return &expr{op: exprHas, key: label}, nil
	case p.take("=="):
		return p.compare(exprIn, key)
	case p.take("!="):
		return p.compare(exprNotIn, key)
	case p.word("contains"):
		return p.compare(exprContains, key)
	case p.word("starts"):
		if !p.word("with") {
			return nil, p.fail("expected with after starts")
		}
		return p.compare(exprStarts, key)
	case p.word("ends"):
		if !p.word("with") {
			return nil, p.fail("expected with after ends")
		}
		return p.compare(exprEnds, key)
	case p.word("in"):
		return p.set(exprIn, key)
	case p.word("not"):
		if !p.word("in") {
			return nil, p.fail("expected in after not")
		}
		return p.set(exprNotIn, key)
	}
	if p.at == len(p.in) {
		p.at = start
	}
	return nil, p.fail("expected ==, !=, in, not in, contains, starts with or ends with after %q", key)
}

func (p *exprParser) compare(op exprOp, key string) (*expr, error) {
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	return &expr{op: op, key: key, values: []string{v}}, nil
}

func (p *exprParser) set(op exprOp, key string) (*expr, error) {
	if !p.take("{") {
		return nil, p.fail("expected { and a list of values")
	}
	e := &expr{op: op, key: key}
	if p.take("}") {
		return e, nil
	}
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		e.values = append(e.values, v)
		if p.take("}") {
			return e, nil
		}
		if !p.take(",") {
			return nil, p.fail("expected , or }")
		}
	}
}

func (p *exprParser) value() (string, error) {
	p.space()
	if p.at == len(p.in) || p.in[p.at] != '\'' && p.in[p.at] != '"' {
		return "", p.fail("expected a value in quotes")
	}
	end := strings.IndexByte(p.in[p.at+1:], p.in[p.at])
	if end < 0 {
		return "", p.fail("the quote is not closed")
	}
	v := p.in[p.at+1 : p.at+1+end]
	p.at += end + 2
	return v, nil
}
