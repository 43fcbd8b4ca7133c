// Package verdict judges flows against a compiled world. Every part of the product that says what is allowed, and
// why, asks it: agents' records are joined by it, plans, tests and the command line are answered by it.
//
// A verdict is read from the compiled tables; an explanation walks the rules one by one. Tests hold both, and the
// slow judge of package oracle, to one answer.
package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// Evaluator judges flows. It is immutable: any number of goroutines may use it.
type Evaluator struct {
	world       *compile.World
	controllers []netip.AddrPort
}

// New returns an evaluator for the world. It does no work.
func New(w *compile.World) *Evaluator {
	return &Evaluator{world: w, controllers: w.Options().Controllers}
}

// World returns the world that the evaluator judges by.
func (e *Evaluator) World() *compile.World { return e.world }

// Judge returns the verdict at both ends of the flow and over them. It allocates nothing.
//
// An end is the workload of that name; where there is none, its address. The error says that there is no such
// workload, or that several workloads share the address, and names them.
func (e *Evaluator) Judge(f *model.Flow) (model.FlowVerdict, error) {
	var c connection
	if err := e.resolve(f, &c); err != nil {
		return model.FlowVerdict{}, err
	}
	return model.Join(e.end(&c, model.Egress), e.end(&c, model.Ingress)), nil
}

// connection is a flow whose ends are known.
type connection struct {
	from, to party
	sameHost bool
	proto    model.Proto
	port     uint16
}

// party is one end: a workload at one of its addresses, or an address that nobody owns.
type party struct {
	workload *compile.Workload // nil: nobody owns addr
	at       *compile.Point
	addr     netip.Addr
}

func (p *party) managed() bool { return p.workload != nil && p.workload.Managed }

// resolve finds the ends of the flow.
func (e *Evaluator) resolve(f *model.Flow, c *connection) error {
	c.proto, c.port = f.Proto, f.Port
	if err := e.party(&f.From, &c.from); err != nil {
		return err
	}
	if err := e.party(&f.To, &c.to); err != nil {
		return err
	}
	meet(&c.from, &c.to)
	if a, b := c.from.workload, c.to.workload; a != nil && b != nil {
		c.sameHost = a.Host != "" && a.Host == b.Host
	}
	return nil
}

func (e *Evaluator) party(end *model.End, p *party) error {
	if end.Workload != "" {
		if p.workload = e.world.Workload(end.Workload); p.workload != nil {
			return nil
		}
	}
	if !end.Addr.IsValid() {
		if end.Workload == "" {
			return fmt.Errorf("an end of the flow has neither a workload nor an address")
		}
		return fmt.Errorf("no workload is named %q, and it is not an address", end.Workload)
	}
	p.addr = end.Addr.Unmap().WithZone("")
	owner, shared := e.world.Owner(p.addr)
	if shared {
		return sharedError(p.addr, e.world.Owners(p.addr))
	}
	if owner != nil {
		p.workload, p.at = owner, owner.At(p.addr)
	}
	return nil
}

func sharedError(addr netip.Addr, owners []*compile.Workload) error {
	const most = 8
	var names []string
	for i, o := range owners {
		if i == most {
			names = append(names, fmt.Sprintf("%d more", len(owners)-most))
			break
		}
		names = append(names, o.Name)
	}
	return fmt.Errorf("address %s is shared by workloads %s: name the one you mean", addr, strings.Join(names, ", "))
}

// meet chooses the addresses at which two ends talk: the first pair of one family, in the order in which the
// workloads declare theirs. An end that was given as an address keeps it.
func meet(from, to *party) {
	switch {
	case !from.chosen() && !to.chosen():
		first := &from.workload.Points[0]
		for _, is4 := range [2]bool{first.Addr.Is4(), !first.Addr.Is4()} {
			a, b := from.workload.Family(is4), to.workload.Family(is4)
			if a != nil && b != nil {
				from.choose(a)
				to.choose(b)
				return
			}
		}
		from.choose(first)
		to.choose(&to.workload.Points[0])
	case !from.chosen():
		from.chooseFamily(to.addr.Is4())
	case !to.chosen():
		to.chooseFamily(from.addr.Is4())
	}
}

func (p *party) chosen() bool { return p.workload == nil || p.at != nil }

func (p *party) choose(at *compile.Point) { p.at, p.addr = at, at.Addr }

func (p *party) chooseFamily(is4 bool) {
	if at := p.workload.Family(is4); at != nil {
		p.choose(at)
		return
	}
	p.choose(&p.workload.Points[0])
}

// end returns the verdict at one end, in the order that DESIGN §2 gives.
func (e *Evaluator) end(c *connection, d model.Direction) model.EndVerdict {
	self := &c.to
	if d == model.Egress {
		self = &c.from
	}
	if !self.managed() {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleUnmanaged}
	}
	if rule := e.essential(c, d); rule != "" {
		return model.EndVerdict{Verdict: model.Allow, Rule: rule}
	}
	return self.at.Set.Table(d).Judge(e.peer(c, d), c.proto, c.port)
}

// essential returns the essential that the flow is at this end, of those that no policy set holds; "" if none.
func (e *Evaluator) essential(c *connection, d model.Direction) model.RuleID {
	if rule, ok := essential.Match(c.proto, c.port); ok {
		return rule
	}
	if c.from.workload == c.to.workload {
		return model.RuleSameWorkload
	}
	if len(e.controllers) == 0 || c.proto != model.ProtoTCP || d == model.Egress && c.from.workload.IsUnit() {
		return ""
	}
	if slices.Contains(e.controllers, netip.AddrPortFrom(c.to.addr, c.port)) {
		return model.RuleController
	}
	return ""
}

// peer returns the identity that the other end is judged for. The near end is judged for exactly the named
// workload; the far end of a flow between hosts sees an address, which workloads may share.
func (e *Evaluator) peer(c *connection, d model.Direction) model.IdentityID {
	other := &c.from
	if d == model.Egress {
		other = &c.to
	}
	switch {
	case other.workload == nil:
		return e.world.Unowned(other.addr)
	case d == model.Ingress && !c.sameHost:
		return other.at.Seen
	}
	return other.at.Identity
}
