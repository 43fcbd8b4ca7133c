package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/wire"
)

// API is the controller as an operator on its machine reaches it.
type API struct {
	bulkheadv1connect.ControllerServiceClient
	transport *http.Transport
}

func newAPI(socket string) *API {
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	client := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: t}, "http://controller"))
	return &API{ControllerServiceClient: bulkheadv1connect.NewControllerServiceClient(client), transport: t}
}

func (a *API) close() { a.transport.CloseIdleConnections() }

// Flows returns the edges that the request asks for.
func (a *API) Flows(ctx context.Context, q *pb.ListFlowsRequest) ([]*pb.Edge, error) {
	stream, err := a.ListFlows(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("list flows: %w", err)
	}
	defer stream.Close()
	var out []*pb.Edge
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list flows: %w", err)
		}
		out = append(out, m.Edges...)
	}
}

// World is what the controller holds, in the terms of the core.
type World struct {
	Revision  uint64
	Documents *model.Documents
	Inventory *model.Inventory
	Options   compile.Options
}

// World asks the controller for its newest documents and workloads.
func (a *API) World(ctx context.Context) (*World, error) {
	r, err := a.GetWorld(ctx, &pb.GetWorldRequest{})
	if err != nil {
		return nil, fmt.Errorf("get the world: %w", err)
	}
	w := &World{Revision: r.Revision, Inventory: &model.Inventory{}, Options: compile.Options{Now: time.UnixMilli(r.TimeMs)}}
	if w.Documents, err = policy.Parse([]policy.File{{Name: fmt.Sprintf("revision %d", r.Revision), Data: []byte(r.Documents)}}); err != nil {
		return nil, err
	}
	for _, p := range r.Instances {
		inst, err := wire.InstanceFromProto(p)
		if err != nil {
			return nil, fmt.Errorf("workload %s: %w", p.Name, err)
		}
		w.Inventory.Instances = append(w.Inventory.Instances, inst)
	}
	for _, c := range r.Controllers {
		at, err := netip.ParseAddrPort(c)
		if err != nil {
			return nil, err
		}
		w.Options.Controllers = append(w.Options.Controllers, at)
	}
	return w, nil
}
