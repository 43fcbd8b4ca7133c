package flows

import (
	"net/netip"
	"strings"
	"sync"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/wire"
)

// edge is what one record stands for.
type edge struct {
	workload, remoteWorkload string
	local, remote            netip.Addr
	dir                      model.Direction
	verdict                  model.Verdict
	proto                    model.Proto
	port                     uint16
	rule                     model.RuleID
	process, path            string
	uid                      uint32
}

// aggregator sums up the events of one window. Its methods may be called from several goroutines.
type aggregator struct {
	host      string
	limit     int
	processes *processes
	recent    *Recent
	full      chan struct{} // half of the limit is reached: take soon

	mu      sync.Mutex
	records map[edge]*record
	lost    uint64 // since the last take
	ever    uint64
}

func newAggregator(host string, limit int, p *processes) *aggregator {
	return &aggregator{host: host, limit: limit, processes: p, recent: newRecent(recentEdges), full: make(chan struct{}, 1), records: map[edge]*record{}}
}

func (a *aggregator) add(e *dataplane.Event, revision uint64) {
	k := edge{
		workload: e.Workload, remoteWorkload: e.RemoteWorkload,
		local: e.Local.Addr().Unmap(), remote: e.Remote.Addr().Unmap(),
		dir: e.Dir, verdict: e.Verdict, proto: e.Proto, port: e.Port, rule: e.Rule,
		process: e.Process.Name, uid: e.Process.UID,
	}
	if k.workload == "" {
		k.workload = a.host
	}
	if e.Process.PID != 0 {
		k.path = a.processes.path(e.Process.PID, e.Process.Start)
	}
	a.recent.add(k, e)
	ms := e.Time.UnixMilli()

	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.records[k]
	if r == nil {
		if r = a.begin(k, ms); r == nil {
			return
		}
	}
	r.FirstMs, r.LastMs, r.Revision = min(r.FirstMs, ms), max(r.LastMs, ms), revision
	count(r, e)
}

// begin makes the record of an edge that is new in this window, or nil if there are too many. The caller holds mu.
func (a *aggregator) begin(k edge, ms int64) *record {
	if len(a.records) >= a.limit {
		a.lost++
		a.ever++
		return nil
	}
	// The event is the dataplane's: keep copies of its strings.
	k.workload, k.remoteWorkload = strings.Clone(k.workload), strings.Clone(k.remoteWorkload)
	k.process, k.rule = strings.Clone(k.process), model.RuleID(strings.Clone(string(k.rule)))
	r := &record{
		Workload:       k.workload,
		Direction:      wire.DirectionToProto(k.dir),
		LocalAddr:      wire.AddrToProto(k.local),
		RemoteAddr:     wire.AddrToProto(k.remote),
		RemoteWorkload: k.remoteWorkload,
		Proto:          uint32(k.proto),
		Port:           uint32(k.port),
		Verdict:        wire.VerdictToProto(k.verdict),
		Rule:           string(k.rule),
		FirstMs:        ms,
		LastMs:         ms,
	}
	if k.process != "" || k.path != "" {
		r.Process = &pb.FlowProcess{Name: k.process, Path: k.path, Uid: k.uid}
	}
	a.records[k] = r
	if len(a.records) == a.limit/2 {
		select {
		case a.full <- struct{}{}:
		default:
		}
	}
	return r
}

// count adds one event to the record of its edge.
func count(r *record, e *dataplane.Event) {
	r.Connections += connections(e)
	if e.Kind == dataplane.EventOpen && !e.Rejudged && e.Existing {
		r.Existing++
	}
	r.BytesSent += e.BytesSent
	r.BytesReceived += e.BytesReceived
	r.PacketsSent += e.PacketsSent
	r.PacketsReceived += e.PacketsRecv
}

// connections returns how many connections, or attempts, begin with the event.
func connections(e *dataplane.Event) uint64 {
	switch {
	case e.Kind == dataplane.EventDeny:
		return max(e.Count, 1)
	case e.Kind == dataplane.EventOpen && !e.Rejudged: // judged again is not opened again
		return 1
	}
	return 0
}

// take ends the window: it returns its records, in no order, and how many events found no place.
func (a *aggregator) take() ([]*record, uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*record, 0, len(a.records))
	for _, r := range a.records {
		out = append(out, r)
	}
	lost := a.lost
	a.records, a.lost = make(map[edge]*record, min(len(out), 1024)), 0
	return out, lost
}

func (a *aggregator) lostEver() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ever
}
