package importer

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// ciliumPeers are the peers of one rule of Cilium's.
type ciliumPeers struct {
	c       *ciliumRule
	d       model.Direction
	deny    bool
	inside  []model.Peer // by labels
	outside []model.Peer // by address or host name, of what is outside the cluster
}

// rule reads one element of ingress, ingressDeny, egress or egressDeny. What it becomes is kept in the policies of c.
func (c *ciliumRule) rule(n *yaml.Node, path string, d model.Direction, deny bool, name string) {
	p := &ciliumPeers{c: c, d: d, deny: deny}
	side := [2]string{model.Ingress: "from", model.Egress: "to"}[d]
	var (
		toPorts, icmps *yaml.Node
		given, filled  []string // fields that name peers
		requires       []*yaml.Node
		left           bool // the rule is left out
	)
	peers := func(name string, read func(v *yaml.Node, path string)) func(*yaml.Node) {
		return func(v *yaml.Node) {
			given = append(given, name)
			if v.Kind != yaml.SequenceNode || len(v.Content) > 0 {
				filled = append(filled, name)
			}
			c.each(v, path+"."+name, read)
		}
	}
	form := func(suffix string, read func(v *yaml.Node, path string)) (string, func(*yaml.Node)) {
		return side + suffix, peers(side+suffix, read)
	}
	endpoints, readEndpoints := form("Endpoints", p.endpoints)
	cidr, readCIDR := form("CIDR", p.cidr)
	cidrSet, readCIDRSet := form("CIDRSet", p.cidrSet)
	entities, readEntities := form("Entities", p.entity)
	nodes, readNodes := form("Nodes", p.nodes)
	cloud, readGroups := form("Groups", func(v *yaml.Node, path string) {
		p.unknown(v, path, "write the addresses under "+side+"CIDR", "the addresses of a cloud's security groups are not known here")
	})
	all := []struct {
		name string
		read func(*yaml.Node)
	}{
		{endpoints, readEndpoints}, {cidr, readCIDR}, {cidrSet, readCIDRSet}, {entities, readEntities}, {nodes, readNodes}, {cloud, readGroups},
		{side + "Requires", func(v *yaml.Node) {
			c.each(v, path+"."+side+"Requires", func(v *yaml.Node, _ string) { requires = append(requires, v) })
		}},
		{"toPorts", func(v *yaml.Node) { toPorts = v }},
		{"icmps", func(v *yaml.Node) { icmps = v }},
	}
	if d == model.Egress {
		all = append(all, struct {
			name string
			read func(*yaml.Node)
		}{"toServices", peers("toServices", func(v *yaml.Node, path string) {
			p.unknown(v, path, "select the pods behind the Service under toEndpoints", "who is behind a Service is not in its manifest")
		})})
		if !deny {
			all = append(all, struct {
				name string
				read func(*yaml.Node)
			}{"toFQDNs", peers("toFQDNs", p.domain)})
		}
	}
	if !deny {
		all = append(all, struct {
			name string
			read func(*yaml.Node)
		}{"authentication", func(v *yaml.Node) { left = c.authentication(v, path+".authentication") || left }})
	}
	fields := make([]fieldOf, len(all))
	for i, f := range all {
		fields[i] = field(f.name, f.read)
	}
	if !c.fields(n, path, fields...) {
		return
	}
	if len(filled) > 1 {
		c.Fail(n, "%s: Cilium takes one of %s in a rule; write a rule for each", path, strings.Join(filled, " and "))
		return
	}
	if toPorts != nil && icmps != nil && len(toPorts.Content) > 0 && len(icmps.Content) > 0 {
		c.Fail(icmps, "%s: Cilium takes icmps without toPorts only; write a rule of its own for them", path)
		return
	}
	for i, v := range requires {
		c.requires(v, path, d, name, i)
	}
	on, explicit := c.ports(toPorts, icmps, path, d, deny)
	if left {
		return
	}
	if len(given) == 0 {
		// A rule that names neither peers nor ports means nobody: "- {}" closes. One with ports means everybody.
		if !explicit || len(requires) > 0 {
			return
		}
		p.inside = slices.Clone(everybody)
	} else if len(filled) == 0 && deny && explicit {
		// Releases differ on whether an empty list means nobody; here it denies everybody.
		c.say(Narrower, n, path, "remove the rule if it is to mean nobody", "%s is empty: Cilium's releases differ on whom that means; it denies everybody", given[0])
		p.inside = slices.Clone(everybody)
	}
	if !deny && len(on.named) > 0 && (d == model.Egress || c.host) {
		if !p.named(name, on.named) {
			c.say(Narrower, n, path, "write the number of the port", "a port by name is a pod's: it opens nothing towards whatever is no pod on a network of its own")
		}
		on.named = nil
	}
	p.keep(name, on)
}

