package inventory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// diag asks the kernel for sockets by sock_diag(7). It opens its netlink socket when it is first used, in the network
// namespace of that moment, and keeps it.
type diag struct {
	fd  int // -1: not open
	buf []byte
}

const (
	sockDiagByFamily = 20 // linux/sock_diag.h
	sizeofRequest    = unix.SizeofNlMsghdr + 56
	sizeofDiagMsg    = 72
)

var errDiag = errors.New("sock_diag gave no answer")

// listening returns the sockets of that family and protocol in that state. On an error the connection is closed and
// the next call opens another.
func (d *diag) listening(family uint8, proto model.Proto, state uint8) (out []socket, err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := d.open(); err != nil {
		return nil, err
	}
	req := make([]byte, sizeofRequest)
	binary.NativeEndian.PutUint32(req, sizeofRequest)
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = family, uint8(proto)
	binary.NativeEndian.PutUint32(req[20:], 1<<state)
	if err := unix.Sendto(d.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask sock_diag: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read from sock_diag: %w", err)
		}
		var done bool
		if out, done, err = parseDiag(d.buf[:n], proto, out); err != nil || done {
			return out, err
		}
	}
}

func (d *diag) open() error {
	if d.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("open sock_diag: %w", err)
	}
	// The kernel answers within the call; this is for the day on which it does not.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if d.buf == nil {
		d.buf = make([]byte, 32<<10)
	}
	d.fd = fd
	return nil
}

func (d *diag) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd) // nothing was written that could be lost
		d.fd = -1
	}
}

// parseDiag appends the sockets of one datagram and reports whether it was the last.
func parseDiag(b []byte, proto model.Proto, out []socket) ([]socket, bool, error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || int(size) > len(b) {
			return out, false, errDiag
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(len(b), (int(size)+3)&^3):]
		switch kind {
		case unix.NLMSG_DONE:
			// The kernel says here, if at all, that it has no such tables.
			if len(body) >= 4 {
				if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
					return out, false, fmt.Errorf("%w: %w", errDiag, unix.Errno(-errno))
				}
			}
			return out, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return out, false, errDiag
			}
			return out, false, fmt.Errorf("%w: %w", errDiag, unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case sockDiagByFamily:
			if len(body) < sizeofDiagMsg {
				return out, false, errDiag
			}
			addr := netip.AddrFrom4([4]byte(body[8:12]))
			if body[0] == unix.AF_INET6 {
				addr = netip.AddrFrom16([16]byte(body[8:24]))
			}
			local := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(body[4:]))
			inode := uint64(binary.NativeEndian.Uint32(body[68:]))
			if k := newSocket(local, proto, inode); k.port != 0 && inode != 0 {
				out = append(out, k)
			}
		}
	}
	return out, false, nil
}
