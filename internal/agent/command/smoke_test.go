package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane/ebpf"
)

// The test binary is also the workloads of the smoke test.
func TestMain(m *testing.M) {
	switch os.Getenv("BULKHEAD_SMOKE_ROLE") {
	case "server":
		serveEcho(os.Getenv("BULKHEAD_SMOKE_ADDR"))
	case "client":
		speak(os.Getenv("BULKHEAD_SMOKE_ADDR"))
	default:
		os.Exit(m.Run())
	}
}

func serveEcho(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the other end knows how it went
		}()
	}
}

// speak keeps one connection for as long as it holds and says on every line how it is: up or down.
func speak(addr string) {
	for {
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		for err == nil {
			// What is denied is reset. A machine that is busy may be silent for a while.
			if err = c.SetDeadline(time.Now().Add(20 * time.Second)); err == nil {
				if _, err = c.Write([]byte{1}); err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
			}
			if err == nil {
				fmt.Println("up")
				time.Sleep(5 * time.Millisecond)
			}
		}
		fmt.Println("down", err)
		if c != nil {
			c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// bench is two hosts, one with an agent and one with the controller, joined by a wire.
type bench struct {
	t          *testing.T
	dir        string
	bin        string
	cgroup     string
	node, ctl  netns.NsHandle
	agentFile  string
	socket     string
	controller *process
	agent      *process
	lose       func() error // nil, or what the agent loses besides what its unit takes, in the thread that starts it
}

type process struct {
	cmd   *exec.Cmd
	lines chan string
	log   *bytes.Buffer
	done  chan struct{}
}

// newBench builds everything, or says why it cannot.
func newBench(t *testing.T) *bench {
	t.Helper()
	need := func(err error) {
		t.Helper()
		if err == nil {
			return
		}
		if require := os.Getenv("BULKHEAD_REQUIRE"); strings.Contains(require, "bpf") || strings.Contains(require, "netns") {
			t.Fatal(err)
		}
		t.Skipf("not possible here: %v", err)
	}
	if os.Geteuid() != 0 {
		need(errors.New("it needs root"))
	}
	root, err := inventory.CgroupRoot()
	need(err)
	b := &bench{t: t, dir: t.TempDir(), cgroup: filepath.Join(root, fmt.Sprintf("bulkhead-smoke-%d", os.Getpid()))}
	b.socket = filepath.Join(b.dir, "controller.sock")
	for _, d := range []string{"db.service", "web.service"} {
		need(os.MkdirAll(filepath.Join(b.cgroup, d), 0o755))
	}
	t.Cleanup(b.removeCgroups)
	mounted, err := ebpf.MountBPFFS(filepath.Join(b.dir, "bpf"))
	need(err)
	if mounted {
		t.Cleanup(func() {
			if err := unix.Unmount(filepath.Join(b.dir, "bpf"), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	need(b.network())
	b.bin = filepath.Join(b.dir, "bin")
	for _, name := range []string{"bulkhead", "bulkhead-agent", "bulkhead-controller"} {
		out, err := exec.Command("go", "build", "-o", b.bin+"/", "bulkhead/cmd/"+name).CombinedOutput()
		if err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return b
}

func (b *bench) removeCgroups() {
	for _, d := range []string{"db.service", "web.service", "."} {
		var err error
		for range 3000 { // processes that have ended leave their cgroup a moment later
			if err = os.Remove(filepath.Join(b.cgroup, d)); err == nil || errors.Is(err, os.ErrNotExist) {
				err = nil
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			b.t.Error(err)
		}
	}
}

const (
	nodeAddr = "10.98.0.2"
	ctlAddr  = "10.98.0.1"
)

// network makes two network namespaces without names, which end with the test, and a wire between them.
func (b *bench) network() (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	defer func() { err = errors.Join(err, netns.Set(home)) }()
	for _, ns := range []*netns.NsHandle{&b.ctl, &b.node} {
		if *ns, err = netns.New(); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		handle := *ns
		b.t.Cleanup(func() { handle.Close() })
	}
	// We are in the node's now.
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(b.ctl)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a wire: %w", err)
	}
	for _, end := range []struct {
		ns         netns.NsHandle
		link, addr string
	}{{b.node, "eth0", nodeAddr}, {b.ctl, "eth1", ctlAddr}} {
		if err := netns.Set(end.ns); err != nil {
			return err
		}
		for _, name := range []string{"lo", end.link} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name != "lo" {
				addr, err := netlink.ParseAddr(end.addr + "/24")
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) addAddress(ns netns.NsHandle, link, addr string) {
	b.t.Helper()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		b.t.Fatal(err)
	}
	defer handle.Close()
	l, err := handle.LinkByName(link)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := handle.AddrAdd(l, a); err != nil {
		b.t.Fatal(err)
	}
}

// start starts a program on a host, in a cgroup below the bench's if one is named.
func (b *bench) start(ns netns.NsHandle, cgroup string, env []string, name string, args ...string) *process {
	b.t.Helper()
	return b.startWith(func() error { return netns.Set(ns) }, cgroup, env, name, args...)
}

// workload starts a server or a client of the service on the node.
func (b *bench) workload(ns netns.NsHandle, cgroup, role string) *process {
	b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	return b.start(ns, cgroup, []string{"BULKHEAD_SMOKE_ROLE=" + role, "BULKHEAD_SMOKE_ADDR=" + nodeAddr + ":5432"}, self)
}

// startWith starts a program from a thread that prepare has been called on.
func (b *bench) startWith(prepare func() error, cgroup string, env []string, name string, args ...string) *process {
	b.t.Helper()
	p := &process{cmd: exec.Command(name, args...), lines: make(chan string, 100_000), log: &bytes.Buffer{}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cgroup != "" {
		dir, err := os.Open(filepath.Join(b.cgroup, cgroup))
		if err != nil {
			b.t.Fatal(err)
		}
		defer dir.Close()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	started := make(chan error)
	go func() {
		// The thread is the child's parent: it must live as long as the child (PDEATHSIG), and it stays as prepare
		// has left it, so it serves nothing else and ends with this goroutine.
		runtime.LockOSThread()
		err := prepare()
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
		_ = p.cmd.Wait() // it was killed
		close(p.done)
	}()
	if err := <-started; err != nil {
		b.t.Fatalf("start %s: %v", name, err)
	}
	b.t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// waitLine returns when the process says a line that begins so; what it said before does not count.
func (b *bench) waitLine(p *process, prefix string) {
	b.t.Helper()
	for len(p.lines) > 0 {
		<-p.lines
	}
	b.heard(p, prefix)
}

// heard returns when the process says, or has said, a line that begins so.
func (b *bench) heard(p *process, prefix string) {
	b.t.Helper()
	deadline, last := time.After(time.Minute), "nothing"
	for {
		select {
		case line := <-p.lines:
			if strings.HasPrefix(line, prefix) {
				return
			}
			last = line
		case <-deadline:
			r, err := status.NewClient(filepath.Join(b.dir, "agent.sock")).Status(context.Background())
			b.t.Fatalf("waited a minute for %q; it says %q\nagent: %+v %v\n%s\ncontroller: %s", prefix, last, r, err, b.agent.log, b.controller.log)
		}
	}
}

// only fails the test unless the process says lines that begin so and no others, for that long or, on a busy machine,
// until it has said one.
func (b *bench) only(p *process, prefix string, during time.Duration) {
	b.t.Helper()
	b.waitLine(p, prefix)
	end, limit := time.After(during), time.After(time.Minute)
	over := false
	for n := 0; !over || n == 0; {
		select {
		case line := <-p.lines:
			if n++; !strings.HasPrefix(line, prefix) {
				b.t.Fatalf("%q after %d lines of %q\nagent: %s", line, n, prefix, b.agent.log)
			}
		case <-end:
			over = true
		case <-limit:
			b.t.Fatalf("no %q for a minute", prefix)
		}
	}
}

// cli runs the command line against the controller.
func (b *bench) cli(args ...string) string {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(b.bin, "bulkhead"), append(args, "--controller", "unix://"+b.socket)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("bulkhead %s: %v\n%s%s\nagent: %s\ncontroller: %s", strings.Join(args, " "), err, out, &stderr, b.agent.logText(), b.controller.logText())
	}
	return string(out)
}

func (p *process) logText() string {
	if p == nil {
		return ""
	}
	return p.log.String()
}

func (b *bench) write(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

func (b *bench) startController() {
	b.t.Helper()
	file := b.write("controller.yaml", fmt.Sprintf("data: %s\nlisten: %s:7443\nadvertise: [%[2]s:7443]\nsocket: %[3]s\nmetrics: \"\"\n",
		filepath.Join(b.dir, "controller"), ctlAddr, b.socket))
	b.controller = b.start(b.ctl, "", nil, filepath.Join(b.bin, "bulkhead-controller"), "--config", file)
	b.eventually("the controller", func() error {
		c, err := net.Dial("unix", b.socket)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// startAgent starts the agent on a host with the capabilities that its systemd unit leaves it.
func (b *bench) startAgent(ns netns.NsHandle, env ...string) {
	b.t.Helper()
	b.agent = b.startWith(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		if b.lose == nil {
			return b.bound()
		}
		return errors.Join(b.bound(), b.lose())
	}, ".", env, filepath.Join(b.bin, "bulkhead-agent"), "--config", b.agentFile)
}

var capabilities = map[string]uintptr{
	"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_BPF": unix.CAP_BPF,
}

// bound drops what the unit of the agent does not list from the capabilities that children of this thread may have.
func (b *bench) bound() error {
	unit, err := os.ReadFile("../../../packaging/systemd/bulkhead-agent.service")
	if err != nil {
		return err
	}
	keep := map[uintptr]bool{}
	for line := range strings.Lines(string(unit)) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet=")
		if !ok {
			continue
		}
		for _, name := range strings.Fields(list) {
			c, ok := capabilities[name]
			if !ok {
				return fmt.Errorf("the unit names capability %s", name)
			}
			keep[c] = true
		}
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

func (b *bench) status(what string, ok func(*status.Report) bool) {
	b.t.Helper()
	b.eventually(what, func() error {
		r, err := status.NewClient(filepath.Join(b.dir, "agent.sock")).Status(context.Background())
		if err == nil && !ok(r) {
			err = fmt.Errorf("the agent says %+v", r)
		}
		return err
	})
}

func (b *bench) eventually(what string, try func() error) {
	b.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	b.t.Fatalf("waited a minute for %s: %v\nagent: %s\ncontroller: %s", what, err, b.agent.logText(), b.controller.logText())
}

// seen waits until the recorded flows have a line with all of the words.
func (b *bench) seen(words ...string) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("a flow with %q", words), func() error {
		out := b.cli("flows", "-o", "json")
		for line := range strings.Lines(out) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return errors.New(out)
	})
}

const observed = `apiVersion: bulkhead/v1
kind: Workload
metadata: {name: db, labels: {app: shop, role: db}}
spec: {unit: {host: node-1, name: db.service}}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: web, labels: {app: shop, role: web}}
spec: {unit: {host: node-1, name: web.service}}
`

const enforced = observed + `---
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: shop}
spec: {selector: app=shop, mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: shop}
spec:
  rules:
    - name: web-reads-db
      allow: {from: "role=web", to: "role=db", on: [tcp/5432]}
`

// TestSmoke runs the three programs on real namespaces, cgroups and sockets, through the life of one policy.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the programs")
	}
	b := newBench(t)
	b.startController()
	token := b.cli("token", "create", "--host", "node-1")
	b.agentFile = b.write("agent.yaml", fmt.Sprintf("controller: %s:7443\ntokenFile: %s\nhost: node-1\ndata: %s\ncgroupRoot: %s\nbpffs: %s\ndataplane: ebpf\nflowWindow: 200ms\nsocket: %s\n",
		ctlAddr, b.write("token", token), filepath.Join(b.dir, "agent"), b.cgroup, filepath.Join(b.dir, "bpf", "bulkhead"), filepath.Join(b.dir, "agent.sock")))
	b.startAgent(b.node)
	b.status("the connection", func(r *status.Report) bool { return r.Connected })

	// See: without any document the units are found and their flows recorded.
	server := b.workload(b.node, "db.service", "server")
	b.heard(server, "listening") // it says so once
	web := b.workload(b.node, "web.service", "client")
	stranger := b.workload(b.ctl, "", "client")
	b.waitLine(web, "up")
	b.waitLine(stranger, "up")
	b.seen(`"node-1/web.service"`, `"node-1/db.service"`, `5432`, filepath.Base(os.Args[0])[:8])
	b.seen(ctlAddr, `"node-1/db.service"`)

	// Enforce: what is allowed goes on, what is not is cut, live.
	b.cli("apply", "-f", b.write("observed.yaml", observed))
	b.only(stranger, "up", 200*time.Millisecond)
	b.cli("apply", "-f", b.write("enforced.yaml", enforced))
	b.waitLine(stranger, "down")
	b.only(web, "up", 500*time.Millisecond)
	b.only(stranger, "down", 700*time.Millisecond)
	b.seen(ctlAddr, `"db"`, `"deny"`, `default-deny`)
	b.status("a healthy agent", func(r *status.Report) bool {
		t.Logf("resident: %.1f MiB", float64(r.ResidentBytes)/(1<<20))
		return r.Connected && len(r.Problems) == 0
	})

	// An address that comes is told at once.
	b.addAddress(b.node, "eth0", "10.98.0.22/24")
	b.eventually("the new address", func() error {
		if out := b.cli("get", "workloads", "-o", "json"); !strings.Contains(out, "10.98.0.22") {
			return errors.New(out)
		}
		return nil
	})

	// Contain: from the command to the last byte.
	began := time.Now()
	b.cli("quarantine", "web", "--reason", "smoke")
	b.waitLine(web, "down")
	t.Logf("contained after %v, with the start of the command line", time.Since(began))
	b.only(web, "down", 500*time.Millisecond)
	b.cli("quarantine", "lift", "web")
	b.waitLine(web, "up")
	b.status("no isolation", func(r *status.Report) bool { return len(r.Isolated) == 0 })

	// Fail: nobody is there, and nothing opens or closes.
	b.agent.kill()
	b.controller.kill()
	b.only(web, "up", 500*time.Millisecond)
	b.only(stranger, "down", 700*time.Millisecond)
	b.startAgent(b.node)
	b.status("the agent alone", func(r *status.Report) bool { return !r.Connected && r.Revision > 0 })
	b.only(web, "up", 300*time.Millisecond)
	b.only(stranger, "down", 500*time.Millisecond)
	b.startController()
	b.status("the agreement", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })

	// A unit that comes again has another cgroup and is judged as before.
	web.kill()
	b.eventually("the end of web.service", func() error { return os.Remove(filepath.Join(b.cgroup, "web.service")) })
	if err := os.Mkdir(filepath.Join(b.cgroup, "web.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.eventually("the new cgroup", func() error {
		r, err := status.NewClient(filepath.Join(b.dir, "agent.sock")).Status(context.Background())
		if err != nil || len(r.Problems) > 0 {
			return fmt.Errorf("%v %+v", err, r)
		}
		return nil
	})
	web = b.workload(b.node, "web.service", "client")
	b.waitLine(web, "up")

	// Remove: nothing is left.
	b.agent.kill()
	if code, _, stderr := call(t, "remove", "--config", b.agentFile); code != exitGood {
		t.Fatal(stderr)
	}
	b.waitLine(stranger, "up")
	if left, err := os.ReadDir(filepath.Join(b.dir, "bpf", "bulkhead")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left in the kernel: %v (%v)", left, err)
	}
}
