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
	ids     map[string]uint64
	watcher *dirWatcher // nil: nobody tells of changes
}

func newTree(root string) *tree {
	return &tree{root: filepath.Clean(root), ids: map[string]uint64{}}
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
	seen := make(map[string]uint64, len(t.ids))
	limit := t.descend(t.root, seen)
	for p := range t.ids {
		if _, ok := seen[p]; !ok {
			t.watcher.forget(p)
		}
	}
	t.ids = seen
	return limit
}

// descend adds what is below dir to seen. Directories that vanish meanwhile are gone, not an error. A directory is
// watched before it is read, so that nothing made in between is missed.
func (t *tree) descend(dir string, seen map[string]uint64) error {
	limit := t.watcher.add(dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return limit
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		child := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			continue
		}
		seen[child] = inode(info)
		if err := t.descend(child, seen); limit == nil {
			limit = err
		}
	}
	return limit
}

// inode of a directory of cgroup2 is the ID of the cgroup.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// follow takes in what was heard of and reports whether only a walk can tell.
func (t *tree) follow(events []dirEvent) (walk bool) {
	for _, e := range events {
		switch {
		case e.lost:
			return true
		case e.gone:
			for p := range t.ids {
				if within(p, e.path) {
					delete(t.ids, p)
					t.watcher.forget(p)
				}
			}
		default:
			info, err := os.Lstat(e.path)
			if err != nil || !info.IsDir() {
				continue // gone again
			}
			t.ids[e.path] = inode(info)
			if t.descend(e.path, t.ids) != nil {
				return true
			}
		}
	}
	return false
}

// units returns the cgroups that are units, by the name of the unit.
func (t *tree) units(isUnit func(path, name string) bool) map[string][]Cgroup {
	out := map[string][]Cgroup{}
	for p, id := range t.ids {
		if name := filepath.Base(p); isUnit(p, name) {
			out[name] = append(out[name], Cgroup{Path: p, ID: id})
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
