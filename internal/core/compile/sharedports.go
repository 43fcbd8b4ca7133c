package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// claim is a listening socket of one of the workloads at a shared address.
type claim struct {
	proto    model.Proto
	port     uint16
	rank     int // how exactly it names the address: smaller is more exact
	identity int32
}

// claimant is a workload at a shared address, with the identity that it has there.
type claimant struct {
	*model.Instance
	identity int32
}

// portOwners finds the ports of a shared address whose listening socket belongs to one identity. The kernel gives a
// connection to the most exactly bound socket, so that one owns the port; where workloads of several identities
// listen equally exactly, nobody does.
func portOwners(addr netip.Addr, claimants []claimant) []portOwner {
	var claims []claim
	for i := range claimants {
		c := &claimants[i]
		for k := range c.Listening {
			l := &c.Listening[k]
			if rank, ok := bound(l.Addr.Unmap().WithZone(""), addr); ok {
				claims = append(claims, claim{l.Proto, l.Port, rank, c.identity})
			}
		}
	}
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port), cmp.Compare(a.rank, b.rank), cmp.Compare(a.identity, b.identity))
	})
	var out []portOwner
	for i := 0; i < len(claims); {
		c, unique := claims[i], true
		for ; i < len(claims) && claims[i].proto == c.proto && claims[i].port == c.port; i++ {
			if claims[i].rank == c.rank && claims[i].identity != c.identity {
				unique = false
			}
		}
		if unique {
			out = append(out, portOwner{c.proto, c.port, c.identity})
		}
	}
	return out
}

// bound reports whether a socket bound to the address at gets traffic for addr, and how exactly it says so. One
// bound to :: takes IPv4 too unless it was told not to; then nobody listens there, and owning the port does no harm.
func bound(at, addr netip.Addr) (rank int, ok bool) {
	switch {
	case at == addr:
		return 0, true
	case at.IsUnspecified() && at.Is4() == addr.Is4():
		return 1, true
	case at.IsUnspecified() && at.Is6():
		return 2, true
	}
	return 0, false
}
