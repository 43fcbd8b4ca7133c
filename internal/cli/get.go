package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

func (a *app) getCommand() *cobra.Command {
	var (
		f        sceneFlags
		revision uint64
		selector string
	)
	cmd := &cobra.Command{
		Use:   "get KIND [NAME...]",
		Short: "Show documents and the workloads there are",
		Long: `Show documents by kind: services, networks, segments, policies, guardrails, expectations, or all.
get workloads shows every workload there is, whether a document, an agent or both know it.

-o yaml prints documents as they are written, ready to be edited and applied. What
get workloads -o json prints can be given to other verbs with --workloads.`,
		Example: `  bulkhead get workloads -l app=payments
  bulkhead get policy payments -o yaml > payments.yaml
  bulkhead get all --revision 11 -o yaml
  bulkhead get segments -f policy/`,
		ValidArgs: kindArgs("all"),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("get needs KIND: %s", strings.Join(kindArgs("all"), ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := model.Kind("")
			if args[0] != "all" {
				var err error
				if kind, err = parseKind(args[0]); err != nil {
					return err
				}
			}
			sel, err := model.ParseSelector(selector)
			switch {
			case err != nil:
				return usagef("--selector: %w", err)
			case selector != "" && kind != model.KindWorkload:
				return usagef("--selector goes with workloads: nothing else has labels")
			}
			s, err := a.sceneAt(cmd, &f, revision)
			if err != nil {
				return err
			}
			if kind == model.KindWorkload {
				return a.getWorkloads(cmd, s, args[1:], &sel)
			}
			return a.getDocuments(cmd, s, kind, args[1:])
		},
	}
	f.register(cmd)
	cmd.Flags().Uint64Var(&revision, "revision", 0, "of that revision instead of the newest")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "only workloads with such labels: app=payments,env in (prod,stage)")
	return cmd
}

// sceneAt is scene, or the scene of an earlier revision.
func (a *app) sceneAt(cmd *cobra.Command, f *sceneFlags, revision uint64) (*scene, error) {
	if revision == 0 {
		return a.scene(cmd, f, "nothing was shown")
	}
	if len(f.files) > 0 {
		return nil, usagef("--revision is of the controller; it does not go with -f")
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	return c.scene(cmd, revision)
}

func (a *app) getWorkloads(cmd *cobra.Command, s *scene, names []string, sel *model.Selector) error {
	views := []workloadView{}
	wanted := wantedNames(names)
	for i := range s.inv.Instances {
		inst := &s.inv.Instances[i]
		if wanted.has(inst.Name) && sel.Matches(inst.Labels) {
			views = append(views, s.viewWorkload(inst))
		}
	}
	if missing := wanted.missing(); missing != "" {
		return nof("there is no workload %q in %s%s", missing, s.origin, didYouMean(similar(missing, instanceNames(s.inv))))
	}
	return a.print(cmd, views, func(p *page) {
		t := newTable("NAME", "LABELS", "ADDRESSES", "HOST", "MODE", "AGENT", "QUARANTINE")
		for i := range views {
			v := &views[i]
			t.add(v.Name, orDash(v.Labels.String()), orDash(strings.Join(v.Addresses, ",")), orDash(v.Host), modeCell(v.Mode),
				v.agent(), quarantineCell(v.Quarantine))
		}
		p.table(t, "There is no such workload in "+s.origin+".")
	})
}

func (v *workloadView) agent() cell {
	switch {
	case !v.Managed:
		return cell{"none", faint}
	case v.Connected == nil:
		return cell{text: "-"}
	case v.Host == "":
		return cell{"none yet", yellow}
	case *v.Connected:
		return cell{"connected", green}
	}
	return cell{"away", yellow}
}

func modeCell(mode string) cell {
	switch mode {
	case model.ModeEnforce.String():
		return cell{mode, green}
	case model.ModeSelective.String():
		return cell{mode, yellow}
	}
	return cell{mode, faint}
}

func quarantineCell(level string) cell {
	if level == "" {
		return cell{text: "-"}
	}
	return cell{level, red}
}

// nameSet are names asked for, and whether they were found. An empty set asks for all.
type nameSet map[string]bool

func wantedNames(names []string) nameSet {
	set := nameSet{}
	for _, n := range names {
		set[n] = false
	}
	return set
}

func (s nameSet) has(name string) bool {
	if len(s) == 0 {
		return true
	}
	_, ok := s[name]
	if ok {
		s[name] = true
	}
	return ok
}

// missing returns a name that was asked for and not found.
func (s nameSet) missing() string {
	first := ""
	for name, found := range s {
		if !found && (first == "" || name < first) {
			first = name
		}
	}
	return first
}

func (a *app) getDocuments(cmd *cobra.Command, s *scene, kind model.Kind, names []string) error {
	wanted := wantedNames(names)
	docs := chosen(s.docs, kind, wanted)
	if missing := wanted.missing(); missing != "" {
		return nof("there is no %s %q in %s", kind, missing, s.origin)
	}
	switch a.output {
	case formatYAML:
		if _, err := cmd.OutOrStdout().Write(policy.Marshal(docs)); err != nil {
			return cannotf("write the output: %w", err)
		}
		return nil
	case formatJSON:
		list, err := documentList(policy.Marshal(docs))
		if err != nil {
			return err
		}
		return a.print(cmd, list, nil)
	}
	return a.print(cmd, nil, func(p *page) { printDocuments(p, docs, s.options.Now) })
}

// chosen returns the documents of a kind ("" for all) with the wanted names.
func chosen(d *model.Documents, kind model.Kind, wanted nameSet) *model.Documents {
	is := func(k model.Kind) bool { return kind == "" || kind == k }
	return &model.Documents{
		Services:     keep(d.Services, is(model.KindService), wanted, func(x *model.Service) string { return x.Name }),
		Networks:     keep(d.Networks, is(model.KindNetwork), wanted, func(x *model.Network) string { return x.Name }),
		Workloads:    keep(d.Workloads, is(model.KindWorkload), wanted, func(x *model.Workload) string { return x.Name }),
		Segments:     keep(d.Segments, is(model.KindSegment), wanted, func(x *model.Segment) string { return x.Name }),
		Policies:     keep(d.Policies, is(model.KindPolicy), wanted, func(x *model.Policy) string { return x.Name }),
		Guardrails:   keep(d.Guardrails, is(model.KindGuardrail), wanted, func(x *model.Guardrail) string { return x.Name }),
		Expectations: keep(d.Expectations, is(model.KindExpectation), wanted, func(x *model.Expectation) string { return x.Name }),
	}
}

func keep[T any](list []T, kind bool, wanted nameSet, name func(*T) string) []T {
	if !kind {
		return nil
	}
	var out []T
	for i := range list {
		if wanted.has(name(&list[i])) {
			out = append(out, list[i])
		}
	}
	return out
}

// documentList turns YAML documents into what JSON shows of them.
func documentList(data []byte) ([]json.RawMessage, error) {
	list := []json.RawMessage{}
	d := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc map[string]any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the documents back: %w", err)
		}
		raw, err := marshalJSON(doc)
		if err != nil {
			return nil, fmt.Errorf("write the documents as JSON: %w", err)
		}
		list = append(list, raw)
	}
}

