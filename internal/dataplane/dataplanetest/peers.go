package dataplanetest

import (
	"fmt"
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// MeasurePort is where PeersPolicy expects ServeMeasures.
const MeasurePort = 20000

// PeersPolicy is a policy for measurements: near, far and n other addresses may talk to each other on TCP from port 10000
// on and on UDP but for one port, each by an identity and a row of its own; nothing else is allowed. It is for a host with
// a unit a.
func PeersPolicy(n int) *hostpolicy.Policy {
	const somebody model.IdentityID = 1
	rule := func(ports string, v model.Verdict, name model.RuleID) Rule {
		on, err := model.ParsePortRange(ports)
		if err != nil {
			panic(err)
		}
		return Rule{Dir: model.Egress, Peer: somebody, Ports: on, Verdict: v, Name: name}
	}
	rules := []Rule{
		rule("tcp/10000-65535", model.Allow, "p/high"),
		rule(fmt.Sprintf("udp/%d", MeasurePort+DeniedPort), model.Deny, denyAll.Rule),
		rule("udp", model.Allow, "p/udp"),
	}
	t := hostpolicy.Table{Funcs: []hostpolicy.Func{function(nil, model.Egress, nobody), function(rules, model.Egress, somebody)}}
	p := &hostpolicy.Policy{Host: "h"}
	add := func(a netip.Addr, id model.IdentityID) {
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(a, 32), Identity: id})
		t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: id, Func: 1})
	}
	for i, a := range []string{Near4, Far4} {
		add(netip.MustParseAddr(a), model.IdentityID(i+1))
	}
	for i := range n {
		add(PeerAddr(i), model.IdentityID(i+100))
	}
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	set := hostpolicy.PolicySet{Ingress: t, Egress: t}
	set.ID = set.ContentID()
	p.Sets = []hostpolicy.PolicySet{set}
	p.Subjects = []hostpolicy.Subject{
		{Workload: "h", Identity: 10, Set: set.ID, Isolation: set.ID},
		{Workload: "h/a", Unit: "a", Identity: 11, Set: set.ID, Isolation: set.ID},
	}
	return p
}

// PeerAddr is the address of the other peer number i of PeersPolicy.
func PeerAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
}
