package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/budget"
)

// agentView is one entry of `agents -o json`.
type agentView struct {
	Host               string     `json:"host"`
	Connected          bool       `json:"connected"`
	Current            bool       `json:"current"`
	Revoked            bool       `json:"revoked,omitempty"`
	Revision           uint64     `json:"revision"`
	Hash               string     `json:"hash,omitempty"`
	Refused            string     `json:"refused,omitempty"`
	Problems           []string   `json:"problems,omitempty"`
	Workloads          uint32     `json:"workloads"`
	Version            string     `json:"version,omitempty"`
	Kernel             string     `json:"kernel,omitempty"`
	Dataplane          string     `json:"dataplane,omitempty"`
	Limits             []string   `json:"limits,omitempty"`
	LastSeen           *time.Time `json:"last_seen,omitempty"`
	CertificateExpires *time.Time `json:"certificate_expires,omitempty"`
	EventsLost         uint64     `json:"events_lost"`
	RecordsLost        uint64     `json:"records_lost"`
	ResidentBytes      uint64     `json:"resident_bytes,omitempty"`
}

func (a *app) agentsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agents [HOST]",
		Short: "The agents: who is connected and has the newest policy",
		Example: `  bulkhead agents
  bulkhead agents web-1 -o yaml
  bulkhead agents revoke web-1
  bulkhead agents allow web-1`,
		Args: takesUpTo("one HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			agents, err := listAgents(cmd, c)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return a.print(cmd, agents, func(p *page) { printAgents(p, agents) })
			}
			for _, v := range agents {
				if v.Host == args[0] {
					return a.print(cmd, v, func(p *page) { printAgent(p, &v) })
				}
			}
			return nof("there is no agent of host %q%s", args[0], didYouMean(similar(args[0], hostsOf(agents))))
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "revoke HOST",
		Short: "Revoke an agent's certificate at once",
		Long: `Revoke an agent's certificate at once: it is cut off from the controller, and no join token
lets its host enrol until it is allowed again. The policy in its kernel stays in force.`,
		Args: takes("HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := ask(cmd.Context(), c, c.RevokeAgent, &pb.RevokeAgentRequest{Host: args[0]}); err != nil {
				return err
			}
			return a.print(cmd, map[string]string{"revoked": args[0]}, func(p *page) { p.line("the agent of %s is revoked", args[0]) })
		},
	})
	cmd.AddCommand(&cobra.Command{
		Use:   "allow HOST",
		Short: "Lift the revocation of a host, so that it may enrol again",
		Args:  takes("HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := ask(cmd.Context(), c, c.AllowAgent, &pb.AllowAgentRequest{Host: args[0]}); err != nil {
				return err
			}
			return a.print(cmd, map[string]string{"allowed": args[0]}, func(p *page) {
				p.line("%s may enrol again, with a new join token: bulkhead token create --host %s", args[0], args[0])
			})
		},
	})
	return cmd
}

func listAgents(cmd *cobra.Command, c *client) ([]agentView, error) {
	r, err := ask(cmd.Context(), c, c.ListAgents, &pb.ListAgentsRequest{})
	if err != nil {
		return nil, err
	}
	views := make([]agentView, len(r.Agents))
	for i, g := range r.Agents {
		views[i] = agentView{
			Host: g.Host, Connected: g.Connected, Current: g.Current, Revoked: g.Revoked, Revision: g.Revision, Hash: g.Hash,
			Refused: g.Refused, Problems: g.Problems, Workloads: g.Workloads, Version: g.Version, Kernel: g.Kernel,
			Dataplane: g.Dataplane, Limits: g.Limits, LastSeen: stamp(g.LastSeenMs),
			CertificateExpires: stamp(g.CertificateExpiresMs), EventsLost: g.EventsLost, RecordsLost: g.RecordsLost,
			ResidentBytes: g.ResidentBytes,
		}
	}
	return views, nil
}

// targets says what hosts can hold, by what their agents have told the controller.
func (a *app) targets(cmd *cobra.Command) (budget.Targets, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	agents, err := listAgents(cmd, c)
	if err != nil {
		return nil, err
	}
	kinds := make(map[string]string, len(agents))
	for _, g := range agents {
		if !g.Revoked {
			kinds[g.Host] = g.Dataplane
		}
	}
	return func(host string) (budget.Target, bool) { return budget.OfKind(kinds[host]) }, nil
}

func hostsOf(agents []agentView) []string {
	hosts := make([]string, len(agents))
	for i := range agents {
		hosts[i] = agents[i].Host
	}
	return hosts
}

func printAgents(p *page, agents []agentView) {
	t := newTable("HOST", "STATE", "POLICY", ">REVISION", ">WORKLOADS", "DATAPLANE", "KERNEL", "SEEN", "PROBLEMS")
	for i := range agents {
		v := &agents[i]
		t.add(v.Host, v.state(), v.policy(), v.Revision, v.Workloads, orDash(v.Dataplane), orDash(v.Kernel), ago(v.LastSeen),
			v.trouble())
	}
	p.table(t, "No agent has enrolled yet. Make a join token with: bulkhead token create")
}

func printAgent(p *page, v *agentView) {
	p.line("Host         %s", v.Host)
	state := v.state()
	p.line("State        %s, seen %s", p.paint(state.text, state.colour), ago(v.LastSeen))
	policy := v.policy()
	p.line("Policy       %s, revision %d, hash %s", p.paint(policy.text, policy.colour), v.Revision, orDash(v.Hash))
	p.line("Workloads    %d", v.Workloads)
	p.line("Agent        version %s, %s resident", orDash(v.Version), byteSize(v.ResidentBytes))
	p.line("Kernel       %s, dataplane %s", orDash(v.Kernel), orDash(v.Dataplane))
	p.line("Certificate  expires %s", ago(v.CertificateExpires))
	p.line("Lost         %s events, %s flow records", thousands(v.EventsLost), thousands(v.RecordsLost))
	if v.Refused != "" {
		p.line("Refused      %s", v.Refused)
	}
	for _, s := range v.Problems {
		p.line("Problem      %s", s)
	}
	for _, s := range v.Limits {
		p.line("Limit        %s", s)
	}
}

func (v *agentView) state() cell {
	switch {
	case v.Revoked:
		return cell{"revoked", red}
	case v.Connected:
		return cell{"connected", green}
	}
	return cell{"away", yellow}
}

func (v *agentView) policy() cell {
	switch {
	case v.Refused != "":
		return cell{"refused", red}
	case v.Current:
		return cell{"current", green}
	}
	return cell{"behind", yellow}
}

// trouble says in one field what an operator should look at.
func (v *agentView) trouble() string {
	var all []string
	if v.Refused != "" {
		all = append(all, v.Refused)
	}
	all = append(all, v.Problems...)
	if lost := v.EventsLost + v.RecordsLost; lost > 0 {
		all = append(all, fmt.Sprintf("%s lost", count(lost, "flow event")))
	}
	return orDash(strings.Join(all, "; "))
}
