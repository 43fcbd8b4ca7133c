package nft

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Policy sets. Each is two maps for each direction: peers says which function judges an identity, and cells gives the
// verdict of a function for a protocol and a port. They are named after their content and never change, so what a packet
// finds in them belongs together whatever happens meanwhile.

func peersName(id hostpolicy.PolicySetID, dir model.Direction) string {
	return fmt.Sprintf("peers-%016x-%s", uint64(id), letter(dir))
}

func cellsName(id hostpolicy.PolicySetID, dir model.Direction) string {
	return fmt.Sprintf("cells-%016x-%s", uint64(id), letter(dir))
}

// letter stands for an end of a flow in names: that of its client, or that of its server.
func letter(dir model.Direction) string {
	if dir == model.Egress {
		return "e"
	}
	return "i"
}

// lowerTable returns the maps of one direction of a policy set.
func lowerTable(t *hostpolicy.Table) (peers, cells *set) {
	peers = &set{fields: []field{typeIdentity}, value: typeFound, members: map[string]element{}}
	peers.put(element{value: string(be32(0))})
	for _, p := range t.Peers {
		if p.Func != 0 {
			peers.put(element{key: string(be64(uint64(p.Peer))), value: string(be32(p.Func))})
		}
	}
	cells = &set{fields: []field{typeNumber, typeProtocol, typePort}, value: typeFound, ranges: true, members: map[string]element{}}
	for i, f := range t.Funcs {
		for _, b := range blocks(f) {
			cells.put(element{
				key:   cellKey(uint32(i), b.proto, b.ports.Lo),
				last:  cellKey(uint32(i), b.lastProto, b.ports.Hi),
				value: string(ne32(uint32(b.verdict))),
			})
		}
	}
	return peers, cells
}

func cellKey(function uint32, proto model.Proto, port uint16) string {
	k := append(be32(function), byte(proto), 0, 0, 0)
	return string(append(append(k, be16(port)...), 0, 0))
}

// block is a range of ports of a range of protocols with one verdict.
type block struct {
	proto, lastProto model.Proto
	ports            model.PortRange
	verdict          model.Verdict
}

// blocks returns the function as blocks, of which every protocol and port is in exactly one. Which rule decides is not in
// them: the evaluator says that of what is told.
func blocks(f hostpolicy.Func) (out []block) {
	next := 0 // the first protocol that is in no block yet
	others := func(until int) {
		if next < until {
			out = append(out, block{model.Proto(next), model.Proto(until - 1), model.AnyPort, f[0].Verdict})
		}
	}
	for i := range f[1:] {
		c := &f[i+1]
		p := int(c.Ports.Proto)
		if p >= next {
			others(p)
			next = p + 1
		} else if last := &out[len(out)-1]; last.verdict == c.Verdict {
			last.ports.Hi = c.Ports.Hi
			continue
		}
		out = append(out, block{c.Ports.Proto, c.Ports.Proto, c.Ports, c.Verdict})
	}
	others(256)
	return out
}

// addressMaps are the maps that say whose an address is.
type addressMaps struct {
	hosts4, hosts6   hosts
	nets4, nets6     *set
	owners4, owners6 *set
	spans4, spans6   []span
	nets4Name        string
	nets6Name        string
	prefixes         int
}

// hosts are the single addresses of a family: a map that is there already, and one of what differs from it, which is asked
// first. Neither ever changes, and yet few addresses that do are few to be written.
type hosts struct {
	all            int
	base, over     *set
	baseID, overID string // names of the maps; there is no second one if overID is ""
}

// overlaid is how many addresses may differ before a map is written anew.
const overlaid = 512

// lowerHosts makes the maps of addresses with these identities. An address that is not among them any more has that of
// its prefix.
func lowerHosts(family string, length int, want map[string]element, before *hosts, prefix func(addr string) string) hosts {
	h := hosts{all: len(want)}
	if before != nil && before.base != nil {
		over := map[string]element{}
		for k, e := range want {
			if old, ok := before.base.members[k]; !ok || old != e {
				over[k] = e
			}
			if len(over) > overlaid {
				break
			}
		}
		for k, e := range before.base.members {
			if _, ok := want[k]; !ok {
				e.value = prefix(k)
				over[k] = e
			}
			if len(over) > overlaid {
				break
			}
		}
		if len(over) <= min(overlaid, len(want)/4) {
			h.base, h.baseID = before.base, before.baseID
			if len(over) > 0 {
				h.over = &set{fields: []field{addressOf(length)}, value: typeIdentity, members: over}
				h.overID = contentName("over"+family, over)
			}
			return h
		}
	}
	h.base = &set{fields: []field{addressOf(length)}, value: typeIdentity, members: want}
	h.baseID = contentName("hosts"+family, want)
	return h
}

func contentName(prefix string, members map[string]element) string {
	h := sha256.New()
	for _, k := range sorted(members) {
		fmt.Fprintf(h, "%x %x\n", k, members[k].value)
	}
	return fmt.Sprintf("%s-%x", prefix, h.Sum(nil)[:8])
}

