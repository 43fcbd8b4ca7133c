package inventory

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// dirEvent says that a directory was made or removed, or that the kernel could not keep up (lost).
type dirEvent struct {
	path string
	gone bool
	lost bool
}

// maxWatches bounds the kernel memory that watches take (about 1 KiB each).
const maxWatches = 16 << 10

// dirWatcher hears of directories that are made and removed, by inotify(7). A nil watcher hears nothing.
type dirWatcher struct {
	file *os.File

	mu    sync.Mutex
	paths map[int32]string
	wds   map[string]int32
}

// watch makes the tree hear of changes from now on; they come to events in the order in which they happened.
func (t *tree) watch(ctx context.Context, group *errgroup.Group, events chan<- []dirEvent) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("start inotify: %w", err)
	}
	w := &dirWatcher{file: os.NewFile(uintptr(fd), "inotify"), paths: map[int32]string{}, wds: map[string]int32{}}
	t.watcher = w
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	group.Go(func() error {
		defer stop()
		defer w.file.Close()
		return w.read(ctx, events)
	})
	return nil
}

// add watches the directory. That there is no such directory any more is no error.
func (w *dirWatcher) add(dir string) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.paths) >= maxWatches {
		return &watchLimitError{fmt.Errorf("more than %d cgroups", maxWatches)}
	}
	conn, err := w.file.SyscallConn()
	if err != nil {
		return nil // closed: we are stopping
	}
	var wd int
	controlErr := conn.Control(func(fd uintptr) {
		wd, err = unix.InotifyAddWatch(int(fd), dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR)
	})
	switch {
	case controlErr != nil || errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &watchLimitError{fmt.Errorf("watch %s: %w", dir, err)}
	}
	// A cgroup that was made again has another inode and so another watch.
	if old, ok := w.wds[dir]; ok && old != int32(wd) {
		delete(w.paths, old)
	}
	w.paths[int32(wd)], w.wds[dir] = dir, int32(wd)
	return nil
}

// forget drops what is known of a directory that is gone; the kernel drops its watch by itself.
func (w *dirWatcher) forget(dir string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if wd, ok := w.wds[dir]; ok {
		delete(w.paths, wd)
		delete(w.wds, dir)
	}
}

func (w *dirWatcher) read(ctx context.Context, events chan<- []dirEvent) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from inotify: %w", err)
		}
		batch := w.parse(buf[:n])
		if len(batch) == 0 {
			continue
		}
		select {
		case events <- batch:
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *dirWatcher) parse(buf []byte) []dirEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []dirEvent
	for len(buf) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(buf))
		mask := binary.NativeEndian.Uint32(buf[4:])
		size := int(binary.NativeEndian.Uint32(buf[12:]))
		end := unix.SizeofInotifyEvent + size
		if end > len(buf) {
			break
		}
		name := string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:end], "\x00"))
		buf = buf[end:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			out = append(out, dirEvent{lost: true})
		case mask&unix.IN_IGNORED != 0:
			if dir, ok := w.paths[wd]; ok {
				delete(w.paths, wd)
				delete(w.wds, dir)
			}
		case mask&unix.IN_ISDIR != 0:
			dir, ok := w.paths[wd]
			if !ok {
				// A watch that is newer than what we remember of it: look for ourselves.
				out = append(out, dirEvent{lost: true})
				continue
			}
			out = append(out, dirEvent{path: filepath.Join(dir, name), gone: mask&unix.IN_DELETE != 0})
		}
	}
	return out
}
