package fabric

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const helperEnv = "BULKHEAD_FABRIC_TEST"

// TestMain lets the test binary play the programs that the tests start.
func TestMain(m *testing.M) {
	switch mode, arg, _ := strings.Cut(os.Getenv(helperEnv), " "); mode {
	case "":
		os.Exit(m.Run())
	case "serve":
		os.Exit(serve(arg))
	case "runner":
		os.Exit(runner(arg))
	default:
		fmt.Fprintln(os.Stderr, "unknown mode", mode)
		os.Exit(2)
	}
}

// serve accepts on addr and answers each connection with the name of its own process.
func serve(addr string) int {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		comm, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			return 1
		}
		fmt.Fprintf(c, "%s", comm)
		c.Close()
	}
}

// runner makes a lab with a process that stays and one that does not, says so, and waits to be killed.
func runner(name string) int {
	f, err := New(context.Background(), name, nil)
	if err == nil {
		err = f.AddHost("a", prefixes("10.99.0.1/29", "fd99::1/125"), true)
	}
	for _, stay := range []bool{true, false} {
		if err == nil {
			_, err = f.Start(Command{Host: "a", Unit: "x.service", Path: "/bin/sleep", Args: []string{"1000"}, Stay: stay})
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("up")
	select {}
}

func need(t *testing.T) {
	t.Helper()
	err := Preflight()
	if err == nil {
		return
	}
	if strings.Contains(os.Getenv("BULKHEAD_REQUIRE"), "netns") {
		t.Fatal(err)
	}
	t.Skip(err)
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

func labFor(t *testing.T) string { return fmt.Sprintf("t%d", os.Getpid()%1_000_000_000) }

// traces lists everything of the lab that is still there.
func traces(t *testing.T, name string) []string {
	t.Helper()
	layout, err := LayoutOf(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range []string{layout.Dir, layout.Cgroup} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			out = append(out, p)
		}
	}
	ns, err := filepath.Glob(layout.netnsPath("*"))
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, ns...)
	mounts, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.path, layout.Dir) || strings.HasPrefix(m.path, layout.netnsPath("")) {
			out = append(out, "mount "+m.path)
		}
	}
	return out
}

func TestFabricJoinsHostsAndLeavesNothing(t *testing.T) {
	need(t)
	name := labFor(t)
	before := interfaces(t)
	f, err := New(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.AddHost("a", prefixes("10.99.0.1/29", "fd99::1/125"), true); err != nil {
		t.Fatal(err)
	}
	if err := f.AddHost("b", prefixes("10.99.0.2/29", "fd99::2/125"), false); err != nil {
		t.Fatal(err)
	}
	if err := f.AddHost("a", nil, false); err == nil {
		t.Error("a second host of the same name was accepted")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(f.Dir, "payapi")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	p, err := f.Start(Command{Host: "a", Unit: "payapi.service", Path: link, Env: []string{helperEnv + "=serve [::]:8443"}, Log: filepath.Join(f.Dir, "log", "payapi.log")})
	if err != nil {
		t.Fatal(err)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if want := "0::/bulkhead-lab-" + name + "/a/payapi.service"; !strings.Contains(string(cgroup), want) {
		t.Errorf("cgroup of the process is %q, want %s", cgroup, want)
	}
	b, err := f.netns("b")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"10.99.0.1:8443", "[fd99::1]:8443"} {
		err := WaitUntil(t.Context(), "an answer", time.Minute, 20*time.Millisecond, func() error {
			return b.do(func() error {
				c, err := net.DialTimeout("tcp", addr, 10*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				got, err := io.ReadAll(c)
				if err == nil && string(got) != "payapi\n" {
					t.Errorf("the process is called %q, want payapi", got)
				}
				return err
			})
		})
		if err != nil {
			t.Errorf("from b to %s: %v", addr, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if after := interfaces(t); after != before {
		t.Errorf("interfaces outside: %s before, %s after", before, after)
	}
}

func interfaces(t *testing.T) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return strings.Join(names, " ")
}

func TestFabricIsHeldByOneRunner(t *testing.T) {
	need(t)
	name := labFor(t)
	f, err := New(t.Context(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	_, err = New(t.Context(), name, nil)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second runner got %v, want ErrBusy with process %d", err, os.Getpid())
	}
	if _, err := Sweep(t.Context(), name); !errors.Is(err, ErrBusy) {
		t.Errorf("Sweep of a running lab: %v, want ErrBusy", err)
	}
	if len(traces(t, name)) == 0 {
		t.Error("the refused runner has taken the lab away")
	}
}

func TestKilledRunnerIsSweptAtTheNextStart(t *testing.T) {
	need(t)
	name := labFor(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), helperEnv+"=runner "+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "up\n" {
		t.Fatalf("the runner said %q, %v", line, err)
	}
	layout, err := LayoutOf(name)
	if err != nil {
		t.Fatal(err)
	}
	unit := layout.UnitCgroup("a", "x.service")
	if pids, err := processesIn(unit); err != nil || len(pids) != 2 {
		t.Fatalf("processes in the unit: %v, %v; want two", pids, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	err = WaitUntil(t.Context(), "the end of the process that does not stay", time.Minute, 10*time.Millisecond, func() error {
		pids, err := processesIn(unit)
		if err == nil && len(pids) != 1 {
			err = fmt.Errorf("%d processes left", len(pids))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	var left Leftovers
	f, err := New(t.Context(), name, func(l Leftovers) { left = l })
	if err != nil {
		t.Fatal(err)
	}
	want := Leftovers{Processes: 1, Cgroups: 3, Namespaces: 2, Mounts: 1, Files: true}
	if left != want {
		t.Errorf("swept %+v, want %+v", left, want)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestKillUnit(t *testing.T) {
	need(t)
	f, err := New(t.Context(), labFor(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.AddHost("a", prefixes("10.99.0.1/29"), false); err != nil {
		t.Fatal(err)
	}
	sleep := Command{Host: "a", Unit: "x.service", Path: "/bin/sleep", Args: []string{"1000"}}
	dies, err := f.Start(sleep)
	if err != nil {
		t.Fatal(err)
	}
	sleep.Unit = ""
	lives, err := f.Start(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.KillUnit(t.Context(), "a", "x.service"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-dies.Done():
	case <-time.After(time.Minute):
		t.Error("the process of the unit lives")
	}
	if err := unix.Kill(lives.PID(), 0); err != nil {
		t.Errorf("the process of the host is gone: %v", err)
	}
	if err := f.KillUnit(t.Context(), "a", ""); err == nil {
		t.Error("KillUnit without a unit would kill the host")
	}
}

func TestNameIsChecked(t *testing.T) {
	for _, name := range []string{"", "Bank", "a-b", "../x", "averyverylongname"} {
		if _, err := LayoutOf(name); err == nil {
			t.Errorf("LayoutOf(%q) was accepted", name)
		}
	}
}

func TestMissingSaysWhatStillWorks(t *testing.T) {
	err := &Missing{What: []string{"no cgroup2 file system is mounted"}}
	for _, want := range []string{"no cgroup2", "bulkhead check, test, eval"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if err.ExitCode() != 3 {
		t.Errorf("exit code %d, want 3", err.ExitCode())
	}
}
