package bypass

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Sight says how far an attempt came, as the target saw it.
type sight struct {
	App  string // what the target's program or kernel took: "TCP", "UDP", …; "" for nothing
	Wire bool   // a packet with the token came off the cable
}

// witness is the target: it serves, and it looks at its own cable. What it says does not depend on what the attacker
// thinks.
type witness struct {
	mu    sync.Mutex
	seen  map[string]sight
	acked map[uint32]bool // sequence numbers that the kernel has acknowledged with SYN
}

// tokenPattern finds tokens in what arrives, wherever they are in it.
var tokenPattern = regexp.MustCompile(`<bypass:[a-z0-9-]+>`)

// token names one attempt.
func token(phase phase, t *technique, f family) string {
	return fmt.Sprintf("<bypass:%s-%s-%s>", phase, t.name, f)
}

// sequence is the number with which the attempt opens a connection by hand.
func sequence(token string) uint32 { return crc32.ChecksumIEEE([]byte(token)) }

func (w *witness) note(b []byte, how string) {
	for _, t := range tokenPattern.FindAll(b, -1) {
		w.mu.Lock()
		s := w.seen[string(t)]
		if how == "" {
			s.Wire = true
		} else if s.App == "" {
			s.App = how
		}
		w.seen[string(t)] = s
		w.mu.Unlock()
	}
}

// report says what has been seen of the attempts.
func (w *witness) report(tokens []string) map[string]sight {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]sight{}
	for _, t := range tokens {
		s := w.seen[t]
		if w.acked[sequence(t)+1] && s.App == "" {
			s.App = "SYN answered"
		}
		out[t] = s
	}
	return out
}

// groups that the witness belongs to.
var groups = map[family]netip.Addr{v4: netip.MustParseAddr("239.60.0.1"), v6: netip.MustParseAddr("ff15::6060")}

// watch begins to serve the ports in TCP and UDP, and, unless cable is "", to look at that interface.
func watch(ports []uint16, cable, local string) (*witness, error) {
	w := &witness{seen: map[string]sight{}, acked: map[uint32]bool{}}
	for _, p := range ports {
		if err := w.serve(p, cable); err != nil {
			return nil, fmt.Errorf("port %d: %w", p, err)
		}
	}
	if local != "" {
		l, err := net.Listen("unix", local)
		if err != nil {
			return nil, err
		}
		go w.accept(l, "AF_UNIX")
	}
	if cable == "" {
		return w, nil
	}
	for _, raw := range []struct{ network, how string }{
		{"ip4:icmp", "echo request"}, {"ip6:ipv6-icmp", "echo request"}, {fmt.Sprintf("ip4:%d", portless), "raw socket"}, {fmt.Sprintf("ip6:%d", portless), "raw socket"},
	} {
		c, err := net.ListenPacket(raw.network, "")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", raw.network, err)
		}
		go w.receive(c, raw.how)
	}
	return w, w.sniff(cable)
}

func (w *witness) serve(port uint16, cable string) error {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
	if err != nil {
		return err
	}
	go w.accept(l, "TCP")
	u, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return err
	}
	go w.receive(u, "UDP")
	if cable != "" {
		link, err := net.InterfaceByName(cable)
		if err != nil {
			return err
		}
		// The memberships are the interface's: any socket's do for all.
		four, six := ipv4.NewPacketConn(u), ipv6.NewPacketConn(u)
		err = errors.Join(joined(four.JoinGroup(link, &net.UDPAddr{IP: groups[v4].AsSlice()})),
			joined(six.JoinGroup(link, &net.UDPAddr{IP: groups[v6].AsSlice()})))
		if err != nil {
			return fmt.Errorf("join a group: %w", err)
		}
	}
	// What the kernel lacks nobody can use.
	for kind, proto := range map[int]int{unix.SOCK_STREAM: protoSCTP, unix.SOCK_DGRAM: protoUDPLite} {
		if err := w.serveOdd(port, kind, proto); err != nil && !lacking(err) {
			return err
		}
	}
	return nil
}

func joined(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return nil
	}
	return err
}

// serveOdd serves a protocol that package net does not know.
func (w *witness) serveOdd(port uint16, kind, proto int) error {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}); err != nil {
		return err
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 16); err != nil {
			return err
		}
	}
	go func() {
		b := make([]byte, 2048)
		for {
			from := fd
			if kind == unix.SOCK_STREAM {
				if from, _, err = unix.Accept(fd); err != nil {
					return
				}
			}
			n, err := unix.Read(from, b)
			if err != nil {
				return
			}
			w.note(b[:n], map[int]string{protoSCTP: "SCTP", protoUDPLite: "UDP-Lite"}[proto])
			if from != fd {
				_ = unix.Close(from)
			}
		}
	}()
	return nil
}

func (w *witness) accept(l net.Listener, how string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			b, _ := io.ReadAll(io.LimitReader(c, 64<<10)) // what came before an error has come
			w.note(b, how)
		}()
	}
}

func (w *witness) receive(c net.PacketConn, how string) {
	b := make([]byte, 64<<10)
	for {
		n, _, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			w.note(b[:n], how)
		}
	}
}

// sniff looks at every packet of the interface.
func (w *witness) sniff(cable string) error {
	link, err := net.InterfaceByName(cable)
	if err != nil {
		return err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			switch {
			case !ok:
			case ll.Pkttype == unix.PACKET_OUTGOING:
				w.answered(b[:n])
			case bytes.Contains(b[:n], []byte("<bypass:")):
				w.note(b[:n], "")
			}
		}
	}()
	return nil
}

// answered notes what the kernel here acknowledges with a SYN of its own: it has taken what opened the connection.
func (w *witness) answered(b []byte) {
	at, proto := 40, byte(0)
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		at, proto = int(b[0]&15)*4, b[9]
	case len(b) >= 40 && b[0]>>4 == 6:
		proto = b[6]
	}
	if proto != unix.IPPROTO_TCP || len(b) < at+20 || b[at+13]&0x12 != 0x12 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[binary.BigEndian.Uint32(b[at+8:])] = true
}

// call connects to an address and takes what it is told there.
func (w *witness) call(to netip.AddrPort) error {
	c, err := net.DialTimeout("tcp", to.String(), connecting)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(connecting)); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(c, 64<<10))
	w.note(b, "TCP")
	return err
}
