package prove

import (
	"slices"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// classesOf returns the classes of which a guardrail speaks about some member.
func (p *proof) classesOf(end, g int) []int32 {
	var out []int32
	for c := range p.u.Classes {
		if p.means[end].classes[c*p.words+g/64]&(1<<(g%64)) != 0 {
			out = append(out, int32(c))
		}
	}
	return out
}

// party are actors of a class that a guardrail speaks about with the same processes.
type party struct {
	who    reach.Who
	actors []int32
}

// parties returns the members of a class that a guardrail speaks about, by the processes that it means there.
func (p *proof) parties(end, g int, class int32) []party {
	members := p.members(end, g, class)
	if !p.choosy[g] || len(members) == 0 {
		return []party{{reach.Everybody, members}}
	}
	var out []party
	for _, i := range members {
		who := p.processes(end, g, &p.u.Actors[i])
		n := slices.IndexFunc(out, func(x party) bool { return x.who == who })
		if n < 0 {
			n = len(out)
			out = append(out, party{who: who})
		}
		out[n].actors = append(out[n].actors, i)
	}
	return out
}

// processes returns the processes that a guardrail means at an actor that it speaks about. Where nothing sees the process, it
// means every one.
func (p *proof) processes(end, g int, a *reach.Actor) reach.Who {
	doc := &p.world.Documents().Guardrails[g]
	peers := doc.From
	if end == 1 {
		peers = doc.To
	}
	out := reach.Nobody
	for i := range peers {
		peer := &peers[i]
		meant := true
		switch peer.Kind {
		case model.PeerWorkloads:
			meant = a.Owned() && peer.Workloads.Matches(a.Labels)
		case model.PeerNetwork:
			meant = !p.mayBe(a) && slices.Contains(a.Networks, peer.Network)
		case model.PeerCIDR:
			meant = !p.mayBe(a) && slices.Contains(a.Networks, reach.CIDRName(peer.CIDR))
		case model.PeerDomain:
			meant = slices.Contains(a.Networks, model.DomainNetwork(peer.Domain))
		}
		switch {
		case !meant:
		case peer.Process == nil || !a.Managed():
			return reach.Everybody
		case end == 0:
			out = p.u.Or(out, p.u.Running(peer.Process, nil))
		default:
			out = p.u.Or(out, p.u.Running(nil, peer.Process))
		}
	}
	return out
}
