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
	feed := edgeFeed{stream: stream, world: o.World, limit: int(r.GetLimit())}
	past := func() error {
		edges, err := o.Flows.Edges(ctx, query, s)
		if err != nil {
			return o.fail("list flows", err)
		}
		if name := query.Unknown(); name != "" && !r.GetFollow() {
			return connect.Errorf(connect.CodeNotFound, "no workload is or was called %s; a selector reads app=web, and `bulkhead get workloads` lists the names", name)
		}
		return feed.send(edges, 0)
	}
	if !r.GetFollow() {
		return enough(past())
	}
	return enough(o.Flows.Follow(ctx, past, func(edges []flowstore.Edge, lost uint64) error {
		edges = query.Select(edges, o.World.Snapshot())
		if len(edges) == 0 && lost == 0 {
			return nil
		}
		return feed.send(edges, lost)
	}))
}

var errEnough = errors.New("as many as were asked for")

// enough takes the end of a feed for what it is.
func enough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// edgeFeed sends edges up to a limit.
type edgeFeed struct {
	stream bulkheadv1connect.ControllerServiceListFlowsServerStream
	world  *world.World
	limit  int // 0: none
	sent   int
}

// send sends the edges, and returns errEnough when as many are sent as were asked for.
func (f *edgeFeed) send(edges []flowstore.Edge, lost uint64) error {
	if left := f.limit - f.sent; f.limit > 0 && len(edges) > left {
		edges = edges[:left]
	}
	f.sent += len(edges)
	s := f.world.Snapshot()
	for first := true; first || len(edges) > 0; first = false {
		n := min(len(edges), edgesPerMessage)
		m := &pb.ListFlowsResponse{Lost: lost}
		for i := range edges[:n] {
			m.Edges = append(m.Edges, edge(&edges[i], s))
		}
		if err := f.stream.Send(m); err != nil {
			return err
		}
		edges, lost = edges[n:], 0
	}
	if f.limit > 0 && f.sent >= f.limit {
		return errEnough
	}
	return nil
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
