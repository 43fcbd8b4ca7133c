// Package tinydisk gives a test a file system of its own, of some kilobytes, that can be filled and made read-only. What a
// full disk does is learned from a full disk.
package tinydisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is an empty file system that is mounted at Dir, for the process of one test alone.
type Disk struct {
	Dir string
	t   testing.TB
}

// inside holds the name of the test that a process was started for.
const inside = "BULKHEAD_TINYDISK"

// Run runs the test on a disk of so many bytes. It does so in a process that has a mount namespace of its own, so nobody
// else sees the disk, and nothing is left of it. That takes root: without, the test is skipped, unless BULKHEAD_REQUIRE
// holds netns. It must be all that the test function does.
func Run(t *testing.T, size int, test func(t *testing.T, d *Disk)) {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		test(t, mount(t, size))
		return
	}
	if os.Geteuid() != 0 {
		if strings.Contains(os.Getenv("BULKHEAD_REQUIRE"), "netns") {
			t.Fatal("a disk of its own needs root")
		}
		t.Skip("a disk of its own needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("on a tiny disk: %v\n%s", err, out)
	}
}

func mount(t testing.TB, size int) *Disk {
	t.Helper()
	d := &Disk{Dir: filepath.Join(t.TempDir(), "disk"), t: t}
	d.must(os.Mkdir(d.Dir, 0o700))
	d.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")) // nothing of what follows gets out
	d.must(unix.Mount("tinydisk", d.Dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)))
	t.Cleanup(func() { d.must(unix.Unmount(d.Dir, unix.MNT_DETACH)) })
	return d
}

func (d *Disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("tiny disk: %v", err)
	}
}

func (d *Disk) ballast() string { return filepath.Join(d.Dir, "ballast") }

// Fill leaves no room: not a page can be written any more.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	d.must(err)
	page := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, unix.ENOSPC) {
		d.must(err)
	}
	d.must(f.Close())
}

// Free takes back what Fill has taken.
func (d *Disk) Free() {
	d.t.Helper()
	d.must(os.Remove(d.ballast()))
}

// ReadOnly makes the disk one that can only be read, as a kernel does with one that fails, or ends that. No file may be
// open for writing.
func (d *Disk) ReadOnly(on bool) {
	d.t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if on {
		flags |= unix.MS_RDONLY
	}
	d.must(unix.Mount("", d.Dir, "", flags, ""))
}
