// Package hostpolicy is the compiled form of policy for one host: what the controller sends, what the agent keeps on
// disk and what a dataplane applies. It is the seam between all of them.
//
// A Policy is deterministic: the same world gives the same bytes and so the same Hash. Nothing in it depends on the
// kernel it will run on. It holds data and its canonical encoding only; package compile makes it.
package hostpolicy

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// PolicySetID is the start of the hash of a policy set's content. Zero is no policy set.
type PolicySetID uint64

// Policy is everything one host is given.
type Policy struct {
	Revision  uint64 // the documents' revision it was compiled from; not part of Hash
	Host      string
	Subjects  []Subject   // the host first, then its units, sorted by workload name
	Sets      []PolicySet // sorted by ID; exactly those that Subjects name
	Addresses []Address   // sorted by prefix; only what some policy set tells apart
	Ports     []PortOwner // sorted; tells the units behind shared addresses apart
	Domains   []Domain    // sorted; what a host name makes of the addresses it resolves to
	// Controllers are the addresses at which the agent's controllers answer. The host's own subject may always
	// reach them (essential/controller).
	Controllers []netip.AddrPort
}

// Subject is a workload of this host.
type Subject struct {
	Workload string
	Unit     string // "" for the host itself: whatever no unit owns
	Identity model.IdentityID
	// Set judges the subject's traffic, unless Local has an entry for the local address.
	Set PolicySetID
	// Local lists the policy sets for local addresses whose networks differ from those of the first address.
	// Empty for almost every workload. Sorted by address.
	Local []LocalSet
	// Isolation is the policy set of quarantine level isolate, compiled ahead so that the agent can contain its
	// own host without asking.
	Isolation   PolicySetID
	Quarantine  model.QuarantineLevel
	OnAgentLoss model.OnAgentLoss
}

// LocalSet is the policy set that judges traffic of one local address, and the identity that the workload has there:
// what other workloads of this host, which know it exactly, look up.
type LocalSet struct {
	Addr     netip.Addr
	Identity model.IdentityID
	Set      PolicySetID
}

// PolicySet is the compiled policy of all subjects of one identity.
type PolicySet struct {
	ID      PolicySetID
	Ingress Table
	Egress  Table
}

// Table returns the table of a direction.
func (s *PolicySet) Table(d model.Direction) *Table {
	if d == model.Egress {
		return &s.Egress
	}
	return &s.Ingress
}

// Table says, for each peer, which function of protocol and port gives the verdict. Peers with equal verdicts share
// a function.
type Table struct {
	Funcs []Func     // Funcs[0] judges every peer that Peers does not list; there is always one
	Peers []PeerFunc // sorted by Peer
}

// PeerFunc names the function that judges one peer.
type PeerFunc struct {
	Peer model.IdentityID
	Func uint32 // index into Funcs
}

// Func is a total function of protocol and port: cells sorted by protocol and port. The first cell has protocol
// ProtoAny and the full range; it holds for every protocol that no other cell names. The cells of a named protocol
// are disjoint and together cover 0–65535.
type Func []Cell

// Cell is the verdict for a range of ports of one protocol.
type Cell struct {
	Ports   model.PortRange
	Verdict model.Verdict // a mode that does not drop is already WouldDeny here
	Rule    model.RuleID
	// When lists what decides for some processes of the subject: the first alternative whose constraint the process
	// meets; Verdict and Rule hold for every other.
	When []Alternative
}

// Alternative is the verdict for the processes that meet a constraint.
type Alternative struct {
	Process model.Process
	Verdict model.Verdict
	Rule    model.RuleID
}

// For returns the verdict for a process of the subject; nil if it is not known. It allocates nothing.
func (c *Cell) For(process *model.Process) model.EndVerdict {
	for i := range c.When {
		if a := &c.When[i]; a.Process.Admits(process) {
			return model.EndVerdict{Verdict: a.Verdict, Rule: a.Rule}
		}
	}
	return model.EndVerdict{Verdict: c.Verdict, Rule: c.Rule}
}

// Address says which identity an address or a prefix has. The longest prefix wins; an address that none contains has
// identity zero.
type Address struct {
	Prefix   netip.Prefix // IPv4 is never mapped
	Identity model.IdentityID
	Shared   bool // several workloads have it: Ports may tell which one, else Identity stands for all of them
}

// PortOwner says which identity a destination port of a shared address belongs to.
type PortOwner struct {
	Addr     netip.Addr
	Proto    model.Proto
	Port     uint16
	Identity model.IdentityID
}

// Domain says which identity an address has that no workload owns and that a host name resolves to. Of the patterns that
// cover the name, the most specific one counts.
type Domain struct {
	Pattern  string           // a host name, or "*." and a suffix
	Base     model.IdentityID // what Addresses says of the address
	Identity model.IdentityID // what it is by its name
}

// Find returns the function that judges the peer.
func (t *Table) Find(peer model.IdentityID) Func {
	i, ok := slices.BinarySearchFunc(t.Peers, peer, func(p PeerFunc, id model.IdentityID) int {
		switch {
		case p.Peer < id:
			return -1
		case p.Peer > id:
			return 1
		}
		return 0
	})
	if ok {
		return t.Funcs[t.Peers[i].Func]
	}
	return t.Funcs[0]
}

// Cell returns the cell that decides. It allocates nothing.
func (f Func) Cell(proto model.Proto, port uint16) *Cell {
	lo, hi := 0, len(f)
	for lo < hi { // the first cell after (proto, port)
		mid := int(uint(lo+hi) >> 1)
		c := &f[mid].Ports
		if c.Proto < proto || c.Proto == proto && c.Lo <= port {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 && f[lo-1].Ports.Proto == proto {
		return &f[lo-1]
	}
	return &f[0]
}

// Judge returns the verdict for traffic with the peer, of a process that is not known.
func (t *Table) Judge(peer model.IdentityID, proto model.Proto, port uint16) model.EndVerdict {
	return t.Find(peer).Cell(proto, port).For(nil)
}

// Set returns the policy set of that ID, or nil.
func (p *Policy) Set(id PolicySetID) *PolicySet {
	i, ok := slices.BinarySearchFunc(p.Sets, id, func(s PolicySet, id PolicySetID) int {
		switch {
		case s.ID < id:
			return -1
		case s.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &p.Sets[i]
}
