package dataplanetest

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// datagram is a frame of Ethernet with one datagram of UDP, or a segment of TCP, in it.
type datagram struct {
	srcMAC, dstMAC net.HardwareAddr
	tags           []uint16 // of VLANs
	src, dst       netip.AddrPort
	proto          byte // UDP if 0
	flags          byte // of TCP
	data           string
}

const (
	typeIPv4, typeIPv6, typeVLAN = 0x0800, 0x86dd, 0x8100
	tcpSYN, tcpACK               = 0x02, 0x10
)

// frame returns the bytes that go over the cable.
func (d datagram) frame() []byte {
	b := append(append([]byte{}, d.dstMAC...), d.srcMAC...)
	for _, tag := range d.tags {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, typeVLAN), tag)
	}
	var l4 []byte
	l4 = binary.BigEndian.AppendUint16(l4, d.src.Port())
	l4 = binary.BigEndian.AppendUint16(l4, d.dst.Port())
	check := 6
	switch d.proto {
	case 0:
		d.proto = unix.IPPROTO_UDP
		l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(d.data)))
		l4 = append(l4, 0, 0)
	case unix.IPPROTO_TCP:
		l4 = append(l4, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, d.flags, 0xff, 0xff, 0, 0, 0, 0)
		check = 16
	}
	l4 = append(l4, d.data...)
	binary.BigEndian.PutUint16(l4[check:], transportSum(d.src.Addr(), d.dst.Addr(), d.proto, l4))
	return append(b, network(d.src.Addr(), d.dst.Addr(), d.proto, l4)...)
}

// transportSum is the checksum of a transport header and what follows it.
func transportSum(src, dst netip.Addr, proto byte, l4 []byte) uint16 {
	return checksum(append(append(append(src.AsSlice(), dst.AsSlice()...), 0, proto, byte(len(l4)>>8), byte(len(l4))), l4...))
}

// network puts the type of the frame and a header of IPv4 or IPv6 in front.
func network(src, dst netip.Addr, proto byte, l4 []byte) []byte {
	if src.Is4() {
		ip := []byte{0x45, 0, byte((20 + len(l4)) >> 8), byte(20 + len(l4)), 0, 1, 0, 0, 64, proto, 0, 0}
		ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(binary.BigEndian.AppendUint16(nil, typeIPv4), ip...), l4...)
	}
	ip := []byte{0x60, 0, 0, 0, byte(len(l4) >> 8), byte(len(l4)), proto, 64}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	return append(append(binary.BigEndian.AppendUint16(nil, typeIPv6), ip...), l4...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum == 0xffff {
		return 0xffff // UDP has no checksum of zero
	}
	return ^uint16(sum)
}

// sendFrame sends the frame in Data through a packet socket, by the interface Local, N times. What the socket says of the frame's
// type is not true, for it need not be.
func sendFrame(r request) error {
	frame, err := hex.DecodeString(r.Data)
	if err != nil {
		return err
	}
	ifc, err := net.InterfaceByName(r.Local)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const arp = 0x0608 // in network order
	for range max(1, r.N) {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifc.Index, Protocol: arp}); err != nil {
			return err
		}
	}
	return nil
}

// relay makes a tap here, Local, and one in the network namespace To, eth0, and carries frames between them, as what runs a virtual
// machine does.
func (w *sockets) relay(r request) error {
	here, err := tap(r.Local)
	if err != nil {
		return err
	}
	there, err := tapIn(r.To, "eth0")
	if err != nil {
		return errors.Join(err, here.Close())
	}
	go carry(here, there)
	go carry(there, here)
	return nil
}

// carry copies frames until one of the taps is gone, with the process.
func carry(from, to *os.File) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		_, _ = to.Write(b[:n]) // EIO while the other one is down: the frame is lost
	}
}

// tap makes a tap that goes with the process.
func tap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var req struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], name)
	req.flags = unix.IFF_TAP | unix.IFF_NO_PI
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); no != 0 {
		return nil, errors.Join(fmt.Errorf("make a tap: %w", no), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// tapIn makes it in another network namespace.
func tapIn(namespace, name string) (f *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open(namespace); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			f, err = tap(name)
		}
	}()
	<-done
	return f, err
}
