package policytest

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/model"
)

// namedPorts are the names that pods give ports and policies of Kubernetes ask for.
var namedPorts = []model.NamedPort{{Proto: model.ProtoTCP, Name: "http"}, {Proto: model.ProtoTCP, Name: "db"}, {Proto: model.ProtoUDP, Name: "http"}}

// pods makes pods and nodes of some hosts, if there are policies of Kubernetes.
func (g *generator) pods() {
	if g.size.OneSided == 0 {
		return
	}
	var nodes []string
	for i := range g.instances {
		inst := &g.instances[i]
		if inst.IsUnit() {
			continue
		}
		var own model.Labels
		switch n := g.IntN(10); {
		case n < 2:
			inst.Node = inst.Name
			nodes = append(nodes, inst.Name)
			continue
		case n < 7:
			own = model.Labels{model.PodLabel: model.PodValue}
		case n < 8:
			own = model.Labels{model.PodLabel: model.HostPodValue}
		default:
			continue
		}
		if len(nodes) > 0 && g.chance(70) {
			inst.Node = pick(g, nodes)
		}
		own[model.NamespaceLabelPrefix+"team"] = pick(g, []string{"shop", "bank"})
		for _, p := range namedPorts {
			if g.chance(40) {
				own[p.PortLabel()] = fmt.Sprint(pick(g, []int{80, 443, 5432}))
			}
		}
		inst.Labels = inst.Labels.With(own)
		// It is reported only: a document cannot give labels of the system.
		g.docs.Workloads = slices.DeleteFunc(g.docs.Workloads, func(w model.Workload) bool { return w.Name == inst.Name })
	}
}

// podSelector returns a selector as policies of Kubernetes lower to.
func (g *generator) podSelector() model.Selector {
	more := []model.Requirement{{Key: model.PodLabel, Op: model.OpIn, Values: []string{model.PodValue}}}
	if g.chance(50) {
		more = append(more, model.Requirement{Key: model.NamespaceLabelPrefix + "team", Op: model.OpIn, Values: []string{pick(g, []string{"shop", "bank"})}})
	}
	s := model.Selector{}
	for again := true; again; again = s.Contradiction() != "" {
		s = g.selector()
		if g.chance(70) {
			s = model.Selector{}
		}
	}
	return s.With(more...)
}

func (g *generator) oneSided() {
	for i := range g.size.OneSided {
		p := model.OneSided{Meta: model.Meta{Name: fmt.Sprintf("kube/%d", i)}, Subject: g.podSelector()}
		actions := []model.Action{model.ActionAllow, model.ActionDeny}
		switch g.IntN(5) {
		case 0:
			p.Tier, p.Priority = model.TierAdmin, g.IntN(3)
			actions = append(actions, model.ActionPass, model.ActionPass)
		case 1:
			p.Tier, p.Priority = model.TierBaseline, g.IntN(3)
			actions = append(actions, model.ActionPass)
		default:
			p.Tier = model.TierNamespace
			p.Isolates = [2]bool{g.chance(70), g.chance(40)}
			actions = actions[:1]
		}
		for k := range 1 + g.IntN(4) {
			r := model.OneSidedRule{Name: fmt.Sprintf("rule/%d", k), Direction: pick(g, model.Directions[:]), Action: pick(g, actions)}
			for range 1 + g.IntN(2) {
				r.Peers = append(r.Peers, g.oneSidedPeer())
			}
			if g.chance(70) {
				r.Ports = append(r.Ports, g.namedRange())
			}
			if len(r.Ports) == 0 || g.chance(20) {
				r.Named = append(r.Named, pick(g, namedPorts))
				g.ranges = append(g.ranges, model.PortRange{Proto: model.ProtoTCP, Lo: 80, Hi: 80})
			}
			p.Rules = append(p.Rules, r)
		}
		g.docs.OneSided = append(g.docs.OneSided, p)
	}
}

func (g *generator) oneSidedPeer() model.Peer {
	switch n := g.IntN(10); {
	case n < 2:
		p := model.Peer{Kind: model.PeerCIDR, CIDR: g.prefix()}
		if p.CIDR.Bits() < p.CIDR.Addr().BitLen()-1 && g.chance(60) {
			p.Except = append(p.Except, g.within(p.CIDR))
		}
		g.prefixes = append(append(g.prefixes, p.CIDR), p.Except...)
		return p
	case n < 3:
		return model.Peer{Kind: model.PeerAny}
	}
	return model.Peer{Kind: model.PeerWorkloads, Workloads: g.podSelector()}
}
