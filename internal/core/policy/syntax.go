package policy

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// chunk is one document of a file as text.
type chunk struct {
	text []byte
	line int // lines of the file before it
}

// split cuts a file into its documents. YAML reserves a "---" or "..." that begins a line for this, even within quoted
// and literal text, so each document can be read alone and a broken one does not hide those after it.
func split(data []byte) []chunk {
	var out []chunk
	start, startLine, line := 0, 0, 0
	for at := 0; at < len(data); line++ {
		end := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if marker(data[at:end], "---") && at > start {
			out = append(out, chunk{data[start:at], startLine})
			start, startLine = at, line
		}
		if marker(data[at:end], "...") {
			out = append(out, chunk{data[start:end], startLine})
			start, startLine = end, line+1
		}
		at = end
	}
	if start < len(data) {
		out = append(out, chunk{data[start:], startLine})
	}
	return out
}

func marker(line []byte, mark string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// directives reports whether the chunk holds no document but blank lines, comments and directives, and returns the
// line of a directive that is not %YAML, or -1.
func (c *chunk) directives() (only bool, foreign int) {
	foreign = -1
	for i, line := range bytes.Split(c.text, []byte("\n")) {
		text := string(bytes.TrimSpace(line))
		switch {
		case text == "" || text[0] == '#':
		case line[0] == '%' && strings.HasPrefix(text, "%YAML"):
		case line[0] == '%':
			if foreign < 0 {
				foreign = i
			}
		default:
			return false, -1
		}
	}
	return true, foreign
}

// readFile reads every document of a file.
func (r *reader) readFile(f File) {
	r.file = f.Name
	data := bytes.TrimPrefix(f.Data, []byte("\ufeff"))
	if len(data) > MaxFile {
		r.problems.add(errorf(model.Position{File: f.Name, Line: 1, Column: 1},
			"the file has %d bytes, more than %d; split it", len(data), MaxFile))
		return
	}
	if at := invalidUTF8(data); at >= 0 {
		before := data[:at]
		r.problems.add(errorf(model.Position{
			File: f.Name, Line: 1 + bytes.Count(before, []byte("\n")),
			Column: 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]),
		}, "the byte 0x%02x is not UTF-8 text; save the file as UTF-8", data[at]))
		return
	}
	for _, c := range split(data) {
		if r.problems.full() {
			r.problems.more = true
			return
		}
		r.chunk = c
		r.readChunk()
	}
}

func invalidUTF8(data []byte) int {
	for at := 0; at < len(data); {
		c, n := utf8.DecodeRune(data[at:])
		if c == utf8.RuneError && n == 1 {
			return at
		}
		at += n
	}
	return -1
}

func (r *reader) readChunk() {
	c := &r.chunk
	start := model.Position{File: r.file, Line: c.line + 1, Column: 1}
	if len(c.text) > MaxDocument {
		r.problems.add(errorf(start, "the document has %d bytes, more than %d; split it", len(c.text), MaxDocument))
		return
	}
	if only, foreign := c.directives(); only {
		if foreign >= 0 {
			start.Line += foreign
			r.problems.add(errorf(start, "YAML directives are not supported; remove this line"))
		}
		return
	}
	nodes, line, problem := yamlNodes(c.text)
	if problem != "" {
		column := 1
		if len(c.text) <= locatable {
			line, column = locate(c.text, problem)
		}
		r.problems.add(errorf(model.Position{File: r.file, Line: c.line + line, Column: column}, "%s", explainYAML(problem, lineOf(c.text, line))))
		return
	}
	for _, n := range nodes {
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 && !r.refuses(n.Content[0], 0) {
			r.document(n.Content[0])
		}
	}
}

var (
	linePrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	fromParser = regexp.MustCompile(`^did not find expected (<|node|key|'-'|',')`)
)

// yamlNodes reads every document of the text. The line of a problem is the YAML library's: for some problems that of
// the mapping around it. The place where it arises is found by locate.
func yamlNodes(text []byte) (nodes []*yaml.Node, line int, problem string) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		switch {
		case errors.Is(err, io.EOF):
			return nodes, 0, ""
		case err != nil:
			m := linePrefix.FindStringSubmatch(err.Error())
			if m == nil {
				return nil, 1, err.Error()
			}
			line, _ := strconv.Atoi(m[1]) // absent for the first line
			problem = err.Error()[len(m[0]):]
			if fromParser.MatchString(problem) {
				line++ // the library counts those lines from 0
			}
			return nil, max(line, 1), problem
		}
		nodes = append(nodes, &n)
	}
}

