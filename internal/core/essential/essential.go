// Package essential holds the traffic that no policy and no quarantine ever blocks and that can be told from the
// packet alone. Essentials that depend on addresses (resolvers, time servers, the forensic network) are compiled
// into policy sets from networks with a purpose; those that depend on who is who (one workload with itself, the
// host with its controller) are judged where that is known.
package essential

import "bulkhead/internal/core/model"

// Entry is one kind of traffic that always passes.
type Entry struct {
	Rule  model.RuleID
	Ports model.PortRange
	Why   string
}

// Fixed lists the essentials that protocol and destination port tell, sorted by protocol and port. The eBPF and
// nftables dataplanes hold the same list; their tests compare it.
var Fixed = []Entry{
	{model.RuleICMPError, icmp(model.ProtoICMP, 3, 3), "destination unreachable, and path MTU discovery with it"},
	{model.RuleICMPError, icmp(model.ProtoICMP, 11, 12), "time exceeded and parameter problem"},
	{model.RuleDHCP, model.PortRange{Proto: model.ProtoUDP, Lo: 67, Hi: 68}, "DHCP"},
	{model.RuleDHCP, model.PortRange{Proto: model.ProtoUDP, Lo: 546, Hi: 547}, "DHCPv6"},
	{model.RuleICMPError, icmp(model.ProtoICMPv6, 1, 4), "unreachable, packet too big, time exceeded, parameter problem"},
	{model.RuleND, icmp(model.ProtoICMPv6, 130, 137), "multicast listener and neighbour discovery"},
	{model.RuleND, icmp(model.ProtoICMPv6, 143, 143), "multicast listener reports, version 2"},
}

func icmp(p model.Proto, lo, hi uint8) model.PortRange {
	return model.PortRange{Proto: p, Lo: model.ICMPPort(lo, 0), Hi: model.ICMPPort(hi, 255)}
}

// Match returns the essential that the protocol and destination port belong to. It allocates nothing.
func Match(p model.Proto, port uint16) (model.RuleID, bool) {
	if p != model.ProtoUDP && !p.IsICMP() {
		return "", false
	}
	for i := range Fixed {
		if Fixed[i].Ports.Contains(p, port) {
			return Fixed[i].Rule, true
		}
	}
	return "", false
}