// printDocuments shows one line a document.
func printDocuments(p *page, d *model.Documents, now time.Time) {
	t := newTable("KIND", "NAME", "OWNER", "WHAT")
	row := func(kind model.Kind, m *model.Meta, format string, args ...any) {
		t.add(string(kind), m.Name, orDash(m.Owner), fmt.Sprintf(format, args...))
	}
	for i := range d.Services {
		s := &d.Services[i]
		row(model.KindService, &s.Meta, "%s", joined(s.Ports))
	}
	for i := range d.Networks {
		n := &d.Networks[i]
		what := joined(n.CIDRs)
		if len(n.Except) > 0 {
			what += " except " + joined(n.Except)
		}
		if n.Purpose != model.PurposeNone {
			what += ", for " + string(n.Purpose)
		}
		row(model.KindNetwork, &n.Meta, "%s", what)
	}
	for i := range d.Workloads {
		w := &d.Workloads[i]
		row(model.KindWorkload, &w.Meta, "%s %s", orDash(w.Labels.String()), joined(w.Addresses))
	}
	for i := range d.Segments {
		s := &d.Segments[i]
		members := ""
		if s.MembersOpen {
			members = ", members may talk to each other"
		}
		row(model.KindSegment, &s.Meta, "%s %s, closes %s%s", s.Mode, selectorText(s.Selector), joined(s.Directions), members)
	}
	for i := range d.Policies {
		row(model.KindPolicy, &d.Policies[i].Meta, "%s", policyText(&d.Policies[i], now))
	}
	for i := range d.Guardrails {
		g := &d.Guardrails[i]
		row(model.KindGuardrail, &g.Meta, "never from %s to %s", peersText(g.From), peersText(g.To))
	}
	for i := range d.Expectations {
		e := &d.Expectations[i]
		row(model.KindExpectation, &e.Meta, "%s", count(len(e.Cases), "case"))
	}
	p.table(t, "There are no such documents.")
}

func policyText(d *model.Policy, now time.Time) string {
	expired := 0
	for i := range d.Rules {
		if x := d.Rules[i].Expires; !x.IsZero() && !x.After(now) {
			expired++
		}
	}
	text := count(len(d.Rules), "rule")
	if expired > 0 {
		text += fmt.Sprintf(", %d expired", expired)
	}
	return text
}

func joined[T fmt.Stringer](list []T) string {
	parts := make([]string, len(list))
	for i, x := range list {
		parts[i] = x.String()
	}
	return strings.Join(parts, ",")
}

func selectorText(s model.Selector) string {
	if s.Empty() {
		return "every workload"
	}
	return s.String()
}

// peersText names the alternatives of a rule's from or to.
func peersText(peers []model.Peer) string {
	parts := make([]string, len(peers))
	for i := range peers {
		p := &peers[i]
		switch p.Kind {
		case model.PeerWorkloads:
			parts[i] = selectorText(p.Workloads)
		case model.PeerNetwork:
			parts[i] = "network " + p.Network
		case model.PeerCIDR:
			parts[i] = p.CIDR.String()
		case model.PeerDomain:
			parts[i] = p.Domain
		case model.PeerAny:
			parts[i] = "anything"
		}
	}
	return strings.Join(parts, " or ")
}
