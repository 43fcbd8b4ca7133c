// Package model holds every noun of Bulkhead: documents, workloads, identities, flows and verdicts.
//
// It imports the standard library only, does no I/O, reads no clock and starts no goroutine. Everything else in
// internal/core, the agent, the controller and the command line speaks in these types. The zero value of a verdict
// denies. Values are plain data: they may be copied and shared between goroutines as long as nobody writes to them.
package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// APIVersion is the apiVersion of every document.
const APIVersion = "bulkhead/v1"

// SystemLabelPrefix starts the label keys that only the system sets (DESIGN: bulkhead/quarantine, bulkhead/cloud, …).
const SystemLabelPrefix = "bulkhead/"

// QuarantineLabel is the system label that a quarantine lease sets to its level.
const QuarantineLabel = SystemLabelPrefix + "quarantine"

// Position is a place in a source file. Line and Column count from 1; zero means unknown.
type Position struct {
	File         string
	Line, Column int
}

// String returns file:line:column, leaving out what is unknown.
func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.Column == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Compare orders positions by file, line and column.
func (p Position) Compare(q Position) int {
	return cmp.Or(strings.Compare(p.File, q.File), cmp.Compare(p.Line, q.Line), cmp.Compare(p.Column, q.Column))
}

// Kind names a kind of document.
type Kind string

// The kinds of document there are.
const (
	KindWorkload    Kind = "Workload"
	KindService     Kind = "Service"
	KindNetwork     Kind = "Network"
	KindSegment     Kind = "Segment"
	KindPolicy      Kind = "Policy"
	KindGuardrail   Kind = "Guardrail"
	KindExpectation Kind = "Expectation"
)

// Kinds lists every kind in the order in which documents are written out.
var Kinds = []Kind{KindService, KindNetwork, KindWorkload, KindSegment, KindPolicy, KindGuardrail, KindExpectation}

// Meta is what every document carries.
type Meta struct {
	Name   string
	Labels Labels // Workload only
	Owner  string // who answers for it; free text
	Note   string // why it is there; free text
	Pos    Position
}

// Documents is a parsed set of documents, each list sorted by name. A name is unique within its kind.
type Documents struct {
	Services     []Service
	Networks     []Network
	Workloads    []Workload
	Segments     []Segment
	Policies     []Policy
	Guardrails   []Guardrail
	Expectations []Expectation
	OneSided     []OneSided // of Kubernetes manifests; no document of ours writes them
}

// Workload declares a workload, or adds labels to one that an agent reports under the same name.
type Workload struct {
	Meta
	Addresses []netip.Addr
	Managed   bool  // false: nothing of ours can enforce on it
	Unit      *Unit // nil: the workload is a host, a device or a machine of its own
	// Node is the node that a pod runs on, or the name of the workload itself for the node; "" if it is neither. Traffic
	// between a pod with an address of its own and its node is essential.
	Node string
}

// Unit says that a workload is a part of a host: a systemd service, a container or any other cgroup.
type Unit struct {
	Host string // name of the host's workload
	Name string // name of the unit on that host, such as postgresql.service
}

// Service is a named list of ports.
type Service struct {
	Meta
	Ports []PortRange
}

// Purpose says that the addresses of a network serve one of the essentials (ADR 0002).
type Purpose string

// The purposes a network may have.
const (
	PurposeNone      Purpose = ""
	PurposeResolvers Purpose = "resolvers" // DNS: udp/53 and tcp/53 towards it is never blocked
	PurposeTime      Purpose = "time"      // NTP: udp/123 towards it is never blocked
	PurposeForensic  Purpose = "forensic"  // may reach, and be reached by, isolated workloads
)

// Network is a named set of addresses: every address in one of CIDRs and in none of Except.
type Network struct {
	Meta
	CIDRs   []netip.Prefix
	Except  []netip.Prefix
	Domains []string // host names, or "*." and a suffix: the addresses they resolve to, for as long as they do
	Purpose Purpose
}

// Contains reports whether the network holds the address. IPv4-mapped IPv6 addresses count as IPv4.
func (n *Network) Contains(a netip.Addr) bool {
	a = a.Unmap()
	for _, x := range n.Except {
		if x.Contains(a) {
			return false
		}
	}
	for _, c := range n.CIDRs {
		if c.Contains(a) {
			return true
		}
	}
	return false
}

