package rivals

import (
	"fmt"
	"net/netip"
	"strings"

	"bulkhead/internal/dataplane/dataplanetest"
)

// The same policy as dataplanetest.PeersPolicy, as an expert would write it with the tools of the system: replies first,
// then one look-up.

// peerList returns the addresses that may talk: those of the lab last, where a linear list finds them last.
func peerList(n int) []netip.Addr {
	var peers []netip.Addr
	for i := range n {
		peers = append(peers, dataplanetest.PeerAddr(i))
	}
	return append(peers, netip.MustParseAddr(dataplanetest.Near4), netip.MustParseAddr(dataplanetest.Far4))
}

const denied = dataplanetest.MeasurePort + dataplanetest.DeniedPort

// nftSets is a ruleset for nft: a set of addresses, which is a hash, and few rules.
func nftSets(n int) string {
	var elements []string
	for _, p := range peerList(n) {
		elements = append(elements, p.String())
	}
	return fmt.Sprintf(`table ip fw {
	set peers { type ipv4_addr; elements = { %s } }
	chain services {
		tcp dport 10000-65535 accept
		udp dport %d drop
		meta l4proto udp accept
	}
	chain in {
		type filter hook input priority filter; policy drop;
		ct state vmap { established : accept, related : accept, invalid : drop }
		iif lo accept
		ip saddr @peers jump services
	}
	chain out {
		type filter hook output priority filter; policy drop;
		ct state vmap { established : accept, related : accept, invalid : drop }
		oif lo accept
		ip daddr @peers jump services
	}
}
`, strings.Join(elements, ", "), denied)
}

// iptablesHead is what both rulesets for iptables-restore begin with.
var iptablesHead = fmt.Sprintf(`*filter
:INPUT DROP [0:0]
:OUTPUT DROP [0:0]
:SERVICES - [0:0]
-A SERVICES -p tcp --dport 10000:65535 -j ACCEPT
-A SERVICES -p udp --dport %d -j DROP
-A SERVICES -p udp -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
`, denied)

// iptablesLinear has a rule for each peer.
func iptablesLinear(n int) string {
	var b strings.Builder
	b.WriteString(iptablesHead)
	for _, p := range peerList(n) {
		fmt.Fprintf(&b, "-A INPUT -s %s -j SERVICES\n-A OUTPUT -d %s -j SERVICES\n", p, p)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// iptablesSet looks them up in a set of ipset's.
const iptablesSet = "-A INPUT -m set --match-set peers src -j SERVICES\n-A OUTPUT -m set --match-set peers dst -j SERVICES\nCOMMIT\n"

// ipset is input for ipset restore.
func ipset(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "create peers hash:ip maxelem %d\n", n+16)
	for _, p := range peerList(n) {
		fmt.Fprintf(&b, "add peers %s\n", p)
	}
	return b.String()
}
