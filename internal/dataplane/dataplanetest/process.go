package dataplanetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a worker in a network namespace and a cgroup.
type Process struct {
	t    testing.TB
	Name string
	cmd  *exec.Cmd
	in   io.WriteCloser

	mu      sync.Mutex
	seq     int
	sockets int
	waiting map[int]chan answer
	gone    chan struct{}
}

// program is what a worker runs as: the zero value is the test binary itself, by the user of the test.
type program struct {
	user uint32
	args []string // the command, which must execute the test binary or a copy of it in the end
}

// start runs a worker. It ends with the test.
func start(t testing.TB, name string, ns *os.File, cgroup string, as program) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cg, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer cg.Close()
	cmd := exec.Command(self)
	cmd.Args[0] = name
	if as.args != nil {
		cmd = exec.Command(as.args[0], as.args[1:]...)
	}
	cmd.Env = append(os.Environ(), workerEnv+"=1", "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), Pdeathsig: syscall.SIGKILL}
	if as.user != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.user, Gid: as.user}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{t: t, Name: name, cmd: cmd, in: in, waiting: map[int]chan answer{}, gone: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The child is born in the namespace of this thread, and dies with it: so the thread stays.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			<-p.gone
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start a process in %s: %v", cgroup, err)
	}
	go p.listen(out)
	t.Cleanup(func() {
		_ = p.in.Close() // it ends by itself then
		_ = cmd.Wait()
		close(p.gone)
	})
	return p
}

func (p *Process) listen(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			continue // the question will not be answered, and its asker says so
		}
		p.mu.Lock()
		c := p.waiting[a.Seq]
		delete(p.waiting, a.Seq)
		p.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
}

// Become changes the user that the process runs as.
func (p *Process) Become(user uint32) {
	p.t.Helper()
	p.must(request{Do: "become", N: int(user)})
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// begin sends a request; the channel yields the answer.
func (p *Process) begin(r request) <-chan answer {
	p.t.Helper()
	c := make(chan answer, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	r.Seq = p.seq
	p.waiting[r.Seq] = c
	line, err := json.Marshal(r)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		p.t.Fatalf("%s: %v", p.Name, err)
	}
	return c
}

func (p *Process) await(c <-chan answer) answer {
	p.t.Helper()
	select {
	case a := <-c:
		return a
	case <-time.After(3 * patience): // a request may take its own time, twice
		p.t.Fatalf("%s does not answer", p.Name)
		panic("unreachable")
	}
}

func (p *Process) ask(r request) answer {
	p.t.Helper()
	return p.await(p.begin(r))
}

// must fails the test if the request does.
func (p *Process) must(r request) answer {
	p.t.Helper()
	a := p.ask(r)
	if a.Err != "" {
		p.t.Fatalf("%s: %s %s %s: %s", p.Name, r.Do, r.Net, r.To, a.Err)
	}
	return a
}

func (p *Process) id() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sockets++
	return "s" + strconv.Itoa(p.sockets)
}

// Listen makes a server that answers everything with itself.
func (p *Process) Listen(network, addr string) *Socket {
	p.t.Helper()
	s := &Socket{p: p, id: p.id(), Net: network}
	s.Addr = p.must(request{Do: "listen", ID: s.id, Net: network, Local: addr}).Addr
	return s
}

// ListenMultipath makes a server that speaks multipath TCP too.
func (p *Process) ListenMultipath(network, addr string) *Socket {
	p.t.Helper()
	s := &Socket{p: p, id: p.id(), Net: network}
	s.Addr = p.must(request{Do: "listen", ID: s.id, Net: network, Local: addr, Multi: true}).Addr
	return s
}

// Bind makes a UDP socket without a fixed peer.
func (p *Process) Bind(network, addr string) *Socket {
	p.t.Helper()
	s := &Socket{p: p, id: p.id(), Net: network}
	s.Addr = p.must(request{Do: "bind", ID: s.id, Net: network, Local: addr}).Addr
	return s
}

// brief is how long to wait for what is expected never to come. What is not dropped takes a hundredth of it.
const brief = 200 * time.Millisecond

// Dial makes a connection and returns the name of the error, "" for none.
func (p *Process) Dial(network, to string) (*Socket, string) {
	p.t.Helper()
	return p.dial(request{Net: network, To: to, Wait: patience})
}

// dial makes a connection as r says.
func (p *Process) dial(r request) (*Socket, string) {
	p.t.Helper()
	s := &Socket{p: p, id: p.id(), Net: r.Net}
	r.Do, r.ID = "dial", s.id
	a := p.ask(r)
	s.Addr = a.Addr
	return s, a.Err
}

// wait is how long to wait for an outcome: "timeout" is to come soon.
func wait(want string) time.Duration {
	if want == "timeout" {
		return brief
	}
	return patience
}

// DialMany makes n connections. The socket returned stands for all of them, and can only be closed.
func (p *Process) DialMany(network, to string, n int) *Socket {
	p.t.Helper()
	s := &Socket{p: p, id: p.id(), Net: network}
	p.must(request{Do: "dial many", ID: s.id, Net: network, To: to, N: n, Wait: patience})
	return s
}