// lowerAddresses makes the maps for a policy, of those of the policy before as much as stays.
func lowerAddresses(p *hostpolicy.Policy, before *addressMaps) *addressMaps {
	hosts4, hosts6 := map[string]element{}, map[string]element{}
	m := &addressMaps{
		owners4: &set{fields: []field{typeAddress4, typeProtocol, typePort}, value: typeIdentity, members: map[string]element{}},
		owners6: &set{fields: []field{typeAddress6, typeProtocol, typePort}, value: typeIdentity, members: map[string]element{}},
	}
	var nets4, nets6 []hostpolicy.Address
	for _, a := range p.Addresses {
		is4 := a.Prefix.Addr().Is4()
		switch {
		case a.Prefix.IsSingleIP():
			e := element{key: string(a.Prefix.Addr().AsSlice()), value: string(be64(uint64(a.Identity)))}
			if is4 {
				hosts4[e.key] = e
			} else {
				hosts6[e.key] = e
			}
		case is4:
			nets4 = append(nets4, a)
		default:
			nets6 = append(nets6, a)
		}
	}
	m.prefixes = len(nets4) + len(nets6)
	m.spans4, m.spans6 = spans(nets4, netip.IPv4Unspecified()), spans(nets6, netip.IPv6Unspecified())
	m.nets4, m.nets4Name = lowerPrefixes(m.spans4, "4")
	m.nets6, m.nets6Name = lowerPrefixes(m.spans6, "6")
	if before == nil {
		before = &addressMaps{}
	}
	m.hosts4 = lowerHosts("4", 4, hosts4, &before.hosts4, func(a string) string { return prefixOf(m.spans4, a) })
	m.hosts6 = lowerHosts("6", 16, hosts6, &before.hosts6, func(a string) string { return prefixOf(m.spans6, a) })
	if len(p.Ports) > 0 {
		judge := hostpolicy.NewJudge(p)
		for _, o := range p.Ports {
			// The owner counts where the address is one that workloads share: the evaluator knows.
			if judge.Peer(&hostpolicy.Packet{Dir: model.Egress, Remote: o.Addr, Proto: o.Proto, Port: o.Port}) != o.Identity {
				continue
			}
			e := element{key: string(append(append(o.Addr.AsSlice(), byte(o.Proto), 0, 0, 0), append(be16(o.Port), 0, 0)...)),
				value: string(be64(uint64(o.Identity)))}
			if o.Addr.Is4() {
				m.owners4.put(e)
			} else {
				m.owners6.put(e)
			}
		}
	}
	return m
}

// span is a range of addresses of one identity.
type span struct {
	first, last netip.Addr
	identity    model.IdentityID
}

// spans divides the whole family into ranges as the longest prefix says.
func spans(prefixes []hostpolicy.Address, zero netip.Addr) (out []span) {
	all := append([]hostpolicy.Address{{Prefix: netip.PrefixFrom(zero, 0)}}, prefixes...)
	slices.SortStableFunc(all, func(a, b hostpolicy.Address) int {
		if c := a.Prefix.Addr().Compare(b.Prefix.Addr()); c != 0 {
			return c
		}
		return a.Prefix.Bits() - b.Prefix.Bits()
	})
	next := zero // the first address that is in no span yet; invalid after the last
	emit := func(last netip.Addr, id model.IdentityID) {
		if !next.IsValid() || last.Less(next) {
			return
		}
		if n := len(out); n > 0 && out[n-1].identity == id {
			out[n-1].last = last
		} else {
			out = append(out, span{next, last, id})
		}
		next = last.Next()
	}
	var around []hostpolicy.Address
	for _, a := range all {
		for len(around) > 0 && !around[len(around)-1].Prefix.Contains(a.Prefix.Addr()) {
			inner := around[len(around)-1]
			around = around[:len(around)-1]
			emit(lastOf(inner.Prefix), inner.Identity)
		}
		if n := len(around); n > 0 && a.Prefix.Addr() != zero {
			emit(a.Prefix.Addr().Prev(), around[n-1].Identity)
		}
		around = append(around, a)
	}
	for _, a := range slices.Backward(around) {
		emit(lastOf(a.Prefix), a.Identity)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // of a length that fits
	return a
}

// lowerPrefixes returns the map of a family's prefixes, and its name, which is that of its content: like a policy set it
// never changes. It has an answer for every address.
func lowerPrefixes(all []span, family string) (*set, string) {
	s := &set{fields: []field{typeNumber, addressOf(len(all[0].first.AsSlice()))}, value: typeIdentity, ranges: true, members: map[string]element{}}
	for _, r := range all {
		e := element{
			key: "\x00\x00\x00\x00" + string(r.first.AsSlice()), last: "\x00\x00\x00\x00" + string(r.last.AsSlice()),
			value: string(be64(uint64(r.identity))),
		}
		s.put(e)
	}
	return s, contentName("nets"+family, s.members)
}

// prefixOf returns the identity of an address by its prefix, as the maps have it.
func prefixOf(all []span, addr string) string {
	a, _ := netip.AddrFromSlice([]byte(addr)) // a key of the family
	i, _ := slices.BinarySearchFunc(all, a, func(s span, a netip.Addr) int {
		if s.last.Less(a) {
			return -1
		}
		return 0
	})
	return string(be64(uint64(all[i].identity)))
}
