package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// oracle judges as the documentation of the API says, sentence by sentence, from the objects themselves.
type oracle struct{ *apiObjects }

// party is an end of a connection: a pod, a node, or an address that is neither's.
type party struct {
	name  string
	pod   *apiPod
	node  *apiNode
	addrs []netip.Addr
}

// parties returns every pod that has not ended, and every node.
func (o *oracle) parties() map[string]party {
	out := map[string]party{}
	for i := range o.nodes {
		n := &o.nodes[i]
		x := party{name: n.Metadata.Name, node: n}
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" || a.Type == "ExternalIP" {
				x.addrs = append(x.addrs, netip.MustParseAddr(a.Address))
			}
		}
		out[x.name] = x
	}
	for i := range o.pods {
		p := &o.pods[i]
		if p.Metadata.Namespace == "" {
			p.Metadata.Namespace = "default"
		}
		if p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
			continue
		}
		x := party{name: p.Metadata.Namespace + "/" + p.Metadata.Name, pod: p}
		for _, ip := range p.Status.PodIPs {
			x.addrs = append(x.addrs, netip.MustParseAddr(ip.IP))
		}
		if len(x.addrs) == 0 && p.Status.PodIP != "" {
			x.addrs = append(x.addrs, netip.MustParseAddr(p.Status.PodIP))
		}
		if len(x.addrs) == 0 && p.Spec.HostNetwork {
			x.addrs = out[p.Spec.NodeName].addrs
		}
		out[x.name] = x
	}
	return out
}

