package bypass

import (
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// connecting is how long a connection may take that comes about: nobody is far. It bounds what is dropped in silence.
const connecting = 400 * time.Millisecond

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// open makes a socket whose calls do not wait for long.
func open(domain, kind, proto int) (int, error) {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	t := unix.NsecToTimeval(int64(connecting))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// send connects the socket, says the token and closes it.
func send(fd int, to netip.AddrPort, token string) error {
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return err
	}
	_, err := unix.Write(fd, []byte(token))
	return err
}

func stream(proto int) func(*attempt) error {
	return func(a *attempt) error { return connectTo(a.target(), proto, a.token) }
}

func connectTo(to netip.AddrPort, proto int, token string) error {
	fd, err := open(domain(to.Addr()), unix.SOCK_STREAM, proto)
	if err != nil {
		return err
	}
	return send(fd, to, token)
}

func tcp(a *attempt) error { return connectTo(a.target(), unix.IPPROTO_TCP, a.token) }

func loopback(a *attempt) error {
	return connectTo(netip.AddrPortFrom(loop(a), a.port), unix.IPPROTO_TCP, a.token)
}

func datagram(a *attempt) error { return sendTo(a.target(), unix.IPPROTO_UDP, a.token) }
func udpLite(a *attempt) error  { return sendTo(a.target(), protoUDPLite, a.token) }

// sendTo sends the token in a datagram of its own.
func sendTo(to netip.AddrPort, proto int, token string) error {
	fd, err := open(domain(to.Addr()), unix.SOCK_DGRAM, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(token), 0, sockaddr(to))
}

// mapped reaches IPv4 from a socket of IPv6.
func mapped(kind int) func(*attempt) error {
	return func(a *attempt) error {
		fd, err := open(unix.AF_INET6, kind, 0)
		if err != nil {
			return err
		}
		to := netip.AddrPortFrom(netip.AddrFrom16(a.addr().As16()), a.port)
		if kind == unix.SOCK_STREAM {
			return send(fd, to, a.token)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte(a.token), 0, sockaddr(to))
	}
}

func fastOpen(a *attempt) error {
	fd, err := open(domain(a.addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(a.token), unix.MSG_FASTOPEN, sockaddr(a.target()))
}

func elsewhere(a *attempt) error {
	fd, err := open(domain(a.addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	allowed := netip.AddrPortFrom(a.Allowed[a.family], a.port)
	if err := unix.Connect(fd, sockaddr(allowed)); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(a.token), 0, sockaddr(a.target()))
}

func multicast(a *attempt) error {
	to := groups[a.family]
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := open(domain(to), unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if to.Is4() {
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Index)})
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, link.Index)
	}
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(a.token), 0, sockaddr(netip.AddrPortFrom(to, a.port)))
}

func broadcast(a *attempt) error {
	fd, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(a.token), 0, sockaddr(netip.AddrPortFrom(a.Hub[v4], a.port)))
}

func ping(a *attempt) error {
	network, proto := "udp4", icmp.Message{Type: ipv4.ICMPTypeEcho}
	if a.family == v6 {
		network, proto = "udp6", icmp.Message{Type: ipv6.ICMPTypeEchoRequest}
	}
	c, err := icmp.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer c.Close()
	proto.Body = &icmp.Echo{Seq: 1, Data: []byte(a.token)}
	b, err := proto.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(b, &net.UDPAddr{IP: a.addr().AsSlice()})
	return err
}

// bigDatagram is more than a packet holds.
func bigDatagram(a *attempt) error {
	return sendTo(a.target(), unix.IPPROTO_UDP, strings.Repeat("0123456789", 400)+a.token)
}

// sticky gives a socket an extension header that all of its packets carry.
func sticky(option int) func(*attempt) error {
	return func(a *attempt) error {
		fd, err := open(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, option, string(options6(0))); err != nil {
			return err
		}
		return unix.Sendto(fd, []byte(a.token), 0, sockaddr(a.target()))
	}
}

// segments has the kernel send by way of what is allowed: only the routing header says where it ends.
func segments(a *attempt) error {
	fd, err := open(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	header := routing6(0, 4, 1, netip.IPv6Unspecified(), a.Allowed[v6])
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, string(header)); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(a.token), 0, sockaddr(a.target()))
}

// sourceRoute does the same in IPv4 (RFC 791, 3.1).
func sourceRoute(a *attempt) error {
	fd, err := open(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	hop := a.Allowed[v4].As4()
	option := append([]byte{131, 7, 4}, hop[:]...)
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(append(option, 0))); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte(a.token), 0, sockaddr(a.target()))
}

func unixSocket(a *attempt) error {
	c, err := net.Dial("unix", a.control("secret-unix"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(a.token))
	return err
}
