package policy

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// A rule is a box: sources times destinations times ports. One box covers another if it holds all of it. The answer
// errs on one side only: "covers" is never said where something sticks out.
type box struct {
	id       model.RuleID
	rule     *model.Rule
	from, to []peerSet
	on       portSet
	// Signatures rule out most pairs of rules in one step: b can only cover a if b.needs has no bit that a.has lacks.
	needs, has uint64
}

func (h *hygiene) box(id model.RuleID, r *model.Rule) *box {
	b := &box{id: id, rule: r, from: h.peerSets(r.From), to: h.peerSets(r.To), on: h.portSet(r.On)}
	b.needs = needs("from", b.from) | needs("to", b.to)
	b.has = has("from", b.from) | has("to", b.to)
	return b
}

// covers reports whether b holds all of a for as long as a is in force.
func (b *box) covers(a *box) bool {
	if b.needs&^a.has != 0 {
		return false
	}
	return b.outlives(a) && b.on.covers(a.on) && coverPeers(b.from, a.from) && coverPeers(b.to, a.to)
}

// outlives reports whether b is in force for as long as a is.
func (b *box) outlives(a *box) bool {
	return b.rule.Expires.IsZero() || !a.rule.Expires.IsZero() && !a.rule.Expires.After(b.rule.Expires)
}

// peerSet is a peer in the form in which it is compared.
type peerSet struct {
	peer     *model.Peer
	keys     []keySet       // of a workload selector, sorted by key
	prefixes []netip.Prefix // of a network or CIDR
	except   []netip.Prefix
	domains  bool
}

func (h *hygiene) peerSets(list []model.Peer) []peerSet {
	out := make([]peerSet, len(list))
	for i := range list {
		p := &list[i]
		switch out[i].peer = p; p.Kind {
		case model.PeerWorkloads:
			out[i].keys = keySets(&p.Workloads)
		case model.PeerCIDR:
			out[i].prefixes = []netip.Prefix{p.CIDR}
		case model.PeerNetwork:
			if n := h.networks[p.Network]; n != nil {
				out[i].prefixes, out[i].except, out[i].domains = n.CIDRs, n.Except, len(n.Domains) > 0
			}
		}
	}
	return out
}

func workloadSet(s *model.Selector) peerSet {
	return peerSet{peer: &model.Peer{Kind: model.PeerWorkloads}, keys: keySets(s)}
}

// coverPeers reports whether every peer of inner lies within one peer of outer.
func coverPeers(outer, inner []peerSet) bool {
	for i := range inner {
		if !slices.ContainsFunc(outer, func(o peerSet) bool { return o.covers(&inner[i]) }) {
			return false
		}
	}
	return true
}

func (o *peerSet) covers(i *peerSet) bool {
	switch o.peer.Kind {
	case model.PeerAny:
		return true
	case model.PeerWorkloads:
		return i.peer.Kind == model.PeerWorkloads && coverProcess(o.peer.Process, i.peer.Process) && coverKeys(o.keys, i.keys)
	case model.PeerDomain:
		return i.peer.Kind == model.PeerDomain && coverDomain(o.peer.Domain, i.peer.Domain)
	}
	switch {
	case i.peer.Kind != model.PeerNetwork && i.peer.Kind != model.PeerCIDR:
		return false
	case o.peer.Kind == model.PeerNetwork && i.peer.Kind == model.PeerNetwork && o.peer.Network == i.peer.Network:
		return true
	case i.domains || len(i.prefixes) == 0:
		return false
	}
	for _, p := range i.prefixes {
		within := slices.ContainsFunc(o.prefixes, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
		if !within || slices.ContainsFunc(o.except, p.Overlaps) {
			return false
		}
	}
	return true
}

// coverProcess reports whether every process that meets inner meets outer. Nil is met by all.
func coverProcess(outer, inner *model.Process) bool {
	if outer == nil || inner == nil {
		return outer == nil
	}
	within := func(o, i string) bool { return o == "" || o == i }
	return within(outer.Unit, inner.Unit) && within(outer.Path, inner.Path) && within(outer.User, inner.User)
}

// coverDomain reports whether every name that inner means is meant by outer. "*." stands for one or more labels.
func coverDomain(outer, inner string) bool {
	suffix, wild := strings.CutPrefix(outer, "*")
	return outer == inner || wild && strings.HasSuffix(inner, suffix)
}

// anyProcess reports whether some of the peers is constrained to a process.
func anyProcess(lists ...[]peerSet) bool {
	for _, list := range lists {
		if slices.ContainsFunc(list, func(p peerSet) bool { return p.peer.Process != nil }) {
			return true
		}
	}
	return false
}

// keySet is what a selector lets the value of one key be: absent if absent, one of values, or with others any value
// but those.
type keySet struct {
	key    string
	absent bool
	others bool
	values []string // sorted
}

func keySets(s *model.Selector) []keySet {
	var out []keySet
	for i := range s.Requirements {
		r := &s.Requirements[i]
		if len(out) == 0 || out[len(out)-1].key != r.Key {
			out = append(out, keySet{key: r.Key, absent: true, others: true})
		}
		k := &out[len(out)-1]
		switch r.Op {
		case model.OpIn:
			k.absent = false
			k.values = slices.DeleteFunc(slices.Clone(r.Values), func(v string) bool { return !k.allows(v) })
			k.others = false
		case model.OpNotIn:
			if k.others {
				k.values = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(k.values), r.Values...))))
			} else {
				k.values = slices.DeleteFunc(k.values, func(v string) bool { return slices.Contains(r.Values, v) })
			}
		case model.OpExists:
			k.absent = false
		case model.OpNotExists:
			k.others, k.values = false, nil
		}
	}
	return out
}

