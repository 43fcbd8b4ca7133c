package importer

import (
	"fmt"
	"strings"
	"testing"

	"bulkhead/internal/core/policy"
)

// The policies of Cilium as the oracle reads them. Every field is what the API calls it.
type (
	cPolicy struct {
		name, namespace string // namespace "" for a CiliumClusterwideNetworkPolicy
		rule            cRule
	}
	cRule struct {
		endpoints, nodes          *cSelector // one of them
		ingress, egress           []cEntry
		ingressDeny, egressDeny   []cEntry
		closeIngress, closeEgress *bool // enableDefaultDeny
	}
	cEntry struct {
		endpoints, nodes *[]cSelector
		cidr             *[]string
		cidrSet          *[]cCIDR
		entities         *[]string
		fqdns            *[]cName
		services         *[]string // names of Services
		ports            []cPorts
		icmps            []cICMP
		requires         *[]cSelector
		auth             string
	}
	cSelector struct {
		labels map[string]string
		exprs  []cExpr
	}
	cExpr struct {
		key, op string
		values  []string
	}
	cCIDR struct {
		cidr   string
		except []string
	}
	cName  struct{ name, pattern string }
	cPorts struct {
		ports []cPort
		http  bool
	}
	cPort struct {
		port, proto string
		end         int
	}
	cICMP struct {
		family string
		typ    int
	}
)

func (s *cSelector) object() object {
	o := object{}
	if len(s.labels) > 0 {
		o["matchLabels"] = s.labels
	}
	var list []object
	for _, e := range s.exprs {
		x := object{"key": e.key, "operator": e.op}
		if len(e.values) > 0 {
			x["values"] = e.values
		}
		list = append(list, x)
	}
	if len(list) > 0 {
		o["matchExpressions"] = list
	}
	return o
}

func selectorObjects(list []cSelector) []object {
	out := []object{}
	for i := range list {
		out = append(out, list[i].object())
	}
	return out
}

func (e *cEntry) object(side string) object {
	o := object{}
	if e.endpoints != nil {
		o[side+"Endpoints"] = selectorObjects(*e.endpoints)
	}
	if e.requires != nil {
		o[side+"Requires"] = selectorObjects(*e.requires)
	}
	if e.nodes != nil {
		o[side+"Nodes"] = selectorObjects(*e.nodes)
	}
	if e.cidr != nil {
		o[side+"CIDR"] = *e.cidr
	}
	if e.cidrSet != nil {
		list := []object{}
		for _, c := range *e.cidrSet {
			list = append(list, object{"cidr": c.cidr, "except": c.except})
		}
		o[side+"CIDRSet"] = list
	}
	if e.entities != nil {
		o[side+"Entities"] = *e.entities
	}
	if e.fqdns != nil {
		list := []object{}
		for _, f := range *e.fqdns {
			x := object{}
			if f.name != "" {
				x["matchName"] = f.name
			} else {
				x["matchPattern"] = f.pattern
			}
			list = append(list, x)
		}
		o["toFQDNs"] = list
	}
	if e.services != nil {
		list := []object{}
		for _, s := range *e.services {
			list = append(list, object{"k8sService": object{"serviceName": s, "namespace": "x"}})
		}
		o["toServices"] = list
	}
	if e.auth != "" {
		o["authentication"] = object{"mode": e.auth}
	}
	var ports []object
	for _, p := range e.ports {
		var list []object
		for _, x := range p.ports {
			y := object{"port": x.port}
			if x.proto != "" {
				y["protocol"] = x.proto
			}
			if x.end != 0 {
				y["endPort"] = x.end
			}
			list = append(list, y)
		}
		y := object{"ports": list}
		if p.http {
			y["rules"] = object{"http": []object{{"method": "GET"}}}
		}
		ports = append(ports, y)
	}
	if len(ports) > 0 {
		o["toPorts"] = ports
	}
	var icmps []object
	for _, x := range e.icmps {
		icmps = append(icmps, object{"fields": []object{{"family": x.family, "type": x.typ}}})
	}
	if len(icmps) > 0 {
		o["icmps"] = icmps
	}
	return o
}

