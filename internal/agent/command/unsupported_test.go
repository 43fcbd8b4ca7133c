package command

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

	"bulkhead/internal/agent/inventory"
)

// TestWhereItCannotRun starts the agent where it cannot protect the host: one line says what is missing and what works
// all the same, the exit code says that starting it again will not help, and nothing is left behind.
func TestWhereItCannotRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to take its privileges away")
	}
	cgroups, err := inventory.CgroupRoot()
	if err != nil {
		t.Skip(err)
	}
	bin, err := os.MkdirTemp("", "bulkhead-agent-") // t.TempDir is private
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(bin)
	if out, err := exec.Command("go", "build", "-o", bin+"/", "bulkhead/cmd/bulkhead-agent").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Chmod(bin, 0o777); err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(cgroups, fmt.Sprintf("bulkhead-unsupported-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Skip(err)
	}
	defer os.Remove(cgroup)
	for name, tt := range map[string]struct {
		uid   uint32
		lose  func() error // in the thread that starts it
		shell string       // what runs before it, in a mount namespace of its own
		auto  bool         // it looks for the cgroups itself
		wants string
	}{
		"without root": {uid: 65534, wants: "run as root, with all of its capabilities; the agent runs as user 65534 and lacks CAP_BPF,"},
		"without capabilities": {
			lose:  func() error { return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0) },
			wants: "lacks CAP_NET_ADMIN",
		},
		"without cgroup2": {
			shell: "umount -l " + cgroups, auto: true, wants: "no cgroup2 file system is mounted; boot with",
		},
		"without bpf": {lose: forbidBPF, wants: "the kernel forbids the bpf system call"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(bin, strings.ReplaceAll(name, " ", "-"))
			if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("controller: 127.0.0.1:1\ndata: %s/data\nsocket: %s/agent.sock\nbpffs: %s/bpf\ndataplane: ebpf\n", dir, dir, dir)
			if !tt.auto {
				text += "cgroupRoot: " + cgroup + "\n"
			}
			file := filepath.Join(dir, "agent.yaml")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(filepath.Join(bin, "bulkhead-agent"), "--config", file)
			cmd.SysProcAttr = &syscall.SysProcAttr{}
			if tt.shell != "" {
				cmd = exec.Command("sh", "-ec", tt.shell+"\nexec "+strings.Join(cmd.Args, " "))
				cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			}
			if tt.uid != 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: tt.uid, Gid: tt.uid}
			}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, "/"
			err := runHaving(tt.lose, cmd)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != exitCannot {
				t.Errorf("it ended with %v", err)
			}
			said := out.String()
			for _, want := range []string{"bulkhead-agent: this host cannot be protected: ", tt.wants, "the offline commands of bulkhead work here"} {
				if !strings.Contains(said, want) {
					t.Errorf("it does not say %q:\n%s", want, said)
				}
			}
			if strings.Count(said, "\n") != 1 {
				t.Errorf("that is not one line:\n%s", said)
			}
			pins, err := filepath.Glob(filepath.Join(dir, "bpf", "layout_*"))
			if err != nil || len(pins) > 0 {
				t.Errorf("pins are left behind: %v, %v", pins, err)
			}
			if err := unix.Unmount(filepath.Join(dir, "bpf"), 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
				t.Error(err) // the place for pins stays mounted, as at a start that went well
			}
		})
	}
}

// runHaving runs the command from a thread that has lost something, and ends with it.
func runHaving(lost func() error, cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if lost != nil {
			if err := lost(); err != nil {
				done <- err
				return
			}
		}
		done <- cmd.Run()
	}()
	return <-done
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