func (k *keySet) allows(v string) bool { return slices.Contains(k.values, v) != k.others }

// coverKeys reports whether every label set that meets inner meets outer.
func coverKeys(outer, inner []keySet) bool {
	for i := range outer {
		o := &outer[i]
		at, ok := slices.BinarySearchFunc(inner, o.key, func(k keySet, key string) int { return strings.Compare(k.key, key) })
		if !ok || !o.covers(&inner[at]) {
			return false
		}
	}
	return true
}

func (k *keySet) covers(inner *keySet) bool {
	if inner.absent && !k.absent || inner.others && !k.others {
		return false
	}
	if inner.others { // both are all but some: outer must leave out nothing that inner lets in
		return !slices.ContainsFunc(k.values, inner.allows)
	}
	return !slices.ContainsFunc(inner.values, func(v string) bool { return !k.allows(v) })
}

// portSet is the ports of each protocol, in the order of first mention, as sorted ranges that do not touch.
type portSet []protoPorts

type protoPorts struct {
	proto  model.Proto
	ranges [][2]int
}

// of returns the ranges of a protocol. There are few protocols, so looking at each is the fastest.
func (s portSet) of(p model.Proto) [][2]int {
	for i := range s {
		if s[i].proto == p {
			return s[i].ranges
		}
	}
	return nil
}

func (h *hygiene) ranges(ref model.PortRef) []model.PortRange {
	if ref.Service == "" {
		return []model.PortRange{ref.Range}
	}
	if s := h.services[ref.Service]; s != nil {
		return s.Ports
	}
	return nil
}

func (h *hygiene) portSet(refs []model.PortRef) portSet {
	var out portSet
	for _, ref := range refs {
		for _, p := range h.ranges(ref) {
			i := slices.IndexFunc(out, func(x protoPorts) bool { return x.proto == p.Proto })
			if i < 0 {
				i = len(out)
				out = append(out, protoPorts{proto: p.Proto})
			}
			out[i].ranges = append(out[i].ranges, [2]int{int(p.Lo), int(p.Hi)})
		}
	}
	for i := range out {
		out[i].ranges = mergeRanges(out[i].ranges)
	}
	return out
}

func mergeRanges(list [][2]int) [][2]int {
	slices.SortFunc(list, func(a, b [2]int) int { return a[0] - b[0] })
	merged := list[:1]
	for _, r := range list[1:] {
		if last := &merged[len(merged)-1]; r[0] <= last[1]+1 {
			last[1] = max(last[1], r[1])
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

func (s portSet) covers(inner portSet) bool {
	if s.every() {
		return true
	}
	for i := range inner {
		outer := s.of(inner[i].proto)
		for _, r := range inner[i].ranges {
			if !slices.ContainsFunc(outer, func(o [2]int) bool { return o[0] <= r[0] && r[1] <= o[1] }) {
				return false
			}
		}
	}
	return true
}

// meets reports whether the sets have a port in common.
func (s portSet) meets(other portSet) bool {
	if s.every() || other.every() {
		return true
	}
	for i := range other {
		for _, r := range other[i].ranges {
			if slices.ContainsFunc(s.of(other[i].proto), func(o [2]int) bool { return o[0] <= r[1] && r[0] <= o[1] }) {
				return true
			}
		}
	}
	return false
}

// with returns the ports of both sets.
func (s portSet) with(other portSet) portSet {
	var out portSet
	for _, set := range []portSet{s, other} {
		for _, p := range set {
			i := slices.IndexFunc(out, func(x protoPorts) bool { return x.proto == p.proto })
			if i < 0 {
				i = len(out)
				out = append(out, protoPorts{proto: p.proto})
			}
			out[i].ranges = mergeRanges(append(slices.Clone(out[i].ranges), p.ranges...))
		}
	}
	return out
}

// every reports whether the set holds every port of every protocol.
func (s portSet) every() bool { return len(s.of(model.ProtoAny)) > 0 }

func holdsRange(outer, inner model.PortRange) bool {
	return (outer.Proto == model.ProtoAny || outer.Proto == inner.Proto) && outer.Lo <= inner.Lo && inner.Hi <= outer.Hi
}

// needs returns the bits that every peer must have which one of these peers could cover.
func needs(side string, list []peerSet) uint64 {
	bits := ^uint64(0)
	for i := range list {
		bits &= list[i].signature(side)
	}
	if len(list) == 0 {
		return 0
	}
	return bits
}

// has returns the bits of the first peer: whatever covers the list covers it.
func has(side string, list []peerSet) uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[0].signature(side)
}

func (o *peerSet) signature(side string) uint64 {
	switch o.peer.Kind {
	case model.PeerAny:
		return 0
	case model.PeerNetwork, model.PeerCIDR:
		return bit(side, "address")
	case model.PeerDomain:
		return bit(side, "domain")
	}
	bits := bit(side, "workload")
	for i := range o.keys {
		k := &o.keys[i]
		bits |= bit(side, "key", k.key)
		if !k.absent && !k.others && len(k.values) == 1 {
			bits |= bit(side, "value", k.key, k.values[0])
		}
	}
	return bits
}

func bit(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return 1 << (h.Sum64() % 64)
}