// named keeps what a rule allows on ports by name, as far as the destinations are pods on a network of their own, and
// reports whether they all are.
func (p *ciliumPeers) named(name string, ports []model.NamedPort) (all bool) {
	if p.d == model.Ingress {
		return false // a node has no ports by name
	}
	all = len(p.outside) == 0
	pods := ciliumPeers{c: p.c, d: p.d}
	for _, x := range p.inside {
		y := workloads(slices.Concat(x.Workloads.Requirements, []model.Requirement{isPod})...)
		all = all && samePeers(x, y)
		pods.inside = append(pods.inside, y)
	}
	pods.keep(name+"/named", ciliumPorts{named: ports})
	return all
}

// keep writes the rule into the policies of c.
func (p *ciliumPeers) keep(name string, on ciliumPorts) {
	if len(on.ranges) == 0 && len(on.named) == 0 {
		return
	}
	r := model.OneSidedRule{Name: name, Direction: p.d, Action: model.ActionAllow, Ports: on.ranges, Named: on.named}
	inside, outside := &p.c.allow, &p.c.allowOutside
	if p.deny {
		r.Action = model.ActionDeny
		inside, outside = &p.c.deny, &p.c.denyOutside
	}
	if len(p.inside) > 0 {
		r.Peers = p.inside
		inside.Rules = append(inside.Rules, r)
	}
	if len(p.outside) > 0 {
		r.Peers = p.outside
		outside.Rules = append(outside.Rules, r)
	}
}

// unknown says that nobody here knows whom the element means. Where it denies, everybody is denied.
func (p *ciliumPeers) unknown(n *yaml.Node, path, fix, format string, args ...any) {
	p.c.say(Narrower, n, path, fix, format+p.consequence("everybody is denied instead"), args...)
	if p.deny {
		p.inside = append(p.inside, everybody...)
	}
}

func (p *ciliumPeers) consequence(denied string) string {
	if p.deny {
		return ": " + denied
	}
	return ": it was left out"
}

func (p *ciliumPeers) endpoints(n *yaml.Node, path string) {
	s, ok := p.c.ciliumSelector(n, path, "")
	if !ok {
		return
	}
	if len(s.reserved) > 0 {
		if len(s.reserved) == 1 && len(s.keys) == 0 {
			p.entityOf(n, path, s.reserved[0])
			return
		}
		p.unknown(n, path, "name the entity under fromEntities or toEntities", "a selector of reserved labels and others means nothing here")
		return
	}
	own := isPod
	rs := []model.Requirement{own}
	// Pods of the own namespace are meant, unless a namespace is named (pkg/k8s/apis/cilium.io/utils.getEndpointSelector).
	if p.c.namespace != "" && !s.has(func(k string) bool {
		return k == ciliumNamespace || strings.HasPrefix(k, ciliumNamespaceLabels)
	}) {
		rs = append(rs, is(namespaceKey, p.c.namespace))
	}
	p.selected(n, path, s, rs...)
}

// selected adds the workloads that a selector means.
func (p *ciliumPeers) selected(n *yaml.Node, path string, s ciliumSelected, rs ...model.Requirement) {
	switch {
	case p.deny:
		p.inside = append(p.inside, workloads(append(rs, s.atLeast...)...))
	case !s.unknown:
		p.inside = append(p.inside, workloads(append(rs, s.atMost...)...))
	}
	if s.unknown {
		p.c.say(Narrower, n, path, "select by labels that manifests have", "whom it means is not exactly known%s", p.consequence("all who may be meant are denied"))
	}
}

