package compile

import (
	"slices"
	"strconv"

	"bulkhead/internal/core/model"
)

// portValues finds the numbers that named ports have: what one named port means differs from workload to workload, so a
// rule with one lowers to a rule for each number that some workload gives the name.
type portValues map[string][]string // label key to its values, sorted

// newPortValues reads the inventory only if a one-sided policy names a port.
func newPortValues(docs *model.Documents, inv *model.Inventory) portValues {
	named := namedPorts(docs)
	if len(named) == 0 {
		return nil
	}
	for i := range inv.Instances {
		named.add(inv.Instances[i].Labels)
	}
	named.sort()
	return named
}

// namedPorts returns the ports that one-sided policies name, without numbers.
func namedPorts(docs *model.Documents) portValues {
	named := portValues{}
	for i := range docs.OneSided {
		for k := range docs.OneSided[i].Rules {
			for _, n := range docs.OneSided[i].Rules[k].Named {
				named[n.PortLabel()] = nil
			}
		}
	}
	return named
}

// add notes the numbers that a workload gives to ports.
func (p portValues) add(labels model.Labels) {
	for k, v := range labels {
		if list, ok := p[k]; ok && !slices.Contains(list, v) {
			p[k] = append(list, v)
		}
	}
}

func (p portValues) sort() {
	for _, list := range p {
		slices.Sort(list)
	}
}

// oneSided lowers a one-sided policy.
func (l *lowering) oneSided(p *model.OneSided) {
	for i := range p.Rules {
		l.oneSidedRule(p, &p.Rules[i])
	}
	for _, d := range model.Directions {
		if p.Isolates[d] {
			l.rules[d] = append(l.rules[d], Rule{
				ID: model.RuleDefaultDeny, Pos: p.Pos, Stage: StageIsolation, Action: Deny, Direction: d, Drops: true,
				Subject: Match{Terms: []Term{{Selector: &p.Subject}}}, Peer: Match{Any: true}, Ports: []model.PortRange{model.AnyPort},
			})
		}
	}
}

func (l *lowering) oneSidedRule(p *model.OneSided, r *model.OneSidedRule) {
	rule := Rule{ID: model.OneSidedRuleID(p.Name, r.Name), Pos: r.Pos, Direction: r.Direction, Drops: true}
	switch p.Tier {
	case model.TierAdmin:
		rule.Stage, rule.Priority = StageAdmin, p.Priority
	case model.TierBaseline:
		rule.Stage, rule.Priority = StageBaseline, p.Priority
	default:
		rule.Stage = StageAllow
	}
	switch r.Action {
	case model.ActionAllow:
		rule.Action = Allow
	case model.ActionPass:
		rule.Action = Pass
	}
	if rule.Stage == StageAllow && rule.Action != Allow || rule.Action == Pass && rule.Stage != StageAdmin && rule.Stage != StageBaseline {
		l.fail(r.Pos, rule.ID, "a rule of the %s tier cannot %s", p.Tier, r.Action)
		return
	}
	add := func(subject, peer Match, ports []model.PortRange) {
		if len(ports) == 0 || !peer.Any && len(peer.Terms) == 0 {
			return
		}
		rule.Subject, rule.Peer, rule.Ports = subject, peer, ports
		l.rules[r.Direction] = append(l.rules[r.Direction], rule)
	}
	subject, peer := Match{Terms: []Term{{Selector: &p.Subject}}}, l.match(rule.ID, r.Peers, farEnd)
	add(subject, peer, r.Ports)
	for _, n := range r.Named {
		for _, value := range l.portValues[n.PortLabel()] {
			number, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				continue // no manifest gives a port such a number
			}
			has := model.Requirement{Key: n.PortLabel(), Op: model.OpIn, Values: []string{value}}
			ports := []model.PortRange{{Proto: n.Proto, Lo: uint16(number), Hi: uint16(number)}}
			if r.Direction == model.Ingress {
				add(subject.which(has), peer, ports)
			} else {
				add(subject, peer.which(has), ports)
			}
		}
	}
}

// which returns the workloads of the match whose labels meet one more requirement.
func (m *Match) which(r model.Requirement) Match {
	if m.Any {
		return Match{Terms: []Term{{Selector: &model.Selector{Requirements: []model.Requirement{r}}}}}
	}
	var out Match
	for _, t := range m.Terms {
		if t.Selector != nil {
			s := t.Selector.With(r)
			out.Terms = append(out.Terms, Term{Selector: &s})
		}
	}
	return out
}
