package flows

import (
	"net/netip"
	"strings"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/wire"
)

// ahead is how far an agent's clock may be ahead of ours before its records are moved.
const ahead = time.Minute

// resolve turns what an agent recorded into records with the names of this moment. Records that cannot be read, and
// those of workloads and addresses that are not of the agent's host, are left out and counted.
func (i *Ingester) resolve(host string, in []*pb.FlowRecord) []flowstore.Record {
	s := i.snapshot()
	now := i.cfg.Now()
	out := make([]flowstore.Record, 0, len(in))
	for _, m := range in {
		r, ok := record(s, host, m)
		if !ok {
			i.counters.Rejected.Add(1)
			continue
		}
		if late := r.Last.Sub(now); late > ahead {
			r.First, r.Last = r.First.Add(-late), r.Last.Add(-late)
			i.counters.Shifted.Add(1)
		}
		out = append(out, r)
	}
	return out
}

// Limits on texts that agents send; longer ones are cut.
const (
	maxProcess = 64
	maxPath    = 512
	maxRule    = 600
)

func record(s *world.Snapshot, host string, m *pb.FlowRecord) (r flowstore.Record, ok bool) {
	direction, err1 := wire.DirectionFromProto(m.GetDirection())
	verdict, err2 := wire.VerdictFromProto(m.GetVerdict())
	localAddr, err3 := wire.AddrFromProto(m.GetLocalAddr())
	remoteAddr, err4 := wire.AddrFromProto(m.GetRemoteAddr())
	proto, port, err5 := wire.PortFromProto(m.GetProto(), m.GetPort())
	for _, err := range []error{err1, err2, err3, err4, err5} {
		if err != nil {
			return r, false
		}
	}
	if m.GetLastMs() < m.GetFirstMs() || m.GetFirstMs() <= 0 || !ours(s, host, m.GetWorkload()) {
		return r, false
	}
	if !ourAddress(s, host, localAddr) {
		var ok bool
		if localAddr, ok = sender(s, host, m.GetWorkload(), localAddr); !ok || direction != model.Egress || verdict == model.Allow {
			return r, false
		}
	}
	r.Host, r.Workload, r.Direction = host, m.GetWorkload(), direction
	r.Proto, r.Port, r.Verdict, r.Rule = proto, port, verdict, model.RuleID(cut(m.GetRule(), maxRule))
	r.Process, r.Path, r.UID = cut(m.GetProcess().GetName(), maxProcess), cut(m.GetProcess().GetPath(), maxPath), m.GetProcess().GetUid()
	r.First, r.Last = time.UnixMilli(m.GetFirstMs()).UTC(), time.UnixMilli(m.GetLastMs()).UTC()
	r.Connections, r.Existing = m.GetConnections(), min(m.GetExisting(), m.GetConnections())
	if direction == model.Egress {
		r.Source, r.Dest = localAddr, remoteAddr
		r.BytesToServer, r.BytesToClient = m.GetBytesSent(), m.GetBytesReceived()
		r.PacketsToServer, r.PacketsToClient = m.GetPacketsSent(), m.GetPacketsReceived()
	} else {
		r.Source, r.Dest = remoteAddr, localAddr
		r.BytesToServer, r.BytesToClient = m.GetBytesReceived(), m.GetBytesSent()
		r.PacketsToServer, r.PacketsToClient = m.GetPacketsReceived(), m.GetPacketsSent()
	}
	if peer := m.GetRemoteWorkload(); peer != "" && ours(s, host, peer) {
		r.Peer, r.Exact = peer, true
	} else {
		r.Peer = s.Resolve(remoteAddr, direction == model.Egress, proto, port)
	}
	return r, true
}

// ours reports whether the workload is of the host. One that is not known may be new or just gone; its name tells.
func ours(s *world.Snapshot, host, workload string) bool {
	if workload == host {
		return true
	}
	if inst := s.Instance(workload); inst != nil {
		return inst.Host == host
	}
	return strings.HasPrefix(workload, host+"/")
}

// ourAddress reports whether the host may speak for the address: nobody else has it.
func ourAddress(s *world.Snapshot, host string, a netip.Addr) bool {
	owners := s.Owners(a)
	for _, o := range owners {
		if o.Host == host || o.Name == host {
			return true
		}
	}
	return len(owners) == 0
}

// sender returns an address of the workload to put in place of another's, from which it tried to send: who tried is known, and
// that attempt is to be on record as his.
func sender(s *world.Snapshot, host, workload string, forged netip.Addr) (netip.Addr, bool) {
	for _, name := range []string{workload, host} {
		inst := s.Instance(name)
		if inst == nil {
			continue
		}
		for _, a := range inst.Addresses {
			if a.Is4() == forged.Is4() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func cut(s string, limit int) string {
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "")
	}
	return s
}
