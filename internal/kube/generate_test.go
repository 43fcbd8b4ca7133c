package kube

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// TestGenerated holds the whole way from manifests to verdicts against the oracle of this package, which has no part of
// it in common, over clusters with policies of every kind. A failure is reproduced by its seed.
func TestGenerated(t *testing.T) {
	worlds := 120
	if testing.Short() {
		worlds = 20
	}
	allowed, denied := 0, 0
	for seed := range uint64(worlds) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 7))}
		manifests := g.cluster()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, manifests, []string{"8.8.8.8", "10.1.0.200", "2001:db8::1"})
			for _, from := range w.names {
				for _, to := range w.names {
					if from == to || w.parties[from].pod == nil && w.parties[to].pod == nil {
						continue
					}
					for range 3 {
						if w.allows(t, from, to, g.port()) {
							allowed++
						} else {
							denied++
						}
					}
				}
			}
			if t.Failed() {
				t.Logf("%s", manifests)
			}
		})
		if t.Failed() {
			return
		}
	}
	if allowed < worlds*50 || denied < worlds*50 {
		t.Errorf("%d flows allowed, %d denied: the worlds say too little", allowed, denied)
	}
}

type generator struct{ *rand.Rand }

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

var namespaceNames = []string{"x", "y", "z"}

func (g *generator) port() model.PortRange {
	p := model.PortRange{Proto: pick(g, model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP)}
	p.Lo = pick(g, uint16(79), 80, 80, 81, 85, 90, 91, 443, 1, 65535)
	if p.Proto == model.ProtoICMP {
		p.Lo = 8 << 8 // an echo request, which no essential allows
	}
	p.Hi = p.Lo
	return p
}

// cluster returns manifests of namespaces, nodes, pods and policies.
func (g *generator) cluster() string {
	var b bytes.Buffer
	put := func(x any) {
		text, err := yaml.Marshal(x)
		if err != nil {
			panic(err)
		}
		b.Write(text)
		b.WriteString("---\n")
	}
	for _, name := range namespaceNames {
		if g.chance(80) {
			put(apiNamespace{"v1", "Namespace", apiMeta{Name: name, Labels: g.labels()}})
		}
	}
	for i := range 2 {
		n := apiNode{APIVersion: "v1", Kind: "Node", Metadata: apiMeta{Name: fmt.Sprintf("n%d", i), Labels: g.labels()}}
		n.Status.Addresses = []apiNodeAddress{{"InternalIP", fmt.Sprintf("192.168.0.%d", i+1)}, {"Hostname", "n"}}
		put(n)
	}
	for i := range 5 + g.IntN(3) {
		put(g.pod(i))
	}
	for i := range g.IntN(7) {
		put(g.networkPolicy(i))
	}
	for i := range g.IntN(4) {
		put(g.clusterPolicy(i))
	}
	if g.chance(20) {
		put(g.baseline())
	}
	return b.String()
}

// labels are few, so that selectors meet them.
func (g *generator) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if g.chance(70) {
			out[k] = pick(g, "a", "b", "c")
		}
	}
	return out
}

func (g *generator) pod(i int) apiPod {
	p := apiPod{APIVersion: "v1", Kind: "Pod", Metadata: apiMeta{Name: fmt.Sprintf("p%d", i), Namespace: pick(g, namespaceNames...), Labels: g.labels()}}
	if g.chance(85) {
		p.Spec.NodeName = pick(g, "n0", "n1")
	}
	c := apiContainer{Name: "main"}
	for _, name := range []string{"http", "web"} {
		if g.chance(60) {
			c.Ports = append(c.Ports, apiContainerPort{Name: name, ContainerPort: pick(g, 80, 81, 443), Protocol: pick(g, "", "TCP", "UDP", "SCTP")})
		}
	}
	p.Spec.Containers = []apiContainer{c}
	if g.chance(20) {
		side := apiContainer{Name: "side", RestartPolicy: pick(g, "", "Always"), Ports: []apiContainerPort{{Name: pick(g, "http", "side"), ContainerPort: 90}}}
		p.Spec.InitContainers = []apiContainer{side}
	}
	switch {
	case g.chance(15):
		p.Spec.HostNetwork = true
		if p.Spec.NodeName != "" {
			p.Status.PodIP = map[string]string{"n0": "192.168.0.1", "n1": "192.168.0.2"}[p.Spec.NodeName]
		}
	case g.chance(10): // not started yet
	default:
		p.Status.PodIP = fmt.Sprintf("10.%d.0.%d", 1+g.IntN(2), i+1)
		p.Status.PodIPs = []apiIP{{p.Status.PodIP}}
		if g.chance(30) {
			p.Status.PodIPs = append(p.Status.PodIPs, apiIP{fmt.Sprintf("fd00::%d", i+1)})
		}
	}
	return p
}

