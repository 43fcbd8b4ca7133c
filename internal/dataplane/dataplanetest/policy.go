package dataplanetest

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Identities of the lab.
const (
	nobody   model.IdentityID = 0 // everyone that no rule names
	nearID   model.IdentityID = 0x1001
	oneID    model.IdentityID = 0x1002
	twoID    model.IdentityID = 0x1003
	lateID   model.IdentityID = 0x1004
	farID    model.IdentityID = 0x2001
	otherID  model.IdentityID = 0x2002
	sharedID model.IdentityID = 0x2003
	ownerID  model.IdentityID = 0x2004
	netID    model.IdentityID = 0x3001
)

// Rule is a rule of one subject of the lab.
type Rule struct {
	Dir     model.Direction
	Peer    model.IdentityID // nobody: every peer
	Ports   model.PortRange
	Verdict model.Verdict
	Name    model.RuleID
	Process model.Process // whom of the subject's processes it is for; the zero value is all
}

// Ports parses a port range.
func ports(s string) model.PortRange {
	r, err := model.ParsePortRange(s)
	if err != nil {
		panic(err) // a mistake in the suite itself
	}
	return r
}

// rule is short for a Rule whose name says what it does.
func rule(dir model.Direction, peer model.IdentityID, on string, v model.Verdict) Rule {
	return Rule{Dir: dir, Peer: peer, Ports: ports(on), Verdict: v, Name: model.RuleID("lab/" + dir.String() + "-" + v.String())}
}

// only makes a rule one for some processes.
func (r Rule) only(p model.Process) Rule {
	r.Process = p
	return r
}

// everything is a rule for every peer and port in both directions.
func everything(v model.Verdict) []Rule {
	return []Rule{rule(model.Ingress, nobody, "any", v), rule(model.Egress, nobody, "any", v)}
}

// denyAll is what holds where no rule does.
var denyAll = model.EndVerdict{Verdict: model.Deny, Rule: model.RuleDefaultDeny}

// isolation is the isolation set of every subject of the lab: nothing but far's second address.
func isolation() hostpolicy.PolicySet {
	return compile([]Rule{
		{Dir: model.Ingress, Peer: otherID, Ports: model.AnyPort, Verdict: model.Allow, Name: model.RuleForensic},
		{Dir: model.Egress, Peer: otherID, Ports: model.AnyPort, Verdict: model.Allow, Name: model.RuleForensic},
		{Dir: model.Ingress, Peer: nobody, Ports: model.AnyPort, Verdict: model.Deny, Name: model.RuleIsolate},
		{Dir: model.Egress, Peer: nobody, Ports: model.AnyPort, Verdict: model.Deny, Name: model.RuleIsolate},
	})
}

// subject is a workload of the lab with its rules, of which the first that applies decides.
type subject struct {
	name, unit string
	id         model.IdentityID
	rules      []Rule
	local      map[string]localRules
}

type localRules struct {
	id    model.IdentityID
	rules []Rule
}

// policy makes the policy of near.
type policy struct {
	host, one, two, late []Rule // nil denies everything
	hostLocal            map[string]localRules
	addresses            map[string]hostpolicy.Address
	ports                []hostpolicy.PortOwner
	controllers          []netip.AddrPort
	revision             uint64
	withoutLate          bool
	inner                string // a unit of processes, in a cgroup below that of unit two
	users                map[string]uint32
	loss                 model.OnAgentLoss // of unit one
	domains              []hostpolicy.Domain
}

// standard are the addresses that the lab's policies know.
func standard() map[string]hostpolicy.Address {
	return map[string]hostpolicy.Address{
		Far4 + "/32": {Identity: farID}, Far6 + "/128": {Identity: farID},
		Other4 + "/32": {Identity: otherID}, Other6 + "/128": {Identity: otherID},
		Shared4 + "/32": {Identity: sharedID, Shared: true},
		Near4 + "/32":   {Identity: nearID, Shared: true}, Near6 + "/128": {Identity: nearID, Shared: true},
		Near4b + "/32": {Identity: nearID, Shared: true},
	}
}

