package uplink

import (
	"context"
	"errors"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/wire"
)

// applyChanges applies what came down, one after the other, and answers each.
func (s *session) applyChanges(ctx context.Context) error {
	for {
		var m *pb.ControllerMessage
		select {
		case m = <-s.changes:
		case <-ctx.Done():
			return ctx.Err()
		}
		if i := m.GetIsolate(); i != nil {
			if err := s.isolate(ctx, i); err != nil {
				s.deps.Log.Error("a workload was not isolated", "error", err)
				s.deps.Report(problemIsolate, err.Error())
				s.StatusChanged()
			}
			continue
		}
		answer := &pb.AgentMessage{Message: &pb.AgentMessage_Ack{Ack: s.change(ctx, m)}}
		select {
		case s.acks <- answer:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.StatusChanged()
	}
}

// isolate does what the fast path of quarantine asks for and says so at once.
func (s *session) isolate(ctx context.Context, m *pb.Isolate) error {
	return s.deps.Policy.Isolate(ctx, m.GetWorkload(), m.GetOn(), apply.ByController, s.StatusChanged)
}

// problemIsolate stands until a policy has been applied: it says itself who is isolated.
const problemIsolate = "isolate"

// change applies a snapshot or a delta and returns the answer. An answer with another hash than the controller expects
// and without a reason asks for a snapshot.
func (s *session) change(ctx context.Context, m *pb.ControllerMessage) *pb.Ack {
	p, err := s.decode(m)
	if errors.Is(err, wire.ErrBase) || errors.Is(err, wire.ErrResult) {
		s.deps.Log.Info("asking for a snapshot", "reason", err)
		return s.ack(dataplane.ApplyStats{}, "")
	}
	if err != nil {
		s.deps.Log.Error("a policy was refused: the message is malformed", "error", err)
		return s.ack(dataplane.ApplyStats{}, "malformed message: "+err.Error())
	}
	stats, err := s.deps.Policy.Set(ctx, p)
	if err != nil {
		s.deps.Log.Error("a policy was refused", "revision", p.Revision, "error", err)
		return s.ack(dataplane.ApplyStats{}, err.Error())
	}
	s.deps.Report(problemIsolate, "")
	s.deps.Log.Info("policy applied", "revision", p.Revision, "hash", p.Hash().Short(), "rows", stats.Rows,
		"addresses", stats.Addresses, "reset", stats.Reset, "took", stats.Took)
	return s.ack(stats, "")
}

func (s *session) decode(m *pb.ControllerMessage) (*hostpolicy.Policy, error) {
	if d := m.GetDelta(); d != nil {
		var base *hostpolicy.Policy
		if now := s.deps.Policy.Current(); now != nil {
			base = now.Policy
		}
		return wire.ApplyDelta(base, d)
	}
	return wire.PolicyFromProto(m.GetSnapshot())
}

// ack tells what is in force now.
func (s *session) ack(stats dataplane.ApplyStats, refused string) *pb.Ack {
	a := &pb.Ack{
		Refused:   refused,
		TookUs:    stats.Took.Microseconds(),
		Rows:      uint64(stats.Rows),
		Addresses: uint64(stats.Addresses),
		Reset_:    uint64(stats.Reset),
	}
	if now := s.deps.Policy.Current(); now != nil {
		a.Revision, a.Hash = now.Policy.Revision, now.Hash[:]
	}
	return a
}
