package hostpolicy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// Packet is the first packet of a flow as one host sees it, with what that host knows about it beyond its bytes.
type Packet struct {
	Workload       string          // the subject: whose socket it is on this host
	Dir            model.Direction // Egress if this host opened the flow
	Local, Remote  netip.Addr      // addresses of the flow, mapped or not
	RemoteWorkload string          // set when the other end is a socket of this host: the subject that owns it
	Proto          model.Proto
	Port           uint16         // destination port; of ICMP type<<8|code
	Process        *model.Process // of the subject; nil if it is not known
	Domain         string         // of Egress: the host name that the subject resolved to Remote; "" if it is not known
}

// Judge answers for a Policy exactly what a dataplane must answer for it. It is the reference for every
// implementation of the dataplane port: the order of its steps is the order in which they must decide.
//
// A Judge is immutable, so it may be used from several goroutines. The policy must not change while it lives.
type Judge struct {
	policy   *Policy
	subjects map[string]*judged
	prefixes bart.Table[int] // index into policy.Addresses
	ports    map[portKey]model.IdentityID
	domains  map[domainKey]model.IdentityID
	patterns map[string]bool
}

type domainKey struct {
	pattern string
	base    model.IdentityID
}

type judged struct {
	*Subject
	set   *PolicySet
	local map[netip.Addr]localSet
}

type localSet struct {
	identity model.IdentityID
	set      *PolicySet
}

type portKey struct {
	addr  netip.Addr
	proto model.Proto
	port  uint16
}

// NewJudge prepares a policy that Check has accepted.
func NewJudge(p *Policy) *Judge {
	j := &Judge{
		policy:   p,
		subjects: make(map[string]*judged, len(p.Subjects)),
		ports:    make(map[portKey]model.IdentityID, len(p.Ports)),
		domains:  make(map[domainKey]model.IdentityID, len(p.Domains)),
		patterns: make(map[string]bool),
	}
	for i := range p.Subjects {
		s := &p.Subjects[i]
		d := &judged{Subject: s, set: p.Set(s.Set)}
		for _, l := range s.Local {
			if d.local == nil {
				d.local = make(map[netip.Addr]localSet, len(s.Local))
			}
			d.local[l.Addr] = localSet{l.Identity, p.Set(l.Set)}
		}
		j.subjects[s.Workload] = d
	}
	for i := range p.Addresses {
		j.prefixes.Insert(p.Addresses[i].Prefix, i)
	}
	for _, o := range p.Ports {
		j.ports[portKey{o.Addr, o.Proto, o.Port}] = o.Identity
	}
	for _, d := range p.Domains {
		j.domains[domainKey{d.Pattern, d.Base}] = d.Identity
		j.patterns[d.Pattern] = true
	}
	return j
}

// Judge returns the verdict at this host's end and the identity that the other end was judged for. Traffic of a
// workload that is no subject of this host is denied by no rule.
func (j *Judge) Judge(pkt *Packet) (model.EndVerdict, model.IdentityID) {
	s := j.subjects[pkt.Workload]
	if s == nil {
		return model.EndVerdict{}, 0
	}
	local, remote := pkt.Local.Unmap(), pkt.Remote.Unmap()
	peer := j.Peer(pkt)
	if rule, ok := essential.Match(pkt.Proto, pkt.Port); ok {
		return model.EndVerdict{Verdict: model.Allow, Rule: rule}, peer
	}
	if pkt.RemoteWorkload == pkt.Workload {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleSameWorkload}, peer
	}
	if j.controller(s, pkt.Dir, local, remote, pkt.Proto, pkt.Port) {
		return model.EndVerdict{Verdict: model.Allow, Rule: model.RuleController}, peer
	}
	set := s.set
	if l, ok := s.local[local]; ok {
		set = l.set
	}
	return set.Table(pkt.Dir).Find(peer).Cell(pkt.Proto, pkt.Port).For(pkt.Process), peer
}

// Peer returns the identity that the other end of the packet is judged for. A socket of this host is known exactly;
// behind an address that several workloads share, the owner of the destination port is; else the address tells.
func (j *Judge) Peer(pkt *Packet) model.IdentityID {
	remote := pkt.Remote.Unmap()
	if r := j.subjects[pkt.RemoteWorkload]; r != nil {
		if l, ok := r.local[remote]; ok {
			return l.identity
		}
		return r.Identity
	}
	i, ok := j.prefixes.Lookup(remote)
	if !ok {
		return j.named(pkt, 0)
	}
	a := &j.policy.Addresses[i]
	if a.Shared && pkt.Dir == model.Egress {
		if id, ok := j.ports[portKey{remote, pkt.Proto, pkt.Port}]; ok {
			return id
		}
	}
	return j.named(pkt, a.Identity)
}

// named returns what the other end is by its name, where it is base by its address. The most specific pattern that
// covers the name counts.
func (j *Judge) named(pkt *Packet, base model.IdentityID) model.IdentityID {
	if pkt.Dir != model.Egress || len(j.domains) == 0 {
		return base
	}
	pattern := pkt.Domain
	for rest := pkt.Domain; !j.patterns[pattern]; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return base
		}
		pattern, rest = "*"+rest[dot:], rest[dot+1:]
	}
	if id, ok := j.domains[domainKey{pattern, base}]; ok {
		return id
	}
	return base
}

// controller reports whether the flow is one between an agent and its controller: the host's own subject on its way
// to a controller, or anybody on the way to the port of a controller that answers at this host.
func (j *Judge) controller(s *judged, d model.Direction, local, remote netip.Addr, proto model.Proto, port uint16) bool {
	if proto != model.ProtoTCP {
		return false
	}
	at := local
	if d == model.Egress {
		if s.Unit != "" {
			return false
		}
		at = remote
	}
	return slices.Contains(j.policy.Controllers, netip.AddrPortFrom(at, port))
}

// Isolated returns a copy of the policy in which the isolation set judges the named workloads. Names that are no
// subject do not count. What is not replaced is shared with p.
func (p *Policy) Isolated(workloads ...string) *Policy {
	out := *p
	out.Subjects = slices.Clone(p.Subjects)
	for i := range out.Subjects {
		s := &out.Subjects[i]
		if !slices.Contains(workloads, s.Workload) {
			continue
		}
		s.Set = s.Isolation
		s.Quarantine = model.QuarantineIsolate
		s.Local = slices.Clone(s.Local)
		for k := range s.Local {
			s.Local[k].Set = s.Isolation
		}
	}
	return &out
}