func external(addr string) party {
	return party{name: addr, addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

// packet is the first of a connection. Of ICMP, port means nothing.
type packet struct {
	from, to party
	proto    string // TCP, UDP, SCTP or ICMP
	port     int
}

// allows: a connection is allowed if the source lets it out and the destination lets it in.
func (o *oracle) allows(p packet) bool {
	p.from.addrs, p.to.addrs = talkAt(p.from.addrs, p.to.addrs)
	return o.allowsEnd(true, p) && o.allowsEnd(false, p)
}

// talkAt returns the one address at which each of the two talks: the first of one family at both.
func talkAt(from, to []netip.Addr) ([]netip.Addr, []netip.Addr) {
	for _, a := range from {
		for _, b := range to {
			if a.Is4() == b.Is4() {
				return []netip.Addr{a}, []netip.Addr{b}
			}
		}
	}
	return from[:min(1, len(from))], to[:min(1, len(to))]
}

func (o *oracle) allowsEnd(egress bool, p packet) bool {
	self, peer := p.to, p.from
	if egress {
		self, peer = p.from, p.to
	}
	// Policies apply to pods, but not to those on the network of their host.
	if self.pod == nil || self.pod.Spec.HostNetwork {
		return true
	}
	// A pod can always reach itself.
	if self.name == peer.name {
		return true
	}
	// Traffic to and from the node where a pod is running is always allowed.
	if node := self.pod.Spec.NodeName; node != "" {
		if peer.node != nil && peer.node.Metadata.Name == node {
			return true
		}
		if peer.pod != nil && peer.pod.Spec.HostNetwork && peer.pod.Spec.NodeName == node {
			return true
		}
	}
	if allowed, decided := o.tier("Admin", egress, self, peer, p); decided {
		return allowed
	}
	isolated := false
	for i := range o.policies {
		np := &o.policies[i]
		if !o.applies(np, egress, self.pod) {
			continue
		}
		isolated = true
		if o.npAllows(np, egress, peer, p) {
			return true
		}
	}
	if isolated {
		return false
	}
	if allowed, decided := o.tier("Baseline", egress, self, peer, p); decided {
		return allowed
	}
	return true
}

// tier asks the policies of a tier in the order of their priority and rules.
func (o *oracle) tier(name string, egress bool, self, peer party, p packet) (allowed, decided bool) {
	var list []*apiClusterPolicy
	for i := range o.cluster {
		c := &o.cluster[i]
		tier := c.Spec.Tier
		switch c.Kind {
		case "AdminNetworkPolicy":
			tier = "Admin"
		case "BaselineAdminNetworkPolicy":
			tier = "Baseline"
		}
		if tier == name && o.selected(c.Spec.Subject, self, nil) {
			list = append(list, c)
		}
	}
	key := func(c *apiClusterPolicy) int {
		if c.Spec.Priority == nil {
			return 1001
		}
		return *c.Spec.Priority
	}
	slices.SortStableFunc(list, func(a, b *apiClusterPolicy) int {
		return cmp.Or(cmp.Compare(key(a), key(b)), strings.Compare(strings.ToLower(a.Kind)+a.Metadata.Name, strings.ToLower(b.Kind)+b.Metadata.Name))
	})
	for _, c := range list {
		rules := c.Spec.Ingress
		if egress {
			rules = c.Spec.Egress
		}
		for _, r := range rules {
			if !o.clusterMatches(r, egress, peer, p) {
				continue
			}
			switch r.Action {
			case "Accept", "Allow":
				return true, true
			case "Deny":
				return false, true
			}
			return false, false // Pass
		}
	}
	return false, false
}

func (o *oracle) clusterMatches(r apiClusterRule, egress bool, peer party, p packet) bool {
	peers := r.From
	if egress {
		peers = r.To
	}
	if !slices.ContainsFunc(peers, func(x apiClusterPeer) bool { return o.selected(x, peer, peer.addrs) }) {
		return false
	}
	if r.Protocols == nil && r.Ports == nil {
		return true
	}
	if r.Protocols != nil {
		for _, x := range *r.Protocols {
			for proto, d := range map[string]*apiDestination{"TCP": x.TCP, "UDP": x.UDP, "SCTP": x.SCTP} {
				if d != nil && p.proto == proto && (d.Port.Number == p.port || d.Port.Range != nil && d.Port.Range.Start <= p.port && p.port <= d.Port.Range.End) {
					return true
				}
			}
			if x.NamedPort != "" && hasPort(p.to.pod, p.proto, x.NamedPort, p.port) {
				return true
			}
		}
	}
	if r.Ports != nil {
		for _, x := range *r.Ports {
			switch {
			case x.Number != nil && p.proto == orTCP(x.Number.Protocol) && x.Number.Port == p.port,
				x.Range != nil && p.proto == orTCP(x.Range.Protocol) && x.Range.Start <= p.port && p.port <= x.Range.End,
				x.Named != "" && hasPort(p.to.pod, p.proto, x.Named, p.port):
				return true
			}
		}
	}
	return false
}

func orTCP(s string) string {
	if s == "" {
		return "TCP"
	}
	return s
}

// selected reports whether a subject or a peer is meant.
func (o *oracle) selected(x apiClusterPeer, who party, addrs []netip.Addr) bool {
	switch {
	case x.Namespaces != nil:
		return isPlainPod(who) && x.Namespaces.matches(o.namespaceLabels(who.pod))
	case x.Pods != nil:
		return isPlainPod(who) && x.Pods.NamespaceSelector.matches(o.namespaceLabels(who.pod)) && x.Pods.PodSelector.matches(who.pod.Metadata.Labels)
	case x.Nodes != nil:
		// The addresses of a node are also those of the pods on its network.
		for i := range o.nodes {
			n := &o.nodes[i]
			if who.node == n || who.pod != nil && who.pod.Spec.HostNetwork && who.pod.Spec.NodeName == n.Metadata.Name {
				return x.Nodes.matches(n.Metadata.Labels)
			}
		}
		return false
	}
	return slices.ContainsFunc(x.Networks, func(c string) bool { return anyIn(c, addrs) })
}

func isPlainPod(p party) bool { return p.pod != nil && !p.pod.Spec.HostNetwork }

func anyIn(cidr string, addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, netip.MustParsePrefix(cidr).Masked().Contains)
}

func (o *oracle) namespaceLabels(p *apiPod) map[string]string {
	out := map[string]string{}
	for k, v := range o.namespaces[p.Metadata.Namespace] {
		out[k] = v
	}
	out["kubernetes.io/metadata.name"] = p.Metadata.Namespace
	return out
}

// applies reports whether the policy isolates the pod in that direction.
func (o *oracle) applies(np *apiNetworkPolicy, egress bool, pod *apiPod) bool {
	ns := np.Metadata.Namespace
	if ns == "" {
		ns = "default"
	}
	if ns != pod.Metadata.Namespace || !np.Spec.PodSelector.matches(pod.Metadata.Labels) {
		return false
	}
	if len(np.Spec.PolicyTypes) > 0 {
		want := "Ingress"
		if egress {
			want = "Egress"
		}
		return slices.Contains(np.Spec.PolicyTypes, want)
	}
	return !egress || np.Spec.Egress != nil && len(*np.Spec.Egress) > 0
}

func (o *oracle) npAllows(np *apiNetworkPolicy, egress bool, peer party, p packet) bool {
	rules := np.Spec.Ingress
	if egress {
		rules = np.Spec.Egress
	}
	if rules == nil {
		return false
	}
	for _, r := range *rules {
		peers := r.From
		if egress {
			peers = r.To
		}
		everybody := []apiPeer{{}}
		if peers == nil || len(*peers) == 0 {
			peers = &everybody
		}
		for _, x := range *peers {
			if peers != &everybody && !o.isPeer(np, x, peer) {
				continue
			}
			if r.Ports == nil || len(*r.Ports) == 0 {
				return true
			}
			// An ipBlock has no ports with a name (docs/kubernetes.md).
			named := !egress || x.IPBlock == nil
			if slices.ContainsFunc(*r.Ports, func(port apiPort) bool { return isPort(port, named, p) }) {
				return true
			}
		}
	}
	return false
}

func (o *oracle) isPeer(np *apiNetworkPolicy, x apiPeer, who party) bool {
	if x.IPBlock != nil {
		return anyIn(x.IPBlock.CIDR, who.addrs) && !slices.ContainsFunc(x.IPBlock.Except, func(c string) bool { return anyIn(c, who.addrs) })
	}
	if !isPlainPod(who) {
		return false
	}
	if x.NamespaceSelector != nil {
		if !x.NamespaceSelector.matches(o.namespaceLabels(who.pod)) {
			return false
		}
	} else if who.pod.Metadata.Namespace != cmp.Or(np.Metadata.Namespace, "default") {
		return false
	}
	return x.PodSelector == nil || x.PodSelector.matches(who.pod.Metadata.Labels)
}

func isPort(x apiPort, named bool, p packet) bool {
	if orTCP(x.Protocol) != p.proto {
		return false
	}
	switch port := x.Port.(type) {
	case nil:
		return true
	case int:
		if x.EndPort != nil {
			return port <= p.port && p.port <= *x.EndPort
		}
		return port == p.port
	case string:
		return named && hasPort(p.to.pod, p.proto, port, p.port)
	}
	panic(fmt.Sprintf("port %v is a %T", x.Port, x.Port))
}

// hasPort reports whether the number is what the pod calls by that name: in the first container that does, sidecars
// last.
func hasPort(pod *apiPod, proto, name string, port int) bool {
	if pod == nil {
		return false
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == "Always" {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, x := range c.Ports {
			if x.Name == name && orTCP(x.Protocol) == proto {
				return x.ContainerPort == port
			}
		}
	}
	return false
}

func (s *apiSelector) matches(labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, there := labels[e.Key]
		in := there && slices.Contains(e.Values, v)
		switch e.Operator {
		case "In":
			if !in {
				return false
			}
		case "NotIn":
			if in {
				return false
			}
		case "Exists":
			if !there {
				return false
			}
		case "DoesNotExist":
			if there {
				return false
			}
		}
	}
	return true
}
