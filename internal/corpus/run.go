package corpus

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// Result is what became of a case.
type Result struct {
	Checks   int       // what was compared: flows and sections
	Problems []Problem // empty if the case passes
	// Updated is the file as it would pass: the expected sections rewritten, everything else untouched. Nil if the case
	// cannot be run, or if what fails is a disagreement that no expectation can mend.
	Updated []byte
}

// Problem is one thing that is not as expected.
type Problem struct {
	At  string // file:line
	Msg string // one line, or a difference in several
}

// String returns "file:line: message".
func (p Problem) String() string { return p.At + ": " + p.Msg }

// Run runs the case.
func (c *Case) Run() *Result {
	r := &run{c: c, out: &Result{}, updated: &txtar.Archive{Comment: c.archive.Comment}}
	r.updated.Files = append(r.updated.Files, c.archive.Files...)
	r.run()
	if !r.broken {
		r.out.Updated = txtar.Format(r.updated)
	}
	return r.out
}

type run struct {
	c       *Case
	out     *Result
	updated *txtar.Archive
	broken  bool // no update can mend it
	w       *World
	world   *compile.World // nil if the documents are refused
}

// fail reports what expectations cannot mend.
func (r *run) fail(at int, format string, args ...any) {
	r.broken = true
	r.problem(at, format, args...)
}

func (r *run) problem(at int, format string, args ...any) {
	r.out.Problems = append(r.out.Problems, Problem{fmt.Sprintf("%s:%d", r.c.Name, at), fmt.Sprintf(format, args...)})
}

func (r *run) run() {
	refused, err := r.build()
	if err != nil {
		r.broken = true
		r.out.Problems = append(r.out.Problems, Problem{r.c.Name, err.Error()})
		return
	}
	for i := range r.c.archive.Files {
		name := r.c.archive.Files[i].Name
		kind, arg, _ := strings.Cut(name, " ")
		switch {
		case isDocument(name), slices.Contains(given, name):
		case refused != "" && kind != secErrors:
			r.fail(r.c.lines[i], "nothing can be said of documents that are refused; leave out errors or %s", kind)
		case kind == secErrors && refused == "":
			r.fail(r.c.lines[i], "the documents are good, but errors are expected")
		case kind == secErrors:
			r.compare(i, refused)
		case kind == secFlows:
			r.flows(i)
		default:
			if text, err := r.render(kind, arg); err != nil {
				r.fail(r.c.lines[i], "%v", err)
			} else {
				r.compare(i, text)
			}
		}
	}
}

// build makes the world of the case. It returns why documents are refused, if the case expects that, or an error if they
// should not be.
func (r *run) build() (refused string, err error) {
	if r.w, err = r.c.World(); err == nil && r.c.compiles() {
		r.world, err = compile.Compile(r.w.Docs, r.w.Inventory, r.w.Options)
	}
	if err == nil {
		return "", nil
	}
	var parsing policy.Errors
	var compiling compile.Errors
	if r.c.section(secErrors) >= 0 && (errors.As(err, &parsing) || errors.As(err, &compiling)) {
		return err.Error() + "\n", nil
	}
	return "", fmt.Errorf("the documents are refused:\n%w", err)
}

// compiles reports whether the case expects something for which the documents must compile.
func (c *Case) compiles() bool {
	for _, f := range c.archive.Files {
		switch kind, _, _ := strings.Cut(f.Name, " "); {
		case kind == secHygiene, kind == secCanonical:
		case slices.Contains(expected, kind):
			return true
		}
	}
	return false
}

// compare holds the text of a section against what it should be.
func (r *run) compare(i int, got string) {
	r.out.Checks++
	r.updated.Files[i].Data = []byte(got)
	if want := string(r.c.archive.Files[i].Data); want != got {
		r.problem(r.c.lines[i], "%s is not as expected (- expected, + is):\n%s", r.c.archive.Files[i].Name, Diff(want, got))
	}
}

// flows judges every line of a flows section.
func (r *run) flows(i int) {
	e := verdict.New(r.world)
	lines := strings.Split(string(r.c.archive.Files[i].Data), "\n")
	for n, text := range lines {
		at := r.c.lines[i] + n
		says := uncommented(text)
		if says == "" {
			continue
		}
		l, err := ParseFlowLine(says)
		if err != nil {
			r.fail(at, "%v", err)
			continue
		}
		r.out.Checks++
		got, err := r.judge(e, &l.Flow)
		if err != nil {
			r.fail(at, "%s: %v", l.FlowText(), err)
			continue
		}
		if is := got.as(l.Expect.Form, l.Expect.Error); is != l.Expect {
			want := l.Expect
			l.Expect = is
			lines[n] = strings.Replace(text, says, l.String(), 1)
			if want.Form == ExpectNothing {
				r.problem(at, "%s: nothing is expected; it is %s", l.FlowText(), l.Expect.String())
			} else {
				r.problem(at, "%s: expected %s, is %s", l.FlowText(), want.String(), got.full())
			}
		}
	}
	r.updated.Files[i].Data = []byte(strings.Join(lines, "\n"))
}

// judged is a verdict, or the error in its place.
type judged struct {
	verdict model.FlowVerdict
	err     string
}

// as returns what a line of that form should expect of it.
func (j judged) as(form ExpectForm, part string) Expect {
	switch {
	case j.err != "" && form == ExpectError && strings.Contains(j.err, part):
		return Expect{Form: ExpectError, Error: part}
	case j.err != "":
		return Expect{Form: ExpectError, Error: j.err}
	}
	return expectation(form, j.verdict)
}

// full returns all there is to say about it.
func (j judged) full() string {
	form := ExpectEnds
	if _, same := decider(j.verdict); same {
		form = ExpectBy
	}
	x := j.as(form, "")
	return x.String()
}

// judge judges a flow in every way there is. The error says that they do not agree, which is a mistake in Bulkhead.
func (r *run) judge(e *verdict.Evaluator, f *model.Flow) (judged, error) {
	v, err := e.Judge(f)
	slow, slowErr := oracle.Judge(r.w.Docs, r.w.Inventory, r.w.Options, f)
	x, xErr := e.Explain(f)
	if err != nil {
		if slowErr == nil || xErr == nil || xErr.Error() != err.Error() { // the oracle has words of its own
			return judged{}, fmt.Errorf("a mistake in Bulkhead: the evaluator refuses it (%w), another does not (oracle: %v, explanation: %v)", err, slowErr, xErr)
		}
		return judged{err: err.Error()}, nil
	}
	all := Expect{Form: ExpectEnds, Verdict: v}
	for _, other := range []struct {
		who, says string
		err       error
	}{
		{"oracle", (&Expect{Form: ExpectEnds, Verdict: slow}).String(), slowErr},
		{"explanation", explained(x), xErr},
	} {
		if other.err != nil || other.says != all.String() {
			return judged{}, fmt.Errorf("a mistake in Bulkhead: the evaluator says %s, the %s says %s (%v)", all.String(), other.who, other.says, other.err)
		}
	}
	return judged{verdict: v}, nil
}

func explained(x *verdict.Explanation) string {
	if x == nil {
		return ""
	}
	return fmt.Sprintf("%s egress=%s:%s ingress=%s:%s", x.Verdict, x.Egress.Verdict, x.Egress.Rule, x.Ingress.Verdict, x.Ingress.Rule)
}
