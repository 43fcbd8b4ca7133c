package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// mount is a line of /proc/self/mountinfo.
type mount struct{ root, dir, fstype string }

// mountOf returns the mount that path is on.
func mountOf(path string) (mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mount{}, err
	}
	defer f.Close()
	var best mount
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		dir := unescapeMount(fields[4])
		if len(dir) >= len(best.dir) && isBelow(path, dir) {
			best = mount{unescapeMount(fields[3]), dir, strings.Fields(after)[0]}
		}
	}
	if best.dir == "" {
		return mount{}, fmt.Errorf("no mount holds %s", path)
	}
	return best, nil
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescapeMount(s string) string { return mountEscapes.Replace(s) }

// isBelow reports whether path is dir or below it.
func isBelow(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// anyLevel is the depth of a cgroup whose place in the hierarchy cannot be seen from here (a cgroup namespace).
const anyLevel = -1

// findCgroup returns the id of a cgroup of version 2 and its depth below the root of the hierarchy.
func findCgroup(dir string) (id uint64, depth int, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: cgroup %w", dataplane.ErrUnsupported, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, 0, fmt.Errorf("%w: %s is not a cgroup of version 2; mount one with "+
			"\"mount -t cgroup2 none DIR\" and name it", dataplane.ErrUnsupported, dir)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	m, err := mountOf(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	if m.root != "/" {
		return st.Ino, anyLevel, nil // a cgroup's inode number is its id
	}
	rel, err := filepath.Rel(m.dir, dir)
	if err != nil {
		return 0, 0, err
	}
	if rel != "." {
		depth = strings.Count(rel, "/") + 1
	}
	return st.Ino, depth, nil
}

// makePinDir makes the directory for pins and tests that it is on a bpffs.
func makePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: make %s: %w; mount a bpffs with \"mount -t bpf bpf /sys/fs/bpf\"",
			dataplane.ErrUnsupported, dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w: %s is not on a bpffs; mount one with \"mount -t bpf bpf /sys/fs/bpf\"",
			dataplane.ErrUnsupported, dir)
	}
	return nil
}

// MountBPFFS mounts a bpffs at dir, which is made if it is missing, unless dir is on one already. It reports whether
// it did, so that who wants the mount gone again knows what is theirs.
func MountBPFFS(dir string) (mounted bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("mount a bpffs: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("mount a bpffs at %s: %w", dir, err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("%w: mount a bpffs at %s: %w", dataplane.ErrUnsupported, dir, err)
	}
	return true, nil
}

// namespace is a network namespace.
type namespace struct {
	file   *os.File
	inode  uint64
	cookie uint64 // 0 if the kernel does not tell
}

const threadNamespace = "/proc/thread-self/ns/net"

// currentNamespace returns the network namespace of the calling thread.
func currentNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return openNamespace(threadNamespace)
}

// openNamespace opens a network namespace; the calling goroutine must be locked to its thread.
func openNamespace(path string) (*namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat network namespace: %w", err), f.Close())
	}
	n := &namespace{file: f, inode: st.Ino}
	if err := n.run(func() error { n.cookie = namespaceCookie(); return nil }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return n, nil
}

// namespaceCookie returns the cookie of the thread's network namespace, or 0 where the kernel (before 5.14) does not
// tell; then connect judges with less knowledge of what is on this host.
func namespaceCookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

func (n *namespace) Close() error { return n.file.Close() }

// run calls f on a thread that is in the namespace. The thread goes back to where it was, or dies.
func (n *namespace) run(f func() error) error {
	runtime.LockOSThread()
	before, err := os.Open(threadNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer before.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(before.Fd()), &st); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("stat network namespace: %w", err)
	}
	if st.Ino == n.inode {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked and ends with its goroutine; it must not serve another one.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
