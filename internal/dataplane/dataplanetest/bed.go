package dataplanetest

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// Addresses of the lab. Near is the host that is judged; far is at the other end of the cable and has many addresses.
const (
	Near4, Near6   = "10.77.0.1", "fd77::1"
	Near4b, Near6b = "10.77.0.11", "fd77::11" // other addresses of near
	Far4, Far6     = "10.77.0.2", "fd77::2"
	Other4, Other6 = "10.77.1.3", "fd77:1::3" // another address of far, in another network
	Shared4        = "10.77.0.4"              // an address of far that two workloads share
)

// Bed is a lab of two hosts. It goes away with the test.
type Bed struct {
	t         testing.TB
	dir       string
	near, far *os.File // network namespaces
	cgroup    string   // of the lab
	Place     Place    // of near
	FarPlace  Place
}

var beds atomic.Int32

// NewBed builds the lab, or skips the test where that cannot be done.
func NewBed(t testing.TB) *Bed {
	t.Helper()
	if os.Geteuid() != 0 {
		Cannot(t, "netns", errors.New("root is needed"))
	}
	root, err := cgroupMount()
	if err != nil {
		Cannot(t, "bpf", err)
	}
	name := bedName(os.Getpid(), beds.Add(1))
	b := &Bed{t: t, dir: filepath.Join(os.TempDir(), name), cgroup: filepath.Join(root, name)}
	for _, d := range []string{"", "near", "near/one", "near/two", "near/two/inner", "near/late", "far", "far/one"} {
		dir := filepath.Join(b.cgroup, d)
		if err := os.Mkdir(dir, 0o755); err != nil {
			Cannot(t, "bpf", fmt.Errorf("make a cgroup: %w", err))
		}
		t.Cleanup(func() {
			if err := removeCgroup(dir); err != nil {
				t.Error(err)
			}
		})
	}
	b.mount()
	b.wire()
	b.Place = Place{CgroupRoot: filepath.Join(b.cgroup, "near"), BPFFS: filepath.Join(b.dir, "near")}
	b.FarPlace = Place{CgroupRoot: filepath.Join(b.cgroup, "far"), BPFFS: filepath.Join(b.dir, "far")}
	return b
}

func cgroupMount() (string, error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup of version 2 is mounted")
}

func (b *Bed) mount() {
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := os.Remove(b.dir); err != nil {
			b.t.Error(err)
		}
	})
	if err := unix.Mount("bpf", b.dir, "bpf", 0, "mode=0700"); err != nil {
		Cannot(b.t, "bpf", fmt.Errorf("mount a bpffs: %w", err))
	}
	b.t.Cleanup(func() {
		if err := unix.Unmount(b.dir, unix.MNT_DETACH); err != nil {
			b.t.Errorf("unmount the bpffs: %v", err)
		}
	})
}

// wire makes the namespaces and the cable between them.
func (b *Bed) wire() {
	b.near, b.far = b.namespace(), b.namespace()
	check := func(what string, err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatalf("%s: %v", what, err)
		}
	}
	in(b.t, b.near, func() {
		check("make a cable", netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(b.far.Fd())),
		}))
	})
	for _, h := range []struct {
		ns    *os.File
		addrs []string
	}{
		{b.near, []string{Near4 + "/16", Near4b + "/16", Near6 + "/16", Near6b + "/16"}},
		{b.far, append([]string{Far4 + "/16", Other4 + "/16", Shared4 + "/16", Far6 + "/16", Other6 + "/16"}, named()...)},
	} {
		in(b.t, h.ns, func() {
			for name, v := range map[string]string{
				"net/ipv4/ping_group_range": "0 2147483647", "net/ipv4/ip_local_port_range": "32768 60999",
				"net/ipv4/tcp_tw_reuse": "1", "net/ipv6/conf/eth0/accept_dad": "0", "net/ipv6/conf/eth0/dad_transmits": "0",
			} {
				check(name, os.WriteFile("/proc/sys/"+name, []byte(v), 0))
			}
			for _, name := range []string{"lo", "eth0"} {
				l, err := netlink.LinkByName(name)
				check(name, err)
				check(name, netlink.LinkSetUp(l))
			}
			l, err := netlink.LinkByName("eth0")
			check("eth0", err)
			for _, a := range h.addrs {
				addr, err := netlink.ParseAddr(a)
				check(a, err)
				addr.Flags = unix.IFA_F_NODAD
				if strings.HasPrefix(a, Near6b) || strings.HasPrefix(a, Other6) || strings.HasPrefix(a, "fd77:2::") { // for incoming flows: no flow begins there by itself
					addr.ValidLft, addr.PreferedLft = math.MaxUint32, 0
				}
				check(a, netlink.AddrAdd(l, addr))
			}
		})
	}
}

// named returns the addresses of far that may have names.
func named() (out []string) {
	for i := 1; i <= addressesWithNames; i++ {
		out = append(out, named4(i)+"/16", named6(i)+"/16")
	}
	return out
}

func (b *Bed) namespace() *os.File {
	b.t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- made{f, err}
	}()
	m := <-c
	if m.err != nil {
		Cannot(b.t, "netns", m.err)
	}
	b.t.Cleanup(func() { _ = m.f.Close() })
	return m.f
}

// in runs f on a thread in the namespace. f may end the test.
func in(t testing.TB, ns *os.File, f func()) {
	t.Helper()
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread() // else the thread must not serve anyone else
		}
	}()
	f()
}

// On runs f on a thread in the network namespace of near or far. f may end the test.
func (b *Bed) On(far bool, f func()) {
	b.t.Helper()
	if far {
		in(b.t, b.far, f)
	} else {
		in(b.t, b.near, f)
	}
}

// NearNamespace is a path of near's network namespace, for processes of the test.
func (b *Bed) NearNamespace() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.near.Fd()) }

// Open opens a dataplane at near.
func (b *Bed) Open(open Open) (d dataplane.Dataplane) {
	b.t.Helper()
	in(b.t, b.near, func() { d = open(b.t, b.Place) })
	return d
}

// OpenFar opens a dataplane at far.
func (b *Bed) OpenFar(open Open) (d dataplane.Dataplane) {
	b.t.Helper()
	in(b.t, b.far, func() { d = open(b.t, b.FarPlace) })
	return d
}

// Start runs a process at near, in a cgroup below the host's ("" is the host's own).
func (b *Bed) Start(cgroup string) *Process {
	b.t.Helper()
	return b.StartAs(cgroup, program{})
}

// StartAs runs a process at near as another program or user.
func (b *Bed) StartAs(cgroup string, as program) *Process {
	b.t.Helper()
	return start(b.t, "near/"+cgroup, b.near, filepath.Join(b.Place.CgroupRoot, cgroup), as)
}

// StartFar runs a process at far.
func (b *Bed) StartFar() *Process {
	b.t.Helper()
	return start(b.t, "far", b.far, filepath.Join(b.FarPlace.CgroupRoot, "one"), program{})
}

// Unit returns the directory of a cgroup at near.
func (b *Bed) Unit(cgroup string) string { return filepath.Join(b.Place.CgroupRoot, cgroup) }

// at joins an address and a port.
func at(addr string, port uint16) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }
