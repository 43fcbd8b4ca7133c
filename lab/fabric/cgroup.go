package fabric

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 says that no cgroup2 file system is mounted.
var ErrNoCgroup2 = errors.New("no cgroup2 file system is mounted")

// cgroupRoot returns where cgroup2 is mounted.
func cgroupRoot() (string, error) {
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.kind == "cgroup2" {
			return m.path, nil
		}
	}
	return "", ErrNoCgroup2
}

// mount is one line of /proc/self/mounts.
type mount struct{ path, kind string }

func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		out = append(out, mount{path: unescapeMount(fields[1]), kind: fields[2]})
	}
	return out, lines.Err()
}

// unescapeMount undoes the octal escapes of /proc/self/mounts.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupTree returns top and every cgroup below it, deepest first. A top that does not exist is an empty tree.
func cgroupTree(top string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	slices.Reverse(out)
	return out, err
}

// processesIn returns the processes in the cgroup itself.
func processesIn(cgroup string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for _, line := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cgroup, err)
		}
		out = append(out, pid)
	}
	return out, nil
}

// killCgroup kills what is in the cgroup and below it, waits until it is gone and returns how many processes it was.
func killCgroup(ctx context.Context, top string) (int, error) {
	killed := map[int]bool{}
	for {
		tree, err := cgroupTree(top)
		if err != nil {
			return len(killed), err
		}
		alive := 0
		for _, c := range tree {
			pids, err := processesIn(c)
			if err != nil {
				return len(killed), err
			}
			alive += len(pids)
			for _, pid := range pids {
				killed[pid] = true
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					return len(killed), fmt.Errorf("kill process %d of %s: %w", pid, c, err)
				}
			}
		}
		if alive == 0 {
			return len(killed), nil
		}
		// Not cgroup.kill: on some kernels (seen on 6.18) whatever is later cloned into a cgroup that once had it
		// written dies at once. What forks meanwhile is killed in the next round.
		select {
		case <-ctx.Done():
			return len(killed), ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// removeCgroup removes an empty tree of cgroups. A process that has just died may still hold its cgroup.
func removeCgroup(ctx context.Context, top string) error {
	for {
		tree, err := cgroupTree(top)
		if err != nil {
			return err
		}
		var busy error
		for _, c := range tree {
			if err := unix.Rmdir(c); err != nil && !errors.Is(err, unix.ENOENT) {
				busy = fmt.Errorf("remove cgroup %s: %w", c, err)
			}
		}
		if busy == nil {
			return nil
		}
		if !errors.Is(busy, unix.EBUSY) && !errors.Is(busy, unix.ENOTEMPTY) {
			return busy
		}
		select {
		case <-ctx.Done():
			return busy
		case <-time.After(5 * time.Millisecond):
		}
	}
}
