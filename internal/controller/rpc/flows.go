package rpc

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/wire"
)

// edgesPerMessage bounds the size of one message of ListFlows.
const edgesPerMessage = 500

// ListFlows implements bulkheadv1connect.ControllerServiceHandler. Edges come latest first; with a limit they are the
// latest ones.
func (o *operatorService) ListFlows(ctx context.Context, r *pb.ListFlowsRequest, stream bulkheadv1connect.ControllerServiceListFlowsServerStream) error {
	s := o.World.Snapshot()
	filter := flows.Filter{
		Since: o.since(r.GetSinceMs(), day), From: r.GetFrom(), To: r.GetTo(), Port: r.GetPort(), Rule: r.GetRule(),
	}
	if ms := r.GetUntilMs(); ms != 0 {
		filter.Until = time.UnixMilli(ms)
	}
	for _, v := range r.GetVerdicts() {
		verdict, err := wire.VerdictFromProto(v)
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, err.Error())
		}
		filter.Verdicts = append(filter.Verdicts, verdict)
	}
	query, err := flows.Parse(filter, s)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	var sent int
	send := func(edges []flowstore.Edge, lost uint64) error {
		sent += len(edges)
		return sendEdges(stream, edges, lost, o.World.Snapshot())
	}
	past := func() error {
		edges, err := o.Flows.Edges(ctx, query, s)
		if err != nil {
			return o.fail("list flows", err)
		}
		if n := int(r.GetLimit()); n > 0 && len(edges) > n {
			edges = edges[:n]
		}
		if name := query.Unknown(); name != "" && !r.GetFollow() {
			return connect.Errorf(connect.CodeNotFound, "no workload is or was called %s; a selector reads app=web, and `bulkhead get workloads` lists the names", name)
		}
		return send(edges, 0)
	}
	if !r.GetFollow() {
		return past()
	}
	err = o.Flows.Follow(ctx, past, func(edges []flowstore.Edge, lost uint64) error {
		edges = query.Select(edges, o.World.Snapshot())
		if n := int(r.GetLimit()); n > 0 && sent+len(edges) > n {
			edges = edges[:max(n-sent, 0)]
		}
		if len(edges) > 0 || lost > 0 {
			if err := send(edges, lost); err != nil {
				return err
			}
		}
		if n := int(r.GetLimit()); n > 0 && sent >= n {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("as many as were asked for")

func sendEdges(stream bulkheadv1connect.ControllerServiceListFlowsServerStream, edges []flowstore.Edge, lost uint64, s *world.Snapshot) error {
	for {
		n := min(len(edges), edgesPerMessage)
		m := &pb.ListFlowsResponse{Lost: lost}
		for i := range edges[:n] {
			m.Edges = append(m.Edges, edge(&edges[i], s))
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		edges, lost = edges[n:], 0
		if len(edges) == 0 {
			return nil
		}
	}
}

func edge(e *flowstore.Edge, s *world.Snapshot) *pb.Edge {
	out := &pb.Edge{
		From: e.From, To: e.To, FromAddr: e.FromAddr.String(), ToAddr: e.ToAddr.String(),
		FromLabels: labels(s, e.From), ToLabels: labels(s, e.To), Proto: uint32(e.Proto), Port: uint32(e.Port),
		FromProcess: e.FromProcess, ToProcess: e.ToProcess, Verdict: wire.VerdictToProto(e.Verdict),
		Egress: edgeEnd(e.Egress), Ingress: edgeEnd(e.Ingress), Seen: e.Seen(),
		FirstMs: millis(e.First), LastMs: millis(e.Last), Connections: e.Connections,
		BytesToServer: e.BytesToServer, BytesToClient: e.BytesToClient,
	}
	if out.From == "" {
		out.From = out.FromAddr
	}
	if out.To == "" {
		out.To = out.ToAddr
	}
	return out
}

func edgeEnd(e *flowstore.EdgeEnd) *pb.EdgeEnd {
	if e == nil {
		return nil
	}
	return &pb.EdgeEnd{Verdict: wire.VerdictToProto(e.Verdict), Rule: string(e.Rule), Connections: e.Connections}
}

func labels(s *world.Snapshot, name string) model.Labels {
	if inst := s.Instance(name); inst != nil {
		return inst.Labels
	}
	return nil
}
