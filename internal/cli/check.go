package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

// checkView is what `check -o json` prints.
type checkView struct {
	OK        bool          `json:"ok"`
	Documents int           `json:"documents"`
	Rules     int           `json:"rules"`
	Workloads int           `json:"workloads"`
	Errors    []problemView `json:"errors"`
	Findings  []problemView `json:"findings"`
}

// problemView is an error, or a finding of hygiene, at its place.
type problemView struct {
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Severity string `json:"severity"`
	Code     string `json:"code,omitempty"`
	Message  string `json:"message"`
	Fix      string `json:"fix,omitempty"`
	// Also are the places of what it is about beside this one.
	Also []placeView `json:"also,omitempty"`
	// Edit is the fix where a program can make it.
	Edit *policy.Edit `json:"edit,omitempty"`
}

type placeView struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
}

func problem(pos model.Position, severity, message string) problemView {
	return problemView{File: pos.File, Line: pos.Line, Column: pos.Column, Severity: severity, Message: message}
}

func finding(f *policy.Finding) problemView {
	v := problem(f.Pos, f.Severity.String(), f.Msg)
	v.Code, v.Fix, v.Edit = string(f.Code), f.Fix, f.Edit
	for _, p := range f.Also {
		v.Also = append(v.Also, placeView{p.File, p.Line, p.Column})
	}
	return v
}

func (a *app) checkCommand() *cobra.Command {
	var (
		f      sceneFlags
		strict bool
		flows  string
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find errors in documents, and rules that look wrong",
		Long: `Check documents: every error with file, line and column, and hygiene: rules that are
duplicate, shadowed, redundant, contradictory, mergeable, never match, too broad, expired, or
have no owner; and what hosts could not hold of the result. With --flows also rules that are
broader than the recorded flows use. Every finding says what to do; -o json adds the edit where a
program can make it.
Manifests of Kubernetes may stand beside them; what was left out of those is listed too.

Exit status 1 if there is an error; with --strict also if there is a warning.`,
		Example: `  bulkhead check -f policy/
  bulkhead check -f policy/ --strict -o json
  bulkhead check -f policy/ --flows flows.jsonl  # what is broader than it is used for
  bulkhead check                                 # what the controller holds`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := a.check(cmd, &f, flows)
			if err != nil {
				return err
			}
			warnings := 0
			for _, p := range v.Findings {
				if p.Severity == policy.Warning.String() {
					warnings++
				}
			}
			v.OK = len(v.Errors) == 0 && !(strict && warnings > 0)
			if err := a.print(cmd, v, func(p *page) { printCheck(p, v) }); err != nil {
				return err
			}
			return answer(v.OK)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings fail too")
	cmd.Flags().StringVar(&flows, "flows", "", "recorded flows to hold the rules against: JSON lines, a file or -")
	return cmd
}

// check looks for everything that can be said about the documents, errors included.
func (a *app) check(cmd *cobra.Command, f *sceneFlags, flows string) (*checkView, error) {
	v := &checkView{Errors: []problemView{}, Findings: []problemView{}}
	if err := onlyOneStdin(append([]string{flows, f.workloads}, f.files...)...); err != nil {
		return nil, err
	}
	var s *scene
	var manifests []policy.Finding
	var targets budget.Targets // nil: all hosts are taken for such with eBPF
	if len(f.files) > 0 {
		files, err := f.read(cmd)
		if err != nil {
			return nil, err
		}
		docs, findings, err := kube.Load(files)
		if err != nil {
			for _, e := range parseErrors(err) {
				v.Errors = append(v.Errors, problem(e.Pos, "error", e.Msg))
			}
			return v, nil
		}
		manifests = findings
		if s, err = f.offline(cmd, docs); err != nil {
			return nil, err
		}
	} else {
		var err error
		if s, err = a.online(cmd, f); err != nil {
			return nil, err
		}
		if targets, err = a.targets(cmd); err != nil {
			return nil, err
		}
	}
	v.count(s)
	w, err := compile.Compile(s.docs, s.inv, s.options)
	if err == nil {
		v.cannotHold(w, targets)
	} else {
		for _, e := range compileErrors(err) {
			message := e.Msg
			if e.Rule != "" {
				message = fmt.Sprintf("rule %s: %s", e.Rule, e.Msg)
			}
			v.Errors = append(v.Errors, problem(e.Pos, "error", message))
		}
	}
	found := slices.Concat(manifests, policy.Hygiene(s.docs, s.inv, s.options.Now))
	if flows != "" {
		records, err := readRecords(cmd, flows)
		if err != nil {
			return nil, err
		}
		found = append(found, policy.Usage(s.docs, s.inv, records, s.options.Now)...)
		slices.SortStableFunc(found, func(a, b policy.Finding) int { return a.Pos.Compare(b.Pos) })
	}
	for i := range found {
		v.Findings = append(v.Findings, finding(&found[i]))
	}
	return v, nil
}

func (v *checkView) count(s *scene) {
	d := s.docs
	v.Documents = len(d.Services) + len(d.Networks) + len(d.Workloads) + len(d.Segments) + len(d.Policies) +
		len(d.Guardrails) + len(d.Expectations) + len(d.OneSided)
	for i := range d.Policies {
		v.Rules += len(d.Policies[i].Rules)
	}
	for i := range d.OneSided {
		v.Rules += len(d.OneSided[i].Rules)
	}
	v.Workloads = len(s.inv.Instances)
}

// cannotHold adds what hosts cannot hold: an error if that is certain, a finding if it depends on what their agents are.
func (v *checkView) cannotHold(w *compile.World, targets budget.Targets) {
	places := map[model.RuleID]model.Position{}
	for _, d := range model.Directions {
		for _, r := range w.Rules(d) {
			places[r.ID] = r.Pos
		}
	}
	for _, p := range budget.Check(nil, w, targets) {
		var pos model.Position
		if len(p.Rules) > 0 {
			pos = places[p.Rules[0].Rule]
		}
		if p.Blocks() {
			v.Errors = append(v.Errors, problem(pos, "error", p.String()))
			continue
		}
		next := p.Next
		p.Next = "their agents refuse the policy and keep the one before"
		found := problem(pos, policy.Notice.String(), p.String())
		found.Code, found.Fix = "cannot-hold", next
		v.Findings = append(v.Findings, found)
	}
}

// compileErrors returns the single errors of compile.Compile.
func compileErrors(err error) []*compile.Error {
	if all, ok := err.(compile.Errors); ok {
		return all
	}
	return []*compile.Error{{Msg: err.Error()}}
}

func printCheck(p *page, v *checkView) {
	for _, e := range v.Errors {
		p.line("%s%s %s", e.place(), p.paint("error:", red), e.Message)
	}
	for _, x := range v.Findings {
		p.line("%s%s %s; %s (%s)", x.place(), p.paint(x.Severity+":", yellow), x.Message, x.Fix, x.Code)
	}
	switch {
	case len(v.Errors) > 0:
		p.line("%s", count(len(v.Errors), "error"))
	case len(v.Findings) > 0:
		p.line("%s, %s, %s: no error, %s", count(v.Documents, "document"), count(v.Rules, "rule"),
			count(v.Workloads, "workload"), count(len(v.Findings), "finding"))
	default:
		p.line("%s, %s, %s: good", count(v.Documents, "document"), count(v.Rules, "rule"), count(v.Workloads, "workload"))
	}
}

// place returns the position as compilers write it, ready to be clicked in editors.
func (v *problemView) place() string {
	pos := model.Position{File: v.File, Line: v.Line, Column: v.Column}.String()
	if pos == "" {
		return ""
	}
	return pos + ": "
}
