package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/suggest"
)

// mostLabels is how many proposed labels are printed; all of them are in the proposal's evidence.
const mostLabels = 8

func (st *story) understand(ctx context.Context, s *Step) error {
	dir := filepath.Join(st.rig.Layout.Dir, "proposal")
	st.tell(s, "Some services carry no role yet. From what was recorded, labels are proposed where they are missing, and "+
		"least-privilege rules, each with its evidence.", "bulkhead learn --out proposal/")
	st.doing("learning")
	out, err := st.cli(ctx, "learn", "--out", dir, "-o", "json")
	if err != nil {
		return err
	}
	var p suggest.Proposal
	if err := json.Unmarshal(out, &p); err != nil {
		return fmt.Errorf("what learn printed: %w", err)
	}
	if st.proposed, err = readDocuments(dir); err != nil {
		return err
	}
	st.printLabels(&p)
	missing, err := st.unlabelled(ctx)
	if err != nil {
		return err
	}
	s.figure("labels", "labels proposed", len(p.Labels), "", "")
	s.figure("rules", "rules proposed", p.Stats.Rules, "", "")
	s.figure("flows_distinct", "distinct flows recorded", p.Stats.Distinct, "", fmt.Sprintf("%d of them covered by the rules", p.Stats.Covered))
	s.figure("surface", "of what a flat network offers, open", 100*p.Stats.Surface, "%", "")
	s.Summary = fmt.Sprintf("%d labels and %d rules proposed; they cover %d of %d distinct flows and leave %.1f %% of a flat network open",
		len(p.Labels), p.Stats.Rules, p.Stats.Covered, p.Stats.Distinct, 100*p.Stats.Surface)
	if p.Stats.Covered != p.Stats.Distinct {
		s.problem("%d distinct flows are not covered by what learn proposes", p.Stats.Distinct-p.Stats.Covered)
	}
	for _, w := range missing {
		s.problem("%s still has no role", w)
	}
	for _, x := range p.Suspicious {
		s.problem("business of the lab was taken for a scan: %s", x.Why)
	}
	for _, x := range p.Unknown {
		s.problem("%s: %s", x.End, x.Why)
	}
	return nil
}

func (st *story) printLabels(p *suggest.Proposal) {
	st.still()
	for i, l := range p.Labels {
		if i == mostLabels {
			st.line("   … and %d more", len(p.Labels)-i)
			break
		}
		why := wrap(l.Why, width-56)
		st.line("   %-28s %-18s %.2f  %s", l.Workload, l.Key+"="+l.Value, l.Confidence, st.style(why[0], faint))
	}
	st.line("")
}

// unlabelled lists units without a role once the proposal is accepted.
func (st *story) unlabelled(ctx context.Context) ([]string, error) {
	w, err := st.rig.API.World(ctx)
	if err != nil {
		return nil, err
	}
	given := map[string]bool{}
	for i := range st.proposed.Workloads {
		d := &st.proposed.Workloads[i]
		given[d.Name] = d.Labels["role"] != ""
	}
	ours := map[string]bool{}
	for _, p := range st.s.Placed() {
		if p.ID.Unit != "" && p.Host.Managed() {
			ours[st.s.Workload(p.ID)] = true
		}
	}
	var out []string
	for i := range w.Inventory.Instances {
		inst := &w.Inventory.Instances[i]
		if ours[inst.Name] && inst.Labels["role"] == "" && !given[inst.Name] {
			out = append(out, inst.Name)
		}
	}
	return out, nil
}

// cli runs the command line against the lab's controller, as a user would.
func (st *story) cli(ctx context.Context, args ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"--controller", st.rig.SocketURL()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("bulkhead %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// exitStatus returns the exit status of a command that ran and ended with another than zero.
func exitStatus(err error) (int, bool) {
	var e *exec.ExitError
	if errors.As(err, &e) && e.Exited() {
		return e.ExitCode(), true
	}
	return 0, false
}

func readDocuments(dir string) (*model.Documents, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var files []policy.File
	for _, n := range names {
		data, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		files = append(files, policy.File{Name: n, Data: data})
	}
	return policy.Read(files) // they name documents that the controller has
}
