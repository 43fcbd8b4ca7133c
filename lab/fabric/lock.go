package fabric

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrBusy says that a runner holds the lab.
var ErrBusy = errors.New("the lab is in use")

// Lock keeps two runners from the same lab. It is an abstract Unix socket: nothing of it stays behind when its
// holder dies, however it dies.
type Lock struct{ listener *net.UnixListener }

func lockAddr(name string) *net.UnixAddr {
	return &net.UnixAddr{Name: "@bulkhead-lab/" + name, Net: "unix"}
}

// TakeLock takes the lock of the lab. The error is ErrBusy if another process has it.
func TakeLock(name string) (*Lock, error) {
	l, err := net.ListenUnix("unix", lockAddr(name))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %s is run by process %s. Wait for it, or end it", ErrBusy, name, lockHolder(name))
	}
	if err != nil {
		return nil, fmt.Errorf("take the lock of lab %s: %w", name, err)
	}
	return &Lock{listener: l}, nil
}

// Release gives the lock back. It may be called more than once, and on nil.
func (l *Lock) Release() error {
	if l == nil {
		return nil
	}
	if err := l.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// lockHolder asks the kernel who holds the lock.
func lockHolder(name string) string {
	unknown := "unknown"
	conn, err := net.DialUnix("unix", nil, lockAddr(name))
	if err != nil {
		return unknown
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return unknown
	}
	holder := unknown
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			holder = fmt.Sprint(cred.Pid)
		}
	})
	if err != nil {
		return unknown
	}
	return holder
}
