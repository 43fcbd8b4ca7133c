package policy

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// Reader reads documents of another language, such as manifests of Kubernetes, as strictly and in the same words as
// this package reads its own: every problem at its place, with what is expected and what was probably meant. It
// collects problems; Problems returns them. The zero value is ready. It must not be used by two goroutines at once.
type Reader struct{ r reader }

// Text is one document of a file as text, and where it stands.
type Text struct {
	File  string
	Line  int // lines of the file before it
	Bytes []byte
}

// Split cuts a file into its documents. Together they are the whole file.
func Split(f File) []Text {
	var out []Text
	for _, c := range split(f.Data) {
		out = append(out, Text{File: f.Name, Line: c.line, Bytes: c.text})
	}
	return out
}

// Nodes returns the roots of the documents in the text; none, without a report, if it is not YAML. Anchors and tags are
// not looked at: see Refuses.
func (t *Text) Nodes() []*yaml.Node {
	nodes, _, problem := yamlNodes(t.Bytes)
	if problem != "" {
		return nil
	}
	var out []*yaml.Node
	for _, n := range nodes {
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			out = append(out, n.Content[0])
		}
	}
	return out
}

// Enter makes the text the one that the nodes read from now on stand in.
func (r *Reader) Enter(t *Text) {
	r.r.file, r.r.chunk = t.File, chunk{text: t.Bytes, line: t.Line}
}

// Problems returns what was reported so far, sorted by position.
func (r *Reader) Problems() Errors { return r.r.problems.sorted() }

// Full reports whether so many problems were found that reading on helps nobody.
func (r *Reader) Full() bool { return r.r.problems.full() }

// Refuses reports anchors, aliases and tags, each with an error: a document without them is a tree no larger than its
// text.
func (r *Reader) Refuses(n *yaml.Node) bool { return r.r.refuses(n, 0) }

// Pos returns where the node stands.
func (r *Reader) Pos(n *yaml.Node) model.Position { return r.r.pos(n) }

// Fail reports a problem at the node.
func (r *Reader) Fail(n *yaml.Node, format string, args ...any) { r.r.fail(n, format, args...) }

// FailAt reports a problem at a position.
func (r *Reader) FailAt(pos model.Position, format string, args ...any) {
	r.r.problems.add(errorf(pos, format, args...))
}

// Field is a field that a mapping may have, and what reads its value.
type Field struct {
	Name     string
	Required string // what to write if the field is missing; "" if it may be left out
	Read     func(*yaml.Node)
}

// Mapping reads the fields of a mapping in the order in which they stand. It reports unknown, repeated and missing
// fields; what is the mapping as a sentence calls it. It returns whether the node is a mapping of known fields.
func (r *Reader) Mapping(n *yaml.Node, what string, fields ...Field) bool {
	own := make([]field, len(fields))
	for i, f := range fields {
		own[i] = field{f.Name, f.Required, f.Read}
	}
	return r.r.mapping(n, what, own...)
}

// IsMapping reports whether the node is a mapping, with a problem if it is not.
func (r *Reader) IsMapping(n *yaml.Node, what string) bool { return r.r.isMapping(n, what) }

// Pairs calls f for every field of a mapping, in order, and reports keys that are no text or are there already.
func (r *Reader) Pairs(n *yaml.Node, f func(key string, k, v *yaml.Node)) { r.r.pairs(n, f) }

// Each calls f for every element of a list. An empty list is a problem unless it may be empty.
func (r *Reader) Each(n *yaml.Node, what string, mayBeEmpty bool, f func(*yaml.Node)) {
	r.r.each(n, what, mayBeEmpty, f)
}

// Text returns the text of a scalar. Numbers, dates and truth values are refused: they need quotes to be text.
func (r *Reader) Text(n *yaml.Node, what string) (string, bool) { return r.r.free(n, what) }

// Boolean returns a truth value.
func (r *Reader) Boolean(n *yaml.Node, what string) (value, ok bool) { return r.r.boolean(n, what) }

// Choice returns the index of the text among the names.
func (r *Reader) Choice(n *yaml.Node, what string, names []string) (int, bool) {
	return r.r.choice(n, what, names)
}

// Integer returns a whole number from lo to hi.
func (r *Reader) Integer(n *yaml.Node, what string, lo, hi int) (int, bool) {
	var v int
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&v) != nil {
		r.Fail(n, "%s must be a number from %d to %d, not %s", what, lo, hi, kindOf(n))
		return 0, false
	}
	if v < lo || v > hi {
		r.Fail(n, "%s is %d; it must be from %d to %d", what, v, lo, hi)
		return 0, false
	}
	return v, true
}

// Describe says what a node is, for "must be …, not …".
func Describe(n *yaml.Node) string { return kindOf(n) }

// DidYouMean returns `, did you mean "x"?` with the candidate that was most likely meant, or "" if none is near.
func DidYouMean(word string, candidates []string) string { return didYouMean(word, candidates) }

// Alternatives joins names for a sentence: "a", "a or b", "a, b or c".
func Alternatives(names []string) string { return alternatives(names) }

// CheckDomain reports why the text is no domain pattern: a host name, or "*." and one.
func CheckDomain(s string) error {
	if why := checkDomain(s); why != "" {
		return fmt.Errorf("%s", why)
	}
	return nil
}

// CheckWorkloadName reports why the text cannot name a workload.
func CheckWorkloadName(s string) error {
	if why := checkName(model.KindWorkload, s); why != "" {
		return fmt.Errorf("%s", why)
	}
	return nil
}
