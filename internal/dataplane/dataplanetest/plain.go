package dataplanetest

import (
	"golang.org/x/sys/unix"
)

// makePlain makes sockets for somebody else to take, and closes those that were made before.
func (w *sockets) makePlain(r request) (answer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fd := range w.plain {
		_ = unix.Close(fd) // a copy that nobody has used
	}
	w.plain = nil
	for _, s := range r.Plain {
		fd, err := unix.Socket(s[0], s[1]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, s[2])
		if err != nil {
			return answer{}, err
		}
		w.plain = append(w.plain, fd)
	}
	return answer{FDs: w.plain}, nil
}

// plain has the process make sockets, each of a family, type and protocol, and takes them: whoever uses them, they are the process's by
// their cgroup and its network namespace. The caller closes them.
func (p *Process) plain(all [][3]int) []int {
	p.t.Helper()
	if len(all) == 0 {
		return nil
	}
	a := p.must(request{Do: "plain", Plain: all})
	of, err := unix.PidfdOpen(p.PID(), 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(of)
	var mine []int
	for _, fd := range a.FDs {
		fd, err := unix.PidfdGetfd(of, fd, 0)
		if err != nil {
			p.t.Fatalf("take a socket of %s: %v", p.Name, err)
		}
		mine = append(mine, fd)
	}
	p.must(request{Do: "plain"}) // lets go of them
	return mine
}