func (p policy) build() *hostpolicy.Policy {
	out := &hostpolicy.Policy{Host: "near", Revision: p.revision, Controllers: p.controllers, Ports: p.ports, Domains: p.domains}
	isolation := isolation()
	sets := map[hostpolicy.PolicySetID]hostpolicy.PolicySet{isolation.ID: isolation}
	subjects := []subject{
		{name: "near", id: nearID, rules: p.host, local: p.hostLocal},
		{name: "near/late", unit: "late", id: lateID, rules: p.late},
		{name: "near/one", unit: "one", id: oneID, rules: p.one},
		{name: "near/two", unit: "two", id: twoID, rules: p.two},
	}
	for _, s := range subjects {
		if p.withoutLate && s.unit == "late" {
			continue
		}
		set := compile(s.rules)
		sets[set.ID] = set
		loss := model.LossKeep
		if s.unit == "one" {
			loss = p.loss
		}
		sub := hostpolicy.Subject{OnAgentLoss: loss, Workload: s.name, Unit: s.unit, Identity: s.id, Set: set.ID, Isolation: isolation.ID}
		for _, addr := range slices.Sorted(maps.Keys(s.local)) {
			l := compile(s.local[addr].rules)
			sets[l.ID] = l
			sub.Local = append(sub.Local, hostpolicy.LocalSet{
				Addr: netip.MustParseAddr(addr), Identity: s.local[addr].id, Set: l.ID,
			})
		}
		out.Subjects = append(out.Subjects, sub)
	}
	for _, id := range slices.Sorted(maps.Keys(sets)) {
		out.Sets = append(out.Sets, sets[id])
	}
	addresses := p.addresses
	if addresses == nil {
		addresses = standard()
	}
	for prefix, a := range addresses {
		a.Prefix = netip.MustParsePrefix(prefix)
		out.Addresses = append(out.Addresses, a)
	}
	slices.SortFunc(out.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	return out
}

// compile makes a policy set in which the first rule that applies decides, and everything else is denied.
func compile(rules []Rule) hostpolicy.PolicySet {
	var s hostpolicy.PolicySet
	for _, dir := range model.Directions {
		t := s.Table(dir)
		t.Funcs = []hostpolicy.Func{function(rules, dir, nobody)}
		peers := map[model.IdentityID]bool{}
		for _, r := range rules {
			if r.Dir == dir && r.Peer != nobody {
				peers[r.Peer] = true
			}
		}
		for _, peer := range slices.Sorted(maps.Keys(peers)) {
			t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: peer, Func: uint32(len(t.Funcs))})
			t.Funcs = append(t.Funcs, function(rules, dir, peer))
		}
	}
	s.ID = s.ContentID()
	return s
}

// function paints the cells of one peer.
func function(rules []Rule, dir model.Direction, peer model.IdentityID) hostpolicy.Func {
	var mine []Rule
	protos := map[model.Proto]bool{}
	for _, r := range rules {
		if r.Dir == dir && (r.Peer == nobody || r.Peer == peer) {
			mine = append(mine, r)
			if r.Ports.Proto != model.ProtoAny {
				protos[r.Ports.Proto] = true
			}
		}
	}
	decide := func(on model.PortRange) hostpolicy.Cell {
		cell := hostpolicy.Cell{Ports: on, Verdict: denyAll.Verdict, Rule: denyAll.Rule}
		proto := on.Proto
		if proto == model.ProtoAny {
			proto = 255 // one that no rule names
		}
		for _, r := range mine {
			switch {
			case !r.Ports.Contains(proto, on.Lo):
			case r.Process != model.Process{}:
				cell.When = append(cell.When, hostpolicy.Alternative{Process: r.Process, Verdict: r.Verdict, Rule: r.Name})
			default:
				cell.Verdict, cell.Rule = r.Verdict, r.Name
				return cell
			}
		}
		return cell
	}
	f := hostpolicy.Func{decide(model.AnyPort)}
	for _, p := range slices.Sorted(maps.Keys(protos)) {
		edges := []int{0, 65536}
		for _, r := range mine {
			if r.Ports.Proto == p {
				edges = append(edges, int(r.Ports.Lo), int(r.Ports.Hi)+1)
			}
		}
		slices.SortFunc(edges, cmp.Compare[int])
		edges = slices.Compact(edges)
		for i := range edges[:len(edges)-1] {
			f = append(f, decide(model.PortRange{Proto: p, Lo: uint16(edges[i]), Hi: uint16(edges[i+1] - 1)}))
		}
	}
	return f
}
