package inventory

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// procRoot is where the kernel shows processes.
const procRoot = "/proc"

// socket is one row of a table of /proc/net.
type socket struct {
	addr  netip.Addr // invalid: every address
	proto model.Proto
	port  uint16
	inode uint64
}

// sockets finds listening sockets and, for those it has not seen yet, their processes.
type sockets struct {
	proc   string
	diag   diag
	owners owners
	// An unconnected UDP socket at an ephemeral port is mostly a client that waits for one answer. It counts as
	// listening once it has been there for a while.
	ephemeral func() (lo, hi uint16)
	since     map[uint64]time.Time
	now       func() time.Time
	buf       []byte
}

// listenAfter is how long a UDP socket at an ephemeral port must be there before it counts.
const listenAfter = 10 * time.Second

func newSockets(proc string) *sockets {
	s := &sockets{proc: proc, since: map[uint64]time.Time{}, now: time.Now, buf: make([]byte, 32<<10)}
	s.ephemeral = s.ephemeralPorts
	s.diag = diag{fd: -1}
	s.owners = owners{proc: proc, known: map[uint64]owner{}, unknown: map[uint64]retry{}}
	return s
}

// listening returns the listeners there are now, sorted. With fresh, what is known of their processes is forgotten.
func (s *sockets) listening(t *tree, units map[string]string, fresh bool) ([]Listener, error) {
	list, err := s.read()
	if err != nil {
		return nil, err
	}
	list = s.settled(list)
	s.owners.find(t, list, s.now(), fresh)
	out := make([]Listener, 0, len(list))
	for _, k := range list {
		l := Listener{Addr: k.addr, Proto: k.proto, Port: k.port}
		if o, ok := s.owners.known[k.inode]; ok {
			l.Unit, l.Process, l.Path = unitOf(units, o.cgroup), o.name, o.path
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Listener) int {
		return cmp.Or(
			strings.Compare(a.Unit, b.Unit), a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port),
			strings.Compare(a.Process, b.Process), strings.Compare(a.Path, b.Path),
		)
	})
	// One service often has a socket for IPv4, one for IPv6 and one for each worker.
	return slices.CompactFunc(out, func(a, b Listener) bool {
		return a.Unit == b.Unit && a.Addr == b.Addr && a.Proto == b.Proto && a.Port == b.Port
	}), nil
}

// tables are the kinds of socket that listen.
var tables = []struct {
	name   string // in /proc/net
	family uint8
	proto  model.Proto
	state  uint8
}{
	{"tcp", unix.AF_INET, model.ProtoTCP, stateListen},
	{"tcp6", unix.AF_INET6, model.ProtoTCP, stateListen},
	{"udp", unix.AF_INET, model.ProtoUDP, stateClose},
	{"udp6", unix.AF_INET6, model.ProtoUDP, stateClose},
}

// read returns every socket that listens in the network namespace of this process. It asks the kernel for those
// alone; a kernel that cannot answer (without CONFIG_INET_DIAG or CONFIG_UDP_DIAG) is read through /proc/net, which
// walks every bucket of its tables for it.
func (s *sockets) read() ([]socket, error) {
	var out []socket
	for _, t := range tables {
		list, err := s.diag.listening(t.family, t.proto, t.state)
		if err != nil {
			if list, err = s.readTable(t.name, t.proto); err != nil {
				return nil, err
			}
		}
		out = append(out, list...)
	}
	return out, nil
}

func (s *sockets) readTable(name string, proto model.Proto) ([]socket, error) {
	f, err := os.Open(s.proc + "/thread-self/net/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := parseTable(f, s.buf, proto, nil)
	if err != nil {
		return nil, fmt.Errorf("/proc/net/%s: %w", name, err)
	}
	return out, nil
}

const (
	stateListen = 0x0a // TCP
	stateClose  = 0x07 // UDP: bound, not connected
)

// parseTable appends the listening sockets of a table. The kernel lists those of TCP before all others, so the rest
// of a long table is never read.
func parseTable(r io.Reader, buf []byte, proto model.Proto, out []socket) ([]socket, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(buf, len(buf))
	lines.Scan() // the heading
	for lines.Scan() {
		f := fields(lines.Bytes())
		if f.n < 10 {
			return out, fmt.Errorf("a row of %d columns", f.n)
		}
		state, err := strconv.ParseUint(string(f.at[3]), 16, 8)
		if err != nil {
			return out, err
		}
		if proto == model.ProtoTCP && state != stateListen {
			return out, nil
		}
		if proto == model.ProtoUDP && state != stateClose {
			continue
		}
		local, err := parseEndpoint(f.at[1])
		if err != nil {
			return out, err
		}
		inode, err := strconv.ParseUint(string(f.at[9]), 10, 64)
		if err != nil {
			return out, err
		}
		if k := newSocket(local, proto, inode); k.port != 0 && inode != 0 {
			out = append(out, k)
		}
	}
	return out, lines.Err()
}

func newSocket(local netip.AddrPort, proto model.Proto, inode uint64) socket {
	k := socket{addr: local.Addr().Unmap(), proto: proto, port: local.Port(), inode: inode}
	if k.addr.IsUnspecified() {
		k.addr = netip.Addr{}
	}
	return k
}

type columns struct {
	at [10][]byte
	n  int
}

// fields splits the first ten columns of a row; it allocates nothing.
func fields(line []byte) (c columns) {
	for c.n < len(c.at) {
		line = bytes.TrimLeft(line, " ")
		if len(line) == 0 {
			return c
		}
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		c.at[c.n], line = line[:end], line[end:]
		c.n++
	}
	return c
}

// parseEndpoint reads an address as the kernel prints it: 32-bit words in hexadecimal, each in the byte order of the
// machine, then the port.
func parseEndpoint(b []byte) (netip.AddrPort, error) {
	hex, port, ok := bytes.Cut(b, []byte(":"))
	if !ok || len(hex) != 8 && len(hex) != 32 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address and a port", b)
	}
	var raw [16]byte
	for i := 0; i < len(hex); i += 8 {
		word, err := strconv.ParseUint(string(hex[i:i+8]), 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		binary.NativeEndian.PutUint32(raw[i/2:], uint32(word))
	}
	p, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, _ := netip.AddrFromSlice(raw[:len(hex)/2])
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), nil
}

// settled leaves out UDP sockets at ephemeral ports that have not been there for long.
func (s *sockets) settled(list []socket) []socket {
	lo, hi := s.ephemeral()
	now, seen := s.now(), make(map[uint64]time.Time)
	list = slices.DeleteFunc(list, func(k socket) bool {
		if k.proto != model.ProtoUDP || k.port < lo || k.port > hi {
			return false
		}
		first, ok := s.since[k.inode]
		if !ok {
			first = now
		}
		seen[k.inode] = first
		return now.Sub(first) < listenAfter
	})
	s.since = seen
	return list
}

// ephemeralPorts returns the range from which the kernel takes ports for clients.
func (s *sockets) ephemeralPorts() (lo, hi uint16) {
	lo, hi = 32768, 60999
	data, err := os.ReadFile(s.proc + "/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return lo, hi // the kernel's default
	}
	f := strings.Fields(string(data))
	if len(f) != 2 {
		return lo, hi
	}
	from, err := strconv.ParseUint(f[0], 10, 16)
	if err != nil {
		return lo, hi
	}
	to, err := strconv.ParseUint(f[1], 10, 16)
	if err != nil {
		return lo, hi
	}
	return uint16(from), uint16(to)
}
