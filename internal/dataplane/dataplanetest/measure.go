package dataplanetest

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Measure is one thing to be timed. Client and server use plain blocking calls on one processor, so that the time is
// the kernel's and the switches between the two, and nothing of a language's runtime.
type Measure string

// The measures.
const (
	RoundTrip   Measure = "round trip"       // one byte there and back on an established TCP connection
	Connection  Measure = "short connection" // connect, one byte there and back, wait for the end, close
	UDPTrip     Measure = "UDP round trip"
	Bulk        Measure = "bulk"            // 64 KiB written to a TCP stream
	Flood       Measure = "datagram"        // one of a stream of UDP datagrams, from the call that sends it until the receiver has it
	DeniedFlood Measure = "denied datagram" // the same, to a port that PeersPolicy denies
	measureSize         = 64 << 10
)

// Measures lists them all.
var Measures = []Measure{RoundTrip, Connection, UDPTrip, Bulk, Flood, DeniedFlood}

// What is served where, counted from the port that ServeMeasures is given.
const (
	drainPort  = 1 // TCP
	shortPort  = 2 // TCP
	sinkPort   = 2 // UDP
	DeniedPort = 3 // UDP
)

// ServeMeasures answers measurements at an IPv4 address, TCP and UDP on the same port; TCP on the next one is drained,
// and the one after it answers short connections, which it closes itself: then it is the server that remembers them for
// a minute, and not the client that has ever fewer ports to choose from. Nobody reads the datagrams of floods: what is
// timed is the network's part.
func (p *Process) ServeMeasures(addr string, port uint16) {
	p.t.Helper()
	p.must(request{Do: "serve measures", To: at(addr, port)})
}

// Measure repeats for a while and returns the 20th percentile of the times of one repetition: what lies above it is more
// and more the machine's other business. n is how many there were.
func (p *Process) Measure(m Measure, to string, port uint16, d time.Duration) (each time.Duration, n int) {
	p.t.Helper()
	switch m {
	case Bulk:
		port += drainPort
	case Connection:
		port += shortPort
	case Flood:
		port += sinkPort
	case DeniedFlood:
		port += DeniedPort
	}
	a := p.must(request{Do: "measure", ID: string(m), To: at(to, port), Wait: d})
	if a.Good == 0 {
		p.t.Fatalf("%s: nothing was measured", m)
	}
	return time.Duration(a.Bad), a.Good
}

// pin keeps the calling goroutine's thread on processor 0.
func pin() error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(0)
	return unix.SchedSetaffinity(0, &set)
}

func sockaddr(addr string) (*unix.SockaddrInet4, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}, nil
}

func socket(typ int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if typ == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return fd, err
}

func serveMeasures(addr string) error {
	sa, err := sockaddr(addr)
	if err != nil {
		return err
	}
	tcp, err := bindTo(unix.SOCK_STREAM, sa)
	if err != nil {
		return err
	}
	udp, err := bindTo(unix.SOCK_DGRAM, sa)
	if err != nil {
		return err
	}
	drain, err := bindTo(unix.SOCK_STREAM, &unix.SockaddrInet4{Addr: sa.Addr, Port: sa.Port + drainPort})
	if err != nil {
		return err
	}
	short, err := bindTo(unix.SOCK_STREAM, &unix.SockaddrInet4{Addr: sa.Addr, Port: sa.Port + shortPort})
	if err != nil {
		return err
	}
	for _, port := range []int{sinkPort, DeniedPort} {
		if _, err := bindTo(unix.SOCK_DGRAM, &unix.SockaddrInet4{Addr: sa.Addr, Port: sa.Port + port}); err != nil {
			return err
		}
	}
	go acceptEach(tcp, echo)
	go acceptEach(drain, drop)
	go acceptEach(short, echoOnce)
	go func() {
		if pin() != nil {
			return // the measurement will find nobody
		}
		b := make([]byte, 1500)
		for {
			n, from, err := unix.Recvfrom(udp, b, 0)
			if err != nil {
				continue
			}
			_ = unix.Sendto(udp, b[:n], 0, from) // lost datagrams show at the client
		}
	}()
	return nil
}

func bindTo(typ int, sa *unix.SockaddrInet4) (int, error) {
	fd, err := socket(typ)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, err
	}
	if typ == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1024)
	}
	return fd, err
}

// What acceptEach does with what it reads.
const (
	echo = iota
	echoOnce
	drop
)

// acceptEach serves one connection after the other, each to its end.
func acceptEach(fd int, do int) {
	if pin() != nil {
		return
	}
	b := make([]byte, measureSize)
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // only slower without
		for {
			n, err := unix.Read(c, b)
			if n <= 0 || err != nil {
				break
			}
			if do == drop {
				continue
			}
			if _, err := unix.Write(c, b[:n]); err != nil || do == echoOnce {
				break
			}
		}
		_ = unix.Close(c)
	}
}

// measure runs in a thread of its own that ends with it.
func measure(r request) (answer, error) {
	type result struct {
		times []time.Duration
		err   error
	}
	c := make(chan result)
	go func() {
		var res result
		if res.err = pin(); res.err == nil {
			res.times, res.err = repeat(Measure(r.ID), r.To, r.Wait)
		}
		c <- res
	}()
	res := <-c
	if res.err != nil {
		return answer{}, res.err
	}
	warm := res.times[len(res.times)/3:] // caches, windows and buffers have found their size
	if len(warm) == 0 {
		return answer{}, nil
	}
	slices.Sort(warm)
	return answer{Good: len(res.times), Bad: int(warm[len(warm)/5])}, nil
}

func repeat(m Measure, to string, d time.Duration) ([]time.Duration, error) {
	sa, err := sockaddr(to)
	if err != nil {
		return nil, err
	}
	var once func() error
	switch m {
	case Connection:
		once = func() error {
			fd, err := connectTo(unix.SOCK_STREAM, sa)
			if err != nil {
				return err
			}
			if err := trip(fd); err != nil {
				return err
			}
			if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil {
				return fmt.Errorf("after the reply: %d bytes, %w", n, err)
			}
			return unix.Close(fd)
		}
	case RoundTrip, UDPTrip, Bulk, Flood, DeniedFlood:
		typ := unix.SOCK_DGRAM
		if m == RoundTrip || m == Bulk {
			typ = unix.SOCK_STREAM
		}
		fd, err := connectTo(typ, sa)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		once = func() error { return trip(fd) }
		size := 1
		if m == Bulk {
			size = measureSize
		}
		if b := make([]byte, size); m != RoundTrip && m != UDPTrip {
			once = func() error {
				_, err := unix.Write(fd, b)
				if m == DeniedFlood && errors.Is(err, unix.EPERM) {
					return nil
				}
				return err
			}
		}
	default:
		return nil, fmt.Errorf("unknown measure %q", m)
	}
	var times []time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); {
		start := time.Now()
		if m == Bulk || m == Flood || m == DeniedFlood { // the buffer takes some at once, or reading the clock would tell: time many
			for range 16 {
				if err := once(); err != nil {
					return nil, err
				}
			}
			times = append(times, time.Since(start)/16)
			continue
		}
		if err := once(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

func connectTo(typ int, sa *unix.SockaddrInet4) (int, error) {
	fd, err := socket(typ)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func trip(fd int) error {
	b := []byte{1}
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	_, err := unix.Read(fd, b)
	return err
}
