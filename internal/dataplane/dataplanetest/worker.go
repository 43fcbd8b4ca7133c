package dataplanetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// workerEnv tells the test binary that it is a process of the lab.
const workerEnv = "BULKHEAD_DATAPLANETEST_WORKER"

// request is one line to a worker; the answer is one line back. A worker does several at a time.
type request struct {
	Seq   int
	Do    string
	ID    string // of a socket
	Net   string // tcp4, tcp6, udp4, udp6
	Local string // address and port; empty for any
	To    string
	Data  string
	N     int // how many
	Flow  int // how many at a time
	Wait  time.Duration
	Multi bool // multipath TCP
	Opts  bool // IPv6 packets carry a header of destination options
	// Plain are sockets to make, each by its family, type and protocol.
	Plain [][3]int
}

type answer struct {
	Seq    int
	Err    string // name of the errno, or text
	Addr   string
	Data   string
	Good   int
	Bad    int
	Errors map[string]int
	Took   time.Duration
	FDs    []int
}

// worker reads requests until its input ends.
func worker(in io.Reader, out io.Writer) int {
	w := &sockets{open: map[string]*opened{}, out: json.NewEncoder(out)}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			return 1
		}
		go w.serve(r)
	}
	return 0
}

type sockets struct {
	mu    sync.Mutex
	open  map[string]*opened
	out   *json.Encoder
	plain []int // sockets that somebody else uses
}

type opened struct {
	conn     net.Conn
	packet   net.PacketConn
	listener net.Listener
	fd       int          // of a plain socket
	got      atomic.Int64 // messages that an echo has answered
	last     atomic.Int64 // time of the last of them, in Unix nanoseconds
	accepted atomic.Int64
	mu       sync.Mutex
	peers    []net.Conn // that a listener has accepted
}

func (w *sockets) serve(r request) {
	start := time.Now()
	a, err := w.do(r)
	a.Seq, a.Took = r.Seq, time.Since(start)
	if err != nil {
		a.Err = errorName(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.out.Encode(a); err != nil {
		os.Exit(1) // whoever asked is gone
	}
}

// errorName makes errors comparable: the name of the errno if there is one.
func errorName(err error) string {
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		return unix.ErrnoName(no)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF):
		return "EOF"
	}
	return err.Error()
}

func (w *sockets) put(id string, o *opened) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[id] = o
}

func (w *sockets) get(id string) (*opened, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.open[id]; o != nil {
		return o, nil
	}
	return nil, fmt.Errorf("no socket %q", id)
}

func (w *sockets) do(r request) (answer, error) {
	if r.Wait == 0 {
		r.Wait = patience
	}
	switch r.Do {
	case "listen":
		return w.listen(r)
	case "bind":
		return w.bind(r)
	case "dial":
		return w.dial(r)
	case "burst":
		return burst(r)
	case "ping":
		return answer{}, ping(r)
	case "serve measures":
		return answer{}, serveMeasures(r.To)
	case "measure":
		return measure(r)
	case "dial many":
		return answer{}, w.dialMany(r)
	case "relisten":
		return w.relisten(r)
	case "connect":
		return answer{}, w.connect(r)
	case "become":
		return answer{}, syscall.Setresuid(-1, r.N, -1)
	case "raw":
		return answer{}, raw(r)
	case "frame":
		return answer{}, sendFrame(r)
	case "relay":
		return answer{}, w.relay(r)
	case "routed":
		return answer{}, routed(r)
	case "plain":
		return w.makePlain(r)
	case "resolver":
		return w.resolver(r)
	case "lookup":
		return lookup(r)
	}
	o, err := w.get(r.ID)
	if err != nil {
		return answer{}, err
	}
	switch r.Do {
	case "exchange":
		return answer{}, exchange(o, r)
	case "question", "answer":
		return answer{}, send(o, r)
	case "stream":
		return stream(o, r)
	case "read":
		return read(o, r)
	case "seen":
		return answer{Good: int(o.got.Load()), Took: 0, Data: time.Unix(0, o.last.Load()).Format(time.RFC3339Nano),
			Bad: int(o.accepted.Load())}, nil
	case "hang up":
		return answer{}, o.hangUp(false)
	case "vanish":
		return answer{}, o.hangUp(true)
	case "push": // to everyone who has connected
		return answer{}, o.push(r)
	case "abort":
		if err := o.conn.(*net.TCPConn).SetLinger(0); err != nil {
			return answer{}, err
		}
		return answer{}, o.conn.Close()
	case "close":
		w.mu.Lock()
		delete(w.open, r.ID)
		w.mu.Unlock()
		return answer{}, o.close()
	}
	return answer{}, fmt.Errorf("unknown request %q", r.Do)
}

