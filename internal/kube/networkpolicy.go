package kube

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// directionFields are the fields of a spec that list the rules of each direction, and those in which a rule names its
// peers; the types are how policyTypes spells the directions.
var (
	directionFields = [2]string{model.Ingress: "ingress", model.Egress: "egress"}
	peerFields      = [2]string{model.Ingress: "from", model.Egress: "to"}
	policyTypes     = []string{model.Ingress: "Ingress", model.Egress: "Egress"}
)

// networkPolicy reads a NetworkPolicy (networking.k8s.io/v1). What it says follows the documentation of its API and the
// validation of the API server.
func (r *reader) networkPolicy(n *yaml.Node) {
	meta, spec := r.strict("NetworkPolicy", true, n)
	if meta == nil {
		meta = &metadata{namespace: defaultNamespace} // reported; its spec may have more to report
	}
	p := model.OneSided{
		Meta: model.Meta{Name: "networkpolicy/" + meta.namespace + "/" + meta.name, Pos: meta.pos},
		Tier: model.TierNamespace,
	}
	var (
		subject []model.Requirement
		rules   [2]*yaml.Node
		types   *yaml.Node
	)
	if spec != nil { // without one, everybody in the namespace is isolated from ingress
		read := func(into **yaml.Node) func(*yaml.Node) { return func(v *yaml.Node) { *into = v } }
		r.fields(spec, "the NetworkPolicy's spec",
			policy.Field{Name: "podSelector", Read: func(v *yaml.Node) { subject = r.selector(v, "podSelector", "") }},
			policy.Field{Name: "policyTypes", Read: read(&types)},
			policy.Field{Name: directionFields[model.Ingress], Read: read(&rules[model.Ingress])},
			policy.Field{Name: directionFields[model.Egress], Read: read(&rules[model.Egress])},
		)
	}
	p.Subject = podsWhere(subject, []model.Requirement{inNamespace(meta.namespace)})
	p.Isolates = r.policyTypes(types, rules)
	for _, d := range model.Directions {
		if rules[d] == nil {
			continue
		}
		i := 0
		r.Each(rules[d], directionFields[d], true, func(v *yaml.Node) {
			rule := r.networkRule(v, d, meta.namespace)
			rule.Name = fmt.Sprintf("%s/%d", directionFields[d], i)
			if p.Isolates[d] {
				p.Rules = append(p.Rules, rule)
			}
			i++
		})
		if i > 0 && !p.Isolates[d] {
			r.note(r.Pos(rules[d]), policy.Warning, fmt.Sprintf("add %s to policyTypes, or remove the rules", policyTypes[d]),
				"the %s rules of %s have no effect: policyTypes leaves %s out", directionFields[d], p.Name, policyTypes[d])
		}
	}
	r.policies = append(r.policies, p)
}

// policyTypes returns the directions that the policy isolates: those that are listed; if none is, ingress, and egress
// if there is a rule for it.
func (r *reader) policyTypes(n *yaml.Node, rules [2]*yaml.Node) (isolates [2]bool) {
	listed := false
	if n != nil {
		r.Each(n, "policyTypes", true, func(v *yaml.Node) {
			listed = true
			if i, ok := r.Choice(v, "policy type", policyTypes); ok {
				isolates[i] = true
			}
		})
		if n.Kind == yaml.SequenceNode && len(n.Content) > len(policyTypes) {
			r.Fail(n, "policyTypes has %d elements; there are only %s", len(n.Content), strings.Join(policyTypes, " and "))
		}
	}
	if !listed {
		egress := rules[model.Egress]
		isolates = [2]bool{model.Ingress: true, model.Egress: egress != nil && len(egress.Content) > 0}
	}
	return isolates
}

