package compile

import (
	"cmp"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// HostPolicy returns what the agent of the host is given; false if there is no such host. It is what a World of the
// same documents and workloads gives.
func (l *Live) HostPolicy(host string) (*hostpolicy.Policy, bool) {
	h := l.hosts[host]
	if h == nil {
		return nil, false
	}
	l.latest.settleGroup(h.group)
	s := h.group.state
	p := &hostpolicy.Policy{Host: host, Controllers: l.opts.Controllers, Subjects: subjectsOf(h.shape, s)}
	for _, j := range distinctSets(s) {
		p.Sets = append(p.Sets, l.policySet(j))
	}
	g := &l.gathering
	addresses, ports := append(g.upsert[:0], s.cover.prefixes...), g.upsertPorts[:0]
	list := func(at *place) {
		x := l.block(at)
		addresses, ports = append(addresses, x.Addresses...), append(ports, x.Ports...)
	}
	for _, cell := range s.cover.cells {
		for _, at := range l.cells[cell].places {
			list(at)
		}
	}
	l.outside(l.view(s, 0), list)
	g.upsert, g.upsertPorts = addresses[:0], ports[:0]
	p.Addresses, p.Ports, p.Domains = g.addresses(addresses), g.ports(ports), s.cover.domains
	return p, true
}

// HostHash returns the hash of HostPolicy without making it; false if there is no such host.
func (l *Live) HostHash(host string) (hostpolicy.Hash, bool) {
	h := l.hosts[host]
	if h == nil {
		return hostpolicy.Hash{}, false
	}
	l.latest.settleGroup(h.group)
	var hasher hostpolicy.Hasher
	hasher.Host(h.name, subjectsOf(h.shape, h.group.state))
	return hasher.Hash(l.common(h.group.state, l.sums(h.group, nil))), true
}

// common returns what the hashes of a group's hosts have in common.
func (l *Live) common(s *groupState, sums *addressSums) hostpolicy.Common {
	p := &hostpolicy.Policy{Controllers: l.opts.Controllers, Domains: s.cover.domains}
	for _, j := range distinctSets(s) {
		p.Sets = append(p.Sets, hostpolicy.PolicySet{ID: j.id})
	}
	return p.Common(&sums.addresses, &sums.ports)
}

// Hosts returns the names of every host with an agent, sorted.
func (l *Live) Hosts() []string {
	out := make([]string, 0, len(l.hosts))
	for name := range l.hosts {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// distinctSets returns the policy sets that the subjects name, sorted by ID.
func distinctSets(s *groupState) []*judgeState {
	out := slices.Clone(s.judges)
	slices.SortFunc(out, func(a, b *judgeState) int { return cmp.Compare(a.id, b.id) })
	return slices.CompactFunc(out, func(a, b *judgeState) bool { return a.id == b.id })
}

func subjectsOf(shape []hostSubject, s *groupState) []hostpolicy.Subject {
	return appendSubjects(make([]hostpolicy.Subject, 0, len(shape)), shape, s)
}

func appendSubjects(dst []hostpolicy.Subject, shape []hostSubject, s *groupState) []hostpolicy.Subject {
	for k := range shape {
		dst = append(dst, subjectOf(&shape[k], &s.subjects[k]))
	}
	return dst
}

func subjectOf(h *hostSubject, s *subjectState) hostpolicy.Subject {
	out := hostpolicy.Subject{
		Workload: h.workload, Unit: h.unit, Identity: h.identity, Set: s.set.id, Isolation: s.isolation.id,
		Quarantine: h.quarantine, OnAgentLoss: s.loss,
	}
	for i, at := range h.locals {
		out.Local = append(out.Local, hostpolicy.LocalSet{Addr: at.addr, Identity: at.identity, Set: s.locals[i].id})
	}
	return out
}

func (l *Live) policySet(j *judgeState) hostpolicy.PolicySet {
	return hostpolicy.PolicySet{
		ID: j.id, Ingress: l.hostTable(j.contents[model.Ingress]), Egress: l.hostTable(j.contents[model.Egress]),
	}
}

func (l *Live) hostTable(c *content) hostpolicy.Table {
	s := &l.gathering.sorter
	s.list = s.list[:0]
	c.each(func(peer, fn int32) { s.list = append(s.list, keyed{uint64(l.ids.ids[peer]), fn}) })
	if len(s.list) < manyToo {
		slices.SortFunc(s.list, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	} else {
		s.sort()
	}
	n := &l.numbering
	n.reset(len(l.functions.funcs))
	n.add(c.def)
	out := hostpolicy.Table{}
	if len(s.list) > 0 {
		out.Peers = make([]hostpolicy.PeerFunc, len(s.list))
	}
	for i, r := range s.list {
		out.Peers[i] = hostpolicy.PeerFunc{Peer: model.IdentityID(r.key), Func: n.add(r.at)}
	}
	out.Funcs = n.funcs(l.functions.functions)
	return out
}
