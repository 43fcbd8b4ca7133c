package ebpf

import (
	"maps"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// mapped4 is the prefix of every IPv4 address. It always has an entry, or ::/0 would hold for IPv4.
var mapped4 = netKeyOf(netip.MustParsePrefix("0.0.0.0/0"))

// planAddresses compares addresses, port owners and controllers.
func (t *transition) planAddresses(h *held) {
	prefixes := map[netKey]value{mapped4: {}}
	for _, a := range t.policy.Addresses {
		if !a.Prefix.IsSingleIP() {
			prefixes[netKeyOf(a.Prefix)] = valueOf(&a)
		}
	}
	addresses := func(yield func(address, value) bool) { // there may be very many
		for i := range t.policy.Addresses {
			a := &t.policy.Addresses[i]
			if a.Prefix.IsSingleIP() && !yield(addressOf(a.Prefix.Addr()), valueOf(a)) {
				return
			}
		}
	}
	before, after := newCover(h.prefixes.held), newCover(prefixes)
	t.addresses = h.addresses.diff(addresses,
		func(a address) value { return before.find(netKey{Bits: 129, Addr: a}) },
		func(a address) value { return after.find(netKey{Bits: 129, Addr: a}) })
	t.prefixes = h.prefixes.diff(maps.All(prefixes), before.find, after.find)

	ports := map[portKey]value{}
	for _, o := range t.policy.Ports {
		ports[portKey{Addr: addressOf(o.Addr), Port: o.Port, Proto: uint8(o.Proto)}] = value{id: uint64(o.Identity)}
	}
	t.ports = h.ports.diff(maps.All(ports), nil, nil)
	controllers := map[portKey]value{}
	for _, c := range t.policy.Controllers {
		controllers[portKey{Addr: addressOf(c.Addr()), Port: c.Port(), Proto: uint8(model.ProtoTCP)}] = value{id: 1}
	}
	t.controllers = h.controllers.diff(maps.All(controllers), nil, nil)
}

func valueOf(a *hostpolicy.Address) value { return value{id: uint64(a.Identity), shared: a.Shared} }

// cover finds the longest prefix that covers a key and is shorter than it.
type cover struct {
	prefixes map[netKey]value
	lengths  []uint32 // longest first
}

func newCover(prefixes map[netKey]value) *cover {
	c := &cover{prefixes: prefixes}
	for k := range prefixes {
		if !slices.Contains(c.lengths, k.Bits) {
			c.lengths = append(c.lengths, k.Bits)
		}
	}
	slices.Sort(c.lengths)
	slices.Reverse(c.lengths)
	return c
}

func (c *cover) find(k netKey) value {
	for _, n := range c.lengths {
		if n >= k.Bits {
			continue
		}
		if v, ok := c.prefixes[masked(k.Addr, n)]; ok {
			return v
		}
	}
	return value{}
}

func masked(a address, bits uint32) netKey {
	for i := range a {
		switch keep := int(bits) - 32*i; {
		case keep <= 0:
			a[i] = 0
		case keep < 32:
			a[i] &= networkOrder32(^uint32(0) << (32 - keep))
		}
	}
	return netKey{Bits: bits, Addr: a}
}