// Connect ends what the process's socket of that name is connected to, makes it if there is none, connects it to somebody else,
// unless that is nobody, and makes one exchange over TCP. It returns the error, or "".
func (p *Process) Connect(socket, to string, d time.Duration) string {
	p.t.Helper()
	return p.ask(request{Do: "connect", ID: socket, To: to, Wait: d}).Err
}

// MustDial makes a connection that must succeed.
func (p *Process) MustDial(network, to string) *Socket {
	p.t.Helper()
	s, err := p.Dial(network, to)
	if err != "" {
		p.t.Fatalf("%s: dial %s %s: %s", p.Name, network, to, err)
	}
	return s
}

// Try dials, exchanges a message and closes. It returns "" or the name of the error; what is not answered within d is a timeout.
func (p *Process) Try(network, to string, d time.Duration) string {
	p.t.Helper()
	s, err := p.dial(request{Net: network, To: to, Wait: d})
	if err == "" {
		err = s.exchange("x", "", d)
		s.Close()
	}
	return err
}

// ping sends one echo request and returns the name of the error.
func (p *Process) ping(to string, d time.Duration) string {
	p.t.Helper()
	return p.ask(request{Do: "ping", To: to, Wait: d}).Err
}

// Burst makes n flows, some at a time, each with one exchange.
func (p *Process) Burst(network, to string, n, atOnce int) Result {
	p.t.Helper()
	a := p.must(request{Do: "burst", Net: network, To: to, N: n, Flow: atOnce, Data: "x", Wait: patience})
	return Result{a.Good, a.Bad, a.Errors, a.Took}
}

// Result says what became of many attempts.
type Result struct {
	Good, Bad int
	Errors    map[string]int
	Took      time.Duration
}

// Socket is a socket of a process.
type Socket struct {
	p    *Process
	id   string
	Net  string
	Addr string
}

// Exchange sends data to an echo and waits for it to come back; to is for sockets without a fixed peer. It returns the
// name of the error.
func (s *Socket) Exchange(data, to string) string {
	s.p.t.Helper()
	return s.exchange(data, to, patience)
}

func (s *Socket) exchange(data, to string, d time.Duration) string {
	s.p.t.Helper()
	return s.p.ask(request{Do: "exchange", ID: s.id, Net: s.Net, Data: data, To: to, Wait: d}).Err
}

// Stream exchanges for a time or until the connection breaks. The function returned waits for it.
func (s *Socket) Stream(d time.Duration, to string) func() (Result, string) {
	s.p.t.Helper()
	c := s.p.begin(request{Do: "stream", ID: s.id, Net: s.Net, Data: "stream", To: to, Wait: d})
	return func() (Result, string) {
		a := s.p.await(c)
		return Result{a.Good, a.Bad, a.Errors, a.Took}, a.Err
	}
}

// Read waits for data and returns the name of the error.
func (s *Socket) Read(wait time.Duration) (string, string) {
	s.p.t.Helper()
	a := s.p.ask(request{Do: "read", ID: s.id, Net: s.Net, Wait: wait})
	return a.Data, a.Err
}

// Push sends data to everyone who has connected to a listener.
func (s *Socket) Push(data string) string {
	s.p.t.Helper()
	return s.p.ask(request{Do: "push", ID: s.id, Data: data}).Err
}

// Seen returns how many messages a server has answered and how many connections it has accepted.
func (s *Socket) Seen() (messages, connections int) {
	s.p.t.Helper()
	a := s.p.must(request{Do: "seen", ID: s.id})
	return a.Good, a.Bad
}

// seenMore waits until a server has answered some more messages.
func (s *Socket) seenMore() {
	s.p.t.Helper()
	before, _ := s.Seen()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if now, _ := s.Seen(); now > before+2 {
			return
		}
	}
	s.p.t.Fatalf("%s: nothing reaches %s", s.p.Name, s.Addr)
}

// Close closes the socket, and what a listener has accepted.
func (s *Socket) Close() {
	s.p.t.Helper()
	s.p.ask(request{Do: "close", ID: s.id})
}

// Abort closes a TCP connection with a reset, so that its ports are free at once.
func (s *Socket) Abort() {
	s.p.t.Helper()
	s.p.must(request{Do: "abort", ID: s.id})
}

// Port returns the port of the socket's own address.
func (s *Socket) Port() uint16 {
	s.p.t.Helper()
	_, port := split(s.p.t, s.Addr)
	return port
}

func split(t testing.TB, addr string) (string, uint16) {
	t.Helper()
	for i := len(addr) - 1; i >= 0; i-- {
		if addr[i] == ':' {
			n, err := strconv.ParseUint(addr[i+1:], 10, 16)
			if err != nil {
				t.Fatalf("address %q: %v", addr, err)
			}
			return addr[:i], uint16(n)
		}
	}
	t.Fatalf("address %q has no port", addr)
	return "", 0
}

// Add adds what became of other attempts.
func (r *Result) Add(other Result) {
	r.Good += other.Good
	r.Bad += other.Bad
	r.Took += other.Took
	for name, n := range other.Errors {
		r.Errors[name] += n
	}
}

func (r Result) String() string {
	return fmt.Sprintf("%d good, %d bad %v in %v", r.Good, r.Bad, r.Errors, r.Took.Round(time.Millisecond))
}
