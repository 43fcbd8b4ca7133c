package prove

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// Witness is a pair of ends, the ports on which it shows something, and who decides about it.
type Witness struct {
	// Hypothetical says that no such pair exists today: at least one end is a workload that could be. From or To is then "a
	// workload", or "a workload like NAME" if one of the inventory has these labels.
	Hypothetical bool         `json:"hypothetical,omitempty"`
	From         string       `json:"from"`                // a workload, or an address
	FromIs       string       `json:"from_is"`             // its labels, or the networks it is in
	To           string       `json:"to"`                  //
	ToIs         string       `json:"to_is"`               //
	On           []string     `json:"on"`                  // every port of the pair that shows it
	Port         string       `json:"port"`                // one of them
	EgressRule   model.RuleID `json:"egress_rule"`         // who decides about Port at the source
	IngressRule  model.RuleID `json:"ingress_rule"`        // and at the destination
	EgressAt     string       `json:"egress_at,omitempty"` // places of those rules, if they are rules
	IngressAt    string       `json:"ingress_at,omitempty"`
	// FromProcess and ToProcess are the processes of which Port shows it; nil if any does, or one that is not known.
	FromProcess *model.Process `json:"from_process,omitempty"`
	ToProcess   *model.Process `json:"to_process,omitempty"`
	// Hops are the flows from From to To if there is more than one. The ports and rules above are those of the last.
	Hops []Hop `json:"hops,omitempty"`
}

// String returns the witness in one sentence.
func (w *Witness) String() string {
	may := "may"
	if w.Hypothetical {
		may = "could"
	}
	text := fmt.Sprintf("%s %s reach %s on %s", from(w), may, to(w), strings.Join(w.On, ", "))
	if w.Hypothetical {
		text = "nothing breaks it today, but " + text
	}
	if len(w.Hops) > 0 {
		return fmt.Sprintf("%s in %d hops: %s", text, len(w.Hops), hopsText(w.Hops))
	}
	if who := w.deciders(); who != "" {
		return fmt.Sprintf("%s; for %s, %s", text, w.Port, who)
	}
	return text
}

// deciders says who decides at each end; "" if that is not known.
func (w *Witness) deciders() string {
	switch {
	case w.Port == "" || w.EgressRule == "":
		return ""
	case w.EgressRule == w.IngressRule:
		return decider(w.EgressRule, w.EgressAt) + " decides at both ends"
	}
	return fmt.Sprintf("%s decides at the source and %s at the destination", decider(w.EgressRule, w.EgressAt), decider(w.IngressRule, w.IngressAt))
}

// Ends returns the pair and its ports, without who decides.
func (w *Witness) Ends() string {
	if !w.Hypothetical {
		return fmt.Sprintf("%s to %s on %s", w.From, w.To, strings.Join(w.On, ", "))
	}
	return fmt.Sprintf("%s to %s on %s", from(w), to(w), strings.Join(w.On, ", "))
}

func from(w *Witness) string { return fmt.Sprintf("%s (%s)", w.From, w.FromIs) }
func to(w *Witness) string   { return fmt.Sprintf("%s (%s)", w.To, w.ToIs) }

// decider names what decided, with its place or what it means.
func decider(rule model.RuleID, at string) string {
	switch {
	case rule == model.RuleOpen:
		return "open (no segment closes it)"
	case at == "":
		return string(rule)
	}
	return fmt.Sprintf("%s (%s)", rule, at)
}

// witness describes a pair of the inventory.
func (p *proof) witness(f *finding) *Witness {
	w := &Witness{On: f.ports.Strings(p.services), Hypothetical: p.could != nil}
	w.From, w.FromIs = p.end(f.from)
	w.To, w.ToIs = p.end(f.to)
	port, ok := f.ports.First()
	if !ok {
		return w
	}
	w.Port = port.String()
	who := p.u.And(p.u.Whose(f.joint, port.Proto, port.Lo, f.level), f.who)
	flow := &model.Flow{From: f.from.Exactly(), To: f.to.Exactly(), Proto: port.Proto, Port: port.Lo, ToDomain: f.to.Name}
	flow.FromProcess, flow.ToProcess = p.u.Sample(who)
	w.FromProcess, w.ToProcess = flow.FromProcess, flow.ToProcess
	w.FromIs, w.ToIs = withProcess(w.FromIs, flow.FromProcess), withProcess(w.ToIs, flow.ToProcess)
	v, err := p.judge.Judge(flow)
	if err == nil && v.Verdict == f.level.Verdict() {
		w.EgressRule, w.IngressRule = v.Egress.Rule, v.Ingress.Rule
		w.EgressAt, w.IngressAt = p.position(model.Egress, w.EgressRule), p.position(model.Ingress, w.IngressRule)
	}
	return w
}

// withProcess adds to what an end is the process that talks there; nil if any does.
func withProcess(is string, process *model.Process) string {
	if process == nil {
		return is
	}
	return is + ", process " + process.String()
}

// end names an actor, and says what it is.
func (p *proof) end(a *reach.Actor) (name, is string) {
	if p.could != nil {
		return p.could.end(a)
	}
	if a.Domain != "" {
		return "an address", "found by the name " + a.Domain
	}
	return a.End().String(), a.Is()
}

// position returns the place of a rule; "" of what is none.
func (p *proof) position(d model.Direction, id model.RuleID) string {
	if id == model.RuleDefaultDeny {
		return ""
	}
	rules := p.world.Rules(d)
	for i := range rules {
		if rules[i].ID == id {
			return rules[i].Pos.String()
		}
	}
	return ""
}

// imagine describes a pair that could be.
func (p *proof) imagine(sc *scene) *Witness {
	w := &Witness{Hypothetical: true, On: sc.ports.Strings(p.services), Port: sc.port.String()}
	w.From, w.FromIs = p.name(&sc.ends[0])
	w.To, w.ToIs = p.name(&sc.ends[1])
	for i, at := range [2]**model.Process{&w.FromProcess, &w.ToProcess} {
		if process := sc.ends[i].process; process != (model.Process{}) {
			*at = &process
		}
	}
	w.EgressRule, w.IngressRule = sc.says[model.Egress].Rule, sc.says[model.Ingress].Rule
	w.EgressAt, w.IngressAt = p.position(model.Egress, w.EgressRule), p.position(model.Ingress, w.IngressRule)
	return w
}

// name names an end that could be.
func (p *proof) name(f *figure) (name, is string) { return nameIn(p.world.Inventory(), f) }

func nameIn(inv *model.Inventory, f *figure) (name, is string) {
	name, is = f.name()
	if f.kind == address {
		return name, is
	}
	labels := f.identity.Labels.String()
	for i := range inv.Instances {
		if x := &inv.Instances[i]; x.Managed == (f.kind == managed) && len(x.Labels) == len(f.identity.Labels) && x.Labels.String() == labels {
			return "a workload like " + x.Name, is
		}
	}
	return name, is
}
