package ebpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

const unprivilegedEnv = "BULKHEAD_EBPF_UNPRIVILEGED"

// TestWithoutPrivileges opens as somebody who may not do what it takes: the error says what is missing, in one line, and
// nothing is left behind.
func TestWithoutPrivileges(t *testing.T) {
	if place := os.Getenv(unprivilegedEnv); place != "" {
		cfg := DefaultConfig()
		cfg.CgroupRoot, cfg.BPFFS, _ = strings.Cut(place, "|")
		d, err := Open(cfg)
		if err == nil {
			fmt.Printf("opened: %q\n", d.Capabilities().Limits[len(guardLimits[cfg.Guard])+len(limits):])
			err = d.Remove()
		}
		fmt.Printf("unsupported=%v: %v\n", errors.Is(err, dataplane.ErrUnsupported), err)
		return
	}
	t.Parallel()
	bed := dataplanetest.NewBed(t)
	for name, tt := range map[string]struct {
		uid   uint32
		lose  func() error // in the thread that starts it
		wants string
	}{
		"a user": {65534, nil, "unsupported=true: open dataplane: dataplane is not supported here: run as root, with all of its " +
			"capabilities; the agent runs as user 65534 and lacks CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN\n"},
		"root in a container": {0, func() error { return drop(unix.CAP_BPF, unix.CAP_SYS_ADMIN) },
			"the agent runs as user 0 and lacks CAP_BPF\n"},
		"root without a network": {0, func() error { return drop(unix.CAP_NET_ADMIN) }, "lacks CAP_NET_ADMIN\n"},
		"a seccomp profile":      {0, forbidBPF, "the kernel forbids the bpf system call even with all the capabilities it needs; look at the seccomp"},
		"all but other namespaces": {0, func() error { return drop(unix.CAP_SYS_ADMIN) },
			fmt.Sprintf("opened: %q", append([]string{confined}, refusedHere(t)...))},
	} {
		t.Run(name, func(t *testing.T) {
			pins := filepath.Join(filepath.Dir(bed.Place.BPFFS), strings.ReplaceAll(name, " ", "-"))
			out := runWithout(t, tt.uid, tt.lose, unprivilegedEnv+"="+bed.Place.CgroupRoot+"|"+pins)
			if !strings.Contains(out, tt.wants) {
				t.Errorf("%s\ninstead of\n%s", out, tt.wants)
			}
			if said, _, ok := strings.Cut(out, "PASS\n"); !ok || strings.Count(said, "\n") != 1+strings.Count(tt.wants, "opened") {
				t.Errorf("it says:\n%s", out)
			}
			if _, err := os.Stat(pins); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pins are left behind: %v", err)
			}
		})
	}
}

// runWithout runs this test as another user or without something that lose takes away.
func runWithout(t *testing.T, uid uint32, lose func() error, env string) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "bulkhead-unprivileged-") // t.TempDir is private
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(binary, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^TestWithoutPrivileges$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // what the thread has lost is lost: it ends with the goroutine
		if lose != nil {
			if err := lose(); err != nil {
				done <- err
				return
			}
		}
		done <- cmd.Run()
	}()
	if err := <-done; err != nil {
		t.Errorf("%s%v", out.String(), err)
	}
	return out.String()
}

// drop takes capabilities from what the thread starts.
func drop(caps ...uintptr) error {
	for _, c := range caps {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// forbidBPF makes the bpf system call fail, as the profiles of container runtimes do.
func forbidBPF() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}
