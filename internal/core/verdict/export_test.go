package verdict

import (
	"fmt"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// AgentsDisagree judges the flow by what the agents of its ends are given, and returns where that differs from what the
// evaluator says; "" if nowhere. Of a shared destination the port's owner, or the most permissive workload, decides at the
// source; there the agent may only be more permissive.
func AgentsDisagree(e *Evaluator, f *model.Flow) string {
	var c connection
	if err := e.resolve(f, &c); err != nil || !e.address(&c.from).IsValid() || !e.address(&c.to).IsValid() {
		return ""
	}
	for _, d := range model.Directions {
		if why := e.agentDisagrees(f, &c, d); why != "" {
			return why
		}
	}
	return ""
}

func (e *Evaluator) agentDisagrees(f *model.Flow, c *connection, d model.Direction) string {
	self, other, process, domain := &c.to, &c.from, f.ToProcess, ""
	if d == model.Egress {
		self, other, process, domain = other, self, f.FromProcess, f.ToDomain
	}
	if self.seat == nil || !self.seat.Managed {
		return ""
	}
	wl := e.world.Of(self.seat)
	host := wl.Host
	if host == "" {
		host = wl.Name
	}
	p, ok := e.world.HostPolicy(host)
	if !ok {
		return fmt.Sprintf("no policy for host %q", host)
	}
	if err := p.Check(); err != nil {
		return fmt.Sprintf("host %q: %v", host, err)
	}
	pkt := hostpolicy.Packet{
		Workload: wl.Name, Dir: d, Local: e.address(self), Remote: e.address(other), Proto: c.flow.Proto, Port: c.flow.Port, Process: process, Domain: domain,
	}
	if other.seat != nil {
		pkt.Domain = "" // where a workload owns the address its labels speak
		if c.sameHost || other.seat.Workload == self.seat.Workload {
			pkt.RemoteWorkload = e.world.Of(other.seat).Name
		}
	}
	got, _ := hostpolicy.NewJudge(p).Judge(&pkt)
	want := e.end(c, d)
	ambiguous := d == model.Egress && pkt.RemoteWorkload == "" && other.seat != nil && other.seat.Seen != other.seat.Exact
	if got != want && !(ambiguous && got.Verdict >= want.Verdict) {
		return fmt.Sprintf("agent of %s at %s: %v, the evaluator: %v", host, d, got, want)
	}
	return ""
}
