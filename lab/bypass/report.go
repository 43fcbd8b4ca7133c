package bypass

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Verdict is what is to be said of a technique.
type Verdict string

// The verdicts. The last three are those that make the range bad.
const (
	Closed  Verdict = "closed"  // it arrives while nothing is enforced, and not otherwise
	Named   Verdict = "named"   // it arrives all the same, as the documentation says, with what to do about it
	Refused Verdict = "refused" // the kernel does not do it, whatever policy says
	Open    Verdict = "OPEN"    // it should be closed, and arrives
	Broken  Verdict = "BROKEN"  // it does not arrive even where nothing is enforced: nothing has been shown
	Untold  Verdict = "UNTOLD"  // it is closed, but flows do not say that it was tried
)

// Report is what became of every technique.
type Report struct {
	Good bool          `json:"good"`
	Took time.Duration `json:"took_ns"`
	Rows []Row         `json:"techniques"`
}

// Row is one technique in one family.
type Row struct {
	Name     string    `json:"name"`
	Title    string    `json:"title"`
	Family   string    `json:"family"`
	Verdict  Verdict   `json:"verdict"`
	How      string    `json:"how"`              // closed: what the attacker was told. Else: how it arrived, or why the kernel refuses
	Observed string    `json:"observed"`         // as what it arrived while nothing was enforced
	Recorded bool      `json:"recorded"`         // the denial is in flows
	Advice   string    `json:"advice,omitempty"` // named: what to do
	Errors   [2]string `json:"errors"`           // what the attacker was told in observe and in enforce
}

func report(all map[string]*result, took time.Duration) *Report {
	r := &Report{Good: true, Took: took}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		row := all[key].row()
		if row.Verdict.bad() {
			r.Good = false
		}
		r.Rows = append(r.Rows, row)
	}
	return r
}

func (v Verdict) bad() bool { return v == Open || v == Broken || v == Untold }

func (r *result) row() Row {
	t := r.technique
	row := Row{Name: t.name, Title: t.title, Family: map[family]string{v4: "IPv4", v6: "IPv6"}[r.family], Recorded: r.recorded,
		Observed: r.seen[observe].App, Errors: [2]string{r.answers[observe].Err, r.answers[enforce].Err}}
	switch {
	case !r.arrived(observe) && t.refused != "":
		row.Verdict, row.How = Refused, t.refused
	case !r.arrived(observe) && r.answers[observe].Refused:
		row.Verdict, row.How = Refused, row.Errors[0]
	case !r.arrived(observe):
		row.Verdict, row.How = Broken, "it did not arrive in mode observe: "+orNothing(row.Errors[0])
	case r.passed(enforce) && t.named != "":
		row.Verdict, row.How, row.Advice = Named, r.seen[enforce].App, t.named
	case r.passed(enforce):
		row.Verdict, row.How = Open, r.seen[enforce].App
		if row.How == "" {
			row.How = "it came as far as the target's cable"
		}
	case !r.recorded && !t.hidden:
		row.Verdict, row.How = Untold, "no denial in flows"
	default:
		row.Verdict, row.How = Closed, "silence"
		if e := r.answers[enforce].Errno; e != "" && e != "EAGAIN" && e != "EINPROGRESS" && e != "ETIMEDOUT" {
			row.How = e
		}
	}
	return row
}

func orNothing(s string) string {
	if s == "" {
		return "the attacker was told nothing"
	}
	return s
}

// Bad lists what should not be as it is.
func (r *Report) Bad() (out []string) {
	for _, row := range r.Rows {
		if row.Verdict.bad() {
			out = append(out, fmt.Sprintf("%s (%s, %s: %s)", row.Name, row.Family, row.Verdict, row.How))
		}
	}
	return out
}

// Print prints the report as a table, with what is to be done below it.
func (r *Report) Print(w io.Writer) {
	titles := 0
	for _, row := range r.Rows {
		titles = max(titles, utf8.RuneCountInString(row.Title))
	}
	line := func(title, name string, cells ...string) {
		s := fmt.Sprintf("%-*s  %-16s", titles, title, name)
		for _, c := range cells {
			s += fmt.Sprintf("  %-17s", c)
		}
		fmt.Fprintln(w, strings.TrimRight(s, " "))
	}
	line("TECHNIQUE", "NAME", "IPv4", "IPv6", "IN FLOWS")
	counts := map[Verdict]int{}
	for i := 0; i < len(r.Rows); {
		same := i
		cells := map[string]string{"IPv4": "-", "IPv6": "-"}
		recorded := "-"
		for ; same < len(r.Rows) && r.Rows[same].Name == r.Rows[i].Name; same++ {
			row := &r.Rows[same]
			counts[row.Verdict]++
			cells[row.Family] = string(row.Verdict)
			if row.Verdict == Closed {
				cells[row.Family] += ": " + row.How
			}
			if row.Recorded {
				recorded = "denied"
			}
		}
		line(r.Rows[i].Title, r.Rows[i].Name, cells["IPv4"], cells["IPv6"], recorded)
		i = same
	}
	fmt.Fprintln(w)
	for _, v := range []struct {
		verdict Verdict
		what    string
	}{
		{Named, "Named: not closed. What to do:"}, {Refused, "Refused by this kernel, whatever policy says:"},
		{Open, "OPEN, and should be closed:"}, {Broken, "BROKEN: nothing has been shown:"}, {Untold, "UNTOLD: closed, but not on record:"},
	} {
		r.because(w, v.verdict, v.what)
	}
	fmt.Fprintf(w, "%d closed, %d named, %d refused by the kernel", counts[Closed], counts[Named], counts[Refused])
	if bad := counts[Open] + counts[Broken] + counts[Untold]; bad > 0 {
		fmt.Fprintf(w, ", %d BAD", bad)
	}
	fmt.Fprintf(w, ". Each was seen to arrive while nothing was enforced. It took %.0f seconds.\n", r.Took.Seconds())
}

// because lists the techniques with the verdict, with the reason.
func (r *Report) because(w io.Writer, v Verdict, what string) {
	var reasons []string
	names := map[string][]string{}
	for _, row := range r.Rows {
		if row.Verdict != v {
			continue
		}
		reason := row.How
		if v == Named {
			reason = row.Advice
		}
		if v.bad() {
			reason = row.Family + ": " + reason
		}
		if names[reason] == nil {
			reasons = append(reasons, reason)
		}
		if !slices.Contains(names[reason], row.Name) {
			names[reason] = append(names[reason], row.Name)
		}
	}
	if len(reasons) == 0 {
		return
	}
	fmt.Fprintln(w, what)
	for _, reason := range reasons {
		fmt.Fprintf(w, "  %s\n      %s\n", strings.Join(names[reason], ", "), reason)
	}
	fmt.Fprintln(w)
}
