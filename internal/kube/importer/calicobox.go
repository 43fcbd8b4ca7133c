package importer

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// box is a product: what of the policy's own pods, whom at the other end, on which ports.
type box struct {
	own    []model.Requirement // beside those of the policy
	peer   model.Peer
	ranges []model.PortRange
	named  []model.NamedPort
}

var everything = box{peer: model.Peer{Kind: model.PeerAny}, ranges: anyPort}

// and returns what is in both boxes: at least that if over, else at most that. exact reports whether it is neither more nor
// less.
func (b *box) and(o *box, over bool) (out []box, exact bool) {
	own := model.NewSelector(slices.Concat(b.own, o.own)...)
	if own.Contradiction() != "" {
		return nil, true
	}
	peer, some, peersExact := andPeers(&b.peer, &o.peer)
	if !some {
		return nil, true
	}
	x := box{own: own.Requirements, peer: peer}
	exact = x.ports(b, o, over) && peersExact
	if !peersExact && !over || len(x.ranges)+len(x.named) == 0 {
		return nil, exact
	}
	return []box{x}, exact
}

// andPeers returns who is in both. Where that cannot be said it returns the peer that has labels, who are more.
func andPeers(a, b *model.Peer) (p model.Peer, some, exact bool) {
	switch {
	case a.Kind == model.PeerAny:
		return *b, true, true
	case b.Kind == model.PeerAny:
		return *a, true, true
	case a.Kind == model.PeerWorkloads && b.Kind == model.PeerWorkloads:
		s := a.Workloads.With(b.Workloads.Requirements...)
		return model.Peer{Kind: model.PeerWorkloads, Workloads: s}, s.Contradiction() == "", true
	case a.Kind == model.PeerCIDR && b.Kind == model.PeerCIDR:
		if !a.CIDR.Overlaps(b.CIDR) {
			return p, false, true
		}
		inner := a.CIDR
		if b.CIDR.Bits() > inner.Bits() {
			inner = b.CIDR
		}
		except, left := less(inner, slices.Concat(a.Except, b.Except))
		return addresses(inner, except...), left, true
	case a.Kind == model.PeerWorkloads:
		return *a, true, false
	}
	return *b, true, false
}

// ports sets the ports of the box to those of both others, and reports whether that is exact: a port by name has other numbers at
// every destination.
func (b *box) ports(p, q *box, over bool) (exact bool) {
	exact = true
	for _, x := range p.ranges {
		for _, y := range q.ranges {
			if r, ok := andRanges(x, y); ok {
				b.ranges = append(b.ranges, r)
			}
		}
	}
	byName := func(named []model.NamedPort, o *box) {
		for _, n := range named {
			covered, touched := slices.Contains(o.named, n), false
			for _, r := range o.ranges {
				covered = covered || r.Lo == 0 && r.Hi == 65535 && (r.Proto == model.ProtoAny || r.Proto == n.Proto)
				touched = touched || r.Proto == model.ProtoAny || r.Proto == n.Proto
			}
			for _, m := range o.named {
				touched = touched || m.Proto == n.Proto
			}
			switch {
			case covered:
				b.named = append(b.named, n)
			case touched:
				exact = false
				if over {
					b.named = append(b.named, n)
				}
			}
		}
	}
	byName(p.named, q)
	byName(q.named, p)
	slices.SortFunc(b.ranges, compareRanges)
	b.ranges = slices.Compact(b.ranges)
	slices.SortFunc(b.named, func(a, b model.NamedPort) int {
		if a.Proto != b.Proto {
			return int(a.Proto) - int(b.Proto)
		}
		return strings.Compare(a.Name, b.Name)
	})
	b.named = slices.Compact(b.named)
	return exact
}

func compareRanges(a, b model.PortRange) int {
	if a.Proto != b.Proto {
		return int(a.Proto) - int(b.Proto)
	}
	if a.Lo != b.Lo {
		return int(a.Lo) - int(b.Lo)
	}
	return int(a.Hi) - int(b.Hi)
}

func andRanges(a, b model.PortRange) (model.PortRange, bool) {
	if a.Proto == model.ProtoAny {
		a.Proto = b.Proto
	} else if b.Proto != model.ProtoAny && a.Proto != b.Proto {
		return a, false
	}
	a.Lo, a.Hi = max(a.Lo, b.Lo), min(a.Hi, b.Hi)
	return a, a.Lo <= a.Hi
}

// without returns the ranges less the ports of others, all of one protocol.
func without(ranges, others []model.PortRange) []model.PortRange {
	for _, o := range others {
		var out []model.PortRange
		for _, r := range ranges {
			if o.Hi < r.Lo || o.Lo > r.Hi {
				out = append(out, r)
				continue
			}
			if r.Lo < o.Lo {
				out = append(out, model.PortRange{Proto: r.Proto, Lo: r.Lo, Hi: o.Lo - 1})
			}
			if o.Hi < r.Hi {
				out = append(out, model.PortRange{Proto: r.Proto, Lo: o.Hi + 1, Hi: r.Hi})
			}
		}
		ranges = out
	}
	return ranges
}

// inFamily returns the ranges of addresses of the IP version; every one for 0.
func inFamily(list []netip.Prefix, version int) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool {
		return version == 4 && !p.Addr().Is4() || version == 6 && p.Addr().Is4()
	})
}
