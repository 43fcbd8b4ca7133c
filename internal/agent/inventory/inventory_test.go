package inventory

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"bulkhead/internal/core/model"
)

// cgroups makes directories that look like cgroups of version 2 and returns their root. Inotify and walking work on
// them as they do on the real ones.
func cgroups(t *testing.T, dirs ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range dirs {
		mkdir(t, root, d)
	}
	return root
}

func mkdir(t *testing.T, root, dir string, pids ...int) {
	t.Helper()
	p := filepath.Join(root, dir)
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	var procs string
	for _, pid := range pids {
		procs += strconv.Itoa(pid) + "\n"
	}
	if err := os.WriteFile(filepath.Join(p, "cgroup.procs"), []byte(procs), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rmdir(t *testing.T, root, dir string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
		t.Fatal(err)
	}
}

// running starts a watcher and returns a function that waits for what it finds to meet a condition.
func running(t *testing.T, cfg Config) (w *Watcher, wait func(what string, ok func(*Found) bool)) {
	t.Helper()
	w = New(cfg, func(_, text string) {
		if text != "" {
			t.Log("problem:", text)
		}
	})
	news := make(chan *Found, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, func(f *Found) { news <- f }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the watcher ended with %v", err)
		}
	})
	return w, func(what string, ok func(*Found) bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case f := <-news:
				if ok(f) {
					return
				}
			case <-deadline:
				t.Fatalf("waited a minute for %s; found %+v", what, w.Current())
			}
		}
	}
}

func TestUnitsAreFoundByPatternAndByName(t *testing.T) {
	root := cgroups(t, "system.slice/pg.service", "system.slice/web.service/worker", "user.slice/shell.scope", "legacy/daemon")
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	w.Name(t.Context(), []string{"daemon", "absent"})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"pg.service": "system.slice/pg.service", "web.service": "system.slice/web.service", "daemon": "legacy/daemon"}
	units := w.Current().Units
	if len(units) != len(want) {
		t.Errorf("found %v, want %v", units, want)
	}
	for name, p := range want {
		if c := units[name]; len(c) != 1 || c[0].Path != filepath.Join(root, p) || c[0].ID == 0 {
			t.Errorf("unit %s is %v, want %s", name, c, p)
		}
	}
}

func TestUnitWithSeveralCgroups(t *testing.T) {
	root := cgroups(t, "a/x.service", "b/x.service")
	w := New(Config{CgroupRoot: root, Units: []string{"x.*"}}, func(string, string) {})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	got := w.Current().Units["x.service"]
	if len(got) != 2 || got[0].Path != filepath.Join(root, "a/x.service") {
		t.Errorf("found %v, want both, sorted", got)
	}
}

