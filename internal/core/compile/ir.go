package compile

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Stage is the place of a rule in the order of decision. At one end of a flow the rules of an earlier stage are asked
// first; within a stage the first rule that applies decides.
type Stage uint8

// The stages. Essentials and quarantine are judged before all of them, the default after. Kubernetes kinds lower to
// the same stages: cluster-wide admin tiers to StageAdmin, NetworkPolicy to StageAllow and StageIsolation, the baseline
// tier to StageBaseline.
const (
	StageAdmin Stage = iota
	StageDeny
	StageAllow
	StageIsolation // what nothing allowed is denied to the subjects of a one-sided policy that isolates them
	StageBaseline
)

// Action is what a one-sided rule does where it applies.
type Action uint8

// The actions. The zero value denies.
const (
	Deny Action = iota
	Allow
	Pass // leave the rest of the stage out; in StageAdmin and StageBaseline only
)

// String returns deny, allow or pass.
func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Pass:
		return "pass"
	}
	return "deny"
}

// Rule is the intermediate form: one rule, seen from one end. A rule of a Policy lowers to two, an egress rule whose
// subjects are its from and an ingress rule whose subjects are its to. Everything that decides reads this form only,
// so another language of rules needs a lowering and nothing else.
type Rule struct {
	ID        model.RuleID
	Pos       model.Position
	Stage     Stage
	Priority  int // within the stage, smaller first; equal priorities keep the order of lowering
	Action    Action
	Direction model.Direction
	Subject   Match
	Peer      Match
	Ports     []model.PortRange
	// SubjectProcess constrains the process at the subject; nil constrains nothing. A process at the peer is seen
	// and constrained there, by the rule's other side.
	SubjectProcess *model.Process
	Drops          bool      // a denial drops whatever the mode of the subject's segments
	Expires        time.Time // zero: never
	Expired        bool      // past Expires: kept to be explained, never applied

	name    uint32 // index of ID in the compiler's names
	subject int32  // index of Subject and Peer in the compiler's matches
	peer    int32
}

// Covers reports whether the rule speaks about the protocol and port.
func (r *Rule) Covers(proto model.Proto, port uint16) bool {
	for _, p := range r.Ports {
		if p.Contains(proto, port) {
			return true
		}
	}
	return false
}

// Match says which ends a rule means: every end there is, or those that any of Terms matches.
type Match struct {
	Any   bool
	Terms []Term // sorted by Key, distinct; empty if Any
}

// Term is one alternative of a Match: workloads by their labels, or any address in a network.
type Term struct {
	Selector *model.Selector // nil: Network counts
	Network  string          // name of a network, or of a literal CIDR or domain as package model writes it
}

// Key returns the canonical text of the term.
func (t Term) Key() string {
	if t.Selector != nil {
		return "s" + t.Selector.String()
	}
	return "n" + t.Network
}

// Matches reports whether the term means ends of the identity.
func (t Term) Matches(id *model.Identity) bool {
	if t.Selector != nil {
		return id.Owned && t.Selector.Matches(id.Labels)
	}
	return slices.Contains(id.Networks, t.Network)
}

// Matches reports whether the match means ends of the identity.
func (m *Match) Matches(id *model.Identity) bool {
	if m.Any {
		return true
	}
	for i := range m.Terms {
		if m.Terms[i].Matches(id) {
			return true
		}
	}
	return false
}

// String returns the match as a person reads it.
func (m *Match) String() string {
	if m.Any {
		return "any"
	}
	parts := make([]string, len(m.Terms))
	for i, t := range m.Terms {
		switch {
		case t.Selector == nil:
			parts[i] = "network " + t.Network
		case t.Selector.Empty():
			parts[i] = "every workload"
		default:
			parts[i] = t.Selector.String()
		}
	}
	return strings.Join(parts, " or ")
}

// key returns the canonical text of the match.
func (m *Match) key() string {
	if m.Any {
		return "any"
	}
	var b strings.Builder
	for _, t := range m.Terms {
		b.WriteString(t.Key())
		b.WriteByte(0)
	}
	return b.String()
}

// unmapPrefix returns the prefix with IPv4-mapped IPv6 written as IPv4, masked.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// CIDRName returns the name of the network that a peer of kind CIDR stands for.
func CIDRName(p *model.Peer) string { return cidrName(p) }

func cidrName(p *model.Peer) string {
	except := make([]netip.Prefix, len(p.Except))
	for i, x := range p.Except {
		except[i] = unmapPrefix(x)
	}
	return model.CIDRName(unmapPrefix(p.CIDR), except...)
}
