package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/standalone"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/version"
)

// counters returns the dataplane's totals; that they cannot be read is a problem of its own.
func (a *Agent) counters() dataplane.Counters {
	c, err := a.dp.Counters()
	if err != nil {
		a.problems.Report("counters", "the dataplane's counters cannot be read: "+err.Error())
		return c
	}
	a.problems.Report("counters", "")
	text := ""
	if a.namesLost.growing(c.NamesLost, time.Now()) {
		text = fmt.Sprintf("%d host names of addresses did not fit: connections that rules allow by name may be denied; name fewer hosts, or those with very many addresses by cidr", c.NamesLost)
	}
	a.problems.Report("names", text)
	return c
}

// growth watches a total that should not grow. Its method may be called from several goroutines.
type growth struct {
	mu    sync.Mutex
	known bool
	total uint64
	grew  time.Time
}

// growthShown is for how long it is a problem that a total grew.
const growthShown = 10 * time.Minute

// growing reports whether the total has grown lately. What there was at the first call happened before.
func (g *growth) growing(total uint64, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known && total > g.total {
		g.grew = now
	}
	g.known, g.total = true, total
	return !g.grew.IsZero() && now.Sub(g.grew) < growthShown
}

// agentStatus is what the controller is told every few seconds.
func (a *Agent) agentStatus() *pb.AgentStatus {
	c := a.counters()
	s := &pb.AgentStatus{
		Judged: c.Judged, Denied: c.Denied, WouldDenied: c.WouldDenied, DroppedPackets: c.DroppedPkts,
		EventsLost: c.EventsLost, Errors: c.Errors, RecordsLost: a.collector.Lost(), ResidentBytes: resident(),
		Problems: a.problems.List(), Isolated: a.applier.Isolated(),
	}
	if g := a.applier.Glass(); !g.Until.IsZero() {
		s.GlassUntilMs, s.GlassReason = uint64(g.Until.UnixMilli()), g.Reason
	}
	if t := a.guard.last.Load(); t != nil {
		s.TamperedAtMs, s.Tampered = uint64(t.at.UnixMilli()), t.found
	}
	if now := a.applier.Current(); now != nil {
		s.Revision, s.Hash = now.Policy.Revision, now.Hash[:]
	}
	return s
}

// Status implements status.Agent.
func (a *Agent) Status() *status.Report {
	c := a.dp.Capabilities()
	r := &status.Report{
		Host: a.cfg.Host, Version: version.String(), Started: a.started.UTC(), Subjects: []status.Subject{},
		Isolated: a.applier.Isolated(), Dataplane: status.Dataplane{Kind: c.Kind, Kernel: c.Kernel, Limits: c.Limits},
		Counters: status.Counters(a.counters()), RecordsLost: a.collector.Lost(),
		ResidentBytes: resident(),
	}
	var world *compile.World
	if a.alone != nil {
		r.Alone, world = a.alone.Status()
	} else {
		r.Controller, r.Connected, r.Sessions, r.SpoolBytes = a.cfg.Controller, a.link.Connected(), a.link.Sessions(), a.spool.Backlog()
		if id := a.keeper.Current(); id != nil {
			r.Certificate = id.NotAfter().UTC()
		}
	}
	r.Problems = a.problems.List() // after what they are about
	if g := a.applier.Glass(); !g.Until.IsZero() {
		r.Glass = &status.Glass{Until: g.Until.UTC(), Reason: g.Reason}
	}
	now := a.applier.Current()
	if now == nil {
		return r
	}
	r.Revision, r.Hash = now.Policy.Revision, now.Hash.String()
	r.Dataplane.Rows, r.Dataplane.Addresses = now.Stats.Rows, now.Stats.Addresses
	units := a.watcher.Current().Units
	for i := range now.Policy.Subjects {
		s := &now.Policy.Subjects[i]
		subject := status.Subject{
			Workload: s.Workload, Unit: s.Unit, Isolated: slices.Contains(r.Isolated, s.Workload),
		}
		if s.Quarantine != model.QuarantineNone {
			subject.Quarantine = s.Quarantine.String()
		}
		if s.Unit != "" {
			subject.Cgroups = paths(units[s.Unit], a.cfg.CgroupRoot)
		}
		standalone.Describe(world, &subject)
		r.Subjects = append(r.Subjects, subject)
	}
	return r
}

// Isolate implements status.Agent: somebody on this host asks to contain a workload.
func (a *Agent) Isolate(ctx context.Context, workload string, on bool) error {
	return a.applier.Isolate(ctx, workload, on, apply.ByHost, a.statusChanged)
}

func unitInfos(units map[string][]inventory.Cgroup, root string) []*pb.UnitInfo {
	var out []*pb.UnitInfo
	for _, name := range slices.Sorted(maps.Keys(units)) {
		out = append(out, &pb.UnitInfo{Name: name, Cgroups: paths(units[name], root)})
	}
	return out
}

// paths returns the cgroups' paths below the root.
func paths(cgroups []inventory.Cgroup, root string) []string {
	var out []string
	for _, c := range cgroups {
		p, err := filepath.Rel(root, c.Path)
		if err != nil {
			p = c.Path
		}
		out = append(out, p)
	}
	return out
}
