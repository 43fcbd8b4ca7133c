package bypass

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/nat"
)

// hops returns the interface that leads to the target, and the target's address on it.
func (a *attempt) hops() (*net.Interface, net.HardwareAddr, error) {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, nil, err
	}
	mac, err := net.ParseMAC(a.MAC)
	return link, mac, err
}

// framed is a datagram to the target in a frame.
func (a *attempt) framed() (*net.Interface, []byte, error) {
	link, mac, err := a.hops()
	if err != nil {
		return nil, nil, err
	}
	p := packet{src: a.own().Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: udp(a.own(), a.target(), a.token)}
	return link, frame(link.HardwareAddr, mac, p.bytes()), nil
}

func packetSocket(bypass bool) func(*attempt) error {
	return func(a *attempt) error {
		link, f, err := a.framed()
		if err != nil {
			return err
		}
		return sendFrame(link, f, bypass)
	}
}

func sendFrame(link *net.Interface, f []byte, bypass bool) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if bypass {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: uint16(f[13])<<8 | uint16(f[12])})
}

// packetLoopback sends to another unit of the host as if from a port that the allowed unit has.
func packetLoopback(a *attempt) error {
	link, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	src, dst := netip.AddrPortFrom(loop(a), helperPort), netip.AddrPortFrom(loop(a), a.port)
	p := packet{src: src.Addr(), dst: dst.Addr(), proto: unix.IPPROTO_UDP, payload: udp(src, dst, a.token)}
	return sendFrame(link, frame(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), p.bytes()), false)
}

// xdpSocket sends a frame by a socket of AF_XDP in copy mode (Documentation/networking/af_xdp.rst).
func xdpSocket(a *attempt) error {
	const chunk, entries = 4096, 8
	link, f, err := a.framed()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	memory, err := unix.Mmap(-1, 0, chunk*entries, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(memory) }()
	region := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&memory[0]))), Len: chunk * entries, Size: chunk}
	if _, _, no := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG, uintptr(unsafe.Pointer(&region)), unsafe.Sizeof(region), 0); no != 0 {
		return fmt.Errorf("register memory: %w", no)
	}
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring, entries); err != nil {
			return fmt.Errorf("make a ring: %w", err)
		}
	}
	var offsets unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offsets))
	if _, _, no := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&offsets)), uintptr(unsafe.Pointer(&size)), 0); no != 0 {
		return fmt.Errorf("find the rings: %w", no)
	}
	ring, err := unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, int(offsets.Tx.Desc)+entries*int(unsafe.Sizeof(unix.XDPDesc{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	defer func() { _ = unix.Munmap(ring) }()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // the one before lets go of the queue a little later
		err := unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(link.Index)})
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("%w: bind: %w", errRefused, err)
		}
	}
	copy(memory, f)
	*(*unix.XDPDesc)(unsafe.Pointer(&ring[offsets.Tx.Desc])) = unix.XDPDesc{Len: uint32(len(f))}
	*(*uint32)(unsafe.Pointer(&ring[offsets.Tx.Producer])) = 1
	_, err = unix.SendmsgN(fd, nil, nil, nil, unix.MSG_DONTWAIT)
	return err
}

// via makes the link, leads what is sent to the allowed host into it, and sends there.
func (a *attempt) via(link netlink.Link) (err error) {
	if err := netlink.LinkAdd(link); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return fmt.Errorf("make an interface: %w", err)
	}
	defer func() { err = errors.Join(err, netlink.LinkDel(link)) }()
	made, err := netlink.LinkByName(link.Attrs().Name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(made); err != nil {
		return err
	}
	allowed := a.Allowed[a.family].AsSlice()
	bits := a.Allowed[a.family].BitLen()
	if made.Type() == "vxlan" {
		there := &netlink.Neigh{LinkIndex: made.Attrs().Index, State: netlink.NUD_PERMANENT, IP: allowed, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		if err := netlink.NeighSet(there); err != nil {
			return err
		}
	}
	route := &netlink.Route{LinkIndex: made.Attrs().Index, Dst: &net.IPNet{IP: allowed, Mask: net.CIDRMask(bits, bits)}, Src: a.Own[a.family].AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("lead a route into it: %w", err)
	}
	return sendTo(netip.AddrPortFrom(a.Allowed[a.family], a.port), unix.IPPROTO_UDP, a.token)
}

func vxlan(a *attempt) error {
	return a.via(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: 60, Group: a.addr().AsSlice(), SrcAddr: a.Own[a.family].AsSlice(), Port: int(a.port)})
}

func ipip(a *attempt) error {
	return a.via(&netlink.Iptun{LinkAttrs: netlink.LinkAttrs{Name: "tun60"}, Local: a.Own[v4].AsSlice(), Remote: a.addr().AsSlice()})
}

// tun puts a packet into the host as if it had come by an interface, and has the host forward it.
func tun(a *attempt) (err error) {
	forwarding := map[family]string{v4: "/proc/sys/net/ipv4/ip_forward", v6: "/proc/sys/net/ipv6/conf/all/forwarding"}[a.family]
	if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.WriteFile(forwarding, []byte("0"), 0)) }()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("tun60")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return err
	}
	link, err := netlink.LinkByName("tun60")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	src := netip.AddrPortFrom(a.Spare[a.family], a.port)
	p := packet{src: src.Addr(), dst: a.addr(), proto: unix.IPPROTO_UDP, payload: udp(src, a.target(), a.token)}
	_, err = unix.Write(fd, p.bytes())
	return err
}

// translated has the host turn what is allowed into the target.
func translated(proto uint8) func(*attempt) error {
	return func(a *attempt) error {
		return a.behind(nat.Rule{Proto: proto, Match: netip.AddrPortFrom(a.Allowed[a.family], a.port), To: a.target()})
	}
}

// redirected has the host turn what is allowed into a port of its own.
func redirected(proto uint8) func(*attempt) error {
	return func(a *attempt) error {
		return a.behind(nat.Rule{Proto: proto, Match: netip.AddrPortFrom(a.Allowed[a.family], a.port), Local: a.port})
	}
}

func (a *attempt) behind(rule nat.Rule) (err error) {
	if err := nat.Set(rule); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer func() { err = errors.Join(err, nat.Set()) }()
	if rule.Proto == unix.IPPROTO_TCP {
		return connectTo(rule.Match, unix.IPPROTO_TCP, a.token)
	}
	return sendTo(rule.Match, unix.IPPROTO_UDP, a.token)
}
