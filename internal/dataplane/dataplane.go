// Package dataplane is the port between an agent and what judges packets in the kernel.
//
// Implementations are ebpf (programs at a cgroup of version 2), nft (one table of nftables) and fake (in memory, for tests of
// the agent).
// Package dataplanetest holds the conformance suite that every implementation runs.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Errors of the port. Implementations wrap them with what exactly is missing and what to do about it.
var (
	// ErrUnsupported says that this machine cannot run the dataplane at all.
	ErrUnsupported = errors.New("dataplane is not supported here")
	// ErrRefused says that a state cannot be held or expressed; the one before stays in force, whole.
	ErrRefused = errors.New("policy refused")
)

// Dataplane judges the packets of one host. Apply, Isolate, BreakGlass, Remove and Close may be called from one goroutine at a
// time; the others from any.
type Dataplane interface {
	// Capabilities says what this implementation can and cannot enforce on this kernel.
	Capabilities() Capabilities

	// Apply makes state the one that judges. It is atomic (a packet is judged by the old state or by the new one),
	// idempotent (what is there already is not touched) and complete: when it returns, live TCP connections that
	// are no longer allowed have been reset. On an error that wraps ErrRefused nothing has changed.
	Apply(ctx context.Context, state *State) (ApplyStats, error)

	// Isolate judges the workload by its pre-compiled isolation set from now on (on), or by the set of the last
	// applied state again. It survives Apply until it is lifted. An unknown workload is an error.
	Isolate(ctx context.Context, workload string, on bool) error

	// Beat says that the agent is there, which it does about once a second. After Capabilities.AgentLoss without, workloads are
	// judged as their OnAgentLoss says, essentials excepted, until the next Beat. Before the first one ever nothing is lost. It
	// does not wait for Apply.
	Beat(ctx context.Context) error

	// BreakGlass lets everything pass until then, also what is isolated. It ends by itself, whether or not there is an agent
	// then, or when it is called with a time that is past. It outlives Apply and Close, but not Remove.
	BreakGlass(ctx context.Context, until time.Time) error

	// Glass returns until when everything passes because of BreakGlass, and the zero time if nothing does.
	Glass() time.Time

	// Repair looks whether what the dataplane has put into the kernel is still there and says what it said. What is not is put
	// back, and connections are judged again. It returns what it found, a sentence each, and an error for what it could not put
	// back. Called twice a second it costs next to nothing: what is large is looked through in turns. It does not wait for Apply.
	Repair(ctx context.Context) ([]string, error)

	// Events calls fn for each event until ctx ends. The event is valid during the call only. One caller at a time.
	// Events that could not be delivered are counted in Counters.EventsLost.
	Events(ctx context.Context, fn func(*Event)) error

	// Counters returns totals since the dataplane was installed; they survive a restart of the agent.
	Counters() (Counters, error)

	// Close lets go of the dataplane and leaves it in force: verdicts go on without an agent.
	Close() error

	// Remove takes the dataplane out of the kernel and leaves nothing behind. Nothing is judged any more.
	Remove() error
}

// State is everything a dataplane needs to judge.
type State struct {
	Policy *hostpolicy.Policy
	// Units maps the names of units, of Policy.Subjects and of process constraints, to the cgroups that are that unit now,
	// as absolute paths of cgroup directories. What is below such a cgroup belongs to the unit; what is below none belongs
	// to the host.
	// A unit without a cgroup is not running; it is judged as soon as a later Apply names its cgroup.
	Units map[string][]string
	// Users maps the names of users in process constraints to their numbers on this host. Nobody is a user without one;
	// a user that is named by number needs none.
	Users map[string]uint32
}

// ApplyStats says what Apply did.
type ApplyStats struct {
	Changed     bool          // false: everything was there already
	Rows        int           // policy rows now in the kernel
	RowsWritten int           // rows written by this call
	Addresses   int           // addresses and prefixes now in the kernel
	Reset       int           // live connections that were cut
	Took        time.Duration // wall time
}