// TestWhatAUserNamesIsNoUnit: who has been given a subtree can make a cgroup of any name in it, and must not become another
// workload by that.
func TestWhatAUserNamesIsNoUnit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a directory away")
	}
	root := cgroups(t, "system.slice/pg.service", "user.slice/user@1000.service/app.slice/pg.service", "user.slice/user@1000.service/run/deep/pg.service")
	if err := os.Chown(filepath.Join(root, "user.slice/user@1000.service"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	mustBeOne := func(when string) {
		t.Helper()
		units := w.tree.units(w.isUnit)
		if got := units["pg.service"]; len(got) != 1 || got[0].Path != filepath.Join(root, "system.slice/pg.service") {
			t.Errorf("%s: pg.service is %v", when, got)
		}
		if len(units["user@1000.service"]) != 1 {
			t.Errorf("%s: root has named user@1000.service, but units are %v", when, units)
		}
	}
	mustBeOne("at the first look")
	mkdir(t, root, "user.slice/user@1000.service/later/pg.service")
	w.tree.follow([]dirEvent{{path: filepath.Join(root, "user.slice/user@1000.service/later")}})
	mustBeOne("after another was made")
	// systemd makes what it delegates as root's, and gives it away a moment later.
	mkdir(t, root, "user.slice/given.slice")
	given := filepath.Join(root, "user.slice/given.slice")
	w.tree.follow([]dirEvent{{path: given}})
	if err := os.Chown(given, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	mkdir(t, root, "user.slice/given.slice/pg.service")
	w.tree.follow([]dirEvent{{path: filepath.Join(given, "pg.service")}})
	mustBeOne("after one was made in what had been given away meanwhile")
}

func TestOwnCgroupIsNeverAUnit(t *testing.T) {
	root := cgroups(t, "system.slice/bulkhead-agent.service", "system.slice/other.service")
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	w.self = filepath.Join(root, "system.slice/bulkhead-agent.service/sub")
	if w.isUnit(filepath.Join(root, "system.slice/bulkhead-agent.service"), "bulkhead-agent.service") {
		t.Error("the agent would be judged as a unit and could lose its controller")
	}
	if !w.isUnit(filepath.Join(root, "system.slice/other.service"), "other.service") {
		t.Error("another service is not a unit")
	}
}

func TestNewGoneAndRenewedCgroupsAreNoticedQuickly(t *testing.T) {
	root := cgroups(t, "old.service")
	// Neither the poll nor the resync comes within the test: what is noticed, inotify told.
	w, wait := running(t, Config{CgroupRoot: root, Units: []string{"*.service"}, Poll: time.Hour, Resync: time.Hour})
	wait("the first look", func(f *Found) bool { return len(f.Units["old.service"]) == 1 })

	mkdir(t, root, "deep/er/new.service")
	wait("a cgroup three levels down", func(f *Found) bool { return len(f.Units["new.service"]) == 1 })

	before := w.Current().Units["old.service"][0]
	rmdir(t, root, "old.service")
	// Another directory in between keeps the inode from being used again at once.
	mkdir(t, root, "filler")
	mkdir(t, root, "old.service")
	wait("the cgroup that was made again", func(f *Found) bool {
		c := f.Units["old.service"]
		return len(c) == 1 && c[0].ID != before.ID && c[0].Path == before.Path
	})

	rmdir(t, root, "deep")
	wait("the removal", func(f *Found) bool { return len(f.Units["new.service"]) == 0 })

	mkdir(t, root, "named-by-policy")
	w.Name(t.Context(), []string{"named-by-policy"})
	wait("a unit that policy names", func(f *Found) bool { return len(f.Units["named-by-policy"]) == 1 })
}

func TestManyCgroupsAtOnce(t *testing.T) {
	root := cgroups(t)
	_, wait := running(t, Config{CgroupRoot: root, Units: []string{"*.service"}, Poll: time.Hour, Resync: time.Hour})
	for i := range 300 {
		mkdir(t, root, fmt.Sprintf("slice-%d/u%d.service", i%7, i))
	}
	wait("all of them", func(f *Found) bool { return len(f.Units) == 300 })
	for i := range 7 {
		rmdir(t, root, fmt.Sprintf("slice-%d", i))
	}
	wait("none of them", func(f *Found) bool { return len(f.Units) == 0 })
}

func TestListenersCarryUnitAndProcess(t *testing.T) {
	root := cgroups(t)
	mkdir(t, root, "sys/db.service/worker", os.Getpid())
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(_, text string) {
		if text != "" {
			t.Error("problem:", text)
		}
	})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(tcp.Addr().String())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(w.Current().Listeners, func(l Listener) bool { return l.Port == addr.Port() && l.Proto == model.ProtoTCP })
	if i < 0 {
		t.Fatalf("%v is not among %+v", addr, w.Current().Listeners)
	}
	got := w.Current().Listeners[i]
	if got.Unit != "db.service" || got.Addr != addr.Addr() || got.Path != exe || got.Process == "" {
		t.Errorf("found %+v, want unit db.service, address %v, path %s", got, addr, exe)
	}
}

func TestListenersOfOthersHaveNoProcess(t *testing.T) {
	root := cgroups(t, "empty.service") // this process is in no cgroup below the root
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	for _, l := range w.Current().Listeners {
		if l.Process != "" || l.Unit != "" {
			t.Errorf("found %+v: a process outside the cgroup root", l)
		}
	}
}

func TestNothingIsToldWithoutAChange(t *testing.T) {
	root := cgroups(t, "a.service")
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	first := w.Current()
	if err := w.Scan(); err != nil {
		t.Fatal(err)
	}
	if w.Current() != first {
		t.Errorf("a second look found something else: %+v, then %+v", first, w.Current())
	}
}

func TestReachableAddresses(t *testing.T) {
	var in []net.Addr
	for _, s := range []string{"127.0.0.1/8", "::1/128", "169.254.3.4/16", "fe80::1/64", "10.0.0.7/24", "10.0.0.7/32", "fd00::7/64", "224.0.0.1/4"} {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, &net.IPNet{IP: ip, Mask: n.Mask})
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
	if got := reachable(in); !slices.Equal(got, want) {
		t.Errorf("reachable = %v, want %v", got, want)
	}
}

func TestCgroupMount(t *testing.T) {
	hybrid := "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n"
	if got, err := cgroupMount([]byte(hybrid)); err != nil || got != "/sys/fs/cgroup/uni fied" {
		t.Errorf("mount = %q, %v", got, err)
	}
	if got, err := cgroupMount([]byte("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")); err != ErrNoCgroup2 {
		t.Errorf("mount = %q, %v; want ErrNoCgroup2", got, err)
	}
}

func BenchmarkLookWithoutChange(b *testing.B) {
	root := b.TempDir()
	for i := range 300 {
		if err := os.MkdirAll(fmt.Sprintf("%s/system.slice/u%d.service", root, i), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	w := New(Config{CgroupRoot: root, Units: []string{"*.service"}}, func(string, string) {})
	if err := w.Scan(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.look(false)
	}
}
