package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// The formats of -o.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

var formats = []string{formatTable, formatJSON, formatYAML}

func checkFormat(f string) error {
	if slices.Contains(formats, f) {
		return nil
	}
	return usagef("-o %s: use table, json or yaml", f)
}

// print writes v as -o says: as JSON or YAML, or by text for people.
func (a *app) print(cmd *cobra.Command, v any, text func(*page)) error {
	var err error
	out := cmd.OutOrStdout()
	switch a.output {
	case formatJSON:
		err = writeJSON(out, v)
	case formatYAML:
		err = writeYAML(out, v)
	default:
		p := newPage(out)
		text(p)
		err = p.flush()
	}
	if err != nil {
		return cannotf("write the output: %w", err)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	data, err := marshalJSON(v)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// marshalJSON indents, leaves <, > and & alone, and ends with a line feed.
func marshalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// writeYAML writes the YAML that says the same as the JSON of v, with its names and its order.
func writeYAML(w io.Writer, v any) error {
	data, err := marshalJSON(v)
	if err != nil {
		return err
	}
	var node yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(data, &node); err != nil {
		return err
	}
	unstyle(&node)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return err
	}
	return e.Close()
}

// unstyle drops the braces and quotes of JSON; the encoder puts quotes back where they are needed. Empty lists and
// mappings keep their brackets.
func unstyle(n *yaml.Node) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str" && oldBool[strings.ToLower(n.Value)]:
		n.Style = yaml.DoubleQuotedStyle
	case n.Kind == yaml.ScalarNode || len(n.Content) > 0:
		n.Style = 0
	}
	for i, c := range n.Content {
		if key := n.Kind == yaml.MappingNode && i%2 == 0; key {
			c.Style = 0
			continue
		}
		unstyle(c)
	}
}

// oldBool are words that YAML 1.1, which many programs still read, takes for true and false.
var oldBool = map[string]bool{"y": true, "yes": true, "on": true, "n": true, "no": true, "off": true}

// onTerminal reports whether w is a terminal.
func onTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// inColour reports whether what is written to w may be coloured: a terminal that can, and no NO_COLOR
// (https://no-color.org).
func inColour(w any) bool {
	return onTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// terminalWidth returns the columns of the terminal w, or 0 if w is none.
func terminalWidth(w any) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// stamp returns a time of the API for JSON; nil for none.
func stamp(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// ago says how long ago a time was, for people.
func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "never"
	}
	d := time.Since(*t)
	if d < 0 {
		return "in " + span(-d)
	}
	if d < time.Second {
		return "now"
	}
	return span(d) + " ago"
}

// span says how long d is in its largest unit.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// count says how many there are of something: "1 rule", "2 rules", "1,204 flows".
func count[N int | int64 | uint32 | uint64](n N, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(uint64(n)) + " " + plural(one)
}

func plural(one string) string {
	if last := len(one) - 1; last > 0 && one[last] == 'y' && one != "day" {
		return one[:last] + "ies"
	}
	return one + "s"
}

// thousands groups the digits of n by commas.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// byteSize says how much n bytes are.
func byteSize(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n), -1
	for ; v >= unit && i < 3; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[i])
}