// Capabilities says what can be enforced. Every false or missing feature has a line in Limits.
type Capabilities struct {
	Kind        string        // "ebpf", "nftables", "fake"
	Kernel      string        // release of the running kernel
	ResetTCP    bool          // live TCP connections are reset when they are no longer allowed
	ConnectErr  bool          // a denied connect fails at once instead of timing out
	Errno       string        // name of the errno with which it does, and a denied datagram that stays on this host
	ProcessInfo bool          // events name the local process
	AgentLoss   time.Duration // without a Beat until OnAgentLoss holds; 0: the last policy always stays
	LiveBytes   bool          // what a TCP connection carries is told while it lives, not only when it ends
	Processes   bool          // rules may depend on the local process
	Domains     bool          // rules may name hosts, whose addresses are learnt from answers of DNS
	Namespaces  bool          // sockets are judged in whatever network namespace they are, not only in that of the agent
	Backlog     bool          // what happens while no agent is there is told to the next one
	SocketFlows bool          // a flow without a connection (UDP, raw) ends with its socket, not only by its silence
	ExactBytes  bool          // what a connection has carried is told to the byte; else one received may be missing
	Frames      bool          // packets that no inet socket of this host sends or receives are judged too, where they pass its interfaces
	PeersAtOnce bool          // who is at the other end of an older loopback connection is known before its next packet
	Routes      bool          // of a packet that its sender routes the end is judged too; else it is dropped where policy denies anything
	Limits      []string      // plain sentences about what this implementation does not enforce
}

// Check reports the first thing in a well-formed policy that cannot be enforced here, with the rule that asks for it.
// Such a policy is refused: a rule that is enforced in part opens or closes what nobody asked for.
func (c *Capabilities) Check(p *hostpolicy.Policy) error {
	if rule := p.ProcessRule(); rule != "" && !c.Processes {
		return fmt.Errorf("rule %s is for some processes only, which the %s dataplane cannot tell apart yet: leave process out, or declare the unit as a workload", rule, c.Kind)
	}
	if len(p.Domains) > 0 && !c.Domains {
		return fmt.Errorf("a rule names the hosts %s, which the %s dataplane cannot follow yet: name their addresses by cidr or network", p.Domains[0].Pattern, c.Kind)
	}
	return nil
}

// EventKind says what happened.
type EventKind uint8

// The kinds of event.
const (
	EventOpen   EventKind = iota + 1 // a flow was judged for the first time under this policy and may go on
	EventDeny                        // a flow was judged and dropped; Count packets since the last such event
	EventUpdate                      // counters of a live flow since the last event of it
	EventClose                       // a flow ended; counters since the last event of it
)

// Event is something that happened to one flow at this host.
type Event struct {
	Kind     EventKind
	Time     time.Time
	Workload string          // the subject, as Policy.Subjects names it
	Dir      model.Direction // who opened it: Egress if this host did
	Proto    model.Proto
	Port     uint16         // destination port of the flow; of ICMP type<<8|code
	Local    netip.AddrPort // of this host; port 0 for ICMP
	Remote   netip.AddrPort
	// RemoteWorkload is set when the other end is on this host, where the kernel knows it exactly.
	RemoteWorkload string
	RemoteIdentity model.IdentityID // zero: the default judged
	Verdict        model.Verdict    // Allow, WouldDeny or Deny
	Rule           model.RuleID
	Rejudged       bool // the flow was open before and has been judged again (EventOpen, EventDeny)
	Existing       bool // the flow was open before the dataplane was installed (EventOpen)
	Process        Process
	Count          uint64 // EventDeny: attempts this event stands for, at least 1
	BytesSent      uint64 // payload, by this host
	BytesReceived  uint64
	PacketsSent    uint64 // zero where only bytes are counted (TCP)
	PacketsRecv    uint64
}

// Process is the local process of a flow: the one that made the socket.
type Process struct {
	PID    uint32 // zero: not known
	UID    uint32
	Name   string // comm, up to 15 bytes
	Cgroup uint64 // id of its cgroup
	Start  uint64 // boot-time clock ticks in nanoseconds at which it started; with PID it is unambiguous
}

// Counters are totals since the dataplane was installed.
type Counters struct {
	Judged      uint64 // slow-path evaluations
	Allowed     uint64 // flows
	WouldDenied uint64
	Denied      uint64 // flows
	DroppedPkts uint64
	EventsLost  uint64
	Errors      uint64 // packets that could not be parsed or looked up; they were judged by the default
	Transit     uint64 // packets of others that passed interfaces of this host unjudged
	NamesLost   uint64 // host names of addresses that did not fit: rules for them do not hold there

	// Not totals, but how many there are, counted every few seconds: pairs of a host name and an address that answers of
	// resolvers have told and that are not over, and addresses of which rules know a name.
	Names, NamedAddresses uint64
}
