package inventory

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tree is every cgroup below a root, by absolute path. The root itself is not among them.
type tree struct {
	root    string
	nodes   map[string]node
	watcher *dirWatcher // nil: nobody tells of changes
}

func newTree(root string) *tree {
	return &tree{root: filepath.Clean(root), nodes: map[string]node{}}
}

// node is a cgroup. Its name can be trusted if only root could give it: nobody else owns the cgroup above it, or one above
// that. In a subtree that systemd has given to a user, the user makes cgroups of any name.
type node struct {
	id      uint64
	ours    bool // root owns it
	trusted bool
}

// ours reports whether root owns the directory.
func ours(st *syscall.Stat_t) bool { return st.Uid == 0 || int(st.Uid) == os.Geteuid() }

// ask notes who owns the cgroup at dir now: systemd makes a cgroup first and gives it to a user then, of which nobody tells.
// It is to be asked after a directory below has been seen: who made that one owned dir before.
func (t *tree) ask(dir string, nodes map[string]node) {
	n, ok := nodes[dir]
	if !ok {
		return
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return // gone, with what is below
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		n.ours = ours(st)
		nodes[dir] = n
	}
}

// below returns the node of a directory in the cgroup at dir.
func (t *tree) below(dir string, nodes map[string]node, info fs.FileInfo) node {
	above, ok := nodes[dir]
	if !ok { // the root of the tree, which who runs the agent vouches for
		above = node{ours: true, trusted: true}
	}
	n := node{trusted: above.ours && above.trusted}
	if st, ok := info.Sys().(*syscall.Stat_t); ok { // the inode of a directory of cgroup2 is the ID of the cgroup
		n.id, n.ours = st.Ino, ours(st)
	}
	return n
}

// watchLimitError says that not every cgroup can be watched.
type watchLimitError struct{ err error }

func (e *watchLimitError) Error() string {
	return fmt.Sprintf("%v (raise fs.inotify.max_user_watches)", e.err)
}

// walk looks at the whole tree. A *watchLimitError comes with a tree that is complete all the same.
func (t *tree) walk() error {
	if _, err := os.Stat(t.root); err != nil {
		return fmt.Errorf("cgroup root: %w", err)
	}
	seen := make(map[string]node, len(t.nodes))
	limit := t.descend(t.root, seen)
	for p := range t.nodes {
		if _, ok := seen[p]; !ok {
			t.watcher.forget(p)
		}
	}
	t.nodes = seen
	return limit
}

// descend adds what is below dir to seen. Directories that vanish meanwhile are gone, not an error. A directory is
// watched before it is read, so that nothing made in between is missed.
func (t *tree) descend(dir string, seen map[string]node) error {
	limit := t.watcher.add(dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return limit
	}
	t.ask(dir, seen)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		child := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			continue
		}
		seen[child] = t.below(dir, seen, info)
		if err := t.descend(child, seen); limit == nil {
			limit = err
		}
	}
	return limit
}

// follow takes in what was heard of and reports whether only a walk can tell.
func (t *tree) follow(events []dirEvent) (walk bool) {
	for _, e := range events {
		switch {
		case e.lost:
			return true
		case e.gone:
			for p := range t.nodes {
				if within(p, e.path) {
					delete(t.nodes, p)
					t.watcher.forget(p)
				}
			}
		default:
			info, err := os.Lstat(e.path)
			if err != nil || !info.IsDir() {
				continue // gone again
			}
			t.ask(filepath.Dir(e.path), t.nodes)
			t.nodes[e.path] = t.below(filepath.Dir(e.path), t.nodes, info)
			if t.descend(e.path, t.nodes) != nil {
				return true
			}
		}
	}
	return false
}

// units returns the cgroups that are units, by the name of the unit. What a user has made for himself is none.
func (t *tree) units(isUnit func(path, name string) bool) map[string][]Cgroup {
	out := map[string][]Cgroup{}
	for p, n := range t.nodes {
		if name := filepath.Base(p); n.trusted && isUnit(p, name) {
			out[name] = append(out[name], Cgroup{Path: p, ID: n.id})
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b Cgroup) int { return strings.Compare(a.Path, b.Path) })
	}
	return out
}

// unitsByPath turns units around.
func unitsByPath(units map[string][]Cgroup) map[string]string {
	out := make(map[string]string, len(units))
	for name, list := range units {
		for _, c := range list {
			out[c.Path] = name
		}
	}
	return out
}

// unitOf returns the unit that the cgroup is in: its own, or that of the nearest cgroup above. "" is the host.
func unitOf(byPath map[string]string, cgroup string) string {
	for p := cgroup; len(p) > 1; p = filepath.Dir(p) {
		if u, ok := byPath[p]; ok {
			return u
		}
	}
	return ""
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir) && len(p) > len(dir) && p[len(dir)] == '/'
}

// matches reports whether one of the patterns matches the name.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

// ErrNoCgroup2 says that this machine has no cgroups of version 2.
var ErrNoCgroup2 = errors.New("no cgroup2 file system is mounted; boot with systemd.unified_cgroup_hierarchy=1, or mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")

// CgroupRoot returns where cgroups of version 2 are mounted.
func CgroupRoot() (string, error) {
	data, err := os.ReadFile(procRoot + "/self/mounts")
	if err != nil {
		return "", err
	}
	return cgroupMount(data)
}

func cgroupMount(mounts []byte) (string, error) {
	for lines := bufio.NewScanner(bytes.NewReader(mounts)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 2 && f[2] == "cgroup2" {
			return unescape(f[1]), nil
		}
	}
	return "", ErrNoCgroup2
}

// unescape undoes the octal escapes of /proc/mounts.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// ownCgroup returns the cgroup of this process as an absolute path, or "" if it cannot be told.
func ownCgroup() string {
	root, err := CgroupRoot()
	if err != nil {
		return ""
	}
	data, err := os.ReadFile(procRoot + "/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok && p != "/" {
			return filepath.Join(root, p)
		}
	}
	return ""
}
