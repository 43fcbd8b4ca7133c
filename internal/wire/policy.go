package wire

import (
	"fmt"
	"net/netip"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// PolicyToProto returns the policy as a snapshot message. It shares no memory with p that anybody writes to.
func PolicyToProto(p *hostpolicy.Policy) *pb.HostPolicy {
	m := &pb.HostPolicy{
		Revision:    p.Revision,
		Host:        p.Host,
		Subjects:    make([]*pb.Subject, len(p.Subjects)),
		Sets:        make([]*pb.PolicySet, len(p.Sets)),
		Addresses:   make([]*pb.Address, len(p.Addresses)),
		Ports:       make([]*pb.PortOwner, len(p.Ports)),
		Controllers: controllersToProto(p.Controllers),
		Domains:     domainsToProto(p.Domains),
	}
	for i := range p.Subjects {
		m.Subjects[i] = subjectToProto(&p.Subjects[i])
	}
	for i := range p.Sets {
		m.Sets[i] = setToProto(&p.Sets[i])
	}
	for i := range p.Addresses {
		m.Addresses[i] = addressToProto(&p.Addresses[i])
	}
	for i := range p.Ports {
		m.Ports[i] = portToProto(&p.Ports[i])
	}
	return m
}

// PolicyFromProto is the inverse of PolicyToProto. It refuses whatever is not a well-formed policy.
func PolicyFromProto(m *pb.HostPolicy) (*hostpolicy.Policy, error) {
	if m == nil {
		return nil, fmt.Errorf("the message holds no policy")
	}
	p := &hostpolicy.Policy{Revision: m.GetRevision(), Host: m.GetHost()}
	var err error
	if p.Subjects, err = convert("subject", m.GetSubjects(), subjectFromProto); err != nil {
		return nil, err
	}
	if p.Sets, err = convert("policy set", m.GetSets(), setFromProto); err != nil {
		return nil, err
	}
	if p.Addresses, err = convert("address", m.GetAddresses(), addressFromProto); err != nil {
		return nil, err
	}
	if p.Ports, err = convert("port owner", m.GetPorts(), portFromProto); err != nil {
		return nil, err
	}
	if p.Controllers, err = controllersFromProto(m.GetControllers()); err != nil {
		return nil, err
	}
	if p.Domains, err = domainsFromProto(m.GetDomains()); err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return p, nil
}

// convert turns every message of a list; an empty list gives nil, so that equal policies are deeply equal.
func convert[M, T any](what string, in []M, from func(M) (T, error)) ([]T, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]T, len(in))
	for i, m := range in {
		v, err := from(m)
		if err != nil {
			return nil, fmt.Errorf("%s %d: %w", what, i, err)
		}
		out[i] = v
	}
	return out, nil
}

func controllersToProto(list []netip.AddrPort) []string {
	out := make([]string, len(list))
	for i, c := range list {
		out[i] = c.String()
	}
	return out
}

func controllersFromProto(list []string) ([]netip.AddrPort, error) {
	return convert("controller", list, netip.ParseAddrPort)
}

func domainsToProto(list []hostpolicy.Domain) []*pb.Domain {
	out := make([]*pb.Domain, len(list))
	for i, d := range list {
		out[i] = &pb.Domain{Pattern: d.Pattern, Base: uint64(d.Base), Identity: uint64(d.Identity)}
	}
	return out
}

func domainsFromProto(list []*pb.Domain) ([]hostpolicy.Domain, error) {
	return convert("domain", list, func(m *pb.Domain) (hostpolicy.Domain, error) {
		d := hostpolicy.Domain{Pattern: m.GetPattern(), Base: model.IdentityID(m.GetBase()), Identity: model.IdentityID(m.GetIdentity())}
		if d.Pattern == "" {
			return d, fmt.Errorf("it names no host")
		}
		return d, nil
	})
}

