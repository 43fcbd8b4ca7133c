package ebpf

import (
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// Guard says which interfaces of the network namespace of the host have programs of their own, for packets that no inet socket
// of the host sends or receives: those of packet sockets, and those of other network stacks.
type Guard int

// What may be guarded.
const (
	GuardNone  Guard = iota
	GuardPorts       // interfaces behind which another network stack is: of a container, or of a virtual machine
	GuardAll         // those, and the ones that lead away from the host
)

// side is what an interface is to the host.
type side int

const (
	inner  side = iota // all that passes it passes another one that is guarded, or never leaves the host
	port               // another network stack is behind it
	uplink             // it leads away
)

// stacked are kinds of interface whose frames leave by another one of the same namespace, or nowhere.
var stacked = []string{"bond", "bridge", "dummy", "hsr", "ifb", "ipvlan", "macsec", "macvlan", "nlmon", "team", "vlan", "vrf"}

// sideOf says what the interface is. Addrs are the addresses of the host on it.
func sideOf(l netlink.Link, addrs []netlink.Addr) side {
	a := l.Attrs()
	if a.Flags&net.FlagLoopback != 0 || slices.Contains(stacked, l.Type()) {
		return inner
	}
	switch l.Type() {
	case "veth", "netkit":
		// Its other end may be here too, and lead anywhere. And a host may be a container itself.
		if a.NetNsID < 0 || slices.ContainsFunc(addrs, isOfNetwork) {
			return uplink
		}
		return port
	case "tuntap", "tun":
		if slices.ContainsFunc(addrs, isGlobal) { // a tunnel of the host's own
			return uplink
		}
		return port
	case "macvtap", "ipvtap":
		return port
	}
	return uplink
}

func isGlobal(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() }

// isOfNetwork reports whether others are in one network with the address. What is routed to a container may be given an
// address for itself on the side of the host.
func isOfNetwork(a netlink.Addr) bool {
	ones, bits := a.Mask.Size()
	return isGlobal(a) && ones < bits
}

// post is a place at an interface at which a program of ours is, or is to be.
type post struct {
	index   int
	program string
	egress  bool
}

// name is what the post is known by, and its link if it has one.
func (p post) name() string {
	if p.egress {
		return fmt.Sprintf("%s%d_out", guardPrefix, p.index)
	}
	return fmt.Sprintf("%s%d_in", guardPrefix, p.index)
}

const guardPrefix = "guard_"

func (p post) attachType() ebpf.AttachType {
	if p.egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// parent is where filters for the post hang at a clsact qdisc.
func (p post) parent() uint32 {
	if p.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// noNamespace says that what is behind an interface is in no namespace that this kernel has.
const noNamespace = 0xffffffff

// station is an interface that is to be guarded.
type station struct {
	name  string
	index int
	side  side
	posts []post
	netns int // number of the namespace behind a port, or -1
	tap   bool
	raw   bool
}

func stationOf(l netlink.Link, addrs []netlink.Addr, guard Guard) (s station, ok bool) {
	a := l.Attrs()
	s = station{name: a.Name, index: a.Index, side: sideOf(l, addrs), netns: -1, raw: a.EncapType != "ether"}
	switch {
	case s.side == port:
		reads := l.Type() == "macvtap" || l.Type() == "ipvtap" // what its stack sends leaves by it
		s.posts = []post{{a.Index, programsProgBulkheadLeaving, reads}, {a.Index, programsProgBulkheadEntering, !reads}}
		if s.tap = l.Type() != "veth" && l.Type() != "netkit"; !s.tap {
			s.netns = a.NetNsID
		}
	case s.side == uplink && guard == GuardAll:
		s.posts = []post{{a.Index, programsProgBulkheadUplink, true}}
	default:
		return s, false
	}
	return s, true
}

// stations lists the interfaces of the host that are to be guarded.
func (d *Dataplane) stations() (all []station, err error) {
	var links []netlink.Link
	on := map[int][]netlink.Addr{}
	err = d.netns.run(func() error {
		var err error
		if links, err = netlink.LinkList(); err != nil {
			return err
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			on[a.LinkIndex] = append(on[a.LinkIndex], a)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list this host's interfaces: %w", err)
	}
	for _, l := range links {
		if s, ok := stationOf(l, on[l.Attrs().Index], d.cfg.Guard); ok {
			all = append(all, s)
		}
	}
	return all, nil
}
