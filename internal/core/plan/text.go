package plan

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/prove"
)

// How much of each list the text shows. The JSON has all of it.
const (
	shownCommunications = 12
	shownFlows          = 20
	shownNames          = 12
	shownAlternatives   = 4
	shownProblems       = 8
)

// Text returns the plan for a terminal: what would break, what opens, what closes, and whether it may be applied, in
// lines of plain text.
func (p *Plan) Text() string {
	t := &text{}
	t.summary(p)
	t.documents(&p.Documents)
	t.modes(p.Segments)
	t.flows(&p.Flows)
	t.communications("Opens", "was denied and will pass", p.Opened)
	t.communications("Closes", "passes now and will be denied", p.Closed)
	t.communications("Would close", "allowed now; will pass and be recorded as would-deny until the segment enforces", p.WouldClose)
	t.communications("Would open", "recorded as would-deny now and will be allowed", p.WouldOpen)
	t.guardrails(p.Guardrails)
	t.expectations(p.Expectations)
	t.budget(p.Budget)
	t.warnings(p.Warnings)
	return t.b.String()
}

type text struct{ b strings.Builder }

func (t *text) line(format string, args ...any) {
	fmt.Fprintf(&t.b, format, args...)
	t.b.WriteByte('\n')
}

func (t *text) heading(format string, args ...any) {
	t.b.WriteByte('\n')
	t.line(format, args...)
}

// summary says in one to three lines what a person must know.
func (t *text) summary(p *Plan) {
	if !p.Changes() {
		t.line("No change.")
	} else {
		t.line("%s: %s.", p.title(), p.effects())
	}
	switch {
	case p.Flows.Judged == 0:
	case p.Broken > 0:
		t.line("BREAKS %s of %d.", plural(p.Broken, "recorded flow"), p.Flows.Judged)
	default:
		t.line("Breaks none of %s.", plural(p.Flows.Judged, "recorded flow"))
	}
	if failed := p.failed(); len(failed) > 0 {
		t.line("NOT OK: %s.", strings.Join(failed, ", "))
	}
}

// title says what is compared; two sets of files have no revision.
func (p *Plan) title() string {
	if p.BaseRevision == 0 {
		return "Change"
	}
	return fmt.Sprintf("Plan against revision %d", p.BaseRevision)
}

