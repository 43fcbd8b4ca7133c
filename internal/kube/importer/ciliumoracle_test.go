package importer

import (
	"net/netip"
	"strconv"
	"strings"
)

// cOracle judges as Cilium's documentation says, sentence by sentence.
type cOracle struct {
	*tCluster
	policies []cPolicy
	// What only Cilium knows: where the API server is, and who is behind the Service "svc".
	apiserver string
	service   []string
}

// identity returns the labels by which Cilium knows the end.
func (o *cOracle) identity(e end) map[string]string {
	out := map[string]string{}
	switch {
	case e.plain():
		for k, v := range e.pod.labels {
			if k != "pod-template-hash" { // labelsfilter leaves it out
				out["k8s:"+k] = v
			}
		}
		out["k8s:io.kubernetes.pod.namespace"] = e.pod.namespace
		out["k8s:io.cilium.k8s.policy.serviceaccount"] = e.pod.account
		out["k8s:io.cilium.k8s.policy.cluster"] = "default"
		for k, v := range o.namespaces[e.pod.namespace] {
			out["k8s:io.cilium.k8s.namespace.labels."+k] = v
		}
		out["k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name"] = e.pod.namespace
	case e.onNode() != "":
		for _, n := range o.nodes {
			if n.name == e.onNode() {
				for k, v := range n.labels {
					out["node:"+k] = v
				}
			}
		}
	}
	return out
}

// matches: keys without a source mean labels of any source.
func (s *cSelector) matches(labels map[string]string) bool {
	get := func(key string) (string, bool) {
		if !strings.Contains(key, ":") {
			key = "k8s:" + key
		}
		v, ok := labels[strings.Replace(key, "any:", "k8s:", 1)]
		return v, ok
	}
	for k, v := range s.labels {
		if got, ok := get(k); !ok || got != v {
			return false
		}
	}
	for _, e := range s.exprs {
		got, ok := get(e.key)
		if has := ok && in(got, e.values...); e.op == "In" && !has || e.op == "NotIn" && has || e.op == "Exists" && !ok || e.op == "DoesNotExist" && ok {
			return false
		}
	}
	return true
}

func (s *cSelector) mentions(what string) bool {
	for k := range s.labels {
		if strings.Contains(k, what) {
			return true
		}
	}
	for _, e := range s.exprs {
		if strings.Contains(e.key, what) {
			return true
		}
	}
	return false
}

func nodeSelects(s *cSelector, labels map[string]string) bool {
	moved := map[string]string{}
	for k, v := range labels {
		if rest, ok := strings.CutPrefix(k, "node:"); ok {
			moved["k8s:"+rest] = v
		}
	}
	return s.matches(moved)
}

// selects: endpointSelector means pods, of its own namespace if the policy has one; nodeSelector means nodes.
func (o *cOracle) selects(p *cPolicy, e end) bool {
	if p.rule.nodes != nil {
		return e.onNode() != "" && nodeSelects(p.rule.nodes, o.identity(e))
	}
	return e.plain() && (p.namespace == "" || e.pod.namespace == p.namespace) && p.rule.endpoints.matches(o.identity(e))
}

func (o *cOracle) allows(c conn) bool { return o.allowsEnd(true, c) && o.allowsEnd(false, c) }

func (o *cOracle) allowsEnd(egress bool, c conn) bool {
	self, peer := c.to, c.from
	if egress {
		self, peer = c.from, c.to
	}
	closed, allowed := false, false
	required := true // what any rule for the endpoint requires of who is selected by any other
	for i := range o.policies {
		p := &o.policies[i]
		if !o.selects(p, self) {
			continue
		}
		for _, e := range map[bool][]cEntry{false: p.rule.ingress, true: p.rule.egress}[egress] {
			for k := 0; e.requires != nil && k < len(*e.requires); k++ {
				required = required && o.meetsSelector(p, &(*e.requires)[k], peer)
			}
		}
	}
	for i := range o.policies {
		p := &o.policies[i]
		if !o.selects(p, self) {
			continue
		}
		allow, deny, closes := p.rule.ingress, p.rule.ingressDeny, p.rule.closeIngress
		if egress {
			allow, deny, closes = p.rule.egress, p.rule.egressDeny, p.rule.closeEgress
		}
		// A denial beats whatever allows.
		for k := range deny {
			if o.meets(p, &deny[k], true, peer, c, self, egress) {
				return false
			}
		}
		for k := range allow {
			allowed = allowed || (required || allow[k].endpoints == nil) && o.meets(p, &allow[k], false, peer, c, self, egress)
		}
		if closes == nil {
			closed = closed || len(allow)+len(deny) > 0
		} else {
			closed = closed || *closes
		}
	}
	return allowed || !closed
}