func (p *cPolicy) object() object {
	spec := object{}
	if p.rule.endpoints != nil {
		spec["endpointSelector"] = p.rule.endpoints.object()
	} else {
		spec["nodeSelector"] = p.rule.nodes.object()
	}
	for name, list := range map[string][]cEntry{"ingress": p.rule.ingress, "ingressDeny": p.rule.ingressDeny, "egress": p.rule.egress, "egressDeny": p.rule.egressDeny} {
		if list == nil {
			continue
		}
		side := "from"
		if strings.HasPrefix(name, "egress") {
			side = "to"
		}
		entries := []object{}
		for i := range list {
			entries = append(entries, list[i].object(side))
		}
		spec[name] = entries
	}
	closes := object{}
	if p.rule.closeIngress != nil {
		closes["ingress"] = *p.rule.closeIngress
	}
	if p.rule.closeEgress != nil {
		closes["egress"] = *p.rule.closeEgress
	}
	if len(closes) > 0 {
		spec["enableDefaultDeny"] = closes
	}
	o := object{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": object{"name": p.name, "namespace": p.namespace}, "spec": spec}
	if p.namespace == "" {
		o["kind"], o["metadata"] = "CiliumClusterwideNetworkPolicy", object{"name": p.name}
	}
	return o
}

// cGen makes policies of Cilium; odd ones have elements too that cannot be said.
type cGen struct {
	*gen
	odd, host bool // host: the policy is for nodes
}

func (g *cGen) selector(prefix bool) cSelector {
	var s cSelector
	if g.chance(25) {
		return s
	}
	source := func(key string) string {
		if prefix {
			return pick(g.gen, "", "", "k8s:", "any:") + key
		}
		return key
	}
	if g.chance(70) {
		s.labels = map[string]string{source(pick(g.gen, "app", "tier")): pick(g.gen, "a", "b", "c")}
	}
	if g.chance(40) {
		e := cExpr{key: source(pick(g.gen, "app", "tier")), op: pick(g.gen, "In", "NotIn", "Exists", "DoesNotExist")}
		if in(e.op, "In", "NotIn") {
			e.values = []string{pick(g.gen, "a", "b"), "c"}
		}
		s.exprs = append(s.exprs, e)
	}
	return s
}

// strange adds a requirement that no manifest tells of.
func (g *cGen) strange(s cSelector) cSelector {
	if g.odd && g.chance(30) {
		s.exprs = append(s.exprs, pick(g.gen,
			cExpr{"io.cilium.k8s.policy.serviceaccount", "In", []string{"robot"}},
			cExpr{"io.cilium.k8s.policy.serviceaccount", "NotIn", []string{"robot"}},
			cExpr{"pod-template-hash", "Exists", nil}, cExpr{"pod-template-hash", "DoesNotExist", nil},
			cExpr{"container:x", "DoesNotExist", nil}, cExpr{"io.cilium.k8s.policy.cluster", "In", []string{"other"}}))
	}
	return s
}

func (g *cGen) peer() cSelector {
	s := g.selector(true)
	if g.chance(30) {
		if s.labels == nil {
			s.labels = map[string]string{}
		}
		s.labels[pick(g.gen, "io.kubernetes.pod.namespace", "k8s:io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name")] = pick(g.gen, "x", "y")
	} else if g.chance(25) {
		s.exprs = append(s.exprs, cExpr{"k8s:io.cilium.k8s.namespace.labels.app", pick(g.gen, "In", "NotIn"), []string{"a", "b"}})
	}
	return g.strange(s)
}

func (g *cGen) entry(egress, deny bool) cEntry {
	var e cEntry
	some := func(f func() cSelector) *[]cSelector {
		list := []cSelector{}
		for range pick(g.gen, 0, 1, 1, 1, 2) {
			list = append(list, f())
		}
		if deny && len(list) == 0 {
			list = append(list, f())
		}
		return &list
	}
	n := g.IntN(12)
	switch {
	case n < 4:
		e.endpoints = some(g.peer)
	case n < 5:
		e.nodes = some(func() cSelector { return g.selector(false) })
	case n < 6:
		e.cidr = &[]string{pick(g.gen, "0.0.0.0/0", "10.0.0.0/8", "10.1.0.200", "192.168.0.0/16", "::/0")}
	case n < 8:
		e.cidrSet = &[]cCIDR{pick(g.gen, cCIDR{"10.0.0.0/8", []string{"10.1.0.0/16"}}, cCIDR{"0.0.0.0/0", []string{"8.8.8.0/24", "10.2.0.0/16"}}, cCIDR{"10.2.0.0/16", nil})}
	case n < 10:
		list := []string{pick(g.gen, "all", "world", "world-ipv4", "cluster", "remote-node", "none")}
		if !deny {
			list[0] = pick(g.gen, list[0], "host")
		}
		if g.odd && g.chance(40) {
			list = append(list, "kube-apiserver")
		}
		e.entities = &list
	case n < 11 && egress && !deny:
		list := []cName{{name: "a.example.com"}}
		if g.chance(50) {
			list[0] = cName{pattern: "**.example.com"}
		}
		if g.odd {
			list = append(list, cName{pattern: "*.example.com"})
		}
		e.fqdns = &list
	case n < 11 && egress && g.odd:
		e.services = &[]string{"svc"}
	}
	switch {
	case g.chance(55):
		for range 1 + g.IntN(2) {
			var p cPorts
			for range 1 + g.IntN(2) {
				x := cPort{port: pick(g.gen, "80", "81", "443", "0"), proto: pick(g.gen, "", "ANY", "TCP", "UDP", "SCTP")}
				if x.port == "80" && g.chance(30) {
					x.end = 85
				}
				// A name means the numbers that a pod gives it; of a peer that is no pod there are none.
				if named := e.endpoints != nil && !deny && !g.host || !egress && !g.host || g.odd; named && g.chance(30) {
					x = cPort{port: pick(g.gen, "http", "web", "nobody"), proto: x.proto}
				}
				if deny && x.port == "0" && in(x.proto, "", "ANY") && !g.odd {
					x.proto = "TCP"
				}
				p.ports = append(p.ports, x)
			}
			if g.odd && !deny && g.chance(25) {
				p.http = true
				p.ports = []cPort{{port: "80", proto: "TCP"}}
			}
			e.ports = append(e.ports, p)
		}
	case g.chance(20):
		e.icmps = []cICMP{pick(g.gen, cICMP{"IPv4", 8}, cICMP{"IPv6", 128}, cICMP{"", 8})}
	}
	if g.odd && !deny && g.chance(10) {
		e.requires = &[]cSelector{g.peer()}
	}
	if g.odd && !deny && g.chance(10) {
		e.auth = "required"
	}
	return e
}

func (g *cGen) policy(i int) cPolicy {
	p := cPolicy{name: fmt.Sprint("c", i), namespace: pick(g.gen, "x", "y", "y", "")}
	s := g.strange(g.selector(true))
	p.rule.endpoints = &s
	g.host = p.namespace == "" && g.chance(20)
	if g.host {
		s = g.selector(false)
		p.rule.endpoints, p.rule.nodes = nil, &s
	}
	list := func(egress, deny bool, percent int) []cEntry {
		if !g.chance(percent) {
			return nil
		}
		out := []cEntry{}
		for range g.IntN(3) {
			out = append(out, g.entry(egress, deny))
		}
		return out
	}
	p.rule.ingress, p.rule.egress = list(false, false, 70), list(true, false, 60)
	p.rule.ingressDeny, p.rule.egressDeny = list(false, true, 25), list(true, true, 25)
	if g.chance(15) {
		b := g.chance(50)
		p.rule.closeIngress = &b
	}
	if g.chance(15) {
		b := g.chance(50)
		p.rule.closeEgress = &b
	}
	return p
}

// TestCiliumGenerated holds the import against the oracle, through the manifests that it writes.
func TestCiliumGenerated(t *testing.T) {
	worlds := howMany()
	var allowed, denied, narrower [2]int
	for seed := range worlds {
		for k, odd := range []bool{false, true} {
			g := &cGen{gen: newGen(seed), odd: odd}
			o := &cOracle{tCluster: g.cluster(), apiserver: pick(g.gen, "8.8.8.8", "192.168.0.2"), service: []string{"x/p0", "y/p1", "10.1.0.200"}}
			var objects []object
			for i := range 1 + g.IntN(5) {
				p := g.policy(i)
				o.policies = append(o.policies, p)
				objects = append(objects, p.object())
			}
			input := documents(objects...)
			t.Run(fmt.Sprintf("seed %d odd %v", seed, odd), func(t *testing.T) {
				result, err := Cilium([]policy.File{input})
				if err != nil {
					t.Fatalf("%v\n%s", err, input.Data)
				}
				if !odd && result.Worst() != Note {
					t.Errorf("%v\n%s", result.Diagnostics, input.Data)
				}
				imported, err := result.Manifests()
				if err != nil {
					t.Fatal(err)
				}
				judge := judgeOf(t, documents(o.manifests()...), imported)
				a, d, n := compareWith(t, g.gen, o.tCluster, judge, o.allows, !odd)
				allowed[k], denied[k], narrower[k] = allowed[k]+a, denied[k]+d, narrower[k]+n
				if n > 0 && result.Worst() < Narrower {
					t.Errorf("%d connections are denied without a word", n)
				}
				if t.Failed() {
					t.Logf("%s\n%s\n%s", documents(o.manifests()...).Data, input.Data, imported)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("plain: %d allowed, %d denied; odd: %d allowed, %d denied, %d by the import alone", allowed[0], denied[0], allowed[1], denied[1], narrower[1])
	if n := int(worlds); allowed[0] < 20*n || denied[0] < 20*n || allowed[1] < 10*n || narrower[1] < n {
		t.Error("the worlds say too little")
	}
}
