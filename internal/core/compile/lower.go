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
	services   map[string][]model.PortRange
	networks   map[string]*model.Network
	portValues portValues
	now        time.Time
	errs       Errors
	reported   map[Error]bool
	rules      [2][]Rule // by direction
}

func (l *lowering) fail(pos model.Position, rule model.RuleID, format string, args ...any) {
	e := Error{Pos: pos, Rule: rule, Msg: fmt.Sprintf(format, args...)}
	if l.reported[e] { // at the rule's other end
		return
	}
	l.reported[e] = true
	l.errs = append(l.errs, &e)
}

// lower returns the rules of each direction in the order in which they are asked.
func lower(docs *model.Documents, inv *model.Inventory, now time.Time) ([2][]Rule, *lowering) {
	return lowerFor(docs, newPortValues(docs, inv), now)
}

// lowerFor is lower where the numbers of named ports are known.
func lowerFor(docs *model.Documents, values portValues, now time.Time) ([2][]Rule, *lowering) {
	l := newLowering(docs, values, now)
	n := 0 // most policies make one rule in each direction of each
	for i := range docs.Policies {
		n += len(docs.Policies[i].Rules)
	}
	for d := range l.rules {
		l.rules[d] = make([]Rule, 0, n+len(docs.Segments))
	}
	l.guardrails(docs)
	for _, p := range byName(docs.Policies, policyName) {
		for i := range p.Rules {
			l.native(p, &p.Rules[i])
		}
	}
	l.segmentsAndOneSided(docs)
	for d := range l.rules {
		slices.SortStableFunc(l.rules[d], func(a, b Rule) int { return a.compare(&b) })
	}
	return l.rules, l
}

// compare orders rules as they are asked; those that it calls equal keep the order of lowering.
func (r *Rule) compare(o *Rule) int {
	return cmp.Or(cmp.Compare(r.Stage, o.Stage), cmp.Compare(r.Priority, o.Priority))
}

func policyName(p *model.Policy) string { return p.Name }

func newLowering(docs *model.Documents, values portValues, now time.Time) *lowering {
	l := &lowering{
		services:   make(map[string][]model.PortRange, len(docs.Services)),
		networks:   make(map[string]*model.Network, len(docs.Networks)),
		portValues: values,
		now:        now,
		reported:   map[Error]bool{},
	}
	for i := range docs.Services {
		l.services[docs.Services[i].Name] = docs.Services[i].Ports
	}
	for i := range docs.Networks {
		n := &docs.Networks[i]
		l.networks[n.Name] = n
		if strings.ContainsAny(n.Name, "/:") {
			l.fail(n.Pos, "", "network %q: a name has no '/' and no ':'", n.Name)
		}
	}
	return l
}

// guardrails looks for errors in guardrails.
func (l *lowering) guardrails(docs *model.Documents) {
	for i := range docs.Guardrails {
		g := &docs.Guardrails[i]
		l.match("", g.From, nearEnd)
		l.match("", g.To, nearEnd)
	}
}

// segmentsAndOneSided lowers what comes after all policies.
func (l *lowering) segmentsAndOneSided(docs *model.Documents) {
	for _, s := range byName(docs.Segments, func(s *model.Segment) string { return s.Name }) {
		if s.MembersOpen {
			l.members(s)
		}
	}
	for _, p := range byName(docs.OneSided, func(p *model.OneSided) string { return p.Name }) {
		l.oneSided(p)
	}
}

// Lower returns the rules of each direction as Compile makes them of the documents for the inventory: the numbers that named
// ports may have are those that some workload gives them. The documents must compile.
func Lower(docs *model.Documents, inv *model.Inventory, now time.Time) [2][]Rule {
	rules, _ := lower(docs, inv, now)
	return rules
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
		Expired: expired(r.Expires, l.now),
	}
	if r.Action == model.ActionAllow {
		base.Stage, base.Action = StageAllow, Allow
	}
	base.Ports = l.ports(base.ID, r.On)
	l.side(base, model.Egress, r.From, r.To)
	l.side(base, model.Ingress, r.To, r.From)
}

// expired reports whether a rule is past the moment that it expires at; zero is never.
func expired(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// side lowers what a rule says at one end. Peers that constrain the process there make a rule of their own for each
// constraint.
func (l *lowering) side(r Rule, d model.Direction, subjects, peers []model.Peer) {
	r.Direction = d
	r.Peer = l.match(r.ID, peers, farEnd)
	if r.Action == Deny {
		// Which process is at the far end cannot be seen: there the rule's other side denies.
		visible := slices.DeleteFunc(slices.Clone(peers), func(p model.Peer) bool { return p.Process != nil })
		if len(visible) < len(peers) && len(visible) == 0 {
			return
		}
		r.Peer = l.match(r.ID, visible, farEnd)
	}
	var plain []model.Peer
	for i := range subjects {
		if subjects[i].Process == nil {
			plain = append(plain, subjects[i])
			continue
		}
		constrained := r
		constrained.SubjectProcess = subjects[i].Process
		constrained.Subject = l.match(r.ID, subjects[i:i+1], nearEnd)
		l.rules[d] = append(l.rules[d], constrained)
	}
	if len(plain) > 0 || len(subjects) == 0 {
		r.Subject = l.match(r.ID, plain, nearEnd)
		l.rules[d] = append(l.rules[d], r)
	}
}

// membersPriority puts what members may do after the allow rules of every policy.
const membersPriority = 1

// members lowers members: allow of a segment. It is asked after the allow rules of every policy.
func (l *lowering) members(s *model.Segment) {
	m := Match{Terms: []Term{{Selector: &s.Selector}}}
	for _, d := range model.Directions {
		l.rules[d] = append(l.rules[d], Rule{
			ID:        model.MembersRule(s.Name),
			Pos:       s.Pos,
			Stage:     StageAllow,
			Priority:  membersPriority,
			Action:    Allow,
			Direction: d,
			Subject:   m,
			Peer:      m,
			Ports:     []model.PortRange{model.AnyPort},
		})
	}
}

// unmanagedLabel marks, in identities only, the workloads that nothing enforces on: nobody sees their processes, so a rule
// that constrains the process at the far end does not mean them.
const unmanagedLabel = model.SystemLabelPrefix + "unmanaged"

var isManaged = model.Requirement{Key: unmanagedLabel, Op: model.OpNotExists}

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

// end says whether a match is of the workload that is judged, or of who is at the other end.
type end bool

const (
	nearEnd end = false
	farEnd  end = true
)

func (l *lowering) match(rule model.RuleID, peers []model.Peer, at end) Match {
	var m Match
	for i := range peers {
		p := &peers[i]
		switch p.Kind {
		case model.PeerAny:
			m.Any = true
		case model.PeerWorkloads:
			s := &p.Workloads
			if p.Process != nil && at == farEnd {
				managed := s.With(isManaged)
				s = &managed
			}
			m.Terms = append(m.Terms, Term{Selector: s})
		case model.PeerNetwork:
			if l.networks[p.Network] == nil {
				l.fail(p.Pos, rule, "there is no network %q", p.Network)
			}
			m.Terms = append(m.Terms, Term{Network: p.Network})
		case model.PeerCIDR:
			m.Terms = append(m.Terms, Term{Network: cidrName(p)})
		case model.PeerDomain:
			m.Terms = append(m.Terms, Term{Network: model.DomainNetwork(p.Domain)})
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
