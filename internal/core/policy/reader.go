package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// reader turns YAML nodes into documents and collects every problem on the way.
type reader struct {
	file     string
	chunk    chunk
	docs     *model.Documents
	problems problems
}

func (r *reader) pos(n *yaml.Node) model.Position {
	return model.Position{File: r.file, Line: r.chunk.line + n.Line, Column: n.Column}
}

func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	r.problems.add(errorf(r.pos(n), format, args...))
}

// failWithin reports a problem at a column (from 1, in bytes) of the text of a scalar, if the text stands in the file
// as it is; else at the scalar.
func (r *reader) failWithin(n *yaml.Node, column int, format string, args ...any) {
	at := r.pos(n)
	source := []rune(lineOf(r.chunk.text, n.Line))
	start := n.Column - 1
	if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
		start++
	}
	if column-1 <= len(n.Value) && start <= len(source) && strings.HasPrefix(string(source[start:]), n.Value) {
		at.Column = start + utf8.RuneCountInString(n.Value[:column-1]) + 1
	}
	r.problems.add(errorf(at, format, args...))
}

// field is a field that a mapping may have, and what reads its value.
type field struct {
	name     string
	required string // what to write if the field is missing; "" if it may be left out
	read     func(*yaml.Node)
}

// mapping reads the fields of a mapping in the order in which they stand. It reports unknown, repeated and missing
// fields; what is the mapping as a sentence calls it ("the rule"). It returns whether the node is a mapping of known
// fields, without which there is no use in saying what else it lacks.
func (r *reader) mapping(n *yaml.Node, what string, fields ...field) bool {
	if !r.isMapping(n, what) {
		return false
	}
	known := make([]string, len(fields))
	for i := range fields {
		known[i] = fields[i].name
	}
	seen := map[string]bool{}
	allKnown := true
	r.pairs(n, func(key string, k, v *yaml.Node) {
		i := slices.Index(known, key)
		if i < 0 {
			r.fail(k, "unknown field %q in %s%s", key, what, orElse(didYouMean(key, known), "; it takes "+both(known)))
			seen[nearest(key, known)] = true // misspelt is not missing
			allKnown = false
			return
		}
		seen[key] = true
		fields[i].read(v)
	})
	for i := range fields {
		if f := &fields[i]; f.required != "" && !seen[f.name] {
			r.fail(n, "%s is missing in %s; %s", f.name, what, f.required)
		}
	}
	return allKnown
}

// pairs calls f for every field of a mapping, in order, and reports keys that are no text or are there already.
func (r *reader) pairs(n *yaml.Node, f func(key string, k, v *yaml.Node)) {
	first := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			r.fail(k, "a field name must be text, not %s", kindOf(k))
			continue
		}
		if before, ok := first[k.Value]; ok {
			r.fail(k, "the field %q is there twice, first at %s; remove one", k.Value, r.pos(before))
			continue
		}
		first[k.Value] = k
		f(k.Value, k, v)
	}
}

func (r *reader) isMapping(n *yaml.Node, what string) bool {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a mapping of fields, not %s", what, kindOf(n))
		return false
	}
	return true
}

// each calls f for every element of a list; what is the list as a sentence calls it. An empty list is an error unless
// it may be empty.
func (r *reader) each(n *yaml.Node, what string, mayBeEmpty bool, f func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.fail(n, "%s must be a list, not %s", what, kindOf(n))
		return
	}
	if len(n.Content) == 0 && !mayBeEmpty {
		r.fail(n, "%s is an empty list; name at least one", what)
	}
	for _, c := range n.Content {
		f(c)
	}
}

// text returns the text of a scalar.
func (r *reader) text(n *yaml.Node, what string) (string, bool) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		return n.Value, true
	}
	r.fail(n, "%s must be text, not %s", what, kindOf(n))
	return "", false
}

// free is text that may say anything, and so may look like a number, a date or a truth value. Those are refused: YAML
// readers differ on how they spell them.
func (r *reader) free(n *yaml.Node, what string) (string, bool) {
	switch n.Tag {
	case "!!int", "!!float", "!!bool", "!!timestamp":
		r.fail(n, "%s must be text, not %s; write %q in quotes", what, kindOf(n), n.Value)
		return "", false
	}
	return r.text(n, what)
}

// filled is free text that is not empty and has no control characters in it.
func (r *reader) filled(n *yaml.Node, what string, limit int) (string, bool) {
	s, ok := r.free(n, what)
	switch {
	case !ok:
		return "", false
	case strings.TrimSpace(s) == "":
		r.fail(n, "%s is empty", what)
		return "", false
	case len(s) > limit:
		r.fail(n, "%s has %d bytes, more than %d", what, len(s), limit)
		return "", false
	}
	for _, c := range s {
		if c < ' ' && c != '\n' && c != '\t' || c == 0x7f {
			r.fail(n, "%s has the control character %q in it; remove it", what, c)
			return "", false
		}
	}
	return s, true
}

// boolean returns a truth value.
func (r *reader) boolean(n *yaml.Node, what string) (value, ok bool) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" {
		switch strings.ToLower(n.Value) {
		case "true":
			return true, true
		case "false":
			return false, true
		}
	}
	r.fail(n, "%s must be true or false, not %s", what, kindOf(n))
	return false, false
}

// choice returns the index of the text among the names.
func (r *reader) choice(n *yaml.Node, what string, names []string) (int, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.fail(n, "%s must be %s, not %s", what, alternatives(names), kindOf(n))
		return 0, false
	}
	s := n.Value
	i := slices.Index(names, s)
	if i < 0 {
		r.fail(n, "unknown %s %q%s", what, s, orElse(didYouMean(s, names), "; use "+alternatives(names)))
		return 0, false
	}
	return i, true
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// kindOf describes a node for "must be …, not …".
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		if n.Value == "" {
			return "nothing"
		}
		return n.Value
	case "!!bool":
		return "the truth value " + n.Value
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!timestamp":
		return "a date"
	case "!!merge":
		return "<<"
	}
	if n.Value == "" {
		return "empty text"
	}
	return fmt.Sprintf("%q", clip(n.Value))
}

// clip shortens text for a message.
func clip(s string) string {
	const limit = 60
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	return string([]rune(s)[:limit]) + "…"
}
