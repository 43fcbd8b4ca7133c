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

// kernelBefore reports whether the running kernel is older than that release. It words an error; what a kernel can do is
// found out by trying.
func kernelBefore(major, minor int) bool {
	var a, b int
	if n, err := fmt.Sscanf(kernelRelease(), "%d.%d", &a, &b); n != 2 || err != nil {
		return false
	}
	return a < major || a == major && b < minor
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

// takePlace makes the directory for pins and locks it, so that no two agents change the same dataplane.
func (d *Dataplane) takePlace() error {
	dir := d.cfg.BPFFS
	if err := d.makeDir(dir); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w: %s is not on a bpffs; mount one with \"mount -t bpf bpf /sys/fs/bpf\"",
			dataplane.ErrUnsupported, dir)
	}
	var err error
	if d.lock, err = os.Open(dir); err != nil {
		return err
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another agent has the dataplane at %s open; stop it first", dir)
		}
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	return nil
}

// makeDir makes the directory and its parents, and remembers those that it made.
func (d *Dataplane) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		if err = d.makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	switch {
	case err == nil:
		d.made = append(d.made, dir)
	case !errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w: make %s: %w; mount a bpffs with \"mount -t bpf bpf /sys/fs/bpf\"",
			dataplane.ErrUnsupported, dir, err)
	}
	return nil
}

// MountBPFFS mounts a bpffs at dir, which is made if it is missing, unless dir is on one already. It reports whether
// it did, so that who wants the mount gone again knows what is theirs.
func MountBPFFS(dir string) (mounted bool, err error) {
	if err := checkPrivileges(); err != nil {
		return false, err
	}
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
		return false, fmt.Errorf("%w: mount a bpffs at %s: %w; as root: mount -t bpf bpf %s", dataplane.ErrUnsupported, dir, err, dir)
	}
	return true, nil
}

// namespace is a network namespace.
type namespace struct {
	file   *os.File
	inode  uint64
	cookie uint64 // of the current one; 0 if the kernel does not tell
}

const threadNamespace = "/proc/thread-self/ns/net"

// currentNamespace returns the network namespace of the calling thread.
func currentNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n, err := openNamespace(threadNamespace)
	if err == nil {
		n.cookie = namespaceCookie()
	}
	return n, err
}

func openNamespace(path string) (*namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &fs)); err != nil {
		return nil, errors.Join(fmt.Errorf("stat network namespace: %w", err), f.Close())
	}
	if fs.Type != unix.NSFS_MAGIC {
		// A mount that kept a namespace is gone by now, and what it was mounted on is left.
		return nil, errors.Join(fmt.Errorf("open network namespace: %s: %w", path, os.ErrNotExist), f.Close())
	}
	return &namespace{file: f, inode: st.Ino}, nil
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

// eachNamespace calls do for each of the wanted network namespaces of this host, by inode number (nil: for all), but not
// for own. Those that a process is in are found first, then those that only a mount keeps, then those that only a
// thread is in.
func eachNamespace(wanted map[uint64]bool, own uint64, do func(*namespace) error) error {
	var errs []error
	seen := map[uint64]bool{own: true}
	found := func() bool { // all of them
		for inode := range wanted {
			if !seen[inode] {
				return false
			}
		}
		return wanted != nil
	}
	for _, find := range []func() ([]string, error){
		func() ([]string, error) { return filepath.Glob("/proc/[0-9]*/ns/net") },
		mountedNamespaces,
		func() ([]string, error) { return filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net") },
	} {
		if found() {
			break
		}
		paths, err := find()
		if err != nil {
			return err
		}
		for _, path := range paths {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || seen[st.Ino] {
				continue // the process has ended, or is in one we know
			}
			if wanted != nil && !wanted[st.Ino] {
				continue
			}
			seen[st.Ino] = true
			n, err := openNamespace(path)
			switch {
			case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
				delete(seen, st.Ino) // the process has ended; another may be in there
			case err != nil:
				errs = append(errs, err)
			default:
				errs = append(errs, do(n), n.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// mountedNamespaces are the paths at which namespaces are mounted, as ip netns does; some are not of the network.
func mountedNamespaces() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var paths []string
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && strings.HasPrefix(after, "nsfs ") && strings.HasPrefix(fields[3], "net:") {
			paths = append(paths, unescapeMount(fields[4]))
		}
	}
	return paths, nil
}

// canEnter reports whether this process may enter network namespaces, by way of entering this one.
func (n *namespace) canEnter() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) == nil
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