func (g *generator) selector() apiSelector {
	var s apiSelector
	if g.chance(40) {
		return s
	}
	if g.chance(60) {
		s.MatchLabels = map[string]string{pick(g, "app", "tier"): pick(g, "a", "b", "c")}
	}
	if g.chance(50) {
		e := apiExpression{Key: pick(g, "app", "tier", "none"), Operator: pick(g, "In", "NotIn", "Exists", "DoesNotExist")}
		if e.Operator == "In" || e.Operator == "NotIn" {
			e.Values = []string{pick(g, "a", "b"), pick(g, "b", "c")}
		}
		s.MatchExpressions = []apiExpression{e}
	}
	return s
}

func (g *generator) namespaces() apiSelector {
	if g.chance(30) {
		return apiSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": pick(g, namespaceNames...)}}
	}
	return g.selector()
}

func (g *generator) networkPolicy(i int) apiNetworkPolicy {
	p := apiNetworkPolicy{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Metadata: apiMeta{Name: fmt.Sprintf("np%d", i), Namespace: pick(g, namespaceNames...)}}
	p.Spec.PodSelector = g.selector()
	p.Spec.PolicyTypes = pick(g, nil, nil, []string{"Ingress"}, []string{"Egress"}, []string{"Ingress", "Egress"})
	if g.chance(75) {
		p.Spec.Ingress = g.rules(false)
	}
	if g.chance(60) {
		p.Spec.Egress = g.rules(true)
	}
	return p
}

func (g *generator) rules(egress bool) *[]apiRule {
	out := []apiRule{}
	for range g.IntN(3) {
		var r apiRule
		if g.chance(85) {
			peers := []apiPeer{}
			for range g.IntN(3) {
				peers = append(peers, g.peer())
			}
			if egress {
				r.To = &peers
			} else {
				r.From = &peers
			}
		}
		if g.chance(60) {
			ports := []apiPort{}
			for range g.IntN(3) {
				ports = append(ports, g.policyPort())
			}
			r.Ports = &ports
		}
		out = append(out, r)
	}
	return &out
}

func (g *generator) peer() apiPeer {
	if g.chance(30) {
		return apiPeer{IPBlock: pick(g,
			&apiIPBlock{CIDR: "0.0.0.0/0"}, &apiIPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.1.0.0/16"}},
			&apiIPBlock{CIDR: "10.1.0.0/29", Except: []string{"10.1.0.2/32", "10.1.0.4/31"}}, &apiIPBlock{CIDR: "192.168.0.0/31"},
			&apiIPBlock{CIDR: "::/0", Except: []string{"fd00::2/127"}}, &apiIPBlock{CIDR: "fd00::/64"})}
	}
	pods, namespaces := g.selector(), g.namespaces()
	return pick(g, apiPeer{PodSelector: &pods}, apiPeer{NamespaceSelector: &namespaces}, apiPeer{PodSelector: &pods, NamespaceSelector: &namespaces})
}

func (g *generator) policyPort() apiPort {
	p := apiPort{Protocol: pick(g, "", "TCP", "UDP", "SCTP")}
	switch n := g.IntN(10); {
	case n < 5:
		p.Port = pick(g, 80, 81, 443)
		if g.chance(40) {
			end := p.Port.(int) + g.IntN(12)
			p.EndPort = &end
		}
	case n < 9:
		p.Port = pick(g, "http", "web", "side", "nobody")
	}
	return p
}

