package inventory

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// owner is the process that holds a socket.
type owner struct {
	cgroup string // absolute path
	name   string
	path   string
}

// retry says when to look again for the process of a socket that nobody seemed to hold.
type retry struct {
	at   time.Time
	wait time.Duration
}

const maxRetry = time.Minute

// owners remembers which process holds which listening socket. To find out means to read the descriptors of every
// process below the cgroup root, so it is done only when a socket turns up that is not known.
type owners struct {
	proc    string
	known   map[uint64]owner // by inode of the socket
	unknown map[uint64]retry
}

// find makes known hold what can be told about the sockets, and nothing else.
func (o *owners) find(t *tree, list []socket, now time.Time, fresh bool) {
	known, unknown := make(map[uint64]owner, len(list)), map[uint64]retry{}
	wanted := map[uint64]bool{}
	for _, k := range list {
		if w, ok := o.known[k.inode]; ok && !fresh {
			known[k.inode] = w
			continue
		}
		if r, ok := o.unknown[k.inode]; ok && !fresh && now.Before(r.at) {
			unknown[k.inode] = r
			continue
		}
		wanted[k.inode] = true
	}
	if len(wanted) > 0 {
		o.search(t, wanted, known)
	}
	for inode := range wanted {
		if _, ok := known[inode]; ok {
			continue
		}
		wait := min(max(2*o.unknown[inode].wait, time.Second), maxRetry)
		unknown[inode] = retry{at: now.Add(wait), wait: wait}
	}
	o.known, o.unknown = known, unknown
}

// search fills found for the wanted sockets. Of several processes that share one (a parent and its workers, a socket
// that was handed over) the first in the order of cgroup and process ID counts.
func (o *owners) search(t *tree, wanted map[uint64]bool, found map[uint64]owner) {
	dirs := make([]string, 0, len(t.nodes)+1)
	for p := range t.nodes {
		dirs = append(dirs, p)
	}
	// Deeper cgroups first: a service's process before the manager that opened the socket for it.
	slices.SortFunc(dirs, func(a, b string) int {
		if d := strings.Count(b, "/") - strings.Count(a, "/"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	left := len(wanted)
	for _, dir := range append(dirs, t.root) {
		for _, pid := range processes(dir) {
			for _, inode := range o.socketsOf(pid) {
				if _, have := found[inode]; have || !wanted[inode] {
					continue
				}
				found[inode] = owner{cgroup: dir, name: o.nameOf(pid), path: o.pathOf(pid)}
				if left--; left == 0 {
					return
				}
			}
		}
	}
}

// processes returns the processes of one cgroup. A threaded or vanished cgroup has none that we could read.
func processes(dir string) []int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var out []int
	for line := range strings.Lines(string(data)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// socketsOf returns the inodes of the sockets that a process has open; none if it has gone.
func (o *owners) socketsOf(pid int) []uint64 {
	dir, err := os.Open(o.proc + "/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var out []uint64
	for _, n := range names {
		target, err := os.Readlink(dir.Name() + "/" + n)
		if err != nil {
			continue
		}
		if s, ok := strings.CutPrefix(target, "socket:["); ok {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64); err == nil {
				out = append(out, inode)
			}
		}
	}
	return out
}

func (o *owners) nameOf(pid int) string {
	data, err := os.ReadFile(o.proc + "/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

func (o *owners) pathOf(pid int) string {
	target, err := os.Readlink(o.proc + "/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(target, " (deleted)")
}