// Mode is how strictly a segment is kept. The zero value enforces.
type Mode uint8

// The modes, strictest first.
const (
	ModeEnforce   Mode = iota // what is not allowed is dropped
	ModeSelective             // default-deny drops on the listed services only
	ModeObserve               // nothing is dropped; what would be is recorded
)

// String returns the mode as documents spell it.
func (m Mode) String() string {
	switch m {
	case ModeEnforce:
		return "enforce"
	case ModeSelective:
		return "selective"
	case ModeObserve:
		return "observe"
	}
	return "mode(" + fmt.Sprint(uint8(m)) + ")"
}

// Direction is seen from the workload that is judged.
type Direction uint8

// The two directions.
const (
	Ingress Direction = iota
	Egress
)

// Directions lists both, in the order used everywhere.
var Directions = [2]Direction{Ingress, Egress}

// String returns ingress or egress.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// OnAgentLoss says what the kernel does when its agent is gone. The zero value keeps the last policy.
type OnAgentLoss uint8

// The choices for OnAgentLoss.
const (
	LossKeep OnAgentLoss = iota
	LossOpen
	LossClosed
)

// String returns the choice as documents spell it.
func (o OnAgentLoss) String() string {
	return [...]string{"keep", "open", "closed"}[o]
}

// Contain says what the system may do by itself when a workload behaves unusually.
type Contain struct {
	Auto  string // never | propose | act
	Level QuarantineLevel
	TTL   time.Duration
}

// Segment is a set of workloads that is kept in a stated mode.
type Segment struct {
	Meta
	Selector    Selector
	Mode        Mode
	Services    []PortRef   // selective only: the ports on which default-deny drops
	Directions  []Direction // sorted, at least one
	MembersOpen bool        // members: allow — members may talk to each other on everything
	OnAgentLoss OnAgentLoss
	Contain     Contain
}

// Closes reports whether the segment denies by default in the direction.
func (s *Segment) Closes(d Direction) bool {
	for _, x := range s.Directions {
		if x == d {
			return true
		}
	}
	return false
}

// Action is what a rule does. The zero value denies.
type Action uint8

// The actions.
const (
	ActionDeny Action = iota
	ActionAllow
	ActionPass // leave the rest of the tier out; one-sided rules of TierAdmin and TierBaseline only
)

// String returns allow, deny or pass.
func (a Action) String() string { return [...]string{"deny", "allow", "pass"}[a] }

// Policy is a list of rules.
type Policy struct {
	Meta
	Rules []Rule
}

// Rule allows or denies traffic from any of From to any of To on any of On.
type Rule struct {
	Name    string
	Action  Action
	From    []Peer
	To      []Peer
	On      []PortRef
	Expires time.Time // zero: never
	Pos     Position
}

// PeerKind says which field of a Peer counts.
type PeerKind uint8

// The kinds of peer.
const (
	PeerWorkloads PeerKind = iota // Workloads (and Process)
	PeerNetwork                   // Network
	PeerCIDR                      // CIDR
	PeerDomain                    // Domain
	PeerAny                       // every endpoint there is
)

// Peer is one alternative of a rule's from or to.
type Peer struct {
	Kind      PeerKind
	Workloads Selector
	Process   *Process
	Network   string
	CIDR      netip.Prefix
	Except    []netip.Prefix // of CIDR, in one-sided rules only
	Domain    string
	Pos       Position
}

// PortRef is a port as a rule names it: a Service by name, or a literal range.
type PortRef struct {
	Service string // empty: Range counts
	Range   PortRange
	Pos     Position
}

// Via says over how many hops a guardrail must hold.
type Via uint8

// The choices for Via.
const (
	ViaDirect Via = iota
	ViaAny
)

// Guardrail is a property of the whole policy: traffic that must never be allowed.
type Guardrail struct {
	Meta
	From []Peer
	To   []Peer
	On   []PortRef
	Via  Via
}

// Expectation is a unit test of the policy.
type Expectation struct {
	Meta
	Cases []ExpectationCase
}

// ExpectationCase is one expected verdict. From and To are workload names or addresses.
type ExpectationCase struct {
	From, To string
	On       PortRange // a single port or ICMP type
	Expect   Verdict
	Pos      Position
}