// effects counts what the plan does, in words.
func (p *Plan) effects() string {
	var parts []string
	for _, c := range []struct {
		list     []diff.Communication
		verb     string
		defaults string // what those have in common that no rule wanted
	}{
		{p.Opened, "opens", "by default"}, {p.Closed, "closes", "open by default"},
		{p.WouldClose, "would close", "open by default"}, {p.WouldOpen, "would open", "by default"},
	} {
		if len(c.list) == 0 {
			continue
		}
		byDefault := 0
		for i := range c.list {
			if c.list[i].ByDefault {
				byDefault++
			}
		}
		text := fmt.Sprintf("%s %s", c.verb, plural(len(c.list), "communication"))
		switch {
		case byDefault == 0:
		case byDefault < len(c.list):
			text += fmt.Sprintf(" (%s %s)", number(byDefault), c.defaults)
		case byDefault > 1:
			text += fmt.Sprintf(" (all %s)", c.defaults)
		default:
			text += fmt.Sprintf(" (%s)", c.defaults)
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "only spelling changes, every verdict stays as it is"
	}
	return strings.Join(parts, "; ")
}

// failed says which checks do not hold.
func (p *Plan) failed() []string {
	guardrails, cases := 0, 0
	for i := range p.Guardrails {
		if !p.Guardrails[i].Holds {
			guardrails++
		}
	}
	for i := range p.Expectations {
		if !p.Expectations[i].Pass {
			cases++
		}
	}
	var out []string
	if guardrails > 0 {
		out = append(out, fmt.Sprintf("%s violated", plural(guardrails, "guardrail")))
	}
	if cases > 0 {
		out = append(out, fmt.Sprintf("%s not met", plural(cases, "expectation")))
	}
	hosts := map[string]bool{}
	for i := range p.Budget {
		if b := &p.Budget[i]; b.Blocks() {
			for _, h := range b.Hosts {
				hosts[h] = true
			}
		}
	}
	if n := len(hosts); n > 0 {
		out = append(out, fmt.Sprintf("%s cannot hold it", plural(n, "host")))
	}
	return out
}

func (t *text) documents(d *Documents) {
	if len(d.Added)+len(d.Changed)+len(d.Removed) == 0 {
		return
	}
	t.heading("Documents")
	for _, l := range []struct {
		sign string
		list []Document
	}{{"+", d.Added}, {"~", d.Changed}, {"-", d.Removed}} {
		for _, kind := range model.Kinds {
			var names []string
			for _, doc := range l.list {
				if doc.Kind == kind {
					names = append(names, doc.Name)
				}
			}
			if len(names) > 0 {
				t.line("  %s %-11s %s", l.sign, kind, shorten(names, shownNames))
			}
		}
	}
}

func shorten(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func (t *text) modes(list []SegmentMode) {
	if len(list) == 0 {
		return
	}
	t.heading("Segments")
	for _, m := range list {
		switch {
		case m.From == "":
			t.line("  + %s in mode %s, %s", m.Segment, m.To, plural(m.Workloads, "workload"))
		case m.To == "":
			t.line("  - %s, was in mode %s, %s", m.Segment, m.From, plural(m.Workloads, "workload"))
		default:
			t.line("  ~ %s: %s -> %s, %s", m.Segment, m.From, m.To, plural(m.Workloads, "workload"))
		}
	}
}

func (t *text) flows(f *Flows) {
	if len(f.Changed) == 0 {
		return
	}
	t.heading("Recorded flows whose verdict changes: %s", flowCounts(f))
	for i := range f.Changed {
		if i == shownFlows {
			t.line("  … and %s more; -o json has %s", number(len(f.Changed)+f.Omitted-shownFlows), listed(f))
			break
		}
		c := &f.Changed[i]
		t.line("  %-10s %s -> %s on %s", strings.ToUpper(flowWord(c)), withProcess(c.From, c.FromProcess), withProcess(c.To, cmp.Or(c.ToProcess, c.ToDomain)), c.On)
		seen := ""
		if !c.LastSeen.IsZero() {
			seen = ", last seen " + c.LastSeen.UTC().Format("2006-01-02 15:04 MST")
		}
		t.line("             %s%s; %s -> %s by %s", plural(int(c.Connections), "connection"), seen, c.Before.Verdict, c.After.Verdict, c.DecidedBy)
	}
}

func flowCounts(f *Flows) string {
	var parts []string
	for _, c := range []struct {
		n    int
		what string
	}{{f.Broken, "break"}, {f.WouldBreak, "would break under enforcement"}, {f.Restored, "work again"}, {f.Cleared, "are allowed now"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return strings.Join(parts, ", ")
}

func flowWord(f *Flow) string {
	switch {
	case f.After.Verdict == model.Deny.String():
		return "breaks"
	case f.Before.Verdict == model.Deny.String():
		return "works"
	case f.After.Verdict == model.WouldDeny.String():
		return "would"
	}
	return "allowed"
}

func withProcess(end, process string) string {
	if process == "" {
		return end
	}
	return end + " (" + process + ")"
}

func (t *text) communications(title, meaning string, list []diff.Communication) {
	if len(list) == 0 {
		return
	}
	t.heading("%s (%s)", title, meaning)
	for i := range list {
		if i == shownCommunications {
			t.line("  … and %s more; -o json has all", number(len(list)-shownCommunications))
			break
		}
		c := &list[i]
		t.line("  %s -> %s", alternatives(c.From), alternatives(c.To))
		over := ""
		if c.Family != "" {
			over = " over " + c.Family
		}
		if whose := c.Whose(); whose != "" {
			over += ", " + whose
		}
		t.line("      on %s%s; %s", strings.Join(c.On, ", "), over, plural(c.Pairs, "pair"))
		if e := &c.Example; e.From != "" && e.Before.Verdict != "" && e.After.Verdict != "" {
			to := withProcess(e.To, processText(e.ToProcess))
			if e.Domain != "" {
				to = e.Domain
			}
			t.line("      e.g. %s -> %s %s: %s -> %s", withProcess(e.From, processText(e.FromProcess)), to, e.On, decided(&e.Before), decided(&e.After))
		}
	}
}

// processText returns the process in words; "" if it is not known.
func processText(p *model.Process) string {
	if p == nil || *p == (model.Process{}) {
		return ""
	}
	return p.String()
}

func alternatives(list []string) string {
	if len(list) > shownAlternatives {
		return fmt.Sprintf("%s or %d more", strings.Join(list[:shownAlternatives], " or "), len(list)-shownAlternatives)
	}
	return strings.Join(list, " or ")
}

// decided says a verdict and the rule of the end that decided.
func decided(v *diff.Verdict) string {
	if v.EgressRule == v.IngressRule {
		return fmt.Sprintf("%s (%s)", v.Verdict, v.EgressRule)
	}
	return fmt.Sprintf("%s (%s, %s)", v.Verdict, v.EgressRule, v.IngressRule)
}

func (t *text) guardrails(list []prove.Guardrail) {
	if len(list) == 0 {
		return
	}
	t.heading("Guardrails")
	for i := range list {
		g := &list[i]
		switch {
		case !g.Holds:
			t.line("  VIOLATED %s: %s", g.Name, g.Why())
		case !g.Enforced:
			t.line("  holds    %s (not enforced yet: %s)", g.Name, notEnforced(g))
		case g.TodayOnly:
			t.line("  holds    %s (over the workloads of today; not decided over all label sets: %s)", g.Name, g.TodayWhy)
		default:
			t.line("  holds    %s", g.Name)
		}
	}
}

func (t *text) expectations(list []prove.Case) {
	if len(list) == 0 {
		return
	}
	met := 0
	for i := range list {
		if list[i].Pass {
			met++
		}
	}
	t.heading("Expectations: %d of %d met", met, len(list))
	for i := range list {
		if c := &list[i]; !c.Pass {
			t.line("  FAILED   %s: %s", c.Expectation, c)
		}
	}
}

func (t *text) budget(list []budget.Problem) {
	if len(list) == 0 {
		return
	}
	t.heading("What hosts cannot hold; their agents refuse it and keep what is in force")
	for i := range list {
		if i == shownProblems {
			t.line("  … and %s more; -o json has all", number(len(list)-shownProblems))
			break
		}
		p := &list[i]
		word := "REFUSED"
		switch {
		case p.Before:
			word = "as before"
		case !p.Blocks():
			word = "unsure"
		}
		t.line("  %-9s %s: %s", word, p.Where(), p.Why())
		for _, most := range p.Most() {
			t.line("            %s", most)
		}
		t.line("            %s", p.Next)
	}
}

func (t *text) warnings(list []string) {
	if len(list) == 0 {
		return
	}
	t.heading("Warnings")
	for _, w := range list {
		t.line("  %s", w)
	}
}

func listed(f *Flows) string {
	if f.Omitted == 0 {
		return "all"
	}
	return "the first " + number(len(f.Changed))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// number writes a number with commas between thousands.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
