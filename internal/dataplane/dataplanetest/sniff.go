package dataplanetest

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seenPacket is a packet as it arrived at far.
type seenPacket struct {
	at       time.Time // by the kernel's clock, when it came off the cable
	src, dst uint16
	tcp      bool
	flags    byte // TCP
	payload  int
}

// carries reports whether the packet is a part of what a policy denies: data, or the beginning of a connection. Resets
// must pass, and what the kernel acknowledges by itself says nothing.
func (p *seenPacket) carries() bool {
	const syn, rst = 2, 4
	return p.payload > 0 && p.flags&rst == 0 || p.tcp && p.flags&(syn|rst) == syn
}

// sniffer listens at far's end of the cable.
type sniffer struct {
	t       testing.TB
	fd      int
	packets []seenPacket
	done    chan error
	// stop ends it and returns the packets that came from near.
	stop func() []seenPacket
}

// sniff begins to listen.
func (b *Bed) sniff() *sniffer {
	b.t.Helper()
	s := &sniffer{t: b.t, done: make(chan error, 1)}
	in(b.t, b.far, func() {
		var err error
		proto := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto); err != nil {
			Cannot(b.t, "netns", err)
		}
	})
	for opt, v := range map[int]int{unix.SO_RCVBUFFORCE: 64 << 20, unix.SO_TIMESTAMPNS: 1} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, opt, v); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		b.t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() { s.done <- s.run(stop) }()
	b.t.Cleanup(func() {
		if s.fd >= 0 {
			_ = unix.Close(s.fd) // the test has ended early
		}
	})
	s.stop = func() []seenPacket {
		close(stop)
		if err := <-s.done; err != nil {
			s.t.Errorf("sniff: %v", err)
		}
		stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || stats.Drops > 0 {
			s.t.Errorf("the sniffer has missed packets: %+v, %v", stats, err)
		}
		_ = unix.Close(s.fd)
		s.fd = -1
		return s.packets
	}
	return s
}

func (s *sniffer) run(stop <-chan struct{}) error {
	b, oob := make([]byte, 256), make([]byte, 128)
	for {
		n, oobn, _, from, err := unix.Recvmsg(s.fd, b, oob, 0)
		if errors.Is(err, unix.EAGAIN) {
			select {
			case <-stop:
				return nil
			default:
				continue
			}
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p, ok := parse(b[:n])
		if !ok {
			continue
		}
		ms, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		for _, m := range ms {
			if m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				p.at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
		s.packets = append(s.packets, p)
	}
}

// parse reads an IPv4 packet of TCP or UDP.
func parse(b []byte) (p seenPacket, ok bool) {
	if len(b) < 28 || b[0]>>4 != 4 {
		return p, false
	}
	total, ihl := int(binary.BigEndian.Uint16(b[2:])), int(b[0]&0xf)*4
	l4 := b[ihl:]
	p.src, p.dst = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	switch b[9] {
	case unix.IPPROTO_TCP:
		if len(l4) < 20 {
			return p, false
		}
		p.tcp, p.flags, p.payload = true, l4[13], total-ihl-int(l4[12]>>4)*4
		return p, true
	case unix.IPPROTO_UDP:
		p.payload = total - ihl - 8
		return p, true
	}
	return p, false
}
