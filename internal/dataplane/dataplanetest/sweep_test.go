package dataplanetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSweep leaves behind what a killed test does, and what a live one has.
func TestSweep(t *testing.T) {
	if os.Geteuid() != 0 {
		Cannot(t, "netns", errors.New("root is needed"))
	}
	root, err := cgroupMount()
	if err != nil {
		Cannot(t, "bpf", err)
	}
	release, err := claim()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	dead, alive := bedName(ended.Process.Pid, 1), bedName(os.Getpid(), 77)
	var left *exec.Cmd
	for _, name := range []string{dead, alive} {
		cgroup, dir := filepath.Join(root, name), filepath.Join(os.TempDir(), name)
		for _, d := range []string{filepath.Join(cgroup, "near/two/inner"), dir} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				Cannot(t, "bpf", err)
			}
		}
		if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
			Cannot(t, "bpf", err)
		}
		if err := os.Mkdir(filepath.Join(dir, "near"), 0o700); err != nil {
			t.Fatal(err)
		}
		if name == dead {
			left = exec.Command("sleep", "100")
			if err := left.Start(); err != nil {
				t.Fatal(err)
			}
			procs := filepath.Join(cgroup, "near/two/inner/cgroup.procs")
			if err := os.WriteFile(procs, []byte(strconv.Itoa(left.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
			go func() { _ = left.Wait() }() // it is to be killed
		}
	}
	names, err := sweep()
	if err != nil || !slices.Contains(names, dead) || slices.Contains(names, alive) {
		t.Errorf("removed %v, %v", names, err)
	}
	mounts, err := bpfMounts()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{dead: false, alive: true} {
		cgroup, dir := filepath.Join(root, name), filepath.Join(os.TempDir(), name)
		_, err1 := os.Stat(cgroup)
		_, err2 := os.Stat(dir)
		if got := []bool{err1 == nil, err2 == nil, slices.Contains(mounts, dir)}; !slices.Equal(got, []bool{want, want, want}) {
			t.Errorf("%s: cgroup, directory and mount are there: %v", name, got)
		}
	}
	if again, err := sweep(); err != nil || slices.Contains(again, dead) {
		t.Errorf("the second time: %v, %v", again, err)
	}
	dir := filepath.Join(os.TempDir(), alive)
	if err := errors.Join(removeTree(filepath.Join(root, alive)), unix.Unmount(dir, 0), os.Remove(dir)); err != nil {
		t.Error(err)
	}
}

// TestOwnerOf reads names that are and are not those of beds.
func TestOwnerOf(t *testing.T) {
	for name, want := range map[string]int{
		bedName(42, 7): 42, "bulkhead-test-": 0, "bulkhead-test-x-1": 0, "bulkhead-smoke-42": 0, "bulkhead-test-42": 0, "": 0,
	} {
		pid, ok := ownerOf(name)
		if ok != (want != 0) || ok && pid != want {
			t.Errorf("%q: %d, %v", name, pid, ok)
		}
	}
}
