// Package verdict judges flows against a compiled world. Every part of the product that says what is allowed, and
// why, asks it: agents' records are joined by it, plans, tests and the command line are answered by it.
//
// A verdict is read from the compiled tables; an explanation walks the rules one by one. Tests hold both, and the
// slow judge of package oracle, to one answer.
package verdict

import (
	"fmt"
	"net/netip"
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

// Judge returns the verdict at both ends of the flow and over them. It allocates nothing. Many flows are judged quicker by
// a Batch.
//
// An end is the workload of that name; where there is none, its address. The error says that there is no such
// workload, or that several workloads share the address, and names them.
func (e *Evaluator) Judge(f *model.Flow) (model.FlowVerdict, error) {
	w := e.world
	var egress, ingress compile.Question
	if special(f) || !w.AskBoth(&egress, &ingress, e.spot(&f.From), e.spot(&f.To)) {
		return e.judgeClosely(f)
	}
	w.Look(&egress)
	w.Look(&ingress)
	return model.Join(w.Settle(&egress, f.Proto, f.Port, f.FromProcess), w.Settle(&ingress, f.Proto, f.Port, f.ToProcess)), nil
}

// special reports whether the flow is an essential whoever its ends are.
func special(f *model.Flow) bool {
	_, ok := essential.Match(f.Proto, f.Port)
	return ok
}

// spot finds an end at first sight; the zero Spot if that does not tell.
func (e *Evaluator) spot(end *model.End) compile.Spot {
	w := e.world
	switch {
	case !e.byAddress(end):
		return w.SpotOfName(w.PlaceOfName(end.Workload), end.Workload)
	case end.Addr.Is4():
		return w.SpotOfAddr(w.PlaceOfAddr(end.Addr), end.Addr)
	}
	return compile.Spot{}
}

// judgeClosely is Judge for any flow.
func (e *Evaluator) judgeClosely(f *model.Flow) (model.FlowVerdict, error) {
	var c connection
	if err := e.resolve(f, &c); err != nil {
		return model.FlowVerdict{}, err
	}
	return model.Join(e.end(&c, model.Egress), e.end(&c, model.Ingress)), nil
}

// connection is a flow whose ends are known.
type connection struct {
	flow     *model.Flow
	from, to party
	sameHost bool
	passes   model.RuleID // the essential that the flow is, whoever judges; "" if none
}

// party is one end: a workload at one of its addresses, or an address that nobody owns.
type party struct {
	end   *model.End
	seat  *compile.Seat // nil: nobody owns the address
	given bool          // the flow names the address
}

// addr returns the address that the flow gives.
func (p *party) addr() netip.Addr { return plain(p.end.Addr) }

// resolve finds the ends of the flow.
func (e *Evaluator) resolve(f *model.Flow, c *connection) error {
	c.flow = f
	c.from, c.to = party{end: &f.From}, party{end: &f.To}
	if err := e.party(&c.from); err != nil {
		return err
	}
	if err := e.party(&c.to); err != nil {
		return err
	}
	e.join(c)
	return nil
}

func plain(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	return a.Unmap().WithZone("")
}

// party finds an end.
func (e *Evaluator) party(p *party) error {
	if !e.byAddress(p.end) {
		if p.seat = e.world.Find(p.end.Workload); p.seat != nil {
			return nil
		}
	}
	if !p.end.Addr.IsValid() {
		return unknownError(p.end)
	}
	p.given = true
	var shared bool
	if p.seat, shared = e.world.FindAddr(p.addr()); shared {
		return sharedError(p.addr(), e.world.Owners(p.addr()))
	}
	return nil
}

// join finds out what two ends that are known are to each other.
func (e *Evaluator) join(c *connection) {
	c.sameHost, c.passes = false, ""
	if rule, ok := essential.Match(c.flow.Proto, c.flow.Port); ok {
		c.passes = rule
	}
	a, b := c.from.seat, c.to.seat
	if a == nil || b == nil {
		e.meet(&c.from, &c.to)
		return
	}
	if !a.Meets(b) {
		e.meet(&c.from, &c.to)
		a, b = c.from.seat, c.to.seat
	}
	c.sameHost = a.Host != compile.None && a.Host == b.Host
	switch {
	case c.passes != "":
	case a.Workload == b.Workload:
		c.passes = model.RuleSameWorkload
	case ownNode(a, b):
		c.passes = model.RuleOwnNode
	}
}

// byAddress reports whether the end is found by its address, if at all. What is read from text has an address in Workload too,
// and a name costs more to look up than to look at. Whether there is an address comes first: a processor finds out soon if it
// has guessed that wrong, while a text is yet to be read.
func (e *Evaluator) byAddress(end *model.End) bool {
	return end.Addr.IsValid() && (end.Workload == "" || !e.world.HasAddressNames() && compile.MayBeAddress(end.Workload))
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func unknownError(end *model.End) error {
	if end.Workload == "" {
		return fmt.Errorf("an end of the flow has neither a workload nor an address")
	}
	return fmt.Errorf("no workload is named %q, and it is not an address", end.Workload)
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
// workloads declare theirs. An end that was given as an address keeps it. Where no pair is of one family, the first
// addresses stand.
func (e *Evaluator) meet(from, to *party) {
	switch {
	case !from.given && !to.given:
		a, b := from.seat, to.seat
		if !a.Placed() || !b.Placed() || a.Is4() == b.Is4() {
			return
		}
		// a's first address meets b's first of that family, or else a's other family meets b's first address.
		if other := e.world.InFamily(b, a.Is4()); other != nil {
			to.seat = other
		} else if other := e.world.InFamily(a, b.Is4()); other != nil {
			from.seat = other
		}
	case !from.given:
		e.meetAddress(from, to.addr())
	case !to.given:
		e.meetAddress(to, from.addr())
	}
}

func (e *Evaluator) meetAddress(p *party, addr netip.Addr) {
	if p.seat.Placed() && p.seat.Is4() == addr.Is4() {
		return
	}
	if seat := e.world.InFamily(p.seat, addr.Is4()); seat != nil {
		p.seat = seat
	}
}

// address returns the address of an end; invalid if the workload has none.
func (e *Evaluator) address(p *party) netip.Addr {
	if p.given {
		return p.addr()
	}
	return e.world.PointOf(p.seat).Addr
}

// end returns the verdict at one end, in the order that DESIGN §2 gives.
func (e *Evaluator) end(c *connection, d model.Direction) model.EndVerdict {
	var q compile.Question
	if rule := e.ask(c, d, &q); rule != "" {
		return model.EndVerdict{Verdict: model.Allow, Rule: rule}
	}
	e.world.Look(&q)
	return e.world.Settle(&q, c.flow.Proto, c.flow.Port, c.process(d))
}

// ask asks the policy set of an end about the other, unless the end lets the flow pass whatever the policy set says: then it
// returns the name of what lets it.
func (e *Evaluator) ask(c *connection, d model.Direction, q *compile.Question) model.RuleID {
	self := c.self(d)
	if self.seat == nil || !self.seat.Managed {
		return model.RuleUnmanaged
	}
	if rule := e.essential(c, d); rule != "" {
		return rule
	}
	e.world.Ask(q, self.seat, d, e.peer(c, d))
	return ""
}

// self returns the end that judges in a direction.
func (c *connection) self(d model.Direction) *party {
	if d == model.Egress {
		return &c.from
	}
	return &c.to
}

// process returns the one that talks at the end that judges; nil if it is not known.
func (c *connection) process(d model.Direction) *model.Process {
	if d == model.Egress {
		return c.flow.FromProcess
	}
	return c.flow.ToProcess
}

// essential returns the essential that the flow is at this end, of those that no policy set holds; "" if none.
func (e *Evaluator) essential(c *connection, d model.Direction) model.RuleID {
	if c.passes != "" {
		return c.passes
	}
	if len(e.controllers) == 0 || c.flow.Proto != model.ProtoTCP || d == model.Egress && c.from.seat.Unit {
		return ""
	}
	for i := range e.controllers {
		if at := &e.controllers[i]; at.Port() == c.flow.Port && at.Addr() == e.address(&c.to) {
			return model.RuleController
		}
	}
	return ""
}

// ownNode reports whether a flow is between a pod and the node it runs on: Kubernetes lets it through, as a node must
// probe its pods.
func ownNode(a, b *compile.Seat) bool {
	return a.Node != compile.None && a.Node == b.Node && a.Pod != b.Pod
}

// peer returns the index of the identity that the other end is judged for. The near end is judged for exactly the
// named workload; the far end of a flow between hosts sees an address, which workloads may share.
func (e *Evaluator) peer(c *connection, d model.Direction) int32 {
	other := &c.from
	if d == model.Egress {
		other = &c.to
	}
	switch {
	case other.seat == nil && d == model.Egress:
		return e.world.UnownedByName(other.addr(), c.flow.ToDomain)
	case other.seat == nil:
		return e.world.UnownedIndex(other.addr())
	case d == model.Ingress && !c.sameHost:
		return other.seat.Seen
	}
	return other.seat.Exact
}
