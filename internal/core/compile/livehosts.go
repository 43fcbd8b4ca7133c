package compile

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// liveHost is a host with an agent.
type liveHost struct {
	name  string
	shape []hostSubject
	group *group
	at    int  // index in group.hosts
	moved bool // by the latest batch
}

// hostSubject is the part of a hostpolicy.Subject that is the host's own. It does not change.
type hostSubject struct {
	workload, unit string
	identity       model.IdentityID
	quarantine     model.QuarantineLevel
	locals         []hostLocal
}

type hostLocal struct {
	addr     netip.Addr
	identity model.IdentityID
}

// host looks at a host again.
func (b *batch) host(name string) {
	l := b.Live
	h, w := l.hosts[name], l.workloads[name]
	if w == nil || w.IsUnit() || w.Host != name {
		if h != nil {
			b.noteMove(move{host: h, from: h.group, shape: h.shape})
			delete(l.hosts, name)
			b.quit(h)
		}
		return
	}
	shape := make([]hostSubject, 0, 1+len(l.units[name]))
	subjects := make([]groupSubject, 0, cap(shape))
	var key []byte
	for k := -1; k < len(l.units[name]); k++ {
		of := w
		if k >= 0 {
			of = l.units[name][k]
		}
		s, g := b.shape(of)
		shape, subjects = append(shape, s), append(subjects, g)
		key = binary.LittleEndian.AppendUint32(key, uint32(g.labels))
		key = binary.LittleEndian.AppendUint32(key, g.set.number)
		key = binary.LittleEndian.AppendUint32(key, g.isolation.number)
		key = append(key, byte(len(g.locals)))
		for _, j := range g.locals {
			key = binary.LittleEndian.AppendUint32(key, j.number)
		}
	}
	m := move{host: h}
	if h == nil {
		h = &liveHost{name: name}
		m.host = h
		l.hosts[name] = h
	} else {
		m.from, m.shape = h.group, h.shape
	}
	h.shape = shape
	if g := h.group; g == nil || g.key != string(key) {
		if g != nil {
			b.quit(h)
		}
		h.group = b.group(string(key), subjects)
		h.at = len(h.group.hosts)
		h.group.hosts = append(h.group.hosts, h)
	}
	m.to = h.group
	b.noteMove(m)
}

func (b *batch) noteMove(m move) {
	m.host.moved = true
	b.moves = append(b.moves, m)
}

// move is a host that was looked at again. It is new without from and gone without to.
type move struct {
	host     *liveHost
	from, to *group
	shape    []hostSubject // before
	drawn    bool          // change is known
	change   *groupChange
}

// shape returns what a subject of a host is, and what judges it.
func (b *batch) shape(w *liveWorkload) (hostSubject, groupSubject) {
	l := b.Live
	first := &w.points[0]
	s := hostSubject{workload: w.Name, unit: w.Unit, identity: l.ids.ids[first.exact], quarantine: w.Quarantine.Level}
	var own purposes
	for i := range w.points {
		own |= l.netsets[w.points[i].netset].purposes
	}
	g := groupSubject{labels: w.labels, set: b.judgeOfPoint(w, first), isolation: b.isolation(own)}
	var others []*livePoint
	for i := range w.points[1:] {
		if p := &w.points[1+i]; p.exact != first.exact {
			others = append(others, p)
		}
	}
	slices.SortFunc(others, func(x, y *livePoint) int { return x.addr.Compare(y.addr) })
	for _, p := range others {
		s.locals = append(s.locals, hostLocal{p.addr, l.ids.ids[p.exact]})
		g.locals = append(g.locals, b.judgeOfPoint(w, p))
	}
	return s, g
}

// quit takes a host out of its group.
func (b *batch) quit(h *liveHost) {
	g := h.group
	last := g.hosts[len(g.hosts)-1]
	g.hosts[h.at], last.at = last, h.at
	g.hosts = g.hosts[:len(g.hosts)-1]
	if len(g.hosts) == 0 {
		b.empty = append(b.empty, g)
	}
	h.group = nil
}
