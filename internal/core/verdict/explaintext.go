package verdict

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/model"
)

// Text renders the explanation for a terminal, in lines of plain text.
func (x *Explanation) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s -> %s on %s\n", strings.ToUpper(x.Verdict), x.From, x.To, x.On)
	fmt.Fprintf(&b, "%s\n", x.summary())
	x.Egress.text(&b, &x.Ingress)
	x.Ingress.text(&b, &x.Egress)
	return b.String()
}

// summary says in one line what the two verdicts make together.
func (x *Explanation) summary() string {
	allow, e, i := model.Allow.String(), x.Egress.Verdict, x.Ingress.Verdict
	from, to := x.Egress.Rule == model.RuleUnmanaged, x.Ingress.Rule == model.RuleUnmanaged
	switch {
	case from && to:
		return "Nothing judges at either end."
	case from:
		return fmt.Sprintf("Nothing judges at the source; the destination says %s.", i)
	case to:
		return fmt.Sprintf("Nothing judges at the destination; the source says %s.", e)
	case e == allow && i == allow:
		return "Both ends let it pass."
	case e == i:
		return fmt.Sprintf("Both ends say %s.", e)
	case i == allow:
		return fmt.Sprintf("The source says %s; the destination would let it pass.", e)
	case e == allow:
		return fmt.Sprintf("The source lets it pass; the destination says %s.", i)
	}
	return fmt.Sprintf("The source says %s, the destination %s; the stricter counts.", e, i)
}

func (x *EndExplanation) text(b *strings.Builder, far *EndExplanation) {
	fmt.Fprintf(b, "\n%s at %s: %s by %s\n", x.Direction, x.Subject.name(), x.Verdict, x.Rule)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(b, "  %-10s %s\n", key, value)
		}
	}
	line("why", x.Why)
	x.Subject.text(line)
	if x.Subject.Managed {
		line("segments", x.segments())
	}
	line("far end", fmt.Sprintf("%s, %s by %s", x.Peer.name(), far.Verdict, far.Rule))
	for i, c := range x.Candidates {
		text := fmt.Sprintf("%s (%s): %s by %s", c.Workload, labelText(c.Labels), c.Verdict, c.Rule)
		if c.Counts {
			text += ", counts"
		}
		key := ""
		if i == 0 {
			key = "could be"
		}
		line(key, text)
	}
	for _, s := range x.Steps {
		s.text(b)
	}
	if x.Unrelated > 0 {
		fmt.Fprintf(b, "    %s neither end.\n", plural(x.Unrelated, "rule names", "rules name"))
	}
}

func (p *Party) name() string {
	if p.Workload != "" {
		return p.Workload
	}
	return p.Address
}

func (p *Party) text(line func(key, value string)) {
	switch {
	case p.Workload == "":
		line("address", "owned by no workload")
	case p.Unit != "":
		line("address", fmt.Sprintf("%s, unit %s of host %s", orNone(p.Address), p.Unit, p.Host))
	default:
		line("address", orNone(p.Address))
	}
	if p.Workload != "" {
		line("labels", labelText(p.Labels))
	}
	line("networks", strings.Join(p.Networks, ", "))
	if p.Workload != "" || len(p.Networks) > 0 {
		line("identity", p.Identity)
	}
	line("quarantine", p.Quarantine)
}

func (x *EndExplanation) segments() string {
	if len(x.Segments) == 0 {
		return "none: only observed"
	}
	parts := make([]string, len(x.Segments))
	for i, s := range x.Segments {
		how := s.Mode
		if len(s.Services) > 0 {
			how += " on " + strings.Join(s.Services, " ")
		}
		if !s.Closes {
			how += ", " + x.Direction + " open"
		}
		parts[i] = fmt.Sprintf("%s (%s)", s.Name, how)
	}
	return strings.Join(parts, ", ")
}

func (s *Step) text(b *strings.Builder) {
	mark := map[Outcome]string{Decided: "=>", NoMatch: " -", NotReached: " .", Passed: " ~"}[s.Outcome]
	fmt.Fprintf(b, "   %s %s %s", mark, s.Action, s.Rule)
	if s.At != "" {
		fmt.Fprintf(b, " (%s)", s.At)
	}
	fmt.Fprintf(b, ": %s\n", s.Why)
}

func labelText(l model.Labels) string {
	if len(l) == 0 {
		return "none"
	}
	return l.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