func subjectToProto(s *hostpolicy.Subject) *pb.Subject {
	m := &pb.Subject{
		Workload:    s.Workload,
		Unit:        s.Unit,
		Identity:    uint64(s.Identity),
		Set:         uint64(s.Set),
		Isolation:   uint64(s.Isolation),
		Quarantine:  LevelToProto(s.Quarantine),
		OnAgentLoss: pb.OnAgentLoss(s.OnAgentLoss),
	}
	for _, l := range s.Local {
		m.Local = append(m.Local, &pb.LocalSet{Addr: AddrToProto(l.Addr), Identity: uint64(l.Identity), Set: uint64(l.Set)})
	}
	return m
}

func subjectFromProto(m *pb.Subject) (hostpolicy.Subject, error) {
	s := hostpolicy.Subject{
		Workload:  m.GetWorkload(),
		Unit:      m.GetUnit(),
		Identity:  model.IdentityID(m.GetIdentity()),
		Set:       hostpolicy.PolicySetID(m.GetSet()),
		Isolation: hostpolicy.PolicySetID(m.GetIsolation()),
	}
	if s.Workload == "" {
		return s, fmt.Errorf("it names no workload")
	}
	var err error
	if s.Quarantine, err = LevelFromProto(m.GetQuarantine()); err != nil {
		return s, err
	}
	if s.OnAgentLoss, err = LossFromProto(m.GetOnAgentLoss()); err != nil {
		return s, err
	}
	s.Local, err = convert("local address", m.GetLocal(), func(m *pb.LocalSet) (hostpolicy.LocalSet, error) {
		a, err := AddrFromProto(m.GetAddr())
		return hostpolicy.LocalSet{Addr: a, Identity: model.IdentityID(m.GetIdentity()), Set: hostpolicy.PolicySetID(m.GetSet())}, err
	})
	return s, err
}

func setToProto(s *hostpolicy.PolicySet) *pb.PolicySet {
	return &pb.PolicySet{Id: uint64(s.ID), Ingress: tableToProto(&s.Ingress), Egress: tableToProto(&s.Egress)}
}

func setFromProto(m *pb.PolicySet) (hostpolicy.PolicySet, error) {
	s := hostpolicy.PolicySet{ID: hostpolicy.PolicySetID(m.GetId())}
	var err error
	if s.Ingress, err = tableFromProto(m.GetIngress()); err != nil {
		return s, fmt.Errorf("ingress: %w", err)
	}
	if s.Egress, err = tableFromProto(m.GetEgress()); err != nil {
		return s, fmt.Errorf("egress: %w", err)
	}
	return s, nil
}

func tableToProto(t *hostpolicy.Table) *pb.Table {
	m := &pb.Table{Funcs: make([]*pb.Func, len(t.Funcs))}
	for i, f := range t.Funcs {
		cells := make([]*pb.Cell, len(f))
		for j := range f {
			c := &f[j]
			cells[j] = &pb.Cell{
				Proto:   uint32(c.Ports.Proto),
				Lo:      uint32(c.Ports.Lo),
				Hi:      uint32(c.Ports.Hi),
				Verdict: VerdictToProto(c.Verdict),
				Rule:    string(c.Rule),
				When:    whenToProto(c.When),
			}
		}
		m.Funcs[i] = &pb.Func{Cells: cells}
	}
	if n := len(t.Peers); n > 0 {
		m.Peers, m.PeerFuncs = make([]uint64, n), make([]uint32, n)
		for i, p := range t.Peers {
			m.Peers[i], m.PeerFuncs[i] = uint64(p.Peer), p.Func
		}
	}
	return m
}

