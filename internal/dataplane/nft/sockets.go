package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// Messages of sock_diag (linux/inet_diag.h, linux/sock_diag.h).
const (
	diagByFamily   = 20
	diagDestroy    = 21
	diagInfo       = 2
	diagCgroup     = 21
	diagMessage    = 72 // struct inet_diag_msg
	groupsDiagTCP4 = 1  // SKNLGRP_INET_TCP_DESTROY
	groupsDiagTCP6 = 3  // SKNLGRP_INET6_TCP_DESTROY

	tcpEstablished, tcpSynSent, tcpTimeWait, tcpClose, tcpListen = 1, 2, 6, 7, 10
)

// tcpSocket is a TCP socket of the namespace.
type tcpSocket struct {
	state         uint8
	family        uint8
	id            [48]byte // struct inet_diag_sockid: by which the kernel knows it
	local, remote netip.AddrPort
	cgroup        uint64 // zero: the kernel does not say
	info          []byte // struct tcp_info, where it was asked for
}

func parseSocket(b []byte) (s tcpSocket, ok bool) {
	if len(b) < diagMessage {
		return s, false
	}
	s.family, s.state = b[0], b[1]
	copy(s.id[:], b[4:52])
	n := 4
	if s.family == unix.AF_INET6 {
		n = 16
	}
	local, _ := netip.AddrFromSlice(b[8 : 8+n])
	remote, _ := netip.AddrFromSlice(b[24 : 24+n])
	s.local = netip.AddrPortFrom(local.Unmap(), binary.BigEndian.Uint16(b[4:]))
	s.remote = netip.AddrPortFrom(remote.Unmap(), binary.BigEndian.Uint16(b[6:]))
	eachAttribute(b[diagMessage:], func(typ uint16, b []byte) {
		switch {
		case typ == diagCgroup && len(b) == 8:
			s.cgroup = binary.NativeEndian.Uint64(b)
		case typ == diagInfo:
			s.info = b
		}
	})
	return s, true
}

func (s *tcpSocket) request(states uint32) []byte {
	b := make([]byte, 56)
	b[0], b[1], b[2] = s.family, unix.IPPROTO_TCP, 1<<(diagInfo-1)
	binary.NativeEndian.PutUint32(b[4:], states)
	copy(b[8:], s.id[:])
	return b
}

// tcpSockets returns the TCP sockets of the namespace, listeners included, but not those that nobody has any more.
func (n *namespace) tcpSockets() (all []tcpSocket, err error) {
	c, err := n.dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		s := tcpSocket{family: family}
		answers, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: diagByFamily, Flags: netlink.Request | netlink.Dump},
			Data:   s.request(^uint32(1<<tcpTimeWait | 1<<tcpClose)),
		})
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("list sockets: the kernel has no inet_diag")
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", plain(err))
		}
		for _, m := range answers {
			if s, ok := parseSocket(m.Data); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// destroy resets connections, and returns how many were still there.
func (n *namespace) destroy(all []tcpSocket) (done int, err error) {
	if len(all) == 0 {
		return 0, nil
	}
	c, err := n.dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	failed := 0
	for i := range all {
		_, no := c.Execute(netlink.Message{
			Header: netlink.Header{Type: diagDestroy, Flags: netlink.Request | netlink.Acknowledge},
			Data:   all[i].request(^uint32(0)),
		})
		switch {
		case no == nil:
			done++
		case errors.Is(no, unix.ENOENT): // it has ended by itself
		default: // the others are not to suffer for it
			failed++
			err = plain(no)
		}
	}
	if failed > 0 {
		return done, fmt.Errorf("reset %d of %d connections: %w", failed, len(all), err)
	}
	return done, nil
}

// carried returns the payload that a connection has carried. The kernel counts a FIN that it has received as a byte, so the
// caller must say whether there was one.
func (s *tcpSocket) carried(fin bool) (sent, received uint64) {
	if len(s.info) < 216 {
		return 0, 0
	}
	at := func(i int) uint64 { return binary.NativeEndian.Uint64(s.info[i:]) }
	sent, received = at(200)-at(208), at(128)
	if fin && received > 0 {
		received--
	}
	return sent, received
}

// existing returns the connections that are open, each in the direction in which it was opened: whoever listens at the
// local port has accepted it.
func existing(all []tcpSocket) (open []tuple) {
	listens := map[uint16]bool{}
	for i := range all {
		if all[i].state == tcpListen {
			listens[all[i].local.Port()] = true
		}
	}
	for i := range all {
		s := &all[i]
		if s.state == tcpListen || s.state == tcpSynSent {
			continue
		}
		t := tuple{model.ProtoTCP, s.local, s.remote}
		if listens[s.local.Port()] {
			t = t.reversed()
		}
		open = append(open, t)
	}
	return open
}
