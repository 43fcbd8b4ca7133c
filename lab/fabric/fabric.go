// Package fabric makes machines out of one: network namespaces joined by a bridge, cgroups, private BPF file systems
// and the processes in them.
//
// Everything is inside what the package itself made: a namespace that holds the bridge, one namespace for each host
// (under /run/netns as bhlab-LAB-HOST, so that "ip netns exec" reaches it), cgroups below bulkhead-lab-LAB, files and
// mounts below /run/bulkhead-lab/LAB. The namespace of the caller is never changed. Close takes all of it away, and
// Sweep does the same for a lab whose runner was killed.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
)

// Where labs live.
const (
	RunRoot      = "/run/bulkhead-lab"
	netnsDir     = "/run/netns"
	netnsPrefix  = "bhlab-"
	cgroupPrefix = "bulkhead-lab-"
	wireName     = "fabric" // the namespace that holds the bridge
)

// Layout says where the parts of one lab are. It is derived from the name alone.
type Layout struct {
	Name   string
	Dir    string // files of the lab
	Cgroup string // top of its cgroups
}

var labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// LayoutOf returns the layout of the lab. The error says that there is no cgroup2, or that the name is not one.
func LayoutOf(name string) (Layout, error) {
	if !labName.MatchString(name) {
		return Layout{}, fmt.Errorf("lab name %q: use up to 12 lower-case letters and digits", name)
	}
	root, err := cgroupRoot()
	if err != nil {
		return Layout{}, err
	}
	return Layout{Name: name, Dir: filepath.Join(RunRoot, name), Cgroup: filepath.Join(root, cgroupPrefix+name)}, nil
}

// NetnsName is the name of a host's namespace, for "ip netns exec".
func (l Layout) NetnsName(host string) string { return netnsPrefix + l.Name + "-" + host }

func (l Layout) netnsPath(host string) string { return filepath.Join(netnsDir, l.NetnsName(host)) }

// HostCgroup is the cgroup that stands for a whole host.
func (l Layout) HostCgroup(host string) string { return filepath.Join(l.Cgroup, host) }

// UnitCgroup is the cgroup of a unit; without a unit it is the host's own.
func (l Layout) UnitCgroup(host, unit string) string { return filepath.Join(l.Cgroup, host, unit) }

// HostDir is where the files of a host are.
func (l Layout) HostDir(host string) string { return filepath.Join(l.Dir, "hosts", host) }

// BPF is the private BPF file system of a host.
func (l Layout) BPF(host string) string { return filepath.Join(l.HostDir(host), "bpf") }

// Fabric is a lab's machines. Its methods may be called from several goroutines, except Close.
type Fabric struct {
	Layout
	lock     *Lock
	launcher *launcher
	wire     *netns

	mu    sync.Mutex
	hosts map[string]*netns
	next  int // number of the next port of the bridge
}

// New makes the fabric of the lab: the lock, the directory and the bridge. What an earlier run left is removed first
// and told to swept, which may be nil. The error is ErrBusy if the lab is running.
func New(ctx context.Context, name string, swept func(Leftovers)) (_ *Fabric, err error) {
	layout, err := LayoutOf(name)
	if err != nil {
		return nil, err
	}
	lock, err := TakeLock(name)
	if err != nil {
		return nil, err
	}
	f := &Fabric{Layout: layout, lock: lock, hosts: map[string]*netns{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	left, err := sweep(ctx, layout)
	if err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if swept != nil && left.Any() {
		swept(left)
	}
	for _, dir := range []string{layout.Dir, netnsDir, layout.Cgroup} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if f.wire, err = newNetns(layout.netnsPath(wireName)); err != nil {
		return nil, err
	}
	if err := f.wire.do(addBridge); err != nil {
		return nil, fmt.Errorf("make the bridge: %w", err)
	}
	f.launcher = newLauncher()
	return f, nil
}

// AddHost makes the namespace, the cgroup and the directory of a host, and joins it to the bridge with addresses.
// A host with BPF gets its private BPF file system.
func (f *Fabric) AddHost(name string, addresses []netip.Prefix, bpf bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.hosts[name]; ok {
		return fmt.Errorf("host %s is there already", name)
	}
	ns, err := newNetns(f.netnsPath(name))
	if err != nil {
		return fmt.Errorf("host %s: %w", name, err)
	}
	f.hosts[name] = ns
	f.next++
	port := fmt.Sprintf("port%d", f.next)
	if err := f.wire.do(func() error { return addCable(port, ns) }); err != nil {
		return fmt.Errorf("host %s: join the bridge: %w", name, err)
	}
	if err := ns.do(func() error { return configure(addresses) }); err != nil {
		return fmt.Errorf("host %s: addresses: %w", name, err)
	}
	if err := errors.Join(os.MkdirAll(f.HostDir(name), 0o755), os.MkdirAll(f.HostCgroup(name), 0o755)); err != nil {
		return err
	}
	if bpf {
		return mountBPF(f.BPF(name))
	}
	return nil
}

// Hosts returns the names of the hosts, sorted.
func (f *Fabric) Hosts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]string, 0, len(f.hosts))
	for h := range f.hosts {
		out = append(out, h)
	}
	slices.Sort(out)
	return out
}

func (f *Fabric) netns(host string) (*netns, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ns, ok := f.hosts[host]
	if !ok {
		return nil, fmt.Errorf("no host %q in the lab", host)
	}
	return ns, nil
}

// Leave lets go of the fabric. Namespaces, cgroups, files and the processes that stay are left as they are; the others
// end with the caller.
func (f *Fabric) Leave() error {
	return errors.Join(f.closeNamespaces(), f.lock.Release())
}

// Close ends every process of the lab and removes everything that the fabric made. It may be called more than once.
func (f *Fabric) Close() error {
	_, err := sweep(context.Background(), f.Layout)
	if f.launcher != nil {
		f.launcher.close()
		f.launcher = nil
	}
	return errors.Join(err, f.closeNamespaces(), f.lock.Release())
}

func (f *Fabric) closeNamespaces() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, ns := range f.hosts {
		errs = append(errs, ns.close())
	}
	if f.wire != nil {
		errs = append(errs, f.wire.close())
	}
	return errors.Join(errs...)
}
