package fabric

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is a program to run on a host.
type Command struct {
	Host string
	Unit string // "" for the host's own cgroup
	// Path is executed as it is: the kernel names the process after its last element, so a link names a process.
	Path  string
	Args  []string // without the program
	Env   []string // nil: that of the caller
	Dir   string
	Log   string // file that gets what it prints; "" for nowhere
	UID   uint32 // zero: root
	GID   uint32
	Stdin io.Reader // nil: /dev/null
	Stay  bool      // it lives on when the caller dies
}

// Process is a running program.
type Process struct {
	Command Command
	cmd     *exec.Cmd
	done    chan struct{}
	err     error // valid when done is closed
}

// Start runs the program inside the namespace and the cgroup of its host, before its first instruction.
func (f *Fabric) Start(c Command) (*Process, error) {
	ns, err := f.netns(c.Host)
	if err != nil {
		return nil, err
	}
	cgroup := f.UnitCgroup(c.Host, c.Unit)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, err
	}
	p, err := f.launcher.start(c, ns, cgroup)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", filepath.Base(c.Path), c.Host, err)
	}
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, after Done.
func (p *Process) Err() error { return p.err }

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Kill kills the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	err := p.Signal(unix.SIGKILL)
	<-p.done
	return err
}

// KillUnit kills everything in the unit's cgroup and waits until it is gone. The cgroup stays.
func (f *Fabric) KillUnit(ctx context.Context, host, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	if unit == "" {
		return fmt.Errorf("kill unit: the host %s itself is not a unit", host)
	}
	_, err := killCgroup(ctx, f.UnitCgroup(host, unit))
	return err
}

// launcher starts processes from one thread that lives as long as the launcher. Two reasons: entering a namespace
// changes the thread, and the kernel sends the parent-death signal when the thread that forked ends, not when the
// process does.
type launcher struct {
	orders chan func()
	stop   chan struct{}
}

func newLauncher() *launcher {
	l := &launcher{orders: make(chan func()), stop: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		for {
			select {
			case order := <-l.orders:
				order()
			case <-l.stop:
				return
			}
		}
	}()
	return l
}

// close ends the thread. Processes that it started and that do not stay die with it.
func (l *launcher) close() { close(l.stop) }

func (l *launcher) start(c Command, ns *netns, cgroup string) (*Process, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir, cmd.Stdin = c.Env, c.Dir, c.Stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: true}
	if !c.Stay {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if c.UID != 0 || c.GID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID}
	}
	if c.Log != "" {
		if err := os.MkdirAll(filepath.Dir(c.Log), 0o755); err != nil {
			return nil, err
		}
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	p := &Process{Command: c, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	l.orders <- func() { started <- startIn(ns, cmd) }
	if err := <-started; err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// startIn enters the namespace, forks and comes back.
func startIn(ns *netns, cmd *exec.Cmd) error {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", ns.path, err)
	}
	err = cmd.Start()
	return errors.Join(err, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
}

// WaitUntil polls until ok, for at most limit. The error of the last try is part of its error.
func WaitUntil(ctx context.Context, what string, limit, every time.Duration, ok func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s did not happen within %s", what, limit))
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(every):
		}
	}
}
