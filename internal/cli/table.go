package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"bulkhead/internal/core/model"
	"bulkhead/internal/harmless"
)

// colour is an ANSI colour, used on terminals only.
type colour string

const (
	plain  colour = ""
	green  colour = "32"
	yellow colour = "33"
	red    colour = "31"
	faint  colour = "2"
	bold   colour = "1"
)

// page is text for people: lines and tables.
type page struct {
	w      *bufio.Writer
	colour bool
	width  int // columns of the terminal; 0: no limit
}

func newPage(w io.Writer) *page {
	return &page{w: bufio.NewWriter(w), colour: inColour(w), width: terminalWidth(w)}
}

// flush writes everything out and returns the first error there was.
func (p *page) flush() error { return p.w.Flush() }

// line prints one line.
func (p *page) line(format string, args ...any) {
	p.w.WriteString(harmless.Text(fmt.Sprintf(format, args...), p.colour))
	p.w.WriteByte('\n')
}

// text prints lines, ending the last one.
func (p *page) text(s string) {
	p.w.WriteString(harmless.Text(s, false))
	if s != "" && !strings.HasSuffix(s, "\n") {
		p.w.WriteByte('\n')
	}
}

// heading prints a title with an empty line above it, unless it is the first thing on the page.
func (p *page) heading(format string, args ...any) {
	if p.w.Buffered() > 0 {
		p.w.WriteByte('\n')
	}
	p.w.WriteString(p.paint(harmless.Text(fmt.Sprintf(format, args...), false), bold))
	p.w.WriteByte('\n')
}

func (p *page) paint(s string, c colour) string {
	if !p.colour || c == plain || s == "" {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// cell is one field of a table.
type cell struct {
	text   string
	colour colour
}

// table collects rows and aligns their columns. Numbers stand to the right.
type table struct {
	head []string
	rows [][]cell
}

// newTable returns a table; a title that begins with '>' is of a column of numbers.
func newTable(head ...string) *table { return &table{head: head} }

// add appends a row of strings, cells or anything that fmt prints.
func (t *table) add(fields ...any) {
	row := make([]cell, len(fields))
	for i, f := range fields {
		switch f := f.(type) {
		case cell:
			row[i] = f
		case string:
			row[i] = cell{text: f}
		default:
			row[i] = cell{text: fmt.Sprint(f)}
		}
		row[i].text = harmless.Line(row[i].text)
	}
	t.rows = append(t.rows, row)
}

// table prints t, or what to say when it has no rows.
func (p *page) table(t *table, empty string) {
	if len(t.rows) == 0 {
		p.line("%s", empty)
		return
	}
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(strings.TrimPrefix(h, ">"))
	}
	for _, r := range t.rows {
		for i, c := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	p.shrink(widths)
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{strings.TrimPrefix(h, ">"), faint}
	}
	p.row(t.head, head, widths)
	for _, r := range t.rows {
		p.row(t.head, r, widths)
	}
}

const (
	gap       = 2  // spaces between columns
	narrowest = 12 // a column is not cut below this
)

// shrink makes the widest columns narrower until the table fits the terminal. What goes to a file or a pipe is
// never cut.
func (p *page) shrink(widths []int) {
	if p.width == 0 {
		return
	}
	total := gap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > p.width; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= narrowest {
			return
		}
		widths[widest]--
	}
}

func (p *page) row(head []string, row []cell, widths []int) {
	var b strings.Builder
	for i, c := range row {
		text := cut(c.text, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
		switch {
		case strings.HasPrefix(head[i], ">"):
			b.WriteString(pad)
			b.WriteString(p.paint(text, c.colour))
		default:
			b.WriteString(p.paint(text, c.colour))
			if i < len(row)-1 {
				b.WriteString(pad)
			}
		}
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", gap))
		}
	}
	p.w.WriteString(strings.TrimRight(b.String(), " "))
	p.w.WriteByte('\n')
}

// cut shortens s to width runes.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// verdictCell shows a verdict in its colour.
func verdictCell(v model.Verdict) cell { return cell{v.String(), verdictColour(v)} }

func verdictColour(v model.Verdict) colour {
	switch v {
	case model.Allow:
		return green
	case model.WouldDeny:
		return yellow
	}
	return red
}

// orDash shows that there is nothing to show.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// joinText lists words.
func joinText(words []string) string { return strings.Join(words, ", ") }
