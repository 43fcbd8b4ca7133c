package compile

import (
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// What a controller asks of a Live: a host's policy without its bulk, the sets of it that somebody lacks, and, after a change,
// whom it concerns and what becomes of the addresses that those are told of. From these follows what brings an agent from
// any policy that it had to the present one, over any number of changes.

// HostOutline returns the HostPolicy of a host without the content of its policy sets, which have their IDs only, and without
// addresses and ports; and the hash of the whole. False if there is no such host.
func (l *Live) HostOutline(host string) (*hostpolicy.Policy, hostpolicy.Hash, bool) {
	h := l.hosts[host]
	if h == nil {
		return nil, hostpolicy.Hash{}, false
	}
	l.latest.settleGroup(h.group)
	s := h.group.state
	p := &hostpolicy.Policy{Host: host, Controllers: l.opts.Controllers, Subjects: subjectsOf(h.shape, s), Domains: s.cover.domains}
	for _, j := range distinctSets(s) {
		p.Sets = append(p.Sets, hostpolicy.PolicySet{ID: j.id})
	}
	sums := l.sums(h.group, nil)
	var hasher hostpolicy.Hasher
	hasher.Host(host, p.Subjects)
	return p, hasher.Hash(p.Common(&sums.addresses, &sums.ports)), true
}

// HostSet returns a policy set of a host's HostPolicy; false if there is no such host, or none of that ID among its sets.
func (l *Live) HostSet(host string, id hostpolicy.PolicySetID) (hostpolicy.PolicySet, bool) {
	h := l.hosts[host]
	if h == nil {
		return hostpolicy.PolicySet{}, false
	}
	l.latest.settleGroup(h.group)
	at := slices.IndexFunc(h.group.state.judges, func(j *judgeState) bool { return j.id == id })
	if at < 0 {
		return hostpolicy.PolicySet{}, false
	}
	return l.policySet(h.group.state.judges[at]), true
}

// Functions returns how many functions of ports the Live knows: it forgets none, of policies of long ago neither, so whoever
// sees this number grow far beyond what a new Live would have should make one.
func (l *Live) Functions() int { return len(l.functions.funcs) }

// Told returns what changes in the addresses that one host is told of, nil if nothing; told is false if the host is told
// nothing else at all, joined, left or is not there.
func (c *Changes) Told(host string) (addresses *hostpolicy.AddressDelta, told bool) {
	b := c.open()
	h := b.Live.hosts[host]
	if h == nil {
		return nil, false
	}
	x := (*groupChange)(nil)
	if !h.moved {
		x = b.draw(h.group)
	} else if m := &b.moves[slices.IndexFunc(b.moves, func(m move) bool { return m.host == h })]; m.from != nil {
		x = b.drawMove(m)
	}
	if x == nil {
		return nil, false
	}
	return x.addresses.delta, true
}

// EachTold yields every host that Each yields a delta for, with what changes in the addresses that it is told of, nil if
// nothing. It makes no hashes. Between two of them Told may be called, and whatever else a Live can be asked for.
func (c *Changes) EachTold(yield func(host string, addresses *hostpolicy.AddressDelta) bool) {
	c.open().each(func(g *group, m *move) bool {
		if m != nil {
			return yield(m.host.name, m.change.addresses.delta)
		}
		for _, h := range g.hosts {
			if !h.moved && !yield(h.name, g.change.addresses.delta) {
				return false
			}
		}
		return true
	})
}
