package dataplanetest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// Addresses of what is behind near.
const (
	Bridge4, Bridge6   = "10.78.0.1", "fd78::1" // of near
	Bridged4, Bridged6 = "10.78.0.2", "fd78::2" // of a container at the bridge
	Guest4, Guest6     = "10.78.0.3", "fd78::3" // of a virtual machine there
	Routed4, Routed6   = "10.79.0.2", "fd79::2" // of a container that is routed to
	Gate4, Gate6       = "10.79.0.1", "fd79::1" // of near, towards it
)

// yard is a host with two containers, whose processes are of unit one, and a virtual machine that unit two runs.
type yard struct {
	*host
	bridged, routed *Process // of unit one, in namespaces of their own
	guest           *Process // of no cgroup that is judged: in the virtual machine
	stranger        *Process // in the namespace of the bridged container, of no cgroup that is judged
	macs            map[string]net.HardwareAddr
}

// newYard builds it. The bridge and its container are there before the dataplane, the others come later.
func newYard(t testing.TB, open Open) *yard {
	t.Helper()
	b := NewBed(t)
	b.Place.Guard = true
	y := &yard{macs: map[string]net.HardwareAddr{}}
	forward(b)
	in(t, b.near, func() {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
		address(t, "br0", Bridge4+"/16", Bridge6+"/64")
	})
	bridged := b.namespace()
	cable(t, b, "bridged", bridged)
	in(t, b.near, func() { enslave(t, "bridged") })
	in(t, bridged, func() {
		address(t, "eth0", Bridged4+"/16", Bridged6+"/64")
		address(t, "lo")
		route(t, "eth0", Bridge4, Bridge6)
	})
	y.host = newHostAt(t, b, open)
	if !y.d.Capabilities().Frames {
		return y
	}
	y.apply(policy{}) // whose cgroup is whose
	routed, guest := b.namespace(), b.namespace()
	cable(t, b, "routed", routed)
	in(t, b.near, func() {
		address(t, "routed", Gate4+"/32", Gate6+"/128")
		l, err := netlink.LinkByName("routed")
		must(t, err)
		for _, to := range []string{Routed4 + "/32", Routed6 + "/128"} {
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: cidr(t, to), Scope: netlink.SCOPE_LINK}))
		}
	})
	in(t, routed, func() {
		address(t, "eth0", Routed4+"/32", Routed6+"/128")
		address(t, "lo")
		l, err := netlink.LinkByName("eth0")
		must(t, err)
		for _, to := range []string{Gate4 + "/32", Gate6 + "/128"} {
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: cidr(t, to), Scope: netlink.SCOPE_LINK}))
		}
		route(t, "eth0", Gate4, Gate6)
	})
	one := filepath.Join(b.Place.CgroupRoot, "one")
	outside := filepath.Join(b.FarPlace.CgroupRoot, "one")
	y.bridged = start(t, "bridged", bridged, one, program{})
	y.routed = start(t, "routed", routed, one, program{})
	y.stranger = start(t, "stranger", bridged, outside, program{})
	y.guest = start(t, "guest", guest, outside, program{})
	y.two.must(request{Do: "relay", Local: "vm0", To: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), guest.Fd())})
	in(t, b.near, func() { enslave(t, "vm0") })
	in(t, guest, func() {
		address(t, "eth0", Guest4+"/16", Guest6+"/64")
		address(t, "lo")
		route(t, "eth0", Bridge4, Bridge6)
	})
	for name, ns := range map[string]*os.File{"near": b.near, "far": b.far, "bridged": bridged, "routed": routed, "guest": guest} {
		in(t, ns, func() { y.macs[name] = mac(t, "eth0") })
	}
	in(t, b.near, func() { y.macs["bridge"], y.macs["gate"] = mac(t, "br0"), mac(t, "routed") })
	y.guarded()
	return y
}

// guarded waits until each interface is guarded and it is known whose it is: they have come while the dataplane was there.
func (y *yard) guarded() {
	y.t.Helper()
	y.apply(policy{})
	for addr, unit := range map[string]string{Bridged4: "near/one", Routed4: "near/one", Guest4: "near/two"} {
		s := y.farP.Bind("udp4", at(Far4, 0))
		y.events.wait("a word of what goes to "+addr, func() bool {
			_ = s.exchange("hello", at(addr, 9), brief/10) // nobody is there to answer
			return len(y.events.find(all(kind(dataplane.EventDeny), workload(unit), func(e *dataplane.Event) bool { return e.Local.Addr().String() == addr }))) > 0
		})
		s.Close()
	}
}

// forward has near pass on what comes from behind it, and far know the way back.
func forward(b *Bed) {
	in(b.t, b.near, func() {
		must(b.t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
		must(b.t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	in(b.t, b.far, func() {
		l, err := netlink.LinkByName("eth0")
		must(b.t, err)
		for to, via := range map[string]string{"10.78.0.0/16": Near4, "10.79.0.0/16": Near4, "fd78::/16": Near6, "fd79::/16": Near6} {
			must(b.t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: cidr(b.t, to), Gw: net.ParseIP(via)}))
		}
	})
}

// cable joins near, by an interface of that name, to eth0 of the other namespace.
func cable(t testing.TB, b *Bed, name string, to *os.File) {
	t.Helper()
	in(t, b.near, func() {
		must(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(to.Fd())),
		}))
	})
}

// enslave puts the interface on the bridge.
func enslave(t testing.TB, name string) {
	t.Helper()
	br, err := netlink.LinkByName("br0")
	must(t, err)
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetMaster(l, br))
	must(t, netlink.LinkSetUp(l))
}

// address gives the interface addresses that hold at once, and sets it up.
func address(t testing.TB, name string, addrs ...string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0))
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(l, addr))
	}
}

// route makes both gateways the way to everywhere.
func route(t testing.TB, name string, gateways ...string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	for _, gw := range gateways {
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}))
	}
}

func mac(t testing.TB, name string) net.HardwareAddr {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l.Attrs().HardwareAddr
}

func cidr(t testing.TB, s string) *net.IPNet {
	t.Helper()
	p, err := netip.ParsePrefix(s)
	must(t, err)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
