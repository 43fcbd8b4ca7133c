package importer

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// kOracle judges as Calico's documentation says.
type kOracle struct {
	*tCluster
	tiers    []kTier
	policies []kPolicy
	sets     []kSet
	service  []string // who is behind the Service "svc"
	evaluate bool     // whether a namespaceSelector is evaluated for network sets that are in no namespace
	robots   bool     // whether the service account robot has the label that serviceAccountSelector asks for
}

// labels returns the labels by which Calico knows a pod.
func (o *kOracle) labels(p *tPod) map[string]string {
	out := map[string]string{"projectcalico.org/namespace": p.namespace, "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": p.account}
	for k, v := range p.labels {
		out[k] = v
	}
	for k, v := range o.spaceLabels(p.namespace) {
		out["pcns."+k] = v
	}
	return out
}

func (o *kOracle) spaceLabels(name string) map[string]string {
	out := map[string]string{"projectcalico.org/name": name, "kubernetes.io/metadata.name": name}
	for k, v := range o.namespaces[name] {
		out[k] = v
	}
	return out
}

// member reports whether the address of an end is one that a selector finds: of a pod, or in a network set.
func (o *kOracle) member(e end, is func(labels map[string]string, namespace string, account string) bool) bool {
	if e.plain() && is(o.labels(e.pod), e.pod.namespace, e.pod.account) {
		return true
	}
	for i := range o.sets {
		s := &o.sets[i]
		labels := map[string]string{}
		for k, v := range s.labels {
			labels[k] = v
		}
		if s.namespace != "" {
			labels["projectcalico.org/namespace"] = s.namespace
			for k, v := range o.spaceLabels(s.namespace) {
				labels["pcns."+k] = v
			}
		}
		if is(labels, s.namespace, "") && within(e.addr, s.nets) {
			return true
		}
	}
	return false
}

func within(a netip.Addr, nets []string) bool {
	return slices.ContainsFunc(nets, func(n string) bool {
		if p, err := netip.ParsePrefix(n); err == nil {
			return p.Masked().Contains(a)
		}
		return netip.MustParseAddr(n) == a
	})
}

func (o *kOracle) inSpaces(s *kSelector, namespace string) bool {
	if namespace == "" {
		return s.text == "global()" || o.evaluate && s.is != nil && s.is(map[string]string{})
	}
	return s.text == "all()" || s.text != "global()" && s.is(o.spaceLabels(namespace))
}

func (o *kOracle) entity(e *kEntity, who end, namespace string) bool {
	if e.selector != nil || e.spaces != nil || e.account || namespace != "" && e.notSelector != nil {
		if !o.member(who, func(labels map[string]string, ns, account string) bool {
			switch {
			case e.spaces != nil:
				if !o.inSpaces(e.spaces, ns) {
					return false
				}
			case namespace != "" && ns != namespace:
				return false
			}
			return (e.selector == nil || e.selector.is(labels)) && (!e.account || account == "robot")
		}) {
			return false
		}
	}
	if e.notSelector != nil && o.member(who, func(labels map[string]string, _, _ string) bool { return e.notSelector.is(labels) }) {
		return false
	}
	if e.services && !in(who.name(), o.service...) {
		return false
	}
	return (e.nets == nil || within(who.addr, e.nets)) && (e.notNets == nil || !within(who.addr, e.notNets))
}

func (o *kOracle) rule(r *kRule, c conn, namespace string) bool {
	switch {
	case r.http, // which nobody sees: taken to fail
		r.version == 4 && !c.to.addr.Is4() || r.version == 6 && c.to.addr.Is4(),
		r.proto != "" && r.proto != c.proto, r.notProto == c.proto,
		r.icmp >= 0 && r.icmp != c.port, r.notICMP >= 0 && r.notICMP == c.port:
		return false
	}
	onPort := func(list []string) bool {
		return slices.ContainsFunc(list, func(p string) bool {
			lo, hi, isRange := strings.Cut(p, ":")
			n, err := strconv.Atoi(lo)
			if err != nil {
				return c.to.plain() && c.to.pod.ports[c.proto+"/"+p] == c.port
			}
			m := n
			if isRange {
				m, _ = strconv.Atoi(hi)
			}
			return n <= c.port && c.port <= m
		})
	}
	if d := &r.destination; d.ports != nil && !onPort(d.ports) || d.notPorts != nil && onPort(d.notPorts) {
		return false
	}
	if r.source.ports != nil { // whichever the port is: taken to fail
		return false
	}
	return o.entity(&r.source, c.from, namespace) && o.entity(&r.destination, c.to, namespace)
}

func (o *kOracle) selects(p *kPolicy, e end) bool {
	if !e.plain() || p.namespace != "" && p.namespace != e.pod.namespace || p.spaces != nil && !o.inSpaces(p.spaces, e.pod.namespace) {
		return false
	}
	if p.account && !(o.robots && e.pod.account == "robot") {
		return false
	}
	return p.selector == nil || p.selector.is(o.labels(e.pod))
}

func (p *kPolicy) governs(egress bool) bool {
	if p.types == nil {
		if egress {
			return len(p.rules[1]) > 0
		}
		return len(p.rules[0]) > 0 || len(p.rules[1]) == 0
	}
	return in(map[bool]string{false: "Ingress", true: "Egress"}[egress], p.types...)
}

func (o *kOracle) allows(c conn) bool { return o.allowsEnd(true, c) && o.allowsEnd(false, c) }

func (o *kOracle) allowsEnd(egress bool, c conn) bool {
	self, d := c.to, 0
	if egress {
		self, d = c.from, 1
	}
	tiers := slices.Clone(o.tiers)
	slices.SortFunc(tiers, func(a, b kTier) int { return cmp.Compare(a.order, b.order) })
next:
	for _, t := range tiers {
		var list []*kPolicy
		for i := range o.policies {
			if p := &o.policies[i]; p.tier == t.name && p.governs(egress) && o.selects(p, self) {
				list = append(list, p)
			}
		}
		slices.SortFunc(list, func(a, b *kPolicy) int { return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name)) })
		for _, p := range list {
			for k := range p.rules[d] {
				r := &p.rules[d][k]
				if r.action == "Log" || !o.rule(r, c, p.namespace) {
					continue
				}
				if r.action == "Pass" {
					continue next
				}
				return r.action == "Allow"
			}
		}
		if len(list) > 0 && !t.pass {
			return false
		}
	}
	return true // the profile of a namespace
}
