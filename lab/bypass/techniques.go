package bypass

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// technique is one way to reach what policy forbids.
type technique struct {
	name     string // lower-case letters, digits and '-'
	title    string
	families []family
	from     string   // the part that tries; "" is the breached service
	local    bool     // the target is another unit of the same host, not the vault
	alone    *process // nil: in the process of the part
	// try makes the attempt. An error says why it could not, as the attacker sees it; that is not proof of anything.
	try func(*attempt) error
	// refused says why a kernel may not let this happen even if no policy stops it; "" if it must.
	refused string
	// named says what the operator is to do about what is not closed; "" if it must be closed.
	named string
	// to is where flows say the attempt went to, if not to the target's port; hidden says that it cannot be there.
	to     func(*attempt) netip.Addr
	hidden bool
	// protocols, if it is of them, are what the flow is known by; it has no port.
	protocols []uint8
	// cable says that the target is a host that the attacker has too: whatever comes off the cable there has arrived.
	cable bool
}

// attempt is one technique tried once.
type attempt struct {
	*Spec
	technique *technique
	family    family
	token     string
	port      uint16
	order     *order
}

const (
	firstPort = 7000
	openPort  = 6999 // of the vault: policy allows it
	portless  = 253  // a protocol of IP without ports, for experiments (RFC 3692)

	protoSCTP    = unix.IPPROTO_SCTP
	protoUDPLite = unix.IPPROTO_UDPLITE
)

// addr is the address of the target.
func (a *attempt) addr() netip.Addr {
	if a.technique.local {
		return a.Own[a.family]
	}
	return a.Target[a.family]
}

// target is what must not be reached.
func (a *attempt) target() netip.AddrPort { return netip.AddrPortFrom(a.addr(), a.port) }

// own is this host's address, with a port that is like no other attempt's.
func (a *attempt) own() netip.AddrPort { return netip.AddrPortFrom(a.Own[a.family], a.port) }

var (
	both = []family{v4, v6}
	ip4  = []family{v4}
	ip6  = []family{v6}
)

var echoes = []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}

const (
	takeRaw   = "take CAP_NET_RAW from the unit (AmbientCapabilities=, CapabilityBoundingSet= of systemd; drop it in containers)"
	takeAdmin = "take CAP_NET_ADMIN from the unit, and /dev/net/tun"
)

// techniques in the order in which they are tried. Those that leave something behind on the host come last.
func techniques() []technique {
	return []technique{
		{name: "tcp", title: "TCP connection", families: both, try: tcp},
		{name: "udp", title: "UDP datagram", families: both, try: datagram},
		{name: "mptcp", title: "multipath TCP", families: both, try: stream(unix.IPPROTO_MPTCP)},
		{name: "fastopen", title: "TCP fast open: data in the SYN, no connect()", families: both, try: fastOpen},
		{name: "mapped-tcp", title: "IPv4-mapped IPv6 address, TCP", families: ip4, try: mapped(unix.SOCK_STREAM)},
		{name: "mapped-udp", title: "IPv4-mapped IPv6 address, UDP", families: ip4, try: mapped(unix.SOCK_DGRAM)},
		{name: "elsewhere", title: "UDP connected to what is allowed, then sent elsewhere", families: both, try: elsewhere},
		{name: "multicast", title: "multicast to a group of the target", families: both, try: multicast, to: group},
		{name: "broadcast", title: "broadcast", families: ip4, try: broadcast, to: hub},
		{name: "sctp", title: "SCTP", families: both, try: stream(protoSCTP), refused: "it has no SCTP"},
		{name: "udplite", title: "UDP-Lite", families: both, try: udpLite, refused: "it has no UDP-Lite"},

		{name: "ping", title: "echo request with data, ping socket", families: both, try: ping, protocols: echoes},
		{name: "raw-echo", title: "echo request with data, raw socket", families: both, try: rawEcho, protocols: echoes},
		{name: "raw-udp", title: "raw socket, UDP header by hand", families: both, try: rawUDP},
		{name: "raw-tcp", title: "raw socket, TCP header by hand", families: both, try: rawTCP},
		{name: "raw-port", title: "raw socket, from the port of the allowed unit", families: both, try: rawPort},
		{name: "raw-source", title: "raw socket, from the address of another host", families: both, try: rawSource},
		{name: "raw-portless", title: "raw socket, protocol without ports", families: both, try: rawPortless, protocols: []uint8{portless}},

		{name: "fragments", title: "datagram that the kernel cuts into fragments", families: both, try: bigDatagram},
		{name: "tiny", title: "raw fragments, the last one first", families: both, try: tinyFragments},
		{name: "overlap", title: "raw fragments that overlap, the first to an open port", families: both, try: overlapping,
			refused: "it drops fragments that overlap (RFC 5722)"},
		{name: "cut-ports", title: "first fragment without ports", families: ip6, try: cutPorts,
			refused: "it drops them (RFC 8200, 4.5)"},
		{name: "atomic", title: "fragment header on a whole packet", families: ip6, try: extension(unix.IPPROTO_FRAGMENT)},
		{name: "hop-by-hop", title: "hop-by-hop options", families: ip6, try: sticky(unix.IPV6_HOPOPTS)},
		{name: "dest-options", title: "destination options", families: ip6, try: sticky(unix.IPV6_DSTOPTS)},
		{name: "headers", title: "raw socket, three extension headers", families: ip6, try: extension(unix.IPPROTO_DSTOPTS)},
		{name: "rh0-end", title: "routing header of type 0 that ends here", families: ip6, try: routingEnd(0)},
		{name: "rh0", title: "routing header of type 0, over what is allowed", families: ip6, try: routing(0),
			refused: "it has no routing header of type 0 (RFC 5095)"},
		{name: "rh2", title: "routing header of type 2, over what is allowed", families: ip6, try: routing(2),
			refused: "it takes type 2 for Mobile IPv6 only"},
		{name: "rh4", title: "segment routing (type 4), over what is allowed", families: ip6, try: routing(4)},
		{name: "rh4-socket", title: "segment routing as a socket's option, no capability", families: ip6, try: segments},
		{name: "lsrr", title: "IPv4 source route, over what is allowed", families: ip4, try: sourceRoute},

		{name: "given-socket", title: "socket of the allowed unit, handed over, then connected", families: both, try: given("socket"),
			named: "a socket is its maker's: let no unit hand sockets to one that it does not trust"},
		{name: "given-connected", title: "connection of the allowed unit, handed over", families: both, try: given("connected"),
			named: "a socket is its maker's: let no unit hand sockets to one that it does not trust"},
		{name: "inherited", title: "connection of the allowed unit, inherited", families: both, from: "helper", try: inherited,
			alone: &process{cgroup: cgroupOf("breached"), socket: connection},
			named: "a socket is its maker's: give a service what it starts with in its own unit"},
		{name: "given-listener", title: "listener of the allowed unit, handed over", families: both, try: given("listener"),
			named: "who activates a service by a socket decides whose it is: label it as the service"},
		{name: "lent", title: "socket of the breached unit, connected by the allowed one", families: both, try: lent},
		{name: "moved-socket", title: "process goes to the allowed unit, with its socket", families: both, alone: &process{}, try: movedSocket},
		{name: "moves", title: "process goes to the allowed unit, new socket, as root", families: both, alone: &process{}, try: moves,
			named: "root can do anything on its host: give the unit a user (User=)"},
		{name: "moves-user", title: "process goes to the allowed unit, as a user", families: both, alone: &process{user: nobody}, try: moves,
			refused: "only root may write to the unit's cgroup"},
		{name: "own-cgroup", title: "user names a cgroup of his own like the allowed unit", families: both,
			alone: &process{user: nobody, cgroup: delegated}, try: ownCgroup},

		{name: "loopback", title: "another unit of the host, at the loopback address", families: both, local: true, try: loopback, to: loop},
		{name: "own-address", title: "another unit of the host, at the host's address", families: both, local: true, try: tcp},
		{name: "own-udp", title: "the same by UDP", families: both, local: true, try: datagram},
		{name: "unix", title: "AF_UNIX to another unit of the host", families: ip4, local: true, try: unixSocket, hidden: true,
			named: "not judged: permissions of the file decide, or a mount namespace of the unit's own (PrivateTmp=)"},

		{name: "packet", title: "packet socket: frame to the target", families: both, try: packetSocket(false)},
		{name: "packet-bypass", title: "packet socket past queueing (PACKET_QDISC_BYPASS)", families: both, try: packetSocket(true), named: takeRaw, hidden: true},
		{name: "xdp", title: "AF_XDP socket: frame to the target", families: both, try: xdpSocket, named: takeRaw, hidden: true,
			refused: "it has no AF_XDP, or not for this interface"},
		{name: "packet-lo", title: "packet socket on loopback, from the port of the allowed unit", families: both, local: true, try: packetLoopback,
			named: takeRaw, hidden: true},
		{name: "vxlan", title: "VXLAN interface: what is allowed, inside a packet to the target", families: both, try: vxlan, named: takeAdmin, hidden: true,
			refused: "it has no VXLAN"},
		{name: "ipip", title: "IP-in-IP interface", families: ip4, try: ipip, cable: true, named: takeAdmin, hidden: true, refused: "it has no IP-in-IP"},
		{name: "tun", title: "packets from a TUN interface, forwarded by the host", families: both, try: tun, named: takeAdmin, hidden: true},

		{name: "dnat-tcp", title: "DNAT on the host: allowed address becomes the target, TCP", families: both, try: translated(unix.IPPROTO_TCP)},
		{name: "dnat-udp", title: "the same by UDP", families: both, try: translated(unix.IPPROTO_UDP)},
		{name: "redirect-tcp", title: "REDIRECT on the host: allowed address becomes another unit, TCP", families: both, local: true, try: redirected(unix.IPPROTO_TCP), to: here},
		{name: "redirect-udp", title: "the same by UDP", families: both, local: true, try: redirected(unix.IPPROTO_UDP), to: here},
	}
}

// port is the port of the target that this technique uses, and no other.
func (t *technique) port() uint16 {
	for i, other := range techniques() {
		if other.name == t.name {
			return firstPort + uint16(i)
		}
	}
	return 0
}

// ports lists those that the techniques use at the vault, or, if local, at the other unit of the host.
func ports(local bool) (out []uint16) {
	for i, t := range techniques() {
		if t.local == local {
			out = append(out, firstPort+uint16(i))
		}
	}
	return out
}

// Names lists the techniques.
func Names() (out []string) {
	for _, t := range techniques() {
		out = append(out, t.name)
	}
	return out
}

func find(name string) *technique {
	for _, t := range techniques() {
		if t.name == name {
			return &t
		}
	}
	return nil
}

func group(a *attempt) netip.Addr { return groups[a.family] }
func hub(a *attempt) netip.Addr   { return a.Hub[a.family] }

// loop is the loopback address.
func loop(a *attempt) netip.Addr {
	if a.family == v4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// here is where REDIRECT leads what is sent on this host.
func here(a *attempt) netip.Addr { return loop(a) }
