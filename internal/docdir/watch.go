package docdir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Watcher tells when a directory of documents may have changed: files written in place or replaced, directories that
// come and go, links that are pointed elsewhere on any part of the way (as git-sync and Kubernetes do), the directory itself
// included. It uses inotify(7), and looks by itself now and then where that does not help (a file system of the network).
type Watcher struct {
	Dir    string
	Quiet  time.Duration // this long without a change is the end of a burst; default 100 ms
	Burst  time.Duration // the longest burst; default 3 s
	Resync time.Duration // between two looks without any event; default 5 s
	Report func(error)   // that events cannot be had, so that changes are noticed late; nil is good again
}

// everything is written before a file is closed, so IN_MODIFY only prolongs a burst.
const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF

// maxWatches bounds the directories that are watched.
const maxWatches = 4096

// Run calls changed, once for each burst of changes and from this goroutine, until ctx ends.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&w.Quiet, 100 * time.Millisecond}, {&w.Burst, 3 * time.Second}, {&w.Resync, 5 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.Report(fmt.Errorf("start inotify: %w", err))
		return w.poll(ctx, changed)
	}
	s := &watches{file: os.NewFile(uintptr(fd), "inotify"), dirs: map[string]int{}, names: map[int]map[string]bool{}}
	defer s.file.Close()
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { s.file.Close() })
	defer stop()
	events := make(chan event, 64)
	group.Go(func() error { return s.read(ctx, events) })
	group.Go(func() error { return w.follow(ctx, s, events, changed) })
	return group.Wait()
}

// poll looks by itself, ten times as often.
func (w *Watcher) poll(ctx context.Context, changed func()) error {
	tick := time.NewTicker(w.Resync / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			changed()
		}
	}
}

// follow gathers events into bursts. After each event the watches are put where the directory leads now, and it is read
// after that, so nothing falls between.
func (w *Watcher) follow(ctx context.Context, s *watches, events <-chan event, changed func()) error {
	w.Report(s.set(w.Dir))
	changed() // what was changed before there was anybody who watched
	resync := time.NewTicker(w.Resync)
	defer resync.Stop()
	var quiet, burst <-chan time.Time // nil: no burst
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if !s.concerns(e) {
				continue
			}
			if quiet == nil {
				burst = time.After(w.Burst)
			}
			quiet = time.After(w.Quiet)
			w.Report(s.set(w.Dir))
			continue
		case <-quiet:
		case <-burst:
		case <-resync.C:
			if quiet != nil {
				continue
			}
			w.Report(s.set(w.Dir))
		}
		quiet, burst = nil, nil
		changed()
	}
}

// event is that something has happened to a name in a watched directory; all of them are meant if the kernel lost some.
type event struct {
	watch int
	name  string
	all   bool
}

// watches are the directories that are watched. Only the goroutine of follow uses the maps.
type watches struct {
	file  *os.File
	dirs  map[string]int          // directory to its watch
	names map[int]map[string]bool // the names that matter there; nil: every name
}

func (s *watches) concerns(e event) bool {
	names, ok := s.names[e.watch]
	return e.all || ok && (names == nil || e.name == "" || names[e.name])
}

// set watches what the directory depends on now, and nothing else.
func (s *watches) set(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	need := needs{}
	need.tree(dir, 0)
	conn, err := s.file.SyscallConn()
	if err != nil {
		return nil // closed: we are stopping
	}
	s.names = map[int]map[string]bool{}
	dirs := map[string]int{}
	var wrong error
	for d, names := range need {
		if len(dirs) >= maxWatches {
			wrong = fmt.Errorf("there are more than %d directories", maxWatches)
			break
		}
		var wd int
		if conn.Control(func(fd uintptr) { wd, err = unix.InotifyAddWatch(int(fd), d, mask|unix.IN_ONLYDIR) }) != nil {
			return nil // closed
		}
		switch {
		case err == nil:
			dirs[d] = wd
			if before, ok := s.names[wd]; ok && (before == nil || names == nil) { // one directory on two ways
				s.names[wd] = nil
				continue
			} else if ok {
				for n := range before {
					names[n] = true
				}
			}
			s.names[wd] = names
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			wrong = fmt.Errorf("watch %s: %w", d, err)
		}
	}
	for _, wd := range s.dirs {
		if _, ok := s.names[wd]; !ok {
			// That it is gone already is what was wanted.
			_ = conn.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) })
		}
	}
	s.dirs = dirs
	return wrong
}

func (s *watches) read(ctx context.Context, events chan<- event) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.file.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from inotify: %w", err)
		}
		for _, e := range parse(buf[:n]) {
			select {
			case events <- e:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func parse(buf []byte) (out []event) {
	for len(buf) >= unix.SizeofInotifyEvent {
		flags := binary.NativeEndian.Uint32(buf[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		if end > len(buf) {
			break
		}
		out = append(out, event{
			watch: int(int32(binary.NativeEndian.Uint32(buf))),
			name:  string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:end], "\x00")),
			all:   flags&unix.IN_Q_OVERFLOW != 0,
		})
		buf = buf[end:]
	}
	return out
}

// needs is which names in which directories the documents depend on; nil: every name.
type needs map[string]map[string]bool

func (n needs) name(dir, name string) {
	if names, ok := n[dir]; ok && names == nil {
		return
	}
	if n[dir] == nil {
		n[dir] = map[string]bool{}
	}
	n[dir][name] = true
}

// tree adds a directory, all that is below it, and the ways there.
func (n needs) tree(dir string, depth int) {
	real, ok := n.way(dir)
	if !ok || depth > maxDepth {
		return
	}
	if names, ok := n[real]; ok && names == nil {
		return // reached on another way
	}
	n[real] = nil
	entries, err := os.ReadDir(real)
	if err != nil {
		return // reading the documents tells
	}
	for _, e := range entries {
		child := filepath.Join(real, e.Name())
		switch {
		case hidden(e.Name()):
		case e.IsDir():
			n.tree(child, depth+1)
		case e.Type() == os.ModeSymlink:
			if info, err := os.Stat(child); err == nil && info.IsDir() {
				n.tree(child, depth+1)
			} else {
				n.way(child)
			}
		}
	}
}

// way adds what decides where an absolute path leads: each symbolic link on it, and its end. It returns the path without
// links, and whether there is something.
func (n needs) way(path string) (string, bool) {
	const maxLinks = 40 // as the kernel has it
	at, rest, links := "/", strings.Split(strings.Trim(path, "/"), "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil {
			n.name(at, name)
			return "", false
		}
		if info.Mode().Type() != os.ModeSymlink {
			if len(rest) == 0 {
				n.name(at, name)
			}
			at = next
			continue
		}
		n.name(at, name)
		target, err := os.Readlink(next)
		if links++; err != nil || links > maxLinks {
			return "", false
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return at, true
}
