package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// address reads the address of a workload.
func (r *reader) address(n *yaml.Node) (netip.Addr, bool) {
	s, ok := r.text(n, "an address")
	if !ok {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		if p, err := netip.ParsePrefix(s); err == nil {
			r.fail(n, "%q is a range of addresses; write the workload's own address, such as %s", clip(s), p.Addr())
		} else {
			r.fail(n, "%q is no address; write one such as 10.0.3.7 or \"fd00::3:7\"", clip(s))
		}
		return netip.Addr{}, false
	}
	a = a.Unmap()
	why := ""
	switch {
	case a.Zone() != "":
		why = "a workload's address has no zone; leave out %" + a.Zone()
	case a.IsUnspecified():
		why = "the unspecified address is nobody's; write the workload's own"
	case a.IsLoopback():
		why = "a loopback address is everybody's own; write the one by which others reach the workload"
	case a.IsMulticast():
		why = "a multicast address is a group's; write the workload's own"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		why = "the broadcast address is everybody's; write the workload's own"
	}
	if why != "" {
		r.fail(n, "address %s: %s", s, why)
		return netip.Addr{}, false
	}
	return a, true
}

// cidr reads a range of addresses.
func (r *reader) cidr(n *yaml.Node) (netip.Prefix, bool) {
	s, ok := r.text(n, "a CIDR")
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil && isAddress(s):
		a := netip.MustParseAddr(s).Unmap().WithZone("")
		r.fail(n, "%q is an address; as a CIDR it is %s", s, netip.PrefixFrom(a, a.BitLen()))
	case err != nil:
		r.fail(n, "%q is no CIDR; %s", clip(s), cidrHint(s))
	case p.Addr().Is4In6():
		r.fail(n, "%q is IPv4 written as IPv6; write it as IPv4", s)
	case p != p.Masked():
		r.fail(n, "%q has bits set after its prefix; write %s for the range, or %s for the one address",
			s, p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// cidrHint says what is wrong with the length, or how a CIDR is written.
func cidrHint(s string) string {
	addr, bits, ok := strings.Cut(s, "/")
	if a, err := netip.ParseAddr(addr); ok && err == nil {
		if a.Is4() {
			return fmt.Sprintf("its length %q must be a number from 0 to 32", bits)
		}
		return fmt.Sprintf("its length %q must be a number from 0 to 128", bits)
	}
	return `write an address and a prefix length, such as 10.9.0.0/16 or "fd00::/8"`
}

// placedPrefix is a CIDR and where it stands.
type placedPrefix struct {
	netip.Prefix
	node *yaml.Node
}

func (r *reader) cidrs(n *yaml.Node, what string) []placedPrefix {
	var out []placedPrefix
	r.each(n, what, true, func(v *yaml.Node) {
		if p, ok := r.cidr(v); ok {
			out = append(out, placedPrefix{p, v})
		}
	})
	return out
}

func prefixes(list []placedPrefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, p.Prefix)
	}
	return out
}

// disjoint reports every CIDR of a list that is within another, and returns those that are not, sorted.
func (r *reader) disjoint(list []placedPrefix, what string) []placedPrefix {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b placedPrefix) int { return a.Prefix.Compare(b.Prefix) })
	var out []placedPrefix
	for _, p := range sorted { // a range is followed by what is within it
		if len(out) == 0 || !out[len(out)-1].Overlaps(p.Prefix) {
			out = append(out, p)
			continue
		}
		wide := out[len(out)-1]
		later, earlier := p, wide
		if r.pos(p.node).Compare(r.pos(wide.node)) < 0 {
			later, earlier = wide, p
		}
		if p.Prefix == wide.Prefix {
			r.fail(later.node, "%s is in %s twice, first at %s; remove one", p, what, r.pos(earlier.node))
		} else {
			r.fail(later.node, "%s overlaps %s at %s; %s lies within %s, so remove it from %s",
				later, earlier, r.pos(earlier.node), p, wide, what)
		}
	}
	return out
}

// String keeps messages free of the node.
func (p placedPrefix) String() string { return p.Prefix.String() }

func (r *reader) network(meta model.Meta, n *yaml.Node) model.Network {
	net := model.Network{Meta: meta}
	var cidrs, except []placedPrefix
	var domains bool
	known := r.mapping(n, "the Network's spec",
		field{"cidrs", "", func(v *yaml.Node) { cidrs = r.cidrs(v, "cidrs") }},
		field{"except", "", func(v *yaml.Node) { except = r.cidrs(v, "except") }},
		field{"domains", "", func(v *yaml.Node) {
			r.each(v, "domains", true, func(v *yaml.Node) {
				domains = true
				if s, ok := r.domain(v); ok {
					net.Domains = append(net.Domains, s)
				}
			})
		}},
		field{"purpose", "", func(v *yaml.Node) {
			if i, ok := r.choice(v, "purpose", purposeNames); ok {
				net.Purpose = model.Purpose(purposeNames[i])
			}
		}},
	)
	if known && !hasList(n, "cidrs") && !domains {
		r.fail(n, "the Network holds no address; list some under cidrs")
	}
	net.CIDRs, net.Except = prefixes(cidrs), prefixes(except)
	wide := r.disjoint(cidrs, "cidrs")
	for _, x := range r.disjoint(except, "except") {
		i, found := slices.BinarySearchFunc(wide, x.Prefix, func(w placedPrefix, p netip.Prefix) int { return w.Prefix.Compare(p) })
		switch {
		case found:
			r.fail(x.node, "%s excepts all of the same range in cidrs; remove both", x)
		case i > 0 && wide[i-1].Overlaps(x.Prefix): // the only one that can hold it
		case i < len(wide) && wide[i].Overlaps(x.Prefix):
			r.fail(x.node, "%s excepts more than %s in cidrs; except a part of it, or remove both", x, wide[i])
		default:
			r.fail(x.node, "%s is not within cidrs, so there is nothing to except; remove it, or add the range around it to cidrs", x)
		}
	}
	return net
}

// hasList reports whether the field is a list with elements, or something else that was reported already.
func hasList(n *yaml.Node, name string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1].Kind != yaml.SequenceNode || len(n.Content[i+1].Content) > 0
		}
	}
	return false
}

func (r *reader) domain(n *yaml.Node) (string, bool) {
	s, ok := r.text(n, "a domain")
	if !ok {
		return "", false
	}
	if why := checkDomain(s); why != "" {
		r.fail(n, "%s", why)
		return "", false
	}
	return s, true
}