// listen makes a server that answers everything with itself.
func (w *sockets) listen(r request) (answer, error) {
	o := &opened{}
	if r.Net[:3] == "tcp" {
		var lc net.ListenConfig
		lc.SetMultipathTCP(r.Multi)
		l, err := lc.Listen(context.Background(), r.Net, r.Local)
		if err != nil {
			return answer{}, err
		}
		o.listener = l
		go o.accept()
		w.put(r.ID, o)
		return answer{Addr: l.Addr().String()}, nil
	}
	p, err := net.ListenPacket(r.Net, r.Local)
	if err != nil {
		return answer{}, err
	}
	o.packet = p
	go o.echo()
	w.put(r.ID, o)
	return answer{Addr: p.LocalAddr().String()}, nil
}

// relisten makes a server of a socket that was a connection before, to To.
func (w *sockets) relisten(r request) (answer, error) {
	local, err := sockaddr(r.Local)
	if err != nil {
		return answer{}, err
	}
	to, err := sockaddr(r.To)
	if err != nil {
		return answer{}, err
	}
	fd, err := connectTo(unix.SOCK_STREAM, to)
	if err != nil {
		return answer{}, err
	}
	f := os.NewFile(uintptr(fd), "server")
	defer f.Close()
	if err := trip(fd); err != nil {
		return answer{}, err
	}
	if err := disconnect(fd); err != nil {
		return answer{}, err
	}
	if err := unix.Bind(fd, local); err != nil {
		return answer{}, err
	}
	if err := unix.Listen(fd, 16); err != nil {
		return answer{}, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return answer{}, err
	}
	o := &opened{listener: l}
	go o.accept()
	w.put(r.ID, o)
	return answer{Addr: l.Addr().String()}, nil
}

// disconnect ends a connection by an address of no family: then the socket is as good as new.
func disconnect(fd int) error {
	none := make([]byte, unix.SizeofSockaddrInet4)
	if _, _, no := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none[0])), uintptr(len(none))); no != 0 {
		return no
	}
	return nil
}

// connect ends the connection of the socket ID, which is the same one each time, connects it to somebody else, unless To
// is nobody, and makes one exchange.
func (w *sockets) connect(r request) error {
	o, err := w.get(r.ID)
	if err != nil {
		o = &opened{}
		if o.fd, err = socket(unix.SOCK_STREAM); err != nil {
			return err
		}
		w.put(r.ID, o)
	} else if err := disconnect(o.fd); err != nil || r.To == "" {
		return err
	}
	to, err := sockaddr(r.To)
	if err != nil {
		return err
	}
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} { // the latter bounds connect
		if err := unix.SetsockoptTimeval(o.fd, unix.SOL_SOCKET, opt, &unix.Timeval{Usec: r.Wait.Microseconds() % 1e6, Sec: int64(r.Wait / time.Second)}); err != nil {
			return err
		}
	}
	if err := unix.Connect(o.fd, to); err != nil {
		return err
	}
	return trip(o.fd)
}

// raw sends Data as an IPv4 packet of the protocol N.
func raw(r request) error {
	to, err := sockaddr(r.To)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, r.N)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(r.Data), 0, to)
}

func (o *opened) accept() {
	for {
		c, err := o.listener.Accept()
		if err != nil {
			return
		}
		o.accepted.Add(1)
		o.mu.Lock()
		o.peers = append(o.peers, c)
		o.mu.Unlock()
		go o.serve(c)
	}
}

func (o *opened) serve(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if n > 0 {
			o.got.Add(1)
			o.last.Store(time.Now().UnixNano())
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (o *opened) echo() {
	b := make([]byte, 64<<10)
	for {
		n, from, err := o.packet.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of somebody who is gone
		}
		o.got.Add(1)
		o.last.Store(time.Now().UnixNano())
		_, _ = o.packet.WriteTo(b[:n], from) // who does not get an answer will say so
	}
}

func (o *opened) push(r request) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.peers {
		if _, err := c.Write([]byte(r.Data)); err != nil {
			return err
		}
	}
	return nil
}

func (o *opened) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, c := range o.peers {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	switch {
	case o.conn != nil:
		errs = append(errs, o.conn.Close())
	case o.packet != nil:
		errs = append(errs, o.packet.Close())
	case o.listener != nil:
		errs = append(errs, o.listener.Close())
	case o.fd != 0:
		errs = append(errs, unix.Close(o.fd))
	}
	return errors.Join(errs...)
}

// bind makes a UDP socket without a fixed peer.
func (w *sockets) bind(r request) (answer, error) {
	p, err := net.ListenPacket(r.Net, r.Local)
	if err != nil {
		return answer{}, err
	}
	w.put(r.ID, &opened{packet: p})
	return answer{Addr: p.LocalAddr().String()}, nil
}

func (w *sockets) dial(r request) (answer, error) {
	c, err := dial(r)
	if err != nil {
		return answer{}, err
	}
	w.put(r.ID, &opened{conn: c})
	return answer{Addr: c.LocalAddr().String()}, nil
}

