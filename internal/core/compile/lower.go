package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// lowering turns documents into one-sided rules.
type lowering struct {
	services map[string][]model.PortRange
	networks map[string]*model.Network
	now      time.Time
	errs     Errors
	rules    [2][]Rule // by direction
}

func (l *lowering) fail(pos model.Position, rule model.RuleID, format string, args ...any) {
	l.errs = append(l.errs, &Error{Pos: pos, Rule: rule, Msg: fmt.Sprintf(format, args...)})
}

// lower returns the rules of each direction in the order in which they are asked.
func lower(docs *model.Documents, now time.Time) ([2][]Rule, *lowering) {
	l := &lowering{
		services: make(map[string][]model.PortRange, len(docs.Services)),
		networks: make(map[string]*model.Network, len(docs.Networks)),
		now:      now,
	}
	for i := range docs.Services {
		l.services[docs.Services[i].Name] = docs.Services[i].Ports
	}
	for i := range docs.Networks {
		n := &docs.Networks[i]
		l.networks[n.Name] = n
		if strings.Contains(n.Name, "/") {
			l.fail(n.Pos, "", "network %q: a name has no '/'", n.Name)
		}
		if len(n.Domains) > 0 {
			l.fail(n.Pos, "", "network %q: domains are not supported yet: list addresses under cidrs", n.Name)
		}
	}
	for i := range docs.Guardrails {
		g := &docs.Guardrails[i]
		if g.Via == model.ViaAny {
			l.fail(g.Pos, "", "guardrail %q: via: any is not supported yet: leave via out to check direct traffic", g.Name)
		}
		l.match("", g.From) // for its errors
		l.match("", g.To)
	}
	for _, p := range byName(docs.Policies, func(p *model.Policy) string { return p.Name }) {
		for i := range p.Rules {
			l.native(p, &p.Rules[i])
		}
	}
	for _, s := range byName(docs.Segments, func(s *model.Segment) string { return s.Name }) {
		if s.MembersOpen {
			l.members(s)
		}
	}
	for d := range l.rules {
		slices.SortStableFunc(l.rules[d], func(a, b Rule) int {
			return cmp.Or(cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Priority, b.Priority))
		})
	}
	return l.rules, l
}

// byName returns pointers to the documents, sorted by name.
func byName[T any](list []T, name func(*T) string) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	slices.SortStableFunc(out, func(a, b *T) int { return strings.Compare(name(a), name(b)) })
	return out
}

// native lowers a rule of a Policy.
func (l *lowering) native(p *model.Policy, r *model.Rule) {
	base := Rule{
		ID:      model.NamedRule(p.Name, r.Name),
		Pos:     r.Pos,
		Stage:   StageDeny,
		Action:  Deny,
		Expires: r.Expires,
		Expired: !r.Expires.IsZero() && !l.now.Before(r.Expires),
	}
	if r.Action == model.ActionAllow {
		base.Stage, base.Action = StageAllow, Allow
	}
	base.Ports = l.ports(base.ID, r.On)
	l.bothEnds(base, l.match(base.ID, r.From), l.match(base.ID, r.To))
}

// members lowers members: allow of a segment. It is asked after the allow rules of every policy.
func (l *lowering) members(s *model.Segment) {
	m := Match{Terms: []Term{{Selector: &s.Selector}}}
	l.bothEnds(Rule{
		ID:       model.MembersRule(s.Name),
		Pos:      s.Pos,
		Stage:    StageAllow,
		Priority: 1,
		Action:   Allow,
		Ports:    []model.PortRange{model.AnyPort},
	}, m, m)
}

func (l *lowering) bothEnds(base Rule, from, to Match) {
	egress, ingress := base, base
	egress.Direction, egress.Subject, egress.Peer = model.Egress, from, to
	ingress.Direction, ingress.Subject, ingress.Peer = model.Ingress, to, from
	l.rules[model.Egress] = append(l.rules[model.Egress], egress)
	l.rules[model.Ingress] = append(l.rules[model.Ingress], ingress)
}

func (l *lowering) ports(rule model.RuleID, refs []model.PortRef) []model.PortRange {
	var out []model.PortRange
	for _, ref := range refs {
		if ref.Service == "" {
			out = append(out, ref.Range)
			continue
		}
		ports, ok := l.services[ref.Service]
		if !ok {
			l.fail(ref.Pos, rule, "there is no service %q", ref.Service)
		}
		out = append(out, ports...)
	}
	return out
}

func (l *lowering) match(rule model.RuleID, peers []model.Peer) Match {
	var m Match
	for i := range peers {
		p := &peers[i]
		if p.Process != nil {
			l.fail(p.Pos, rule, "process constraints are not supported yet: leave process out")
		}
		switch p.Kind {
		case model.PeerAny:
			m.Any = true
		case model.PeerWorkloads:
			m.Terms = append(m.Terms, Term{Selector: &p.Workloads})
		case model.PeerNetwork:
			if l.networks[p.Network] == nil {
				l.fail(p.Pos, rule, "there is no network %q", p.Network)
			}
			m.Terms = append(m.Terms, Term{Network: p.Network})
		case model.PeerCIDR:
			m.Terms = append(m.Terms, Term{Network: model.CIDRName(unmapPrefix(p.CIDR))})
		case model.PeerDomain:
			l.fail(p.Pos, rule, "domains are not supported yet: use a network or a cidr")
		default:
			l.fail(p.Pos, rule, "a peer of unknown kind %d", p.Kind)
		}
	}
	if m.Any {
		return Match{Any: true}
	}
	slices.SortFunc(m.Terms, func(a, b Term) int { return strings.Compare(a.Key(), b.Key()) })
	m.Terms = slices.CompactFunc(m.Terms, func(a, b Term) bool { return a.Key() == b.Key() })
	return m
}
