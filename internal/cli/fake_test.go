package cli

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/rogpeppe/go-internal/testscript"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
)

// brokenController MOOD starts a controller that misbehaves and points the command at it.
func brokenController(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: broken-controller MOOD")
	}
	socket := filepath.Join(ts.Getenv("WORK"), "controller.sock")
	l, err := net.Listen("unix", socket)
	ts.Check(err)
	f := &fakeController{mood: args[0]}
	server := connect.NewServer()
	bulkheadv1connect.RegisterControllerServiceHandler(server, f)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	h := &http.Server{Handler: f.intercept(mux)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Serve(l)
	}()
	ts.Defer(func() {
		h.Close()
		<-done
	})
	ts.Setenv("BULKHEAD_CONTROLLER", "unix://"+socket)
}

// fakeController fails in the way of its mood. It answers what a real controller cannot be brought to answer.
type fakeController struct {
	bulkheadv1connect.UnimplementedControllerServiceHandler
	mood string
}

// intercept lets a mood answer before any handler.
func (f *fakeController) intercept(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch f.mood {
		case "slow":
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
		case "web":
			http.Error(w, "this is some other web server", http.StatusNotFound)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (f *fakeController) GetStatus(context.Context, *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	switch f.mood {
	case "denied":
		return nil, connect.Errorf(connect.CodePermissionDenied, "only root may do this")
	case "full":
		return nil, connect.Errorf(connect.CodeResourceExhausted, "the disk is full")
	}
	return nil, connect.Errorf(connect.CodeUnimplemented, "no")
}

func (f *fakeController) GetWorld(context.Context, *pb.GetWorldRequest) (*pb.GetWorldResponse, error) {
	r := &pb.GetWorldResponse{Revision: 7, TimeMs: time.Now().UnixMilli()}
	switch f.mood {
	case "odd documents":
		r.Documents = "apiVersion: bulkhead/v9\n"
	case "odd workload":
		r.Instances = []*pb.Instance{{Name: "w", Addresses: []string{"10.0.0.300"}}}
	case "odd controllers":
		r.Controllers = []string{"here"}
	}
	return r, nil
}

func (f *fakeController) Plan(context.Context, *pb.PlanRequest) (*pb.PlanResponse, error) {
	return &pb.PlanResponse{PlanJson: `{"opened": 7}`}, nil
}

func (f *fakeController) ListAudit(context.Context, *pb.ListAuditRequest) (*pb.ListAuditResponse, error) {
	day := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	return &pb.ListAuditResponse{Entries: []*pb.AuditEntry{
		{Number: 2, TimeMs: day.UnixMilli(), Actor: "eve", Action: "apply", Detail: "may not", Denied: true, Hash: "bb"},
		{Number: 1, TimeMs: day.Add(-time.Hour).UnixMilli(), Actor: "root", Action: "token.create", Subject: "t1", Hash: "aa"},
	}}, nil
}

func (f *fakeController) ListFlows(_ context.Context, req *pb.ListFlowsRequest, s bulkheadv1connect.ControllerServiceListFlowsServerStream) error {
	e := &pb.Edge{From: "portal-1", To: "pay-api-1", Proto: 6, Port: 8443, Verdict: pb.Verdict_VERDICT_ALLOW, Seen: "both", Connections: 1}
	if f.mood == "odd flow" {
		e.Proto = 1000
	}
	if err := s.Send(&pb.ListFlowsResponse{Edges: []*pb.Edge{e}, Lost: 5}); err != nil {
		return err
	}
	if f.mood == "dying" {
		return connect.Errorf(connect.CodeUnavailable, "the controller is stopping")
	}
	return nil
}

func (f *fakeController) SetQuarantine(context.Context, *pb.SetQuarantineRequest) (*pb.SetQuarantineResponse, error) {
	return nil, connect.Errorf(connect.CodeInternal, "the store is damaged")
}