// dialMany makes N connections.
func (w *sockets) dialMany(r request) error {
	o := &opened{}
	w.put(r.ID, o)
	for range r.N {
		c, err := dial(r)
		if err != nil {
			return err
		}
		o.peers = append(o.peers, c)
	}
	return nil
}

func dial(r request) (net.Conn, error) {
	d := net.Dialer{}
	if r.Net[:3] == "tcp" { // nothing else waits for its peer, and a timeout would be one of this process's own
		d.Timeout = r.Wait
	}
	if r.Opts {
		d.Control = destinationOptions
	}
	d.SetMultipathTCP(r.Multi)
	if r.Local != "" {
		ap, err := netip.ParseAddrPort(r.Local)
		if err != nil {
			return nil, err
		}
		if r.Net[:3] == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(ap)
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(ap)
		}
	}
	return d.Dial(r.Net, r.To)
}

// destinationOptions puts an extension header, with nothing but padding in it, into each packet.
func destinationOptions(_, _ string, c syscall.RawConn) error {
	padding := string([]byte{0, 0, 1, 4, 0, 0, 0, 0})
	var err error
	if failed := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padding)
	}); failed != nil {
		return failed
	}
	return err
}

// exchange sends Data and waits for it to come back. The time to wait begins when the data is sent: on a busy machine it
// could be over before, and then nothing would have been tried.
func exchange(o *opened, r request) error {
	b := make([]byte, len(r.Data))
	if o.packet != nil {
		to, err := net.ResolveUDPAddr("udp", r.To)
		if err != nil {
			return err
		}
		if _, err := o.packet.WriteTo([]byte(r.Data), to); err != nil {
			return err
		}
		if err := o.packet.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
			return err
		}
		_, _, err = o.packet.ReadFrom(b)
		return errors.Join(err, o.packet.SetReadDeadline(time.Time{})) // an echo, if there is one, goes on
	}
	if err := o.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := o.conn.Write([]byte(r.Data)); err != nil {
		return err
	}
	if err := o.conn.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
		return err
	}
	_, err := io.ReadFull(o.conn, b)
	return err
}

// stream exchanges until something fails or Wait is over. It counts the exchanges that were answered.
func stream(o *opened, r request) (answer, error) {
	end := time.Now().Add(r.Wait)
	a := answer{Errors: map[string]int{}}
	each := r
	each.Wait = patience
	for time.Now().Before(end) {
		err := exchange(o, each)
		if err == nil {
			a.Good++
			continue
		}
		a.Bad++
		a.Errors[errorName(err)]++
		if o.conn != nil && errorName(err) != "timeout" && r.Net != "udp" {
			return a, err
		}
		time.Sleep(time.Millisecond)
	}
	return a, nil
}

// read waits for data.
func read(o *opened, r request) (answer, error) {
	b := make([]byte, 64<<10)
	if o.packet != nil {
		if err := o.packet.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
			return answer{}, err
		}
		n, from, err := o.packet.ReadFrom(b)
		if err != nil {
			return answer{}, err
		}
		return answer{Data: string(b[:n]), Addr: from.String()}, nil
	}
	if err := o.conn.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
		return answer{}, err
	}
	n, err := o.conn.Read(b)
	return answer{Data: string(b[:n])}, err
}

// burst makes N flows, Flow at a time, each with one exchange (unless Data is empty), and counts what became of them.
func burst(r request) (answer, error) {
	var mu sync.Mutex
	a := answer{Errors: map[string]int{}}
	var left atomic.Int64
	left.Store(int64(r.N))
	var g sync.WaitGroup
	for range max(1, r.Flow) {
		g.Go(func() {
			for left.Add(-1) >= 0 {
				err := once(r)
				mu.Lock()
				if err == nil {
					a.Good++
				} else {
					a.Bad++
					a.Errors[errorName(err)]++
				}
				mu.Unlock()
			}
		})
	}
	g.Wait()
	return a, nil
}

func once(r request) error {
	c, err := dial(r)
	if err != nil {
		return err
	}
	defer c.Close()
	if r.Data == "" {
		return nil
	}
	return exchange(&opened{conn: c}, r)
}

// ping sends one echo request through a ping socket and waits for the reply.
func ping(r request) error {
	to, err := netip.ParseAddr(r.To)
	if err != nil {
		return err
	}
	network, any, proto := "udp4", "0.0.0.0", 1
	var typ icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		network, any, proto, typ = "udp6", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	c, err := icmp.ListenPacket(network, any)
	if err != nil {
		return err
	}
	defer c.Close()
	m := icmp.Message{Type: typ, Body: &icmp.Echo{Seq: 1, Data: []byte("bulkhead")}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, &net.UDPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
		return err
	}
	reply := make([]byte, 1500)
	n, _, err := c.ReadFrom(reply)
	if err != nil {
		return err
	}
	_, err = icmp.ParseMessage(proto, reply[:n])
	return err
}
