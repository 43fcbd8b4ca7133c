package corpus

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/diff"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/prove"
	"bulkhead/internal/core/verdict"
)

// render returns what a section should be.
func (r *run) render(kind, arg string) (string, error) {
	switch kind {
	case secHygiene:
		return r.hygiene()
	case secCanonical:
		return r.canonical()
	case secCompiled:
		return r.compiled(arg)
	case secExplain:
		return r.explain(arg)
	case secEssentials:
		return verdict.New(r.world).ExplainEssentials().Text(), nil
	case secProof:
		return r.proof(), nil
	}
	return r.change(kind)
}

// hygiene returns what check finds, a finding a line, and a line for the edit where there is one. Recorded flows are asked
// too, if there are any.
func (r *run) hygiene() (string, error) {
	found := policy.Hygiene(r.w.Docs, r.w.Inventory, r.w.Options.Now)
	if r.c.section(secRecorded) >= 0 {
		flows, err := r.c.recorded()
		if err != nil {
			return "", err
		}
		found = append(found, policy.Usage(r.w.Docs, r.w.Inventory, flows, r.w.Options.Now)...)
	}
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintln(&b, f)
		switch {
		case f.Edit == nil:
		case f.Edit.Replace == "":
			b.WriteString("\tremove\n")
		case f.Edit.Remove:
			fmt.Fprintf(&b, "\treplace, and remove %s: %s\n", positions(f.Also), f.Edit.Replace)
		default:
			fmt.Fprintf(&b, "\treplace: %s\n", f.Edit.Replace)
		}
	}
	return b.String(), nil
}

func positions(list []model.Position) string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return strings.Join(out, ", ")
}

// canonical returns the documents as they are stored, which must mean the same when they are read again.
func (r *run) canonical() (string, error) {
	text := policy.Marshal(r.w.Docs)
	again, err := parse([]policy.File{{Name: "canonical", Data: text}})
	if err != nil {
		return "", fmt.Errorf("a mistake in Bulkhead: the stored form is refused:\n%w", err)
	}
	if twice := policy.Marshal(again); string(twice) != string(text) {
		return "", fmt.Errorf("a mistake in Bulkhead: the stored form changes when it is stored again:\n%s", Diff(string(text), string(twice)))
	}
	return string(text), nil
}

func (r *run) explain(flow string) (string, error) {
	l, err := ParseFlowLine(flow)
	if err != nil {
		return "", err
	}
	x, err := verdict.New(r.world).Explain(&l.Flow)
	if err != nil {
		return "", err
	}
	return x.Text(), nil
}

// proof returns what became of each guardrail and of each case of each expectation, a line for each.
func (r *run) proof() string {
	var b strings.Builder
	for _, g := range prove.Guardrails(r.world) {
		switch {
		case !g.Holds:
			fmt.Fprintf(&b, "guardrail %s: violated: %s\n", g.Name, g.Why())
		case !g.Enforced:
			fmt.Fprintf(&b, "guardrail %s: holds, not enforced: %s\n", g.Name, g.Why())
		case g.TodayOnly:
			fmt.Fprintf(&b, "guardrail %s: holds over the workloads of today, not decided over all label sets: %s\n", g.Name, g.TodayWhy)
		default:
			fmt.Fprintf(&b, "guardrail %s: holds\n", g.Name)
		}
	}
	for _, c := range prove.Expectations(r.world) {
		met := "met"
		if !c.Pass {
			met = "failed"
		}
		fmt.Fprintf(&b, "expectation %s: %s: %s\n", c.Expectation, met, &c)
	}
	return b.String()
}

// change compares the base with the documents: as communications a line each, or as the plan that people read.
func (r *run) change(kind string) (string, error) {
	base, err := r.c.world(true)
	if err != nil {
		return "", fmt.Errorf("the documents of %s are refused:\n%w", basePrefix, err)
	}
	before, err := compile.Compile(base.Docs, base.Inventory, base.Options)
	if err != nil {
		return "", fmt.Errorf("the documents of %s are refused:\n%w", basePrefix, err)
	}
	if kind == secDiff {
		return diffText(diff.Between(before, r.world)), nil
	}
	flows, err := r.c.recorded()
	if err != nil {
		return "", err
	}
	p, err := plan.Make(before, r.world, flows, plan.Options{})
	if err != nil {
		return "", err
	}
	return p.Text(), nil
}

func diffText(d *diff.Diff) string {
	var b strings.Builder
	for _, l := range []struct {
		what string
		list []diff.Communication
	}{{"opens", d.Opened}, {"closes", d.Closed}, {"would open", d.WouldOpen}, {"would close", d.WouldClose}} {
		for _, c := range l.list {
			what := strings.TrimSuffix(strings.Join(c.On, ", ")+" over "+c.Family, " over ")
			if whose := c.Whose(); whose != "" {
				what += " " + whose
			}
			fmt.Fprintf(&b, "%s: %s -> %s on %s: %s, then %s; pairs %d\n", l.what, strings.Join(c.From, " | "), strings.Join(c.To, " | "),
				what, c.Before, c.After, c.Pairs)
		}
	}
	return b.String()
}

// Names of what has no name.
const (
	nobody       = "nobody"
	everyoneElse = "everyone else"
)

func identityName(w *compile.World, id model.IdentityID) string {
	if id == 0 {
		return nobody
	}
	var parts []string
	for _, m := range w.Identity(id) {
		text := "addresses"
		if m.Owned {
			text = "[" + m.Labels.String() + "]"
		}
		if len(m.Networks) > 0 {
			text += " in " + strings.Join(m.Networks, "+")
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " or ")
}
