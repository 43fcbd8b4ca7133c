package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// worldView is what `compile` prints without --for.
type worldView struct {
	Workloads  int        `json:"workloads"`
	PolicySets int        `json:"policy_sets"`
	Hosts      []hostView `json:"hosts"`
	// CannotHold is what hosts cannot hold.
	CannotHold []budget.Problem `json:"cannot_hold"`
}

// hostView says how much one agent would be given.
type hostView struct {
	Host      string `json:"host"`
	Subjects  int    `json:"subjects"`
	Sets      int    `json:"policy_sets"`
	Rows      int    `json:"rows"` // cells of all tables
	Addresses int    `json:"addresses"`
	Hash      string `json:"hash"`
	sizeView
}

// sizeView is what something takes in the kernel of a host with eBPF: of all that counts, what grows with policy.
type sizeView struct {
	PolicyRows int `json:"policy_rows"` // for peers, protocols and single ports
	RangeRows  int `json:"range_rows"`  // for ranges of ports
	EntryBytes int `json:"entry_bytes"` // keys and values of all entries
}

func sizeOf(c budget.Cost) sizeView {
	target := budget.EBPF()
	return sizeView{c[budget.Rows], c[budget.Ranges], target.Bytes(c)}
}

// compiledView is what `compile --for` prints.
type compiledView struct {
	Workload   string       `json:"workload"`
	Host       string       `json:"host"`
	Unit       string       `json:"unit,omitempty"`
	Labels     model.Labels `json:"labels"`
	Segments   []string     `json:"segments"`
	Mode       string       `json:"mode"`
	Quarantine string       `json:"quarantine,omitempty"`
	HostHash   string       `json:"host_hash"` // of everything that the host's agent is given
	Sets       []setView    `json:"sets"`
}

// setView is the policy of a workload at some of its addresses: all of them for almost every workload.
type setView struct {
	ID        string      `json:"id"`
	Addresses []string    `json:"addresses"`
	Size      sizeView    `json:"size"`
	Ingress   []tableView `json:"ingress"`
	Egress    []tableView `json:"egress"`
}

// tableView is what holds for some peers. Of its rows the first that names the port decides.
type tableView struct {
	Peers []string  `json:"peers"` // "" stands for everyone who is named nowhere else
	Rows  []rowView `json:"rows"`
}

type rowView struct {
	Ports   string `json:"ports"`
	Verdict string `json:"verdict"`
	Rule    string `json:"rule"`
	verdict model.Verdict
}

func (a *app) compileCommand() *cobra.Command {
	var (
		f        sceneFlags
		workload string
	)
	cmd := &cobra.Command{
		Use:   "compile [--for WORKLOAD]",
		Short: "What the agent of a workload is given",
		Long: `Compile the policy and show what the agent of a workload is given: for each direction and
peer the verdict by port, with the rule that decides. What a mode does not drop is would-deny
here already. Without --for, how much each host is given, what that takes in its kernel, and
whether it fits.`,
		Example: `  bulkhead compile -f policy/ --for pay-db-1
  bulkhead compile -f policy/
  bulkhead compile --for pay-db-1 -o json        # as the controller compiles it`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.scene(cmd, &f, "nothing was compiled")
			if err != nil {
				return err
			}
			w, err := s.world(cmd, "nothing was compiled")
			if err != nil {
				return err
			}
			if workload == "" {
				var targets budget.Targets
				if len(f.files) == 0 {
					if targets, err = a.targets(cmd); err != nil {
						return err
					}
				}
				return a.printHosts(cmd, w, targets)
			}
			v, err := s.compiled(w, workload)
			if err != nil {
				return err
			}
			return a.print(cmd, v, func(p *page) { printCompiled(p, v) })
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&workload, "for", "", "the workload")
	return cmd
}

func (a *app) printHosts(cmd *cobra.Command, w *compile.World, targets budget.Targets) error {
	v := worldView{Workloads: len(w.Inventory().Instances), PolicySets: w.Sets(), Hosts: []hostView{}, CannotHold: []budget.Problem{}}
	v.CannotHold = append(v.CannotHold, budget.Check(nil, w, targets)...)
	for _, host := range w.Hosts() {
		p, ok := w.HostPolicy(host)
		if !ok {
			continue
		}
		h := hostView{Host: host, Subjects: len(p.Subjects), Sets: len(p.Sets), Addresses: len(p.Addresses), Hash: p.Hash().String(), sizeView: sizeOf(budget.Of(p))}
		for i := range p.Sets {
			h.Rows += rowCount(&p.Sets[i].Ingress) + rowCount(&p.Sets[i].Egress)
		}
		v.Hosts = append(v.Hosts, h)
	}
	return a.print(cmd, v, func(p *page) {
		t := newTable("HOST", ">SUBJECTS", ">POLICY SETS", ">ROWS", ">FOR RANGES", ">ADDRESSES", ">MEMORY", "HASH")
		for _, h := range v.Hosts {
			t.add(h.Host, h.Subjects, h.Sets, h.PolicyRows+h.RangeRows, h.RangeRows, h.Addresses, byteSize(uint64(h.EntryBytes)), short(h.Hash))
		}
		p.table(t, "No workload is managed, so there is no agent to give anything to.")
		p.line("")
		p.line("%s, %s in all", count(v.Workloads, "workload"), count(v.PolicySets, "policy set"))
		for i := range v.CannotHold {
			p.line("%s %s", p.paint("cannot hold:", red), v.CannotHold[i].String())
		}
	})
}

func rowCount(t *hostpolicy.Table) int {
	n := 0
	for _, f := range t.Funcs {
		n += len(f)
	}
	return n
}

