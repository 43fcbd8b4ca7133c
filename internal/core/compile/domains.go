package compile

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// domainClass is a set of host names that policy cannot tell apart: those of which pattern is the most specific pattern
// that covers them. All patterns that cover one of them cover all.
type domainClass struct {
	pattern  string
	networks []int32 // what an address is in by resolving from such a name: indexes into partition.names, sorted
	// netset of an address with such a name, by the netset that it has without.
	netset map[int32]int32
}

// covers reports whether the names of the pattern inner are all names of outer.
func covers(outer, inner string) bool {
	suffix, wild := strings.CutPrefix(outer, "*")
	return outer == inner || wild && strings.HasSuffix(inner, suffix)
}

// addDomains makes the classes of the patterns that the named networks and the literal domains of rules hold. It comes
// after build: an address may have any netset of a cell, or none, beside its name.
func (p *partition) addDomains(networks map[string]*model.Network) {
	holds := map[string][]int32{} // pattern to the networks that list it
	for i, name := range p.names {
		if pattern, ok := strings.CutPrefix(name, model.DomainNetwork("")); ok {
			holds[pattern] = append(holds[pattern], int32(i))
		} else if n := networks[name]; n != nil {
			for _, pattern := range n.Domains {
				holds[pattern] = append(holds[pattern], int32(i))
			}
		}
	}
	if len(holds) == 0 {
		return
	}
	patterns := make([]string, 0, len(holds))
	for pattern := range holds {
		patterns = append(patterns, pattern)
	}
	slices.Sort(patterns)
	bare := int32(len(p.netsets))
	p.domains = make(map[string]*domainClass, len(patterns))
	for _, pattern := range patterns {
		c := &domainClass{pattern: pattern, netset: make(map[int32]int32, bare)}
		for _, wider := range patterns {
			if covers(wider, pattern) {
				c.networks = union(c.networks, holds[wider])
			}
		}
		for n := range bare {
			at := p.intern(union(p.netsets[n].networks, c.networks))
			c.netset[n] = at
			p.netsets[at].domain = true
		}
		p.domains[pattern] = c
		p.classes = append(p.classes, c)
	}
}

// class returns the class of a host name, or nil if policy knows no pattern that covers it.
func (p *partition) class(name string) *domainClass {
	if c := p.domains[name]; c != nil {
		return c
	}
	for {
		dot := strings.IndexByte(name, '.')
		if dot < 0 {
			return nil
		}
		if c := p.domains["*"+name[dot:]]; c != nil {
			return c
		}
		name = name[dot+1:]
	}
}

// UnownedByName returns the index of the identity of a plain address that no workload owns, which was found by resolving
// the host name; None if no network and no domain of the policy holds it. The name has no capital letters and no final
// dot. With the empty name it is UnownedIndex.
func (w *World) UnownedByName(addr netip.Addr, name string) int32 {
	n := w.nets.netsetOf(w.nets.cellOf(addr))
	if name != "" && w.nets.domains != nil {
		if c := w.nets.class(name); c != nil {
			n = c.netset[n]
		}
	}
	return w.nets.netsets[n].unownedIndex
}

// Domains returns the patterns of host names that the policy knows, sorted.
func (w *World) Domains() []string {
	out := make([]string, len(w.nets.classes))
	for i, c := range w.nets.classes {
		out[i] = c.pattern
	}
	return out
}

// domainsOf lists what names make of addresses, as far as the sets tell it. It marks the identities of addresses that
// must be listed for it. With everywhere, all addresses that workloads own must be: else the host would follow names there.
func (w *World) domainsOf(told []bool) (out []hostpolicy.Domain, everywhere bool) {
	out, bases := w.nets.domainsOf(func(netset int32) bool {
		at := w.nets.netsets[netset].unownedIndex
		return at >= 0 && told[at]
	}, func(netset int32) model.IdentityID { return w.nets.netsets[netset].unowned })
	for _, base := range bases {
		everywhere = everywhere || base == 0
		if at := w.nets.netsets[base].unownedIndex; at >= 0 {
			told[at] = true
		}
	}
	return out, everywhere
}

// domainsOf lists what names make of addresses, where is says whether the sets tell the unowned addresses of a netset
// apart and unowned which identity those have. It returns the netsets of which the addresses must be listed for it. If
// names count where nothing is listed, the empty netset is among them and so is every other that addresses have: what is
// not listed must be in no network.
func (p *partition) domainsOf(is func(netset int32) bool, unowned func(netset int32) model.IdentityID) (out []hostpolicy.Domain, bases []int32) {
	// All names that policy knows are listed for a netset, or none: a wider pattern must not stand in for one that is not.
	needed := map[int32]bool{}
	for _, c := range p.classes {
		for base, with := range c.netset {
			if base != with && (is(base) || is(with)) {
				needed[base] = true
			}
		}
	}
	for _, c := range p.classes {
		for base, with := range c.netset {
			if base != with && needed[base] {
				out = append(out, hostpolicy.Domain{
					Pattern: c.pattern, Base: unowned(base), Identity: unowned(with),
				})
			}
		}
	}
	for n := range p.netsets {
		if base := int32(n); needed[base] || needed[0] && p.netsets[n].cells {
			bases = append(bases, base)
		}
	}
	slices.SortFunc(out, func(a, b hostpolicy.Domain) int { return hostpolicy.CompareDomains(&a, &b) })
	return out, bases
}
