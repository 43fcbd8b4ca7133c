package story

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// width is how wide the telling is.
const width = 100

// teller prints the story: calm, in colour on a terminal only, and with a line that moves while something takes long.
type teller struct {
	w      io.Writer
	colour bool

	mu   sync.Mutex
	stop chan struct{} // of the moving line; nil if none moves
	wait sync.WaitGroup
}

func newTeller(w io.Writer) *teller {
	t := &teller{w: w}
	if f, ok := w.(*os.File); ok {
		t.colour = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
	}
	return t
}

// The styles, as SGR parameters.
const (
	bold   = "1"
	faint  = "2"
	green  = "32"
	red    = "31;1"
	yellow = "33"
)

func (t *teller) style(s, style string) string {
	if !t.colour {
		return s
	}
	return "\x1b[" + style + "m" + s + "\x1b[0m"
}

func (t *teller) line(format string, args ...any) {
	t.still()
	fmt.Fprintf(t.w, format+"\n", args...)
}

// text prints sentences, broken at the width and indented.
func (t *teller) text(indent string, s string) {
	for _, l := range wrap(s, width-len(indent)) {
		t.line("%s%s", indent, l)
	}
}

func wrap(s string, at int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > at:
			out = append(out, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(out, line)
}

// doing says what is being done. On a terminal it shows the seconds once that takes longer than one; elsewhere it
// prints nothing.
func (t *teller) doing(format string, args ...any) {
	t.still()
	if !t.colour {
		return
	}
	what := fmt.Sprintf(format, args...)
	stop := make(chan struct{})
	t.mu.Lock()
	t.stop = stop
	t.mu.Unlock()
	t.wait.Go(func() {
		start := time.Now()
		frames := []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
		tick := time.NewTicker(120 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				fmt.Fprint(t.w, "\r\x1b[K")
				return
			case <-tick.C:
			}
			seconds := ""
			if d := time.Since(start); d > time.Second {
				seconds = fmt.Sprintf("  %.0f s", d.Seconds())
			}
			fmt.Fprintf(t.w, "\r\x1b[K   %s", t.style(frames[i%len(frames)]+" "+what+" …"+seconds, faint))
		}
	})
}

// still ends the moving line.
func (t *teller) still() {
	t.mu.Lock()
	stop := t.stop
	t.stop = nil
	t.mu.Unlock()
	if stop != nil {
		close(stop)
		t.wait.Wait()
	}
}

func (t *teller) heading(number int, name string) {
	t.line("")
	t.line("%s", t.style(fmt.Sprintf("%d  %s", number, name), bold))
}

func (t *teller) command(c string) { t.line("   %s", t.style("$ "+c, faint)) }

func (t *teller) figure(f *Figure) {
	value := display(f.Value)
	if f.Unit != "" {
		value += " " + f.Unit
	}
	t.line("   %-34s %12s  %s", f.Label, value, f.Note)
}

func display(v any) string {
	switch v := v.(type) {
	case int:
		return thousands(v)
	case float64:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return fmt.Sprint(v)
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (t *teller) verdict(good bool) string {
	if good {
		return t.style("good", green)
	}
	return t.style("BAD ", red)
}

// mostProblems is how many problems of a step are printed; all of them are in the report.
const mostProblems = 12

func (t *teller) result(s *Step) {
	t.line("   %s  %s", t.verdict(s.Good), s.Summary)
	for i, p := range s.Problems {
		if i == mostProblems {
			t.line("         … and %d more", len(s.Problems)-i)
			break
		}
		t.text("         ", p)
	}
}

// table is the end of the story.
func (t *teller) table(r *Report) {
	t.line("")
	t.line("%s", strings.Repeat("─", width))
	for i := range r.Steps {
		s := &r.Steps[i]
		lines := wrap(s.Summary, width-29)
		t.line("%d  %-11s %s  %-*s %6.1f s", s.Number, s.Name, t.verdict(s.Good), width-29, lines[0], s.Took.Seconds())
		for _, l := range lines[1:] {
			t.line("%20s%s", "", l)
		}
	}
	t.line("%s", strings.Repeat("─", width))
	if r.Good {
		t.line("%s", t.style(fmt.Sprintf("All %d steps are good. It took %.0f seconds.", len(r.Steps), r.Took.Seconds()), green))
		return
	}
	t.line("%s", t.style(fmt.Sprintf("Not good: %s. It took %.0f seconds.", strings.Join(r.Bad(), ", "), r.Took.Seconds()), red))
}
