package suggest

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// existing tells which edges the documents in force allow or deny by a rule of their own. It looks at rules only, not
// at segments or quarantine: what a rule allows needs no further rule, what a rule denies shall not be learnt.
type existing struct {
	r        *records
	labels   []model.Labels
	docs     *model.Documents
	networks map[string]*model.Network
	cidrs    []netip.Prefix
	rules    []existingRule
	classes  map[string]int // parties that no rule can tell apart are of one class
	from     [][]int        // by class: rules whose from matches
	to       [][]uint64     // by rule: set of classes that match its to
}

type existingRule struct {
	allow    bool
	from, to []model.Peer
	on       []model.PortRange
}

// applyExisting settles the fates of edges that rules in force decide, as workloads will be labelled.
func applyExisting(r *records, labels []model.Labels) {
	x := &existing{r: r, labels: labels, docs: r.options.Documents, networks: map[string]*model.Network{}, classes: map[string]int{}}
	x.collect()
	if len(x.rules) == 0 {
		return
	}
	class := x.classify()
	for i := range r.edges {
		e := &r.edges[i]
		if e.fate != FateLearned {
			continue
		}
		allowed := false
		for _, n := range x.from[class[e.src]] {
			rule := &x.rules[n]
			if c := class[e.dst]; x.to[n][c/64]&(1<<(c%64)) == 0 || !onPort(rule.on, e.proto, e.port) {
				continue
			}
			if !rule.allow {
				e.fate = FateDenied
				break
			}
			allowed = true
		}
		if allowed && e.fate == FateLearned {
			e.fate = FateAllowed
		}
	}
}

func onPort(on []model.PortRange, proto model.Proto, port uint16) bool {
	return slices.ContainsFunc(on, func(p model.PortRange) bool { return p.Contains(proto, port) })
}

func (x *existing) collect() {
	services := map[string][]model.PortRange{}
	for i := range x.docs.Services {
		services[x.docs.Services[i].Name] = x.docs.Services[i].Ports
	}
	for i := range x.docs.Networks {
		x.networks[x.docs.Networks[i].Name] = &x.docs.Networks[i]
	}
	now := x.r.options.Now
	for i := range x.docs.Policies {
		for j := range x.docs.Policies[i].Rules {
			rule := &x.docs.Policies[i].Rules[j]
			if !rule.Expires.IsZero() && !now.IsZero() && !now.Before(rule.Expires) {
				continue
			}
			var on []model.PortRange
			for _, p := range rule.On {
				if p.Service != "" {
					on = append(on, services[p.Service]...)
				} else {
					on = append(on, p.Range)
				}
			}
			x.rules = append(x.rules, existingRule{rule.Action == model.ActionAllow, rule.From, rule.To, on})
			for _, p := range append(slices.Clone(rule.From), rule.To...) {
				if p.Kind == model.PeerCIDR && !slices.Contains(x.cidrs, p.CIDR) {
					x.cidrs = append(x.cidrs, p.CIDR)
				}
			}
		}
	}
	for i := range x.docs.Segments {
		if s := &x.docs.Segments[i]; s.MembersOpen {
			members := []model.Peer{{Kind: model.PeerWorkloads, Workloads: s.Selector}}
			x.rules = append(x.rules, existingRule{true, members, members, []model.PortRange{model.AnyPort}})
		}
	}
}

// classify returns the class of each party and fills from and to.
func (x *existing) classify() []int {
	class := make([]int, len(x.r.parties))
	var members []partyID // one of each class
	var key []byte
	for id := range x.r.parties {
		key = key[:0]
		if x.r.parties[id].owned() {
			key = append(key, 1)
			key = append(key, x.labels[id].String()...)
		}
		key = append(key, 0)
		for i := range x.docs.Networks {
			key = append(key, x.contained(partyID(id), x.docs.Networks[i].Contains))
		}
		for _, c := range x.cidrs {
			key = append(key, x.contained(partyID(id), c.Contains))
		}
		n, ok := x.classes[string(key)]
		if !ok {
			n = len(members)
			x.classes[string(key)] = n
			members = append(members, partyID(id))
		}
		class[id] = n
	}
	x.from = make([][]int, len(members))
	x.to = make([][]uint64, len(x.rules))
	for n := range x.rules {
		rule := &x.rules[n]
		x.to[n] = make([]uint64, (len(members)+63)/64)
		for c, id := range members {
			if x.matches(rule.from, id, rule.allow) {
				x.from[c] = append(x.from[c], n)
			}
			if x.matches(rule.to, id, rule.allow) {
				x.to[n][c/64] |= 1 << (c % 64)
			}
		}
	}
	return class
}

// contained says whether none (0), some (1) or all (2) of the party's addresses are contained.
func (x *existing) contained(id partyID, contains func(netip.Addr) bool) byte {
	p := &x.r.parties[id]
	if !p.owned() {
		if contains(p.addr) {
			return 2
		}
		return 0
	}
	in := 0
	for _, a := range p.instance.Addresses {
		if contains(a.Unmap()) {
			in++
		}
	}
	switch {
	case in == 0:
		return 0
	case in == len(p.instance.Addresses):
		return 2
	}
	return 1
}

// matches errs on the strict side: what allows must hold for every address of a workload, what denies for one.
func (x *existing) matches(peers []model.Peer, id partyID, allow bool) bool {
	needed := byte(1)
	if allow {
		needed = 2
	}
	for i := range peers {
		p := &peers[i]
		switch p.Kind {
		case model.PeerAny:
			return true
		case model.PeerWorkloads:
			if x.r.parties[id].owned() && p.Workloads.Matches(x.labels[id]) && (p.Process == nil || !allow) {
				return true
			}
		case model.PeerNetwork:
			if n := x.networks[p.Network]; n != nil && x.contained(id, n.Contains) >= needed {
				return true
			}
		case model.PeerCIDR:
			if x.contained(id, p.CIDR.Contains) >= needed {
				return true
			}
		}
	}
	return false
}