func (g *generator) clusterPolicy(i int) apiClusterPolicy {
	p := apiClusterPolicy{APIVersion: "policy.networking.k8s.io/v1alpha2", Kind: "ClusterNetworkPolicy", Metadata: apiMeta{Name: fmt.Sprintf("c%d", i)}}
	p.Spec.Tier = pick(g, "Admin", "Baseline")
	priority := g.IntN(4)
	p.Spec.Priority = &priority
	p.Spec.Subject = g.podsPeer()
	actions := []string{"Accept", "Deny", "Pass"}
	v1alpha1 := g.chance(25)
	if v1alpha1 {
		p.APIVersion, p.Kind, p.Spec.Tier = "policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", ""
		actions[0] = "Allow"
	}
	p.Spec.Ingress = g.clusterRules(false, v1alpha1, actions)
	p.Spec.Egress = g.clusterRules(true, v1alpha1, actions)
	return p
}

func (g *generator) baseline() apiClusterPolicy {
	p := apiClusterPolicy{APIVersion: "policy.networking.k8s.io/v1alpha1", Kind: "BaselineAdminNetworkPolicy", Metadata: apiMeta{Name: "default"}}
	p.Spec.Subject = g.podsPeer()
	p.Spec.Ingress = g.clusterRules(false, true, []string{"Allow", "Deny"})
	p.Spec.Egress = g.clusterRules(true, true, []string{"Allow", "Deny"})
	return p
}

func (g *generator) podsPeer() apiClusterPeer {
	s := g.namespaces()
	return pick(g, apiClusterPeer{Namespaces: &s}, apiClusterPeer{Pods: &apiPods{g.namespaces(), g.selector()}})
}

func (g *generator) clusterRules(egress, v1alpha1 bool, actions []string) []apiClusterRule {
	var out []apiClusterRule
	for i := range g.IntN(4) {
		r := apiClusterRule{Action: pick(g, actions...)}
		if g.chance(50) {
			r.Name = fmt.Sprintf("%s-%d", pick(g, "a", "b"), i)
		}
		named := true
		for range 1 + g.IntN(2) {
			peer := g.podsPeer()
			if egress && g.chance(35) {
				named = false
				nodes := g.selector()
				peer = pick(g, apiClusterPeer{Nodes: &nodes}, apiClusterPeer{Networks: []string{"10.1.0.0/16", "fd00::/16"}}, apiClusterPeer{Networks: []string{"0.0.0.0/0"}})
			}
			if egress {
				r.To = append(r.To, peer)
			} else {
				r.From = append(r.From, peer)
			}
		}
		if g.chance(50) {
			if v1alpha1 {
				r.Ports = &[]apiAdminPort{g.adminPort(named)}
			} else {
				r.Protocols = &[]apiProtocol{g.protocol(named)}
			}
		}
		out = append(out, r)
	}
	return out
}

func (g *generator) protocol(named bool) apiProtocol {
	if named && g.chance(40) {
		return apiProtocol{NamedPort: pick(g, "http", "web", "nobody")}
	}
	var d apiDestination
	d.Port.Number = pick(g, 80, 81)
	if g.chance(40) {
		d.Port.Number, d.Port.Range = 0, &apiRange{Start: 80, End: 81 + g.IntN(20)}
	}
	return pick(g, apiProtocol{TCP: &d}, apiProtocol{UDP: &d}, apiProtocol{SCTP: &d})
}

func (g *generator) adminPort(named bool) apiAdminPort {
	proto := pick(g, "", "TCP", "UDP", "SCTP")
	if named && g.chance(40) {
		return apiAdminPort{Named: pick(g, "http", "web", "nobody")}
	}
	return pick(g, apiAdminPort{Number: &apiNumber{proto, pick(g, 80, 81)}}, apiAdminPort{Range: &apiRange{proto, 80, 81 + g.IntN(20)}})
}
