package nft

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// sweep judges the TCP connections of the namespace again, as the kernel does with their next packet, and resets those
// that are denied, so that both ends learn of it, idle ones too. It returns how many. The caller holds mu.
func (d *Dataplane) sweep() (int, error) {
	c := d.content
	if c == nil || !d.glassUntil.IsZero() && time.Now().Before(d.glassUntil) {
		return 0, nil
	}
	all, err := d.ns.tcpSockets()
	if err != nil {
		return 0, err
	}
	type tracked struct {
		dir  model.Direction
		peer uint8 // who is at the other end, if that is on this host
	}
	open := map[tuple]tracked{} // by local and remote address
	if err := d.ns.connections(func(k *connection) {
		if k.original.proto != model.ProtoTCP {
			return
		}
		f := k.flow()
		open[tuple{model.ProtoTCP, f.client, f.server}] = tracked{model.Egress, uint8(k.mark >> (d.layout.shift + 16))}
		open[tuple{model.ProtoTCP, f.server, f.client}] = tracked{model.Ingress, uint8(k.mark >> (d.layout.shift + 8))}
	}); err != nil {
		return 0, err
	}
	owner, err := c.owners()
	if err != nil {
		return 0, err
	}
	judge := hostpolicy.NewJudge(c.effective())
	whose := map[tuple]string{}
	for i := range all {
		s := &all[i]
		whose[tuple{model.ProtoTCP, s.local, s.remote}] = owner(s.cgroup)
	}
	listens := listening(all)
	var doomed []tcpSocket
	seen := map[tuple]bool{} // the kernel may list one twice
	for i := range all {
		s := &all[i]
		if s.state == tcpListen || s.cgroup == 0 { // the latter is half open: its next packet is judged by the kernel
			continue
		}
		this := tuple{model.ProtoTCP, s.local, s.remote}
		if seen[this] {
			continue
		}
		seen[this] = true
		known, ok := open[this]
		dir := known.dir
		if !ok && listens[s.local.Port()] {
			dir = model.Ingress
		} else if !ok {
			dir = model.Egress
		}
		peer := whose[this.reversed()]
		if peer == "" { // its socket may just have been reset
			peer = c.name(known.peer)
		}
		p := hostpolicy.Packet{
			Workload: whose[this], Dir: dir, Local: s.local.Addr(), Remote: s.remote.Addr(),
			RemoteWorkload: peer, Proto: model.ProtoTCP, Port: s.remote.Port(),
		}
		if dir == model.Ingress {
			p.Port = s.local.Port()
		}
		v, identity := judge.Judge(&p)
		if v.Verdict != model.Deny {
			continue
		}
		doomed = append(doomed, *s)
		d.flows.cut(&p, s, v, identity)
	}
	return d.ns.destroy(doomed)
}

func listening(all []tcpSocket) map[uint16]bool {
	ports := map[uint16]bool{}
	for i := range all {
		if all[i].state == tcpListen {
			ports[all[i].local.Port()] = true
		}
	}
	return ports
}

// owners returns a function that says whose a socket is by the cgroup that it belongs to: the unit in or below whose
// cgroup that is, the deepest if they lie in each other, or the host.
func (c *content) owners() (func(cgroup uint64) string, error) {
	host := ""
	for _, s := range c.subjects {
		if s.number == hostNumber {
			host = s.Workload
		}
	}
	type found struct {
		depth uint32
		name  string
	}
	below := map[uint64]found{}
	for id, u := range c.units {
		if below[id].depth <= u.depth {
			below[id] = found{u.depth, c.name(u.subject)}
		}
		if u.dir == "" {
			continue
		}
		err := filepath.WalkDir(u.dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) || err == nil && !e.IsDir() {
				return nil // a cgroup that ends meanwhile
			}
			if err != nil {
				return err
			}
			var st syscall.Stat_t
			if syscall.Stat(path, &st) == nil && below[st.Ino].depth <= u.depth {
				below[st.Ino] = found{u.depth, c.name(u.subject)}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return func(cgroup uint64) string {
		if f, ok := below[cgroup]; ok {
			return f.name
		}
		return host
	}, nil
}
