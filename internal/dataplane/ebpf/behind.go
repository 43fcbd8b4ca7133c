package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// backUnit is a cgroup of a unit.
type backUnit struct {
	dir   string
	id    uint64
	depth int
}

// ownersOf finds out whose network stacks are behind the ports, as cgroups of units by the number of the interface: a veth's is
// that of the unit whose processes are in the namespace of its other end, a tap's that of the unit whose process has it open. Of
// several the outermost counts. What the kernel says counts, not what is written anywhere.
func (d *Dataplane) ownersOf(stations []station, units map[string][]string) (map[int]uint64, error) {
	owners, taps := map[int]uint64{}, map[string]int{}
	veths := false
	for _, s := range stations {
		if s.tap {
			taps[s.name] = s.index
		}
		veths = veths || s.netns >= 0
	}
	if len(taps) == 0 && !veths {
		return owners, nil
	}
	all, err := d.backUnits(units)
	errs := []error{err}
	numbers := map[uint64]int{} // of namespaces, by inode
	for _, u := range all {
		errs = append(errs, eachProcess(u.dir, func(pid int) error {
			if veths {
				if n := d.namespaceNumber(pid, numbers); n >= 0 {
					setOnce(owners, portsOf(stations, n), u.id)
				}
			}
			if len(taps) > 0 {
				for _, name := range tapsOf(pid) {
					if index, ok := taps[name]; ok {
						setOnce(owners, []int{index}, u.id)
					}
				}
			}
			return nil
		}))
	}
	return owners, errors.Join(errs...)
}

func setOnce(m map[int]uint64, keys []int, v uint64) {
	for _, k := range keys {
		if m[k] == 0 {
			m[k] = v
		}
	}
}

// portsOf returns the ports whose other end is in the namespace of that number.
func portsOf(stations []station, netns int) (indexes []int) {
	for _, s := range stations {
		if s.side == port && s.netns == netns {
			indexes = append(indexes, s.index)
		}
	}
	return indexes
}

// backUnits lists the cgroups of units, the outermost first.
func (d *Dataplane) backUnits(units map[string][]string) (all []backUnit, err error) {
	var errs []error
	for _, dirs := range units {
		for _, dir := range dirs {
			id, _, err := d.unitCgroup(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			dir = filepath.Clean(dir)
			all = append(all, backUnit{dir, id, strings.Count(dir, "/")})
		}
	}
	slices.SortFunc(all, byDepth)
	return all, errors.Join(errs...)
}

// eachProcess calls do for each process in the cgroup and those below it.
func eachProcess(cgroup string, do func(pid int) error) error {
	return filepath.WalkDir(cgroup, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // it has ended
		}
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		f, err := os.Open(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		for s.Scan() {
			if pid, err := strconv.Atoi(s.Text()); err == nil && pid > 0 {
				if err := do(pid); err != nil {
					return err
				}
			}
		}
		if err := s.Err(); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("read the processes of %s: %w", path, err)
		}
		return nil
	})
}

// namespaceNumber returns the number that the host's namespace has for that of the process, or -1 if it has none.
func (d *Dataplane) namespaceNumber(pid int, known map[uint64]int) int {
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Ino == d.netns.inode {
		return -1 // it has ended, or has no namespace of its own
	}
	if n, ok := known[st.Ino]; ok {
		return n
	}
	f, err := os.Open(path)
	if err != nil {
		return -1
	}
	defer f.Close()
	n := d.numberOf(f)
	known[st.Ino] = n
	return n
}

// numberOf returns the number that the host's namespace has for another one, or -1.
func (d *Dataplane) numberOf(namespace *os.File) (n int) {
	if err := d.netns.run(func() (err error) {
		n, err = netlink.GetNetNsIdByFd(int(namespace.Fd()))
		return err
	}); err != nil {
		return -1
	}
	return n
}

// tapsOf returns the names of the taps that a process has open.
func tapsOf(pid int) (names []string) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil // it has ended
	}
	for _, fd := range fds {
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil || at != "/dev/net/tun" && !strings.HasPrefix(at, "/dev/tap") {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "iff:"); ok {
				names = append(names, strings.TrimSpace(name))
			}
		}
	}
	return names
}

// addressesBehind lists the addresses that stacks behind veths have, with the number of the port; 0: several have it. Those that
// mean something on one link only are nobody's.
func (d *Dataplane) addressesBehind(stations []station) (map[address]uint32, error) {
	all := map[address]uint32{}
	if d.confined || !slices.ContainsFunc(stations, func(s station) bool { return s.netns >= 0 }) {
		return all, nil
	}
	err := eachNamespace(nil, d.netns.inode, func(n *namespace) error {
		number := d.numberOf(n.file)
		ports := portsOf(stations, number)
		if number < 0 || len(ports) == 0 {
			return nil // nothing of the host leads there
		}
		at := uint32(0)
		if len(ports) == 1 { // else it may use each of them for all of its addresses
			at = uint32(ports[0])
		}
		var addrs []netlink.Addr
		err := n.run(func() (err error) {
			addrs, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
			return err
		})
		if err != nil {
			return fmt.Errorf("list addresses behind interfaces: %w", err)
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok || !a.IP.IsGlobalUnicast() {
				continue
			}
			if _, ok := all[addressOf(ip)]; ok {
				all[addressOf(ip)] = 0
			} else {
				all[addressOf(ip)] = at
			}
		}
		return nil
	})
	return all, err
}
