package corpus

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// compiled returns what the agent of the host is given.
func (r *run) compiled(host string) (string, error) {
	p, ok := r.world.HostPolicy(host)
	if !ok {
		return "", fmt.Errorf("no workload %q is judged as a host", host)
	}
	if err := p.Check(); err != nil {
		return "", fmt.Errorf("a mistake in Bulkhead: the host would refuse what it is given: %w", err)
	}
	c := &compiledText{w: r.world, p: p}
	return c.text(), nil
}

// compiledText writes the policy of a host with names instead of numbers. Sets are numbered in the order in which subjects
// name them.
type compiledText struct {
	w    *compile.World
	p    *hostpolicy.Policy
	sets []hostpolicy.PolicySetID
	b    strings.Builder
}

func (c *compiledText) text() string {
	for i := range c.p.Subjects {
		c.subject(&c.p.Subjects[i])
	}
	for i, id := range c.sets {
		fmt.Fprintf(&c.b, "set-%d\n", i+1)
		for _, d := range model.Directions {
			c.table(d, c.p.Set(id).Table(d))
		}
	}
	for _, a := range c.p.Addresses {
		fmt.Fprintf(&c.b, "address %s: %s", a.Prefix, identityName(c.w, a.Identity))
		if a.Shared {
			c.b.WriteString(" (shared)")
		}
		c.b.WriteByte('\n')
	}
	for _, o := range c.p.Ports {
		fmt.Fprintf(&c.b, "port %s %s: %s\n", o.Addr, PortText(o.Proto, o.Port), identityName(c.w, o.Identity))
	}
	for _, d := range c.p.Domains {
		fmt.Fprintf(&c.b, "domain %s: %s, then %s\n", d.Pattern, identityName(c.w, d.Base), identityName(c.w, d.Identity))
	}
	for _, at := range c.p.Controllers {
		fmt.Fprintf(&c.b, "controller %s\n", at)
	}
	return c.b.String()
}

func (c *compiledText) number(id hostpolicy.PolicySetID) string {
	if !slices.Contains(c.sets, id) {
		c.sets = append(c.sets, id)
	}
	return fmt.Sprintf("set-%d", slices.Index(c.sets, id)+1)
}

func (c *compiledText) subject(s *hostpolicy.Subject) {
	fmt.Fprintf(&c.b, "subject %s", s.Workload)
	if s.Unit != "" {
		fmt.Fprintf(&c.b, " unit %s", s.Unit)
	}
	fmt.Fprintf(&c.b, ": %s, %s, isolated %s", identityName(c.w, s.Identity), c.number(s.Set), c.number(s.Isolation))
	if s.Quarantine != model.QuarantineNone {
		fmt.Fprintf(&c.b, ", quarantine %s", s.Quarantine)
	}
	if s.OnAgentLoss != model.LossKeep {
		fmt.Fprintf(&c.b, ", on agent loss %s", s.OnAgentLoss)
	}
	c.b.WriteByte('\n')
	for _, l := range s.Local {
		fmt.Fprintf(&c.b, "  at %s: %s, %s\n", l.Addr, identityName(c.w, l.Identity), c.number(l.Set))
	}
}

func (c *compiledText) table(d model.Direction, t *hostpolicy.Table) {
	for k, f := range t.Funcs {
		who := []string{everyoneElse}
		if k > 0 {
			who = nil
			for _, r := range t.Peers {
				if int(r.Func) == k {
					who = append(who, identityName(c.w, r.Peer))
				}
			}
			slices.Sort(who)
		}
		fmt.Fprintf(&c.b, "  %s %s\n", d, strings.Join(who, " | "))
		for _, cell := range f {
			fmt.Fprintf(&c.b, "    %s %s %s\n", cell.Ports, cell.Verdict, cell.Rule)
			for _, w := range cell.When {
				fmt.Fprintf(&c.b, "      %s: %s %s\n", w.Process, w.Verdict, w.Rule)
			}
		}
	}
}