// networkRule reads a rule of a NetworkPolicy. Missing and empty lists mean everybody and every port.
func (r *reader) networkRule(n *yaml.Node, d model.Direction, namespace string) model.OneSidedRule {
	rule := model.OneSidedRule{Direction: d, Action: model.ActionAllow, Pos: r.Pos(n)}
	var peers, portList *yaml.Node
	r.fields(n, "the "+directionFields[d]+" rule",
		policy.Field{Name: peerFields[d], Read: func(v *yaml.Node) { peers = v }},
		policy.Field{Name: "ports", Read: func(v *yaml.Node) { portList = v }},
	)
	if peers != nil {
		r.Each(peers, peerFields[d], true, func(v *yaml.Node) {
			if p, ok := r.networkPeer(v, namespace); ok {
				rule.Peers = append(rule.Peers, p)
			}
		})
	}
	if peers == nil || len(peers.Content) == 0 {
		rule.Peers = []model.Peer{{Kind: model.PeerAny, Pos: rule.Pos}}
	}
	what := r.policyPorts(portList)
	rule.Ports, rule.Named = what.ranges, what.named
	if d == model.Egress && len(rule.Named) > 0 {
		for _, p := range rule.Peers {
			if p.Kind == model.PeerCIDR {
				r.note(p.Pos, policy.Warning, "write the number of the port",
					"a port by name is a pod's, and an ipBlock has no pods: port %q opens nothing towards %s", rule.Named[0].Name, p.CIDR)
			}
		}
	}
	return rule
}

// networkPeer reads a peer of a rule of a NetworkPolicy.
func (r *reader) networkPeer(n *yaml.Node, namespace string) (model.Peer, bool) {
	var pods, namespaces, block *yaml.Node
	var selected []model.Requirement
	p := model.Peer{Pos: r.Pos(n)}
	ok := true
	known := r.fields(n, "the peer",
		policy.Field{Name: "podSelector", Read: func(v *yaml.Node) {
			pods = v
			selected = append(selected, r.selector(v, "podSelector", "")...)
		}},
		policy.Field{Name: "namespaceSelector", Read: func(v *yaml.Node) {
			namespaces = v
			selected = append(selected, r.selector(v, "namespaceSelector", model.NamespaceLabelPrefix)...)
		}},
		policy.Field{Name: "ipBlock", Read: func(v *yaml.Node) {
			block = v
			p.Kind = model.PeerCIDR
			p.CIDR, p.Except, ok = r.ipBlock(v)
		}},
	)
	switch {
	case !known || !ok:
		return p, false
	case block != nil && (pods != nil || namespaces != nil):
		r.Fail(n, "ipBlock stands alone in a peer; write podSelector and namespaceSelector as another peer")
		return p, false
	case block != nil:
		return p, true
	case pods == nil && namespaces == nil:
		r.Fail(n, "the peer names nobody; write podSelector, namespaceSelector or ipBlock, and {} for all of them")
		return p, false
	case namespaces == nil:
		selected = append(selected, inNamespace(namespace))
	}
	p.Kind, p.Workloads = model.PeerWorkloads, podsWhere(selected)
	return p, true
}

// ipBlock reads a range of addresses and the parts of it that do not count.
func (r *reader) ipBlock(n *yaml.Node) (cidr netip.Prefix, except []netip.Prefix, ok bool) {
	var excepted []*yaml.Node
	ok = r.fields(n, "ipBlock",
		policy.Field{Name: "cidr", Required: "write the range, such as cidr: 10.9.0.0/16", Read: func(v *yaml.Node) { cidr, _ = r.cidr(v) }},
		policy.Field{Name: "except", Read: func(v *yaml.Node) {
			r.Each(v, "except", true, func(v *yaml.Node) { excepted = append(excepted, v) })
		}},
	)
	for _, v := range excepted {
		x, isCIDR := r.cidr(v)
		switch {
		case !isCIDR:
			ok = false
		case !cidr.IsValid():
		case !cidr.Overlaps(x) || x.Bits() <= cidr.Bits():
			r.Fail(v, "%s is not a part of %s; except takes ranges within cidr that are smaller", x, cidr)
			ok = false
		default:
			except = append(except, x)
		}
	}
	return cidr, except, ok && cidr.IsValid()
}

// cidr reads a range of addresses. Bits after its prefix do not count.
func (r *reader) cidr(n *yaml.Node) (netip.Prefix, bool) {
	s, ok := r.Text(n, "a CIDR")
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		r.Fail(n, "%q is no CIDR; write an address and a prefix length, such as 10.9.0.0/16 or \"fd00::/8\"", s)
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		r.Fail(n, "%q is IPv4 written as IPv6; write it as IPv4", s)
		return netip.Prefix{}, false
	}
	if p != p.Masked() {
		r.note(r.Pos(n), policy.Notice, fmt.Sprintf("write %s", p.Masked()), "%s has bits set after its prefix; it means %s", s, p.Masked())
	}
	return p.Masked(), true
}
