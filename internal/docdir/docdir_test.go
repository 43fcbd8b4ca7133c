package docdir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// contents is what Read finds, as "name=data" with names below dir.
func contents(dir string) string {
	files, err := Read(dir)
	if err != nil {
		return "error: " + err.Error()
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimPrefix(f.Name, dir+"/")+"="+string(f.Data))
	}
	return strings.Join(out, " ")
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty: %v", err)
	}
	write(t, dir+"/b.yml", "b")
	write(t, dir+"/a.yaml", "a")
	write(t, dir+"/sub/c.yaml", "c")
	write(t, dir+"/notes.txt", "no")
	write(t, dir+"/.hidden.yaml", "no")
	write(t, dir+"/.git/d.yaml", "no")
	elsewhere := t.TempDir()
	write(t, elsewhere+"/d.yaml", "d")
	link(t, elsewhere, dir+"/linked")
	link(t, elsewhere+"/d.yaml", dir+"/e.yaml")
	link(t, "/nowhere", dir+"/nothing")
	const want = "a.yaml=a b.yml=b e.yaml=d linked/d.yaml=d sub/c.yaml=c"
	if got := contents(dir); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	whole := filepath.Join(t.TempDir(), "whole")
	link(t, dir, whole)
	if got := contents(whole); got != want {
		t.Errorf("through a link: got %s, want %s", got, want)
	}
	if err := unix.Mkfifo(dir+"/pipe.yaml", 0o600); err != nil {
		t.Fatal(err)
	}
	if got := contents(dir); !strings.Contains(got, "pipe.yaml: is no regular file") {
		t.Errorf("with a pipe: %s", got)
	}
	if err := os.Remove(dir + "/pipe.yaml"); err != nil {
		t.Fatal(err)
	}
	link(t, "/nowhere", dir+"/gone.yaml")
	if got := contents(dir); !strings.Contains(got, "gone.yaml: no such file") {
		t.Errorf("with a dangling document: %s", got)
	}
	if err := os.Remove(dir + "/gone.yaml"); err != nil {
		t.Fatal(err)
	}
	link(t, dir, dir+"/sub/loop")
	if got := contents(dir); !strings.Contains(got, "leads back") {
		t.Errorf("with a loop: %s", got)
	}
}

func TestReadSettledWaitsForTheLastByte(t *testing.T) {
	dir := t.TempDir()
	changes := 0
	// changing reads a directory that changes before each of the first looks.
	changing := func(looks int) func(string) *reader {
		return func(dir string) *reader {
			if looks > 0 {
				looks--
				changes++
				write(t, dir+"/a.yaml", fmt.Sprint(changes))
			}
			return read(dir)
		}
	}
	files, err := readSettled(t.Context(), dir, changing(5))
	if err != nil || len(files) != 1 || string(files[0].Data) != "5" {
		t.Errorf("of one that settles: %s, %v", files, err)
	}
	if files, err := readSettled(t.Context(), dir, changing(1000)); err == nil || !strings.Contains(err.Error(), "does not stop changing") {
		t.Errorf("of one that does not: %s, %v", files, err)
	}
	write(t, dir+"/a.yaml", "last")
	files, err = ReadSettled(t.Context(), dir)
	if err != nil || len(files) != 1 || string(files[0].Data) != "last" {
		t.Errorf("afterwards: %s, %v", files, err)
	}
}