const (
	locatable = 256 << 10 // bytes of the largest document in which locate looks for a problem
	longLine  = 400       // bytes of the longest line in which it looks for the column
)

// locate finds where a problem arises: the first line, and within it the last column, without which it is not there.
// It costs a few readings of a text that is wrong anyway.
func locate(text []byte, problem string) (line, column int) {
	arises := func(n int) bool {
		_, _, p := yamlNodes(text[:n])
		return p == problem
	}
	var ends []int // of each line
	for at := 0; at < len(text); {
		end := len(text)
		if n := bytes.IndexByte(text[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		ends = append(ends, end)
		at = end
	}
	lo, hi := 0, len(ends)-1 // the problem arises with line hi, and not before line lo
	for lo < hi {
		mid := (lo + hi) / 2
		if arises(ends[mid]) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	start := 0
	if lo > 0 {
		start = ends[lo-1]
	}
	content := bytes.TrimRight(text[start:ends[lo]], "\r\n")
	blank := len(content) - len(bytes.TrimLeft(content, " \t"))
	last := len(content)
	if last > longLine || !arises(start+last) {
		return lo + 1, blank + 1
	}
	for last > blank && arises(start+last-1) {
		last--
	}
	return lo + 1, max(1, utf8.RuneCount(content[:last]))
}

// lineOf returns a line, from 1, of the text; "" if there is none.
func lineOf(text []byte, line int) string {
	for ; line > 1; line-- {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			return ""
		}
		text = text[end+1:]
	}
	if end := bytes.IndexByte(text, '\n'); end >= 0 {
		text = text[:end]
	}
	return string(text)
}

// explainYAML says in the words of somebody who writes documents what the YAML library complains about.
func explainYAML(problem, line string) string {
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	switch {
	case strings.Contains(indent, "\t"):
		return "a tab indents this line; YAML takes spaces only"
	case strings.Contains(problem, "mapping values are not allowed"):
		return "a ':' is out of place here; indent the line as its neighbours are, or put the text into quotes"
	case strings.Contains(problem, "cannot start any token"):
		return "this character cannot begin a value; put the text into quotes"
	case strings.Contains(problem, "unexpected end of stream"):
		return "the quotes that open here are never closed"
	case strings.Contains(problem, "',' or ']'"):
		return "the list that opens with '[' is not closed; add ',' between its elements and ']' after them"
	case strings.Contains(problem, "',' or '}'"):
		return "the mapping that opens with '{' is not closed; add ',' between its fields and '}' after them"
	case strings.Contains(problem, "did not find expected key"), strings.Contains(problem, "did not find expected '-' indicator"):
		return "the line does not fit the lines above it; indent it as its neighbours are"
	case strings.Contains(problem, "could not find expected ':'"):
		return "a ':' and a value are missing after this field"
	case strings.Contains(problem, "expected <document start>"):
		return "the document ended above; begin another one with a line of ---"
	case strings.Contains(problem, "unknown escape"):
		return "there is no such escape; write \\\\ for a backslash, or put the text into single quotes"
	case strings.Contains(problem, "alphabetic or numeric character"):
		return "a value that begins with '*', '&' or '!' means something else to YAML; put the text into quotes"
	case strings.Contains(problem, "unknown anchor"):
		return "YAML aliases (*name) are not supported; write the value out, or put text that begins with '*' into quotes"
	case strings.Contains(problem, "control characters are not allowed"):
		return "a control character is in the text; remove it"
	case strings.Contains(problem, "max depth"), strings.Contains(problem, "exceeded"):
		return "lists and mappings are nested too deeply"
	}
	return "this is not YAML: " + problem
}

// refuses reports, with an error for each, what YAML knows and the language does not: anchors, aliases and tags. A
// document without them is a tree no larger than its text, so no alias can blow it up.
func (r *reader) refuses(n *yaml.Node, depth int) bool {
	switch {
	case depth > maxDepth:
		r.fail(n, "lists and mappings are nested too deeply")
		return true
	case n.Kind == yaml.AliasNode:
		r.fail(n, `YAML aliases are not supported; write the value out in place of "*%s"`, n.Value)
		return true
	}
	refused := false
	if n.Anchor != "" {
		r.fail(n, `YAML anchors are not supported; remove "&%s" and write the value out wherever it is needed`, n.Anchor)
		refused = true
	}
	if n.Style&yaml.TaggedStyle != 0 {
		r.fail(n, `YAML tags are not supported; remove "%s"`, n.Tag)
		refused = true
	}
	for _, c := range n.Content {
		refused = r.refuses(c, depth+1) || refused
	}
	return refused
}
