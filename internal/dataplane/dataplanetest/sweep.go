package dataplanetest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a bed leaves behind when its test is killed are a cgroup and a directory with a file system mounted on it. Both
// have its name, which tells whose it was. Processes and network namespaces go with their test, and programs with the
// file system that they are pinned in.

const bedPrefix = "bulkhead-test-"

func bedName(pid int, n int32) string { return fmt.Sprintf("%s%d-%d", bedPrefix, pid, n) }

// ownerOf returns the id of the process that made the bed of that name.
func ownerOf(name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, bedPrefix)
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(first)
	return pid, err == nil
}

// claim says that the beds of this process are in use, until it ends, however it ends.
func claim() (release func(), err error) {
	l, err := net.ListenUnix("unix", claimOf(os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("claim the name of this test: %w", err)
	}
	return func() { _ = l.Close() }, nil
}

// claimOf is an abstract socket: nothing of it stays behind when its owner dies.
func claimOf(pid int) *net.UnixAddr {
	return &net.UnixAddr{Name: fmt.Sprintf("@%s%d", bedPrefix, pid), Net: "unix"}
}

func isClaimed(pid int) bool {
	l, err := net.ListenUnix("unix", claimOf(pid))
	if err != nil {
		return true
	}
	_ = l.Close() // it was only to see
	return false
}

// sweep removes the beds of tests that are no longer there, and returns their names.
func sweep() ([]string, error) {
	cgroups, err := cgroupMount()
	if err != nil {
		return nil, nil // then there was never a bed
	}
	mounts, err := bpfMounts()
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, pattern := range []string{filepath.Join(cgroups, bedPrefix+"*"), filepath.Join(os.TempDir(), bedPrefix+"*")} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, p := range append(paths, mounts...) {
			if pid, ok := ownerOf(filepath.Base(p)); ok && !isClaimed(pid) {
				gone[filepath.Base(p)] = true
			}
		}
	}
	var names []string
	var errs []error
	for name := range gone {
		names = append(names, name)
		errs = append(errs, removeTree(filepath.Join(cgroups, name)))
		for _, m := range mounts {
			if filepath.Base(m) == name {
				errs = append(errs, unix.Unmount(m, 0), os.Remove(m))
			}
		}
		if err := os.Remove(filepath.Join(os.TempDir(), name)); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	slices.Sort(names)
	return names, errors.Join(errs...)
}

// bpfMounts returns where file systems for pins are mounted.
func bpfMounts() ([]string, error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "bpf" {
			dirs = append(dirs, fields[1])
		}
	}
	return dirs, nil
}

// removeTree removes a cgroup with all below it. What still runs there is killed.
func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeCgroup(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup waits for the last process to be gone.
func removeCgroup(dir string) error {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("remove cgroup: %w", err)
}