// meetsSelector: a selector means pods, of the policy's own namespace unless it names one.
func (o *cOracle) meetsSelector(p *cPolicy, s *cSelector, peer end) bool {
	own := p.namespace == "" || s.mentions("io.kubernetes.pod.namespace") || s.mentions("io.cilium.k8s.namespace.labels") || peer.plain() && peer.pod.namespace == p.namespace
	return peer.plain() && own && s.matches(o.identity(peer))
}

// meets: peers and ports both have to be meant. What nobody can see from here (HTTP, authentication) is taken to fail.
func (o *cOracle) meets(p *cPolicy, e *cEntry, deny bool, peer end, c conn, self end, egress bool) bool {
	if e.auth == "required" {
		return false
	}
	peers := e.endpoints == nil && e.nodes == nil && e.cidr == nil && e.cidrSet == nil && e.entities == nil && e.fqdns == nil && e.services == nil
	if peers && (len(e.ports)+len(e.icmps) == 0 || e.requires != nil) {
		return false
	}
	if e.endpoints != nil {
		for i := range *e.endpoints {
			peers = peers || o.meetsSelector(p, &(*e.endpoints)[i], peer)
		}
	}
	if e.nodes != nil {
		for i := range *e.nodes {
			peers = peers || peer.onNode() != "" && nodeSelects(&(*e.nodes)[i], o.identity(peer))
		}
	}
	world := peer.pod == nil && peer.node == nil
	within := func(cidr string) bool {
		x, err := netip.ParsePrefix(cidr)
		if err != nil {
			return netip.MustParseAddr(cidr) == peer.addr
		}
		return x.Masked().Contains(peer.addr)
	}
	if e.cidr != nil {
		for _, x := range *e.cidr {
			peers = peers || world && within(x)
		}
	}
	if e.cidrSet != nil {
		for _, x := range *e.cidrSet {
			left := world && within(x.cidr)
			for _, y := range x.except {
				left = left && !within(y)
			}
			peers = peers || left
		}
	}
	if e.entities != nil {
		for _, x := range *e.entities {
			switch x {
			case "all":
				peers = true
			case "world":
				peers = peers || world
			case "world-ipv4":
				peers = peers || world && peer.addr.Is4()
			case "cluster":
				peers = peers || !world
			case "remote-node", "host":
				// Which of the two it is does not matter: the own node is always open.
				peers = peers || peer.onNode() != "" && (x == "remote-node" || self.plain() && self.pod.node == peer.onNode())
			case "kube-apiserver":
				peers = peers || peer.addr.String() == o.apiserver && !peer.plain()
			}
		}
	}
	if e.fqdns != nil {
		for _, x := range *e.fqdns {
			switch {
			case x.name != "":
				peers = peers || world && peer.domain == x.name
			case strings.HasPrefix(x.pattern, "**."):
				peers = peers || world && strings.HasSuffix(peer.domain, x.pattern[2:])
			default: // "*." and a name: one label more
				rest, ok := strings.CutSuffix(peer.domain, x.pattern[1:])
				peers = peers || world && ok && rest != "" && !strings.Contains(rest, ".")
			}
		}
	}
	if e.services != nil {
		peers = peers || in(peer.name(), o.service...)
	}
	if !peers {
		return false
	}
	if len(e.ports)+len(e.icmps) == 0 {
		return true
	}
	for _, x := range e.icmps {
		if x.typ == c.port && (x.family == "IPv6" && c.proto == "ICMPv6" || x.family != "IPv6" && c.proto == "ICMP") {
			return true
		}
	}
	for _, x := range e.ports {
		for _, y := range x.ports {
			if !x.http && o.onPort(y, deny && egress, c) {
				return true
			}
		}
	}
	return false
}

func (o *cOracle) onPort(x cPort, anywhere bool, c conn) bool {
	if !in(c.proto, "TCP", "UDP", "SCTP") || x.proto != "" && x.proto != "ANY" && x.proto != c.proto {
		return false
	}
	number, err := strconv.Atoi(x.port)
	if err != nil {
		if c.to.plain() && c.to.pod.ports[c.proto+"/"+x.port] == c.port {
			return true
		}
		// A denial of egress by name denies the numbers that any pod gives the name.
		for _, p := range o.pods {
			if anywhere && p.ports[c.proto+"/"+x.port] == c.port {
				return true
			}
		}
		return false
	}
	switch {
	case number == 0:
		return true
	case x.end != 0:
		return number <= c.port && c.port <= x.end
	}
	return number == c.port
}