func tableFromProto(m *pb.Table) (hostpolicy.Table, error) {
	var t hostpolicy.Table
	var err error
	t.Funcs, err = convert("function", m.GetFuncs(), func(m *pb.Func) (hostpolicy.Func, error) {
		return convert("cell", m.GetCells(), cellFromProto)
	})
	if err != nil {
		return t, err
	}
	peers, funcs := m.GetPeers(), m.GetPeerFuncs()
	if len(peers) != len(funcs) {
		return t, fmt.Errorf("%d peers have %d functions", len(peers), len(funcs))
	}
	if len(peers) > 0 {
		t.Peers = make([]hostpolicy.PeerFunc, len(peers))
		for i := range peers {
			t.Peers[i] = hostpolicy.PeerFunc{Peer: model.IdentityID(peers[i]), Func: funcs[i]}
		}
	}
	return t, nil
}

func cellFromProto(m *pb.Cell) (hostpolicy.Cell, error) {
	proto, lo, err := PortFromProto(m.GetProto(), m.GetLo())
	if err != nil {
		return hostpolicy.Cell{}, err
	}
	_, hi, err := PortFromProto(m.GetProto(), m.GetHi())
	if err != nil {
		return hostpolicy.Cell{}, err
	}
	v, err := VerdictFromProto(m.GetVerdict())
	if err != nil {
		return hostpolicy.Cell{}, err
	}
	when, err := convert("alternative", m.GetWhen(), alternativeFromProto)
	return hostpolicy.Cell{
		Ports:   model.PortRange{Proto: proto, Lo: lo, Hi: hi},
		Verdict: v,
		Rule:    model.RuleID(m.GetRule()),
		When:    when,
	}, err
}

func whenToProto(when []hostpolicy.Alternative) []*pb.Alternative {
	var out []*pb.Alternative // nil of almost every cell
	for _, a := range when {
		out = append(out, &pb.Alternative{
			Unit: a.Process.Unit, Path: a.Process.Path, User: a.Process.User, Verdict: VerdictToProto(a.Verdict), Rule: string(a.Rule),
		})
	}
	return out
}

func alternativeFromProto(m *pb.Alternative) (hostpolicy.Alternative, error) {
	v, err := VerdictFromProto(m.GetVerdict())
	return hostpolicy.Alternative{
		Process: model.Process{Unit: m.GetUnit(), Path: m.GetPath(), User: m.GetUser()}, Verdict: v, Rule: model.RuleID(m.GetRule()),
	}, err
}

func addressToProto(a *hostpolicy.Address) *pb.Address {
	return &pb.Address{
		Addr:     AddrToProto(a.Prefix.Addr()),
		Bits:     uint32(a.Prefix.Bits()),
		Identity: uint64(a.Identity),
		Shared:   a.Shared,
	}
}

func addressFromProto(m *pb.Address) (hostpolicy.Address, error) {
	addr, err := AddrFromProto(m.GetAddr())
	if err != nil {
		return hostpolicy.Address{}, err
	}
	if m.GetBits() > uint32(addr.BitLen()) {
		return hostpolicy.Address{}, fmt.Errorf("%s has no prefix of %d bits", addr, m.GetBits())
	}
	return hostpolicy.Address{
		Prefix:   netip.PrefixFrom(addr, int(m.GetBits())),
		Identity: model.IdentityID(m.GetIdentity()),
		Shared:   m.GetShared(),
	}, nil
}

func portToProto(o *hostpolicy.PortOwner) *pb.PortOwner {
	return &pb.PortOwner{
		Addr:     AddrToProto(o.Addr),
		Proto:    uint32(o.Proto),
		Port:     uint32(o.Port),
		Identity: uint64(o.Identity),
	}
}

func portFromProto(m *pb.PortOwner) (hostpolicy.PortOwner, error) {
	addr, err := AddrFromProto(m.GetAddr())
	if err != nil {
		return hostpolicy.PortOwner{}, err
	}
	proto, port, err := PortFromProto(m.GetProto(), m.GetPort())
	return hostpolicy.PortOwner{Addr: addr, Proto: proto, Port: port, Identity: model.IdentityID(m.GetIdentity())}, err
}
