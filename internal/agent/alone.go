package agent

import (
	"context"
	"fmt"
	"net/netip"

	"bulkhead/internal/agent/apply"
	"bulkhead/internal/agent/flows"
	"bulkhead/internal/agent/standalone"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// standAlone makes the keeper of a directory of documents.
func (a *Agent) standAlone() *standalone.Keeper {
	target, _ := budget.OfKind(a.dp.Capabilities().Kind)
	return standalone.New(standalone.Config{
		Dir: a.cfg.Standalone, Data: a.cfg.Data, Host: a.cfg.Host, Labels: a.cfg.Labels, Confirm: a.cfg.Confirm,
	}, standalone.Deps{
		Set: a.setDocuments,
		Current: func() *hostpolicy.Policy {
			if now := a.applier.Current(); now != nil {
				return now.Policy
			}
			return nil
		},
		Found: a.watcher.Current, Flows: a.recorded, Target: target, Log: a.log, Report: a.problems.Report,
	})
}

// setDocuments puts a policy in force. As long as nobody watches yet, the cgroups of its units are looked for here.
func (a *Agent) setDocuments(ctx context.Context, p *hostpolicy.Policy) error {
	if !a.watching {
		a.watcher.Name(ctx, apply.UnitsOf(p))
		if err := a.watcher.Scan(); err != nil {
			return err
		}
		if err := a.applier.SetUnits(ctx, a.watcher.Current().Units); err != nil {
			return err
		}
	}
	_, err := policy{a.applier, a.watcher}.Set(ctx, p)
	return err
}

// Documents implements status.Agent.
func (a *Agent) Documents() (status.Documents, error) {
	if a.alone == nil {
		return nil, fmt.Errorf("policy comes from the controller at %s: ask there, with bulkhead explain, plan and apply", a.cfg.Controller)
	}
	return a.alone, nil
}

// Flows implements status.Agent.
func (a *Agent) Flows(after uint64, denied bool) *status.Flows {
	list := a.collector.Recent().Since(after, denied)
	names := a.names()
	out := &status.Flows{Sequence: after, Flows: make([]status.Flow, len(list))}
	for i := range list {
		s := &list[i]
		from, to := names.ends(s)
		fromAddr, toAddr := s.Local, s.Remote
		if s.Dir == model.Ingress {
			fromAddr, toAddr = toAddr, fromAddr
		}
		out.Flows[i] = status.Flow{
			Direction: s.Dir.String(), From: from.String(), To: to.String(), FromAddr: fromAddr, ToAddr: toAddr,
			Proto: uint8(s.Proto), Port: s.Port, Verdict: s.Verdict.String(), Rule: string(s.Rule),
			Process: s.Process, Path: s.Path, UID: s.UID, Connections: s.Connections,
			BytesSent: s.BytesSent, BytesReceived: s.BytesReceived, First: s.First.UTC(), Last: s.Last.UTC(),
		}
		out.Sequence = s.Sequence
	}
	return out
}

// recorded returns what was seen lately as plans read it.
func (a *Agent) recorded() []model.RecordedFlow {
	if a.collector == nil {
		return nil
	}
	names := a.names()
	list := a.collector.Recent().Since(0, false)
	out := make([]model.RecordedFlow, len(list))
	for i := range list {
		s := &list[i]
		r := &out[i]
		r.From, r.To = names.ends(s)
		r.Proto, r.Port, r.Verdict, r.Connections, r.First, r.Last = s.Proto, s.Port, s.Verdict, max(1, s.Connections), s.First, s.Last
		var process *model.Process
		if s.Path != "" {
			process = &model.Process{Path: s.Path}
		}
		if s.Dir == model.Egress {
			r.FromAddr, r.ToAddr, r.FromProcess, r.FromName = s.Local, s.Remote, process, s.Process
		} else {
			r.FromAddr, r.ToAddr, r.ToProcess, r.ToName = s.Remote, s.Local, process, s.Process
		}
	}
	return out
}

// names finds the workloads of addresses, where documents name them.
type names struct{ world *compile.World }

func (a *Agent) names() names {
	if a.alone == nil {
		return names{}
	}
	return names{a.alone.World()}
}

// ends returns source and destination: their addresses, and workloads where it is known which.
func (n names) ends(s *flows.Seen) (from, to model.End) {
	near, far := model.End{Workload: s.Workload, Addr: s.Local}, n.far(s.RemoteWorkload, s.Remote)
	if s.Dir == model.Egress {
		return near, far
	}
	return far, near
}

func (n names) far(workload string, addr netip.Addr) model.End {
	if workload != "" {
		return model.End{Workload: workload, Addr: addr}
	}
	if n.world != nil {
		if owners := n.world.Owners(addr); len(owners) == 1 {
			return model.End{Workload: owners[0].Name, Addr: addr}
		}
	}
	return model.End{Addr: addr}
}
