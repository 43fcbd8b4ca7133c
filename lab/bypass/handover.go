package bypass

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// helperPort is the UDP port that the allowed unit has bound.
const helperPort = 6001

const nobody = 65534

// wish is what the breached service asks of the allowed one, which does whatever it is asked.
type wish struct {
	What  string // socket, connected, listener: give me one; use: take mine
	To    netip.AddrPort
	Token string
}

// granted is the answer to a wish, beside which a socket may come.
type granted struct{ Errno syscall.Errno }

// hand serves wishes.
func (p *player) hand() error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.control("helper-hand"), Net: "unix"})
	if err != nil {
		return err
	}
	if _, err := net.ListenUDP("udp", &net.UDPAddr{Port: helperPort}); err != nil { // never read: who has the port counts
		return err
	}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if err := grant(c); err != nil {
				fmt.Fprintf(os.Stderr, "hand over: %v\n", err)
			}
		}
	}()
	return nil
}

func grant(c *net.UnixConn) error {
	defer c.Close()
	var w wish
	theirs, err := receive(c, &w)
	if err != nil {
		return err
	}
	mine := -1
	switch w.What {
	case "use":
		err = send(theirs, w.To, w.Token)
	case "listener":
		mine, err = listener(w.To)
	default:
		mine, err = open(domain(w.To.Addr()), unix.SOCK_STREAM, 0)
		if err == nil && w.What == "connected" {
			err = unix.Connect(mine, sockaddr(w.To))
		}
	}
	if mine >= 0 {
		defer unix.Close(mine)
	}
	var a granted
	if err != nil {
		mine = -1
		if !errors.As(err, &a.Errno) {
			return err
		}
	}
	return transmit(c, &a, mine)
}

func listener(at netip.AddrPort) (int, error) {
	fd, err := open(domain(at.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	return fd, err
}

// transmit sends a message with a socket beside it, unless fd is -1.
func transmit(c *net.UnixConn, m any, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err = c.WriteMsgUnix(b, rights, nil)
	return err
}

// receive receives what transmit sent; fd is -1 if no socket came.
func receive(c *net.UnixConn, m any) (fd int, err error) {
	b, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return -1, err
	}
	fd = -1
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return -1, err
		}
		fd = fds[0]
	}
	return fd, json.Unmarshal(b[:n], m)
}

// ask asks the allowed unit and returns the socket that it gives, or -1.
func (a *attempt) ask(w *wish, mine int) (fd int, err error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: a.control("helper-hand"), Net: "unix"})
	if err != nil {
		return -1, err
	}
	defer c.Close()
	if err := transmit(c, w, mine); err != nil {
		return -1, err
	}
	var g granted
	fd, err = receive(c, &g)
	if err == nil && g.Errno != 0 {
		err = fmt.Errorf("the allowed unit: %w", g.Errno)
	}
	return fd, err
}

// given uses a socket that the allowed unit made.
func given(what string) func(*attempt) error {
	return func(a *attempt) error {
		to := a.target()
		if what == "listener" {
			to = netip.AddrPortFrom(a.Own[a.family], a.port)
		}
		fd, err := a.ask(&wish{What: what, To: to}, -1)
		if err != nil {
			return err
		}
		switch what {
		case "socket":
			return send(fd, to, a.token)
		case "listener":
			return a.answerCall(fd, to)
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(a.token))
		return err
	}
}

// answerCall accepts a connection of the target, which calls the allowed unit, and gives it the token.
func (a *attempt) answerCall(fd int, at netip.AddrPort) error {
	defer unix.Close(fd)
	called := make(chan error, 1)
	go func() {
		r, err := ask(context.Background(), a.control("vault"), &order{Do: "call", To: at})
		if err == nil && r.Err != "" {
			err = errors.New(r.Err)
		}
		called <- err
	}()
	t := unix.NsecToTimeval(int64(connecting))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
		return err
	}
	c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return errors.Join(err, <-called)
	}
	_, err = unix.Write(c, []byte(a.token))
	return errors.Join(err, unix.Close(c), <-called)
}

// lent has the allowed unit use a socket that the breached one made.
func lent(a *attempt) error {
	fd, err := open(domain(a.addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = a.ask(&wish{What: "use", To: a.target(), Token: a.token}, fd)
	return err
}

// connection is what the allowed unit lets a process inherit.
func connection(a *attempt) (*os.File, error) {
	fd, err := open(domain(a.addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inherited")
	if err := unix.Connect(fd, sockaddr(a.target())); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func inherited(a *attempt) error {
	const fd = 3 // the first after the three that every process has
	if !a.order.Descriptor {
		return errors.New("nothing was inherited")
	}
	_, err := unix.Write(fd, []byte(a.token))
	return errors.Join(err, unix.Close(fd))
}

func cgroupOf(role string) func(*Spec) (string, error) {
	return func(s *Spec) (string, error) { return s.Cgroups[role], nil }
}

// enter moves this process to the cgroup.
func enter(cgroup string) error {
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: enter %s: %w", errRefused, filepath.Base(cgroup), err)
	}
	return err
}

func movedSocket(a *attempt) error {
	fd, err := open(domain(a.addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := enter(a.Cgroups["helper"]); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return send(fd, a.target(), a.token)
}

func moves(a *attempt) error {
	if err := enter(a.Cgroups["helper"]); err != nil {
		return err
	}
	return tcp(a)
}

// delegated makes a cgroup below that of the breached service which belongs to a user, as systemd does (Delegate=).
func delegated(s *Spec) (string, error) {
	path := filepath.Join(s.Cgroups["breached"], "own")
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	for _, p := range []string{path, filepath.Join(path, "cgroup.procs"), filepath.Join(path, "cgroup.subtree_control")} {
		if err := os.Chown(p, nobody, nobody); err != nil {
			return "", err
		}
	}
	return path, nil
}

func ownCgroup(a *attempt) error {
	path := filepath.Join(a.Cgroups["breached"], "own", filepath.Base(a.Cgroups["helper"]))
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// Writing 0 is refused where the process is root of no such cgroup: it is told by number.
	if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strings.TrimSpace(fmt.Sprint(os.Getpid()))), 0); err != nil {
		return err
	}
	return tcp(a)
}
