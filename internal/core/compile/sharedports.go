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

// portOwners finds the ports of a shared address whose listening socket belongs to one identity. The kernel gives a
// connection to the most exactly bound socket, so that one owns the port; where workloads of several identities
// listen equally exactly, nobody does.
func (w *World) portOwners(s *sharedAddress) []portOwner {
	var claims []claim
	for _, p := range s.points {
		wl := &w.workloads[w.points[p].workload]
		for i := range wl.Listening {
			l := &wl.Listening[i]
			if rank, ok := bound(l.Addr.Unmap().WithZone(""), s.addr); ok {
				claims = append(claims, claim{l.Proto, l.Port, rank, w.points[p].exact})
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