func (p *ciliumPeers) nodes(n *yaml.Node, path string) {
	if s, ok := p.c.ciliumSelector(n, path, model.NodeLabelPrefix); ok {
		p.selected(n, path, s, isNode)
	}
}

func (p *ciliumPeers) entity(n *yaml.Node, path string) {
	if text, ok := p.c.Text(n, path); ok {
		p.entityOf(n, path, text)
	}
}

// entityOf adds who is meant by an entity (docs.cilium.io/en/stable/security/policy/language, "Entities Based").
func (p *ciliumPeers) entityOf(n *yaml.Node, path, name string) {
	switch name {
	case "all":
		p.inside = append(p.inside, everybody...)
	case "cluster":
		p.inside = append(p.inside, inCluster...)
	case "world":
		p.outside = append(p.outside, addresses(allIPv4), addresses(allIPv6))
	case "world-ipv4":
		p.outside = append(p.outside, addresses(allIPv4))
	case "world-ipv6":
		p.outside = append(p.outside, addresses(allIPv6))
	case "remote-node":
		p.inside = append(p.inside, workloads(isNode))
	case "none":
	case "host":
		if p.deny {
			p.c.say(Refused, n, path, "take it out of the policy and deny it on the node", "traffic with the own node is an essential, which nothing denies")
		} else {
			p.c.say(Note, n, path, "nothing is to be done", "traffic with the own node is an essential, which is always allowed")
		}
	case "kube-apiserver", "ingress", "health", "init", "unmanaged":
		fix := "name the addresses under fromCIDR or toCIDR, or select the pods or nodes"
		p.c.say(Narrower, n, path, fix, "only Cilium knows who %s is%s", name,
			p.consequence("whoever may be it is denied"))
		if !p.deny {
			return
		}
		if name == "unmanaged" {
			p.inside = append(p.inside, everybody...)
			return
		}
		// It is no pod that a manifest declares: a node, or an address that no workload has.
		p.inside = append(p.inside, workloads(isNode))
		p.outside = append(p.outside, addresses(allIPv4), addresses(allIPv6))
	default:
		p.c.Fail(n, "%s: unknown entity %q", path, name)
	}
}

func (p *ciliumPeers) cidr(n *yaml.Node, path string) {
	text, ok := p.c.Text(n, path)
	if !ok {
		return
	}
	if c, ok := p.c.source.cidr(n, path, text); ok {
		p.outside = append(p.outside, addresses(c))
	}
}

// authentication reports whether it asks for more than a network can see.
func (c *ciliumRule) authentication(n *yaml.Node, path string) (left bool) {
	c.fields(n, path, field("mode", func(v *yaml.Node) {
		if mode, ok := c.Text(v, path+".mode"); ok && mode != "disabled" {
			c.say(Narrower, v, path+".mode", "remove authentication, if the network is to decide alone", "nobody here sees authentication (%s): the rule was left out", mode)
			left = true
		}
	}))
	return left
}

// requires denies what does not meet the selector: Cilium adds it to the selectors of every rule for these pods
// (pkg/policy/api, IngressCommonRule.FromRequires).
func (c *ciliumRule) requires(n *yaml.Node, path string, d model.Direction, name string, i int) {
	field := [2]string{model.Ingress: "fromRequires", model.Egress: "toRequires"}[d]
	path = path + "." + field
	s, ok := c.ciliumSelector(n, path, "")
	if !ok {
		return
	}
	c.say(Narrower, n, path, "write the requirement into the selectors themselves",
		"pods that do not meet it are denied, by rules too that select by ports or entities alone")
	must := s.atMost
	if c.namespace != "" && !s.has(func(k string) bool {
		return k == ciliumNamespace || strings.HasPrefix(k, ciliumNamespaceLabels)
	}) {
		must = append(must, is(namespaceKey, c.namespace))
	}
	r := model.OneSidedRule{Name: name + "/" + field + "/" + itoa(i), Direction: d, Action: model.ActionDeny, Ports: anyPort}
	if s.unknown || len(s.reserved) > 0 {
		r.Peers = []model.Peer{workloads(isPod)}
	} else {
		for _, q := range must {
			r.Peers = append(r.Peers, workloads(isPod, not(q)))
		}
	}
	if len(r.Peers) > 0 {
		c.deny.Rules = append(c.deny.Rules, r)
	}
}
