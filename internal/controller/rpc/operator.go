package rpc

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/store"
	"bulkhead/internal/wire"
)

// operatorService serves operators. Who they are has been found out before.
type operatorService struct{ *Services }

// GetStatus implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	s, t, c := o.World.Snapshot(), o.Fleet.Totals(), o.Flows.Counters()
	return &pb.GetStatusResponse{
		Version: o.Version, Revision: s.Revision(), AgentsConnected: uint32(t.Connected), AgentsKnown: uint32(t.Known),
		AgentsCurrent: uint32(t.Current), Workloads: uint32(s.Len()),
		FlowRecords: c.Taken.Load(), FlowRecordsLost: c.Lost(), StartedMs: o.Started.UnixMilli(),
	}, nil
}

// GetWorld implements bulkheadv1connect.ControllerServiceHandler. Of an older revision the documents are returned with
// the inventory of now.
func (o *operatorService) GetWorld(ctx context.Context, r *pb.GetWorldRequest) (*pb.GetWorldResponse, error) {
	// Whoever has just been told that a quarantine is in force must find it in the world, which is compiled after.
	if err := o.World.Flush(); err != nil {
		o.Log.Error("the world cannot be compiled", "error", err) // the last snapshot stays in force
	}
	s := o.World.Snapshot()
	resp := &pb.GetWorldResponse{Revision: s.Revision(), Documents: s.Documents().Canonical, TimeMs: o.Now().UnixMilli()}
	if n := r.GetRevision(); n != 0 && n != s.Revision() {
		old, err := o.revision(ctx, n)
		if err != nil {
			return nil, err
		}
		resp.Revision, resp.Documents = old.Number, old.Documents
	}
	for _, c := range o.Controllers {
		resp.Controllers = append(resp.Controllers, c.String())
	}
	connected, declared := o.Fleet.Connected(), map[string]bool{}
	for i := range s.Documents().Parsed.Workloads {
		declared[s.Documents().Parsed.Workloads[i].Name] = true
	}
	for of := range s.Instances() {
		inst := wire.InstanceToProto(of)
		inst.Declared, inst.Connected = declared[inst.Name], connected[inst.Host]
		resp.Instances = append(resp.Instances, inst)
	}
	return resp, nil
}

// GetHostPolicy implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) GetHostPolicy(_ context.Context, r *pb.GetHostPolicyRequest) (*pb.GetHostPolicyResponse, error) {
	p, err := o.World.HostPolicy(r.GetHost())
	if err != nil {
		return nil, o.fail("compile the policy of a host", err)
	}
	if p == nil {
		if inst := o.World.Snapshot().Instance(r.GetHost()); inst != nil && inst.Host != "" && inst.Host != inst.Name {
			return nil, connect.Errorf(connect.CodeNotFound, "%s is a unit; ask for its host %s", inst.Name, inst.Host)
		}
		return nil, connect.Errorf(connect.CodeNotFound, "there is no host %s; `bulkhead agents` lists them", r.GetHost())
	}
	return &pb.GetHostPolicyResponse{Policy: wire.PolicyToProto(p.Policy), Hash: p.Sum.String()}, nil
}

// ListAgents implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) ListAgents(context.Context, *pb.ListAgentsRequest) (*pb.ListAgentsResponse, error) {
	return &pb.ListAgentsResponse{Agents: o.Fleet.List()}, nil
}

// RevokeAgent implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) RevokeAgent(ctx context.Context, r *pb.RevokeAgentRequest) (*pb.RevokeAgentResponse, error) {
	host := r.GetHost()
	var now time.Time
	err := o.Store.Update(ctx, func(tx store.Tx) error {
		now = o.Now() // in here, so that it is ordered with the times of other changes of this host
		a, err := tx.Agent(host)
		if errors.Is(err, store.ErrNotFound) {
			return connect.Errorf(connect.CodeNotFound, "no host %s has ever enrolled; `bulkhead agents` lists those that have", host)
		}
		if err != nil {
			return err
		}
		if a.Revoked() {
			return connect.Errorf(connect.CodeFailedPrecondition, "the agent of host %s is revoked already", host)
		}
		a.Enrollment, a.RevokedAt = 0, now
		if err := tx.PutAgent(*a); err != nil {
			return err
		}
		_, err = tx.AppendAudit(store.AuditEntry{Time: now, Actor: actor(ctx), Action: audit.RevokeAgent, Subject: host})
		return err
	})
	if err != nil {
		return nil, o.fail("revoke agent", err)
	}
	o.Fleet.Revoked(host, now)
	o.Log.Warn("agent revoked", "host", host, "by", actor(ctx))
	return &pb.RevokeAgentResponse{}, nil
}

// AllowAgent implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) AllowAgent(ctx context.Context, r *pb.AllowAgentRequest) (*pb.AllowAgentResponse, error) {
	host := r.GetHost()
	err := o.Store.Update(ctx, func(tx store.Tx) error {
		a, err := tx.Agent(host)
		if errors.Is(err, store.ErrNotFound) {
			return connect.Errorf(connect.CodeNotFound, "no host %s has ever enrolled; `bulkhead agents` lists those that have", host)
		}
		if err != nil {
			return err
		}
		if !a.Revoked() {
			return connect.Errorf(connect.CodeFailedPrecondition, "the agent of host %s is not revoked", host)
		}
		a.RevokedAt = time.Time{}
		if err := tx.PutAgent(*a); err != nil {
			return err
		}
		_, err = tx.AppendAudit(store.AuditEntry{Time: o.Now(), Actor: actor(ctx), Action: audit.AllowAgent, Subject: host})
		return err
	})
	if err != nil {
		return nil, o.fail("allow agent", err)
	}
	o.Fleet.Allowed(host)
	o.Log.Info("agent allowed again", "host", host, "by", actor(ctx))
	return &pb.AllowAgentResponse{}, nil
}

// ListAudit implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) ListAudit(ctx context.Context, r *pb.ListAuditRequest) (*pb.ListAuditResponse, error) {
	resp := &pb.ListAuditResponse{}
	err := o.Store.View(ctx, func(reader store.Reader) error {
		entries, intact, err := audit.List(reader, int(r.GetLimit()))
		resp.Intact = intact
		for _, e := range entries {
			resp.Entries = append(resp.Entries, &pb.AuditEntry{
				Number: e.Number, TimeMs: millis(e.Time), Actor: e.Actor, Action: e.Action, Subject: e.Subject,
				Detail: e.Detail, Denied: e.Denied, Hash: e.Hash,
			})
		}
		return err
	})
	if err != nil {
		return nil, o.fail("list audit", err)
	}
	return resp, nil
}

func (o *operatorService) revision(ctx context.Context, number uint64) (*store.Revision, error) {
	var rev *store.Revision
	err := o.Store.View(ctx, func(r store.Reader) (err error) {
		rev, err = r.Revision(number)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, connect.Errorf(connect.CodeNotFound, "there is no revision %d; `bulkhead history` lists those there are", number)
	}
	if err != nil {
		return nil, o.fail("read revision", err)
	}
	return rev, nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// since returns the time in milliseconds, or the one that long before now if it is not given.
func (o *operatorService) since(ms int64, ago time.Duration) time.Time {
	if ms == 0 {
		return o.Now().Add(-ago)
	}
	return time.UnixMilli(ms)
}
