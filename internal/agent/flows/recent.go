package flows

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// Seen is one edge of this host as far as the agent remembers it: since it has started, or since the edge was forgotten
// for others.
type Seen struct {
	Workload, RemoteWorkload string // of this end; of the other, where the kernel knows it
	Local, Remote            netip.Addr
	Dir                      model.Direction
	Proto                    model.Proto
	Port                     uint16
	Verdict                  model.Verdict
	Rule                     model.RuleID
	Process, Path            string // of this end; "" if not known
	UID                      uint32
	Connections              uint64
	BytesSent, BytesReceived uint64
	First, Last              time.Time
	// Sequence grows with each event: what has changed since has a higher one.
	Sequence uint64
}

// Recent remembers the edges that were seen last: as many of what passed as of what was, or would have been, denied, so
// that a scan, of which each port is an edge, does not push out everything else. Its methods may be called from several goroutines.
type Recent struct {
	mu       sync.Mutex
	limit    int
	sequence uint64
	passed   memory
	denied   memory
}

type memory struct {
	edges map[edge]*list.Element // of *Seen
	order list.List              // the last one first
}

func newRecent(limit int) *Recent {
	r := &Recent{limit: limit}
	for _, m := range []*memory{&r.passed, &r.denied} {
		m.edges = map[edge]*list.Element{}
	}
	return r
}

func (r *Recent) add(k edge, e *dataplane.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.denied
	if k.verdict == model.Allow {
		m = &r.passed
	}
	r.sequence++
	at, ok := m.edges[k]
	if !ok {
		if m.order.Len() >= r.limit {
			oldest := m.order.Back()
			delete(m.edges, oldest.Value.(*Seen).edge())
			m.order.Remove(oldest)
		}
		s := newSeen(k, e.Time)
		at = m.order.PushFront(s)
		m.edges[s.edge()] = at
	}
	m.order.MoveToFront(at)
	s := at.Value.(*Seen)
	s.Connections += connections(e)
	s.BytesSent += e.BytesSent
	s.BytesReceived += e.BytesReceived
	if e.Time.After(s.Last) {
		s.Last = e.Time
	}
	s.Sequence = r.sequence
}

// newSeen keeps copies of the strings, which are the dataplane's.
func newSeen(k edge, at time.Time) *Seen {
	return &Seen{
		Workload: strings.Clone(k.workload), RemoteWorkload: strings.Clone(k.remoteWorkload), Local: k.local, Remote: k.remote,
		Dir: k.dir, Proto: k.proto, Port: k.port, Verdict: k.verdict, Rule: model.RuleID(strings.Clone(string(k.rule))),
		Process: strings.Clone(k.process), Path: k.path, UID: k.uid, First: at, Last: at,
	}
}

func (s *Seen) edge() edge {
	return edge{
		workload: s.Workload, remoteWorkload: s.RemoteWorkload, local: s.Local, remote: s.Remote, dir: s.Dir,
		verdict: s.Verdict, proto: s.Proto, port: s.Port, rule: s.Rule, process: s.Process, path: s.Path, uid: s.UID,
	}
}

// Since returns what has changed after that sequence, in the order in which it did; 0 is everything that is remembered. With
// denied it returns what was, or would have been, denied only.
func (r *Recent) Since(sequence uint64, denied bool) []Seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.denied.since(nil, sequence)
	if !denied {
		out = r.passed.since(out, sequence)
	}
	slices.SortFunc(out, func(a, b Seen) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return out
}

func (m *memory) since(out []Seen, sequence uint64) []Seen {
	for at := m.order.Front(); at != nil && at.Value.(*Seen).Sequence > sequence; at = at.Next() {
		out = append(out, *at.Value.(*Seen))
	}
	return out
}