// TestWatch changes a directory in the ways in which people and programs do.
func TestWatch(t *testing.T) {
	for name, c := range map[string]struct {
		before, change func(t *testing.T, dir string)
		want           string
	}{
		"a file is written in place": {
			change: func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "2") }, want: "a.yaml=2",
		},
		"a file is replaced": {
			change: func(t *testing.T, dir string) {
				write(t, dir+"/.a.yaml.swp", "2")
				rename(t, dir+"/.a.yaml.swp", dir+"/a.yaml")
			}, want: "a.yaml=2",
		},
		"a file goes": {
			before: func(t *testing.T, dir string) { write(t, dir+"/b.yaml", "b") },
			change: func(t *testing.T, dir string) { remove(t, dir+"/a.yaml") }, want: "b.yaml=b",
		},
		"a directory comes, and then files in it": {
			change: func(t *testing.T, dir string) { write(t, dir+"/x/y/z.yaml", "z") }, want: "a.yaml=1 x/y/z.yaml=z",
		},
		"a directory is moved in": {
			change: func(t *testing.T, dir string) {
				other := filepath.Join(filepath.Dir(dir), "other")
				write(t, other+"/b.yaml", "b")
				rename(t, other, dir+"/x")
			}, want: "a.yaml=1 x/b.yaml=b",
		},
		"Kubernetes swaps a ConfigMap": {
			before: func(t *testing.T, dir string) {
				remove(t, dir+"/a.yaml")
				write(t, dir+"/..1/a.yaml", "1")
				link(t, "..1", dir+"/..data")
				link(t, "..data/a.yaml", dir+"/a.yaml")
			},
			change: func(t *testing.T, dir string) {
				write(t, dir+"/..2/a.yaml", "2")
				link(t, "..2", dir+"/..data_tmp")
				rename(t, dir+"/..data_tmp", dir+"/..data")
			}, want: "a.yaml=2",
		},
		"git-sync swaps the whole directory": {
			before: func(t *testing.T, dir string) {
				rename(t, dir, dir+".1")
				link(t, filepath.Base(dir)+".1", dir)
			},
			change: func(t *testing.T, dir string) {
				write(t, dir+".2/a.yaml", "2")
				link(t, filepath.Base(dir)+".2", dir+".tmp")
				rename(t, dir+".tmp", dir)
			}, want: "a.yaml=2",
		},
		"what a link leads to is edited": {
			before: func(t *testing.T, dir string) {
				rename(t, dir+"/a.yaml", filepath.Dir(dir)+"/far.yaml")
				link(t, "../far.yaml", dir+"/a.yaml")
			},
			change: func(t *testing.T, dir string) { write(t, filepath.Dir(dir)+"/far.yaml", "2") }, want: "a.yaml=2",
		},
		"the directory is made anew": {
			change: func(t *testing.T, dir string) {
				rename(t, dir, dir+".old")
				write(t, dir+"/a.yaml", "2")
			}, want: "a.yaml=2",
		},
		"the directory goes": {
			change: func(t *testing.T, dir string) { rename(t, dir, dir+".old") }, want: "no such file or directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "policy")
			write(t, dir+"/a.yaml", "1")
			if c.before != nil {
				c.before(t, dir)
			}
			seen := make(chan string, 100)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			// Only events can tell: it does not look by itself.
			w := &Watcher{Dir: dir, Quiet: 5 * time.Millisecond, Resync: time.Hour, Report: func(err error) {
				if err != nil {
					t.Error(err)
				}
			}}
			go func() { done <- w.Run(ctx, func() { seen <- contents(dir) }) }()
			<-seen
			c.change(t, dir)
			limit := time.After(time.Minute)
			for got := ""; !strings.Contains(got, c.want); {
				select {
				case got = <-seen:
				case <-limit:
					t.Fatalf("not noticed; %s is %s, want %s", dir, contents(dir), c.want)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestBurst sends events by a clock of its own.
func TestBurst(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		every time.Duration
		n     int
		want  int32
	}{
		"a checkout is one change":          {10 * time.Millisecond, 100, 1},
		"two bursts are two":                {200 * time.Millisecond, 2, 2},
		"what does not end is looked at":    {10 * time.Millisecond, 1000, 4},
		"events about other names are none": {0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
			if err != nil {
				t.Fatal(err)
			}
			s := &watches{file: os.NewFile(uintptr(fd), "inotify"), dirs: map[string]int{}, names: map[int]map[string]bool{}}
			defer s.file.Close()
			synctest.Test(t, func(t *testing.T) {
				w := &Watcher{Dir: dir, Quiet: 100 * time.Millisecond, Burst: 3 * time.Second, Resync: time.Hour, Report: func(error) {}}
				ctx, cancel := context.WithCancel(t.Context())
				events := make(chan event)
				var calls atomic.Int32
				done := make(chan error)
				go func() { done <- w.follow(ctx, s, events, func() { calls.Add(1) }) }()
				synctest.Wait()
				for range c.n {
					events <- event{all: true}
					time.Sleep(c.every)
				}
				events <- event{watch: 99, name: "other"}
				time.Sleep(time.Second)
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if got := calls.Load() - 1; got != c.want { // the first is of the start
					t.Errorf("%d changes, want %d", got, c.want)
				}
			})
		})
	}
}

func TestWithoutEventsItLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Watcher{Dir: "/", Resync: 5 * time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
		defer cancel()
		n := 0
		if err := w.poll(ctx, func() { n++ }); err != nil || n != 2 {
			t.Errorf("looked %d times in 1.2 s, want twice (%v)", n, err)
		}
	})
}
