package compile

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// Hosts returns the names of every workload that is judged as a host, sorted.
func (w *World) Hosts() []string {
	var out []string
	for i := range w.workloads {
		if wl := &w.workloads[i]; wl.Host == wl.Name && !wl.IsUnit() {
			out = append(out, wl.Name)
		}
	}
	return out
}

// HostPolicy returns what the host's agent is given; false if there is no such host. A managed workload of which no
// agent is known is a host of its own. The policy shares memory with the world: it must not be changed, apart from
// its Revision.
func (w *World) HostPolicy(host string) (*hostpolicy.Policy, bool) {
	own := w.hostOf(host)
	if own == nil {
		return nil, false
	}
	p := &hostpolicy.Policy{Host: host, Controllers: w.opts.Controllers}
	sets := map[int32]bool{}
	p.Subjects = append(p.Subjects, w.hostSubject(own, sets))
	for _, u := range w.units[host] {
		p.Subjects = append(p.Subjects, w.hostSubject(&w.workloads[u], sets))
	}
	for s := range sets {
		p.Sets = append(p.Sets, w.policySet(s))
	}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	told := w.toldApart(sets)
	var everywhere bool
	p.Domains, everywhere = w.domainsOf(told)
	w.addresses(p, told, everywhere)
	return p, true
}

func (w *World) hostSubject(wl *Workload, sets map[int32]bool) hostpolicy.Subject {
	use := func(set int32) hostpolicy.PolicySetID {
		sets[set] = true
		return w.sets[set].id
	}
	first := &wl.Points[0]
	s := hostpolicy.Subject{
		Workload:    wl.Name,
		Unit:        wl.Unit,
		Identity:    first.Identity,
		Set:         use(first.set),
		Isolation:   use(w.isolation[w.ownPurposes(wl)]),
		Quarantine:  wl.Quarantine.Level,
		OnAgentLoss: w.profiles[wl.labels].onLoss,
	}
	for i := range wl.Points[1:] {
		if at := &wl.Points[1+i]; at.exact != first.exact {
			s.Local = append(s.Local, hostpolicy.LocalSet{Addr: at.Addr, Identity: at.Identity, Set: use(at.set)})
		}
	}
	slices.SortFunc(s.Local, func(a, b hostpolicy.LocalSet) int { return a.Addr.Compare(b.Addr) })
	return s
}

// toldApart marks the identities that some of the sets has a row for.
func (w *World) toldApart(sets map[int32]bool) []bool {
	told := make([]bool, len(w.ids.ids))
	for s := range sets {
		for _, t := range w.sets[s].tables {
			for _, r := range w.tables[t].rows {
				told[r.peer] = true
			}
		}
	}
	return told
}

// addresses lists what the policy's sets tell apart, and nothing else: addresses of identities that have a row, and
// those that a listed prefix, or, if it must be everywhere, a name would give another identity.
func (w *World) addresses(p *hostpolicy.Policy, told []bool, everywhere bool) {
	covered := w.prefixes(p, told)
	listed := make([]bool, len(w.placed.addrs))
	for id, yes := range told {
		if yes {
			for _, a := range w.placed.byIdentity[id] {
				w.list(p, a, listed)
			}
		}
	}
	for cell, under := range covered {
		if under {
			for _, a := range w.placed.byCell[cell] {
				w.list(p, a, listed)
			}
		}
	}
	if everywhere {
		for a := range w.placed.addrs {
			w.list(p, int32(a), listed)
		}
	}
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	slices.SortFunc(p.Ports, func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) })
}

// prefixes lists the prefixes of unowned addresses, and returns for each cell whether an address in it that is not
// listed itself would be taken for an identity that some set tells apart.
func (w *World) prefixes(p *hostpolicy.Policy, told []bool) []bool {
	covered := make([]bool, len(w.nets.cells))
	as := make([]int32, len(w.nets.cells)) // the identity that addresses of the cell are taken for; -1: the default
	for i := range w.nets.cells {
		c := &w.nets.cells[i]
		inherited := int32(-1)
		if c.parent >= 0 {
			inherited = as[c.parent]
		}
		if c.prefix.IsSingleIP() && len(w.placed.byCell[i]) > 0 {
			// Its only address is owned: it is listed as that, or not at all.
			as[i], covered[i] = inherited, inherited >= 0
			continue
		}
		set := &w.nets.netsets[c.netset]
		as[i] = -1
		if set.unownedIndex >= 0 && told[set.unownedIndex] {
			as[i] = set.unownedIndex
		}
		covered[i] = as[i] >= 0
		if as[i] != inherited {
			p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: c.prefix, Identity: set.unowned})
		}
	}
	return covered
}

// list lists an owned address once.
func (w *World) list(p *hostpolicy.Policy, at int32, listed []bool) {
	if listed[at] {
		return
	}
	listed[at] = true
	a := &w.placed.addrs[at]
	p.Addresses = append(p.Addresses, hostpolicy.Address{
		Prefix:   netip.PrefixFrom(a.addr, a.addr.BitLen()),
		Identity: w.ids.ids[a.seen],
		Shared:   a.shared >= 0,
	})
	if a.shared < 0 {
		return
	}
	for _, o := range w.shared[a.shared].ports {
		p.Ports = append(p.Ports, hostpolicy.PortOwner{Addr: a.addr, Proto: o.proto, Port: o.port, Identity: w.ids.ids[o.identity]})
	}
}
