package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/suggest"
)

// proposalView is what `learn -o json` prints: the evidence, and the documents as JSON shows them.
type proposalView struct {
	*suggest.Proposal
	Documents []json.RawMessage `json:"documents"`
}

// learnFlags are the flags of learn.
type learnFlags struct {
	scene     sceneFlags
	filter    flowFilter
	flows     string
	out       string
	overwrite bool
	trusted   []string
	sure      float64
}

func (a *app) learnCommand() *cobra.Command {
	var f learnFlags
	cmd := &cobra.Command{
		Use:   "learn [--flows FILE]",
		Short: "Propose labels and least-privilege policies from recorded flows",
		Long: `Propose labels where they are missing, segments (in mode observe) and least-privilege rules
that allow what was recorded, each with its evidence. What looks like a scan is left out and
listed. Nothing is changed: read the proposal, keep it in git, plan it, apply it.

Without --flows, flows, workloads and documents are the controller's. With --flows, the
documents in force come from -f and the workloads from -f or --workloads; without either,
every end that a flow names is taken for a workload.

-o yaml prints the documents; --out DIR writes them there, with evidence.json beside them.`,
		Example: `  bulkhead learn --out proposal/ && bulkhead plan -f proposal/
  bulkhead flows --since 7d -o json > flows.jsonl
  bulkhead get workloads -o json > workloads.json
  bulkhead learn --flows flows.jsonl --workloads workloads.json -o yaml`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			flows, inv, o, err := a.evidence(cmd, &f)
			if err != nil {
				return err
			}
			if len(flows) == 0 {
				return nof("there is no recorded flow to learn from; let agents observe for a while, or widen --since")
			}
			bar := newProgress(cmd.ErrOrStderr(), fmt.Sprintf("learning from %s", count(len(flows), "flow")), 0)
			p, err := suggest.Suggest(flows, inv, o)
			bar.finish()
			if err != nil {
				return usagef("%w", err)
			}
			return a.printProposal(cmd, &f, p)
		},
	}
	f.scene.register(cmd)
	f.filter.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.flows, "flows", "", "recorded flows as JSON lines: a file or -; without it the controller's")
	flags.StringVar(&f.out, "out", "", "write the proposed documents into this directory")
	flags.BoolVar(&f.overwrite, "overwrite", false, "with --out: replace files that are there")
	flags.StringArrayVar(&f.trusted, "trust", nil, "workload or address that may look like a scan: monitoring, scanners (repeatable)")
	flags.Float64Var(&f.sure, "min-confidence", 0.5, "least confidence at which a label is proposed, up to 1")
	return cmd
}

// evidence collects what there is to learn from.
func (a *app) evidence(cmd *cobra.Command, f *learnFlags) ([]model.RecordedFlow, *model.Inventory, suggest.Options, error) {
	o := suggest.Options{Now: time.Now(), Trusted: f.trusted, MinConfidence: f.sure}
	fail := func(err error) ([]model.RecordedFlow, *model.Inventory, suggest.Options, error) {
		return nil, nil, o, err
	}
	if f.sure <= 0 || f.sure > 1 {
		return fail(usagef("--min-confidence %g: use a number above 0 and up to 1", f.sure))
	}
	if f.flows == "" {
		return a.evidenceOnline(cmd, f, o)
	}
	if err := onlyOneStdin(append([]string{f.flows, f.scene.workloads}, f.scene.files...)...); err != nil {
		return fail(err)
	}
	var inv *model.Inventory
	switch {
	case len(f.scene.files) > 0:
		s, err := a.scene(cmd, &f.scene, "nothing was learnt")
		if err != nil {
			return fail(err)
		}
		inv, o.Documents, o.Controllers, o.Now = s.inv, s.docs, s.options.Controllers, s.options.Now
	case f.scene.workloads != "":
		workloads, leases, err := readWorkloads(cmd, f.scene.workloads)
		if err != nil {
			return fail(err)
		}
		if inv, err = inventory.Build(&model.Documents{Workloads: workloads}, nil, leases); err != nil {
			return fail(usagef("%w", err))
		}
	}
	flows, err := readRecords(cmd, f.flows)
	return flows, inv, o, err
}

func (a *app) evidenceOnline(cmd *cobra.Command, f *learnFlags, o suggest.Options) ([]model.RecordedFlow, *model.Inventory, suggest.Options, error) {
	fail := func(err error) ([]model.RecordedFlow, *model.Inventory, suggest.Options, error) {
		return nil, nil, o, err
	}
	if len(f.scene.files) > 0 {
		return fail(usagef("learn -f needs --flows; without -f it asks the controller for everything"))
	}
	req, err := f.filter.request(time.Now())
	if err != nil {
		return fail(err)
	}
	s, err := a.online(cmd, &f.scene)
	if err != nil {
		return fail(err)
	}
	c, err := a.connect()
	if err != nil {
		return fail(err)
	}
	flows, err := c.records(cmd, req)
	o.Documents, o.Controllers, o.Now = s.docs, s.options.Controllers, s.options.Now
	return flows, s.inv, o, err
}