// compiled shows what judges one workload.
func (s *scene) compiled(w *compile.World, name string) (*compiledView, error) {
	wl := w.Workload(name)
	switch {
	case wl == nil:
		return nil, usagef("there is no workload %q in %s%s", name, s.origin, didYouMean(similar(name, instanceNames(s.inv))))
	case !wl.Managed:
		return nil, nof("%s is not managed: nothing of ours judges at its end", name)
	case wl.Host == "":
		return nil, nof("%s has no agent yet, so nothing is compiled for it", name)
	}
	host, ok := w.HostPolicy(wl.Host)
	if !ok {
		return nil, nof("host %s of %s has no agent yet, so nothing is compiled for it", wl.Host, name)
	}
	shown := s.viewWorkload(wl.Instance)
	v := &compiledView{
		Workload: name, Host: wl.Host, Unit: wl.Unit, Labels: shown.Labels, Segments: shown.Segments, Mode: shown.Mode,
		Quarantine: shown.Quarantine, HostHash: host.Hash().String(),
	}
	for i := range wl.Points {
		at := &wl.Points[i]
		set := w.PolicySet(at)
		id := fmt.Sprintf("%016x", uint64(set.ID))
		k := slices.IndexFunc(v.Sets, func(s setView) bool { return s.ID == id })
		if k < 0 {
			k = len(v.Sets)
			v.Sets = append(v.Sets, setView{
				ID: id, Addresses: []string{}, Size: sizeOf(budget.OfSet(set)), Ingress: tableViews(w, &set.Ingress), Egress: tableViews(w, &set.Egress),
			})
		}
		if at.Addr.IsValid() {
			v.Sets[k].Addresses = append(v.Sets[k].Addresses, at.Addr.String())
		}
	}
	return v, nil
}

// tableViews groups the peers of a table by what holds for them: those listed first, everyone else last.
func tableViews(w *compile.World, t *hostpolicy.Table) []tableView {
	peers := make([][]string, len(t.Funcs))
	for _, p := range t.Peers {
		peers[p.Func] = append(peers[p.Func], peerName(w, p.Peer))
	}
	var out []tableView
	for i, f := range t.Funcs {
		if i == 0 || len(peers[i]) == 0 {
			continue
		}
		slices.Sort(peers[i])
		out = append(out, tableView{Peers: slices.Compact(peers[i]), Rows: rowsOf(f)})
	}
	slices.SortFunc(out, func(a, b tableView) int { return slices.Compare(a.Peers, b.Peers) })
	return append(out, tableView{Peers: []string{""}, Rows: rowsOf(t.Funcs[0])})
}

// peerName describes an identity.
func peerName(w *compile.World, id model.IdentityID) string {
	members := w.Identity(id)
	names := make([]string, len(members))
	for i := range members {
		names[i] = identityText(&members[i])
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " or ")
}

func identityText(id *model.Identity) string {
	text := "any other address"
	switch {
	case id.Owned && len(id.Labels) == 0:
		text = "a workload without labels"
	case id.Owned:
		text = id.Labels.String()
	case len(id.Networks) > 0:
		return "addresses in " + strings.Join(id.Networks, " and ")
	}
	if len(id.Networks) > 0 {
		text += " in " + strings.Join(id.Networks, " and ")
	}
	return text
}

// rowsOf lists the cells that differ from the first one, and that one last. Neighbours with one verdict and rule are
// one row.
func rowsOf(f hostpolicy.Func) []rowView {
	rest := f[0]
	var rows []rowView
	for _, c := range f[1:] {
		if c.Verdict != rest.Verdict || c.Rule != rest.Rule {
			rows = append(rows, rowView{c.Ports.String(), c.Verdict.String(), string(c.Rule), c.Verdict})
		}
	}
	return append(rows, rowView{model.AnyPort.String(), rest.Verdict.String(), string(rest.Rule), rest.Verdict})
}

func printCompiled(p *page, v *compiledView) {
	where := v.Host
	if v.Unit != "" {
		where += ", unit " + v.Unit
	}
	p.line("Workload    %s (host %s)", v.Workload, where)
	p.line("Labels      %s", orDash(v.Labels.String()))
	p.line("Segments    %s (%s)", orDash(strings.Join(v.Segments, ", ")), v.Mode)
	if v.Quarantine != "" {
		p.line("Quarantine  %s", p.paint(v.Quarantine, red))
	}
	p.line("Host hash   %s", short(v.HostHash))
	for _, s := range v.Sets {
		at := ""
		if len(v.Sets) > 1 {
			at = " at " + strings.Join(s.Addresses, ", ")
		}
		p.line("Policy set  %s%s: %s, %s for ranges, %s", s.ID, at, count(s.Size.PolicyRows+s.Size.RangeRows, "row"),
			thousands(uint64(s.Size.RangeRows)), byteSize(uint64(s.Size.EntryBytes)))
		p.heading("Ingress%s: who may reach it", at)
		printTables(p, "FROM", s.Ingress)
		p.heading("Egress%s: whom it may reach", at)
		printTables(p, "TO", s.Egress)
	}
}

func printTables(p *page, who string, tables []tableView) {
	t := newTable(who, "ON", "VERDICT", "RULE")
	for _, v := range tables {
		for i, r := range v.Rows {
			peer := ""
			if i == 0 {
				peer = cmp.Or(strings.Join(v.Peers, "; "), "everyone else")
			}
			ports := r.Ports
			if i > 0 && i == len(v.Rows)-1 {
				ports = "anything else"
			}
			t.add(peer, ports, verdictCell(r.verdict), r.Rule)
		}
	}
	p.table(t, "")
}
