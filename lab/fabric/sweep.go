package fabric

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Leftovers counts what a sweep removed.
type Leftovers struct {
	Processes, Cgroups, Namespaces, Mounts int
	Files                                  bool
}

// Any reports whether there was anything.
func (l Leftovers) Any() bool { return l != Leftovers{} }

// String says what it was.
func (l Leftovers) String() string {
	return fmt.Sprintf("%d processes, %d cgroups, %d namespaces, %d mounts", l.Processes, l.Cgroups, l.Namespaces, l.Mounts)
}

// Sweep removes everything of the lab, whoever made it. The error is ErrBusy if its runner is alive.
func Sweep(ctx context.Context, name string) (Leftovers, error) {
	layout, err := LayoutOf(name)
	if err != nil {
		return Leftovers{}, err
	}
	lock, err := TakeLock(name)
	if err != nil {
		return Leftovers{}, err
	}
	left, err := sweep(ctx, layout)
	return left, errors.Join(err, lock.Release())
}

// sweepTime is how long the kernel gets to let go of dead processes and cgroups.
const sweepTime = 15 * time.Second

func sweep(ctx context.Context, l Layout) (Leftovers, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	var (
		left Leftovers
		errs []error
	)
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	tree, err := cgroupTree(l.Cgroup)
	fail(err)
	left.Cgroups = len(tree)
	left.Processes, err = killCgroup(ctx, l.Cgroup)
	fail(err)
	left.Mounts, err = unmountBelow(l.Dir)
	fail(err)
	left.Namespaces, err = removeNamespaces(l)
	fail(err)
	fail(removeCgroup(ctx, l.Cgroup))
	if len(errs) == 0 { // never walk into something that is still mounted
		if _, err := os.Lstat(l.Dir); err == nil {
			left.Files = true
			fail(os.RemoveAll(l.Dir))
		}
		// The parent goes with the last lab in it.
		if err := unix.Rmdir(RunRoot); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
			fail(err)
		}
	}
	return left, errors.Join(errs...)
}

// unmountBelow unmounts what is mounted below dir, the newest first.
func unmountBelow(dir string) (int, error) {
	mounts, err := readMounts()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, m := range slices.Backward(mounts) {
		if !strings.HasPrefix(m.path, dir+"/") {
			continue
		}
		if err := unix.Unmount(m.path, unix.MNT_DETACH); err != nil {
			return n, fmt.Errorf("unmount %s: %w", m.path, err)
		}
		n++
	}
	return n, nil
}

func removeNamespaces(l Layout) (int, error) {
	paths, err := filepath.Glob(l.netnsPath("*"))
	if err != nil {
		return 0, err
	}
	for i, p := range paths {
		if err := removeNetns(p); err != nil {
			return i, err
		}
	}
	return len(paths), nil
}

// mountBPF mounts a BPF file system of its own at dir. Unmounting it drops every pin in it.
func mountBPF(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", dir, err)
	}
	return nil
}
