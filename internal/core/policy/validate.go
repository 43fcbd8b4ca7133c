package policy

import (
	"net/netip"

	"bulkhead/internal/core/model"
)

// Validate checks documents against each other: names that are taken twice, networks and services that nothing
// declares, addresses that two workloads claim. Each document by itself is taken to be as Read returns it. The result
// is sorted by position; it is empty if all is well.
func Validate(docs *model.Documents) Errors {
	var p problems
	p.add(duplicates(docs)...)
	p.add(references(docs)...)
	p.add(units(docs)...)
	p.add(addresses(docs)...)
	return p.sorted()
}

// duplicates reports documents of one kind and name, and rules of one name within a policy.
func duplicates(docs *model.Documents) Errors {
	var out Errors
	named := func(kind model.Kind, metas []*model.Meta) {
		for i := 1; i < len(metas); i++ {
			first, m := metas[i-1], metas[i]
			if first.Name == m.Name {
				out = append(out, errorf(m.Pos, "the %s %q is declared already%s; rename or remove one", kind, m.Name, at(first.Pos)))
				metas[i] = first
			}
		}
	}
	named(model.KindService, metas(docs.Services, func(d *model.Service) *model.Meta { return &d.Meta }))
	named(model.KindNetwork, metas(docs.Networks, func(d *model.Network) *model.Meta { return &d.Meta }))
	named(model.KindWorkload, metas(docs.Workloads, func(d *model.Workload) *model.Meta { return &d.Meta }))
	named(model.KindSegment, metas(docs.Segments, func(d *model.Segment) *model.Meta { return &d.Meta }))
	named(model.KindPolicy, metas(docs.Policies, func(d *model.Policy) *model.Meta { return &d.Meta }))
	named(model.KindGuardrail, metas(docs.Guardrails, func(d *model.Guardrail) *model.Meta { return &d.Meta }))
	named(model.KindExpectation, metas(docs.Expectations, func(d *model.Expectation) *model.Meta { return &d.Meta }))
	for i := range docs.Policies {
		taken := map[string]model.Position{}
		for _, r := range docs.Policies[i].Rules {
			if r.Name == "" {
				continue
			}
			if first, ok := taken[r.Name]; ok {
				out = append(out, errorf(r.Pos, "the policy %q has a rule named %q already%s; rename one", docs.Policies[i].Name, r.Name, at(first)))
				continue
			}
			taken[r.Name] = r.Pos
		}
	}
	return out
}

func metas[T any](list []T, meta func(*T) *model.Meta) []*model.Meta {
	out := make([]*model.Meta, len(list))
	for i := range list {
		out[i] = meta(&list[i])
	}
	return out
}

// references reports networks and services that rules, guardrails and segments name and nothing declares.
func references(docs *model.Documents) Errors {
	var out Errors
	networks := newNames(docs.Networks, networkName)
	services := newNames(docs.Services, serviceName)
	peers := func(list []model.Peer) {
		for _, p := range list {
			if p.Kind == model.PeerNetwork && !networks.has[p.Network] {
				out = append(out, errorf(p.Pos, "no Network is named %q%s", p.Network,
					networks.hint(p.Network, "; declare it, or write the range as {cidr: …}")))
			}
		}
	}
	ports := func(list []model.PortRef) {
		for _, p := range list {
			if p.Service != "" && !services.has[p.Service] {
				out = append(out, errorf(p.Pos, "no Service is named %q%s", p.Service,
					services.hint(p.Service, "; declare it, or write a port such as tcp/443")))
			}
		}
	}
	for i := range docs.Segments {
		ports(docs.Segments[i].Services)
	}
	for i := range docs.Policies {
		for j := range docs.Policies[i].Rules {
			r := &docs.Policies[i].Rules[j]
			peers(r.From)
			peers(r.To)
			ports(r.On)
		}
	}
	for i := range docs.Guardrails {
		g := &docs.Guardrails[i]
		peers(g.From)
		peers(g.To)
		ports(g.On)
	}
	return out
}

// names is the set of what one kind of document is called.
type names struct {
	has map[string]bool
	all []string
}

func newNames[T any](list []T, name func(*T) string) names {
	n := names{has: make(map[string]bool, len(list))}
	for i := range list {
		n.has[name(&list[i])] = true
		n.all = append(n.all, name(&list[i]))
	}
	return n
}

func (n names) hint(word, otherwise string) string { return orElse(didYouMean(word, n.all), otherwise) }

// units reports units of units, and two workloads that are the same unit of a host. A host that no document declares
// is fine: an agent will report it.
func units(docs *model.Documents) Errors {
	var out Errors
	byName := make(map[string]*model.Workload, len(docs.Workloads))
	for i := range docs.Workloads {
		byName[docs.Workloads[i].Name] = &docs.Workloads[i]
	}
	first := map[model.Unit]*model.Workload{}
	for i := range docs.Workloads {
		w := &docs.Workloads[i]
		if w.Unit == nil {
			continue
		}
		host := byName[w.Unit.Host]
		switch {
		case w.Unit.Host == w.Name:
			out = append(out, errorf(w.Pos, "%q is a unit of itself; name the host that it runs on", w.Name))
		case host == nil:
		case host.Unit != nil:
			out = append(out, errorf(w.Pos, "%q is a unit of %q, which is a unit itself; name its host %q", w.Name, host.Name, host.Unit.Host))
		case !host.Managed:
			out = append(out, errorf(w.Pos, "%q is a unit of %q, which is managed: false%s; only an agent tells units apart",
				w.Name, host.Name, at(host.Pos)))
		}
		if other, ok := first[*w.Unit]; ok {
			out = append(out, errorf(w.Pos, "%q is the unit %s of %q, which is %q already%s; remove one",
				w.Name, w.Unit.Name, w.Unit.Host, other.Name, at(other.Pos)))
			continue
		}
		first[*w.Unit] = w
	}
	return out
}

// addresses reports addresses that workloads of different hosts declare, and workloads that are named after an
// address which is not theirs: whoever gives that text to eval would not know which is meant.
func addresses(docs *model.Documents) Errors {
	var out Errors
	first := map[netip.Addr]*model.Workload{}
	for i := range docs.Workloads {
		w := &docs.Workloads[i]
		for _, a := range w.Addresses {
			other, ok := first[a]
			switch {
			case !ok:
				first[a] = w
			case other.Name != w.Name && hostOf(other) != hostOf(w):
				out = append(out, errorf(w.Pos, "%q declares the address %s, which %q declares already%s; only units of one host share an address",
					w.Name, a, other.Name, at(other.Pos)))
			}
		}
		if named, err := netip.ParseAddr(w.Name); err == nil && !contains(w.Addresses, named.Unmap()) {
			out = append(out, errorf(w.Pos, "the workload is named after the address %s but does not have it; add it to addresses, or rename the workload", w.Name))
		}
	}
	return out
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, x := range list {
		if x == a {
			return true
		}
	}
	return false
}

func hostOf(w *model.Workload) string {
	if w.Unit != nil {
		return w.Unit.Host
	}
	return w.Name
}