func (a *app) printProposal(cmd *cobra.Command, f *learnFlags, p *suggest.Proposal) error {
	documents := policy.Marshal(p.Documents)
	list, err := documentList(documents)
	if err != nil {
		return err
	}
	v := &proposalView{p, list}
	if f.out != "" {
		if err := writeProposal(f, v, p.Documents); err != nil {
			return err
		}
	}
	if a.output == formatYAML {
		if _, err := cmd.OutOrStdout().Write(documents); err != nil {
			return cannotf("write the output: %w", err)
		}
		return nil
	}
	return a.print(cmd, v, func(page *page) {
		printEvidence(page, p)
		if f.out == "" {
			page.line("")
			page.line("Write the documents with --out DIR, or print them with -o yaml.")
			return
		}
		page.line("")
		page.line("Written to %s. Next: bulkhead plan -f %s", f.out, f.out)
	})
}

// evidenceFile stands beside the proposed documents; it is no document.
const evidenceFile = "evidence.json"

// writeProposal writes one file for each kind of document, and the evidence.
func writeProposal(f *learnFlags, v *proposalView, docs *model.Documents) error {
	contents := map[string][]byte{}
	var names []string
	put := func(name string, data []byte) {
		contents[name] = data
		names = append(names, name)
	}
	for _, kind := range model.Kinds {
		if data := policy.Marshal(chosen(docs, kind, nil)); len(data) > 0 {
			put(kindNames[kind][0]+".yaml", data)
		}
	}
	evidence, err := marshalJSON(v.Proposal)
	if err != nil {
		return fmt.Errorf("write the evidence: %w", err)
	}
	put(evidenceFile, evidence)
	if !f.overwrite {
		for _, name := range names {
			path := filepath.Join(f.out, name)
			if _, err := os.Lstat(path); err == nil {
				return usagef("%s is there already; choose another --out, or replace it with --overwrite", path)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return cannotf("write the proposal: %w", err)
			}
		}
	}
	if err := os.MkdirAll(f.out, 0o755); err != nil {
		return cannotf("write the proposal: %w", err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(f.out, name), contents[name], 0o644); err != nil {
			return cannotf("write the proposal: %w", err)
		}
	}
	return nil
}

func printEvidence(p *page, v *suggest.Proposal) {
	if len(v.Labels) > 0 {
		p.heading("Labels")
		t := newTable("WORKLOAD", "LABEL", ">CONFIDENCE", "WHY")
		for _, l := range v.Labels {
			t.add(l.Workload, l.Key+"="+l.Value, fmt.Sprintf("%.2f", l.Confidence), l.Why)
		}
		p.table(t, "")
	}
	if len(v.Abstained) > 0 {
		p.heading("Labels not proposed")
		t := newTable("WORKLOAD", "LABEL", "WHY")
		for _, l := range v.Abstained {
			t.add(l.Workload, l.Key, l.Why)
		}
		p.table(t, "")
	}
	p.heading("Rules")
	t := newTable("RULE", "FROM", "TO", "ON", ">FLOWS", ">CONNS", ">ALLOWED/SEEN", "LAST")
	for i := range v.Rules {
		r := &v.Rules[i]
		on := strings.Join(r.On, ",")
		if r.Dynamic {
			on += " (dynamic: review)"
		}
		t.add(r.Rule, r.From, r.To, on, r.Flows, thousands(r.Connections), fmt.Sprintf("%.2f", r.OverPermission.Ratio), ago(&r.Last))
	}
	p.table(t, "The documents in force allow everything that was recorded.")
	if len(v.Suspicious) > 0 {
		p.heading("Left out: looks like a scan (if it is yours, name it with --trust)")
		t := newTable("SOURCE", ">FLOWS", ">TARGETS", ">PORTS", "WHY")
		for _, s := range v.Suspicious {
			t.add(s.Source, s.Flows, s.Destinations, s.Ports, s.Why)
		}
		p.table(t, "")
	}
	if len(v.Unknown) > 0 {
		p.heading("Not learnt: the end is not known")
		t := newTable("END", ">FLOWS", "WHY")
		for _, u := range v.Unknown {
			t.add(u.End, u.Flows, u.Why)
		}
		p.table(t, "")
	}
	s := &v.Stats
	p.line("")
	p.line("%s for %s: %s of %s covered; %s of the flat network stays reachable", count(s.Rules, "rule"),
		count(s.Distinct, "distinct flow"), thousands(uint64(s.Covered)), thousands(uint64(s.Distinct)), percent(s.Surface))
}

// percent writes a share with as many digits as it needs to not look like nothing.
func percent(share float64) string {
	if p := share * 100; p > 0 && p < 1 {
		return fmt.Sprintf("%.2f %%", p)
	}
	return fmt.Sprintf("%.0f %%", share*100)
}
