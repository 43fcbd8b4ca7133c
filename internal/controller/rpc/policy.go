package rpc

import (
	"context"
	"encoding/json"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/change"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/store"
)

const day = 24 * time.Hour

// Plan implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) Plan(ctx context.Context, r *pb.PlanRequest) (*pb.PlanResponse, error) {
	edit, err := edit(r.GetFiles(), r.GetPrune(), r.GetRemove())
	if err != nil {
		return nil, err
	}
	p, err := o.Desk.Plan(ctx, edit, o.since(r.GetFlowsSinceMs(), day))
	if err != nil {
		return nil, o.fail("plan", err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, o.fail("plan", err)
	}
	return &pb.PlanResponse{BaseRevision: p.BaseRevision, PlanJson: string(text), Ok: p.OK}, nil
}

// Apply implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) Apply(ctx context.Context, r *pb.ApplyRequest) (*pb.ApplyResponse, error) {
	edit, err := edit(r.GetFiles(), r.GetPrune(), r.GetRemove())
	if err != nil {
		return nil, err
	}
	done, err := o.Desk.Apply(ctx, change.Request{
		Edit: edit, Base: r.GetBaseRevision(), Author: actor(ctx), Note: r.GetNote(), Force: r.GetForce(),
	})
	return o.applied(ctx, audit.Apply, done, err)
}

// Rollback implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) Rollback(ctx context.Context, r *pb.RollbackRequest) (*pb.ApplyResponse, error) {
	done, err := o.Desk.Rollback(ctx, r.GetRevision(), actor(ctx), r.GetNote())
	return o.applied(ctx, audit.Rollback, done, err)
}

func (o *operatorService) applied(ctx context.Context, action string, done *change.Result, err error) (*pb.ApplyResponse, error) {
	if err != nil {
		err = o.fail(action, err)
		o.Audit.Denied(ctx, actor(ctx), action, "", message(err))
		return nil, err
	}
	t := o.Fleet.Totals()
	return &pb.ApplyResponse{
		Revision: done.Revision, Hash: done.Hash, Changed: done.Changed, Warnings: done.Warnings,
		AgentsPending: uint32(t.Connected - t.Current),
	}, nil
}

// message returns what the caller is told.
func message(err error) string {
	if e, ok := err.(*connect.Error); ok {
		return e.Message()
	}
	return err.Error()
}

func edit(files []*pb.File, prune bool, remove []*pb.DocumentRef) (change.Edit, error) {
	e := change.Edit{Prune: prune}
	for _, f := range files {
		e.Files = append(e.Files, policy.File{Name: f.GetName(), Data: []byte(f.GetContent())})
	}
	for _, r := range remove {
		kind := model.Kind(r.GetKind())
		known := false
		for _, k := range model.Kinds {
			known = known || k == kind
		}
		if !known {
			return e, connect.Errorf(connect.CodeInvalidArgument, "there is no kind of document called %q", r.GetKind())
		}
		e.Remove = append(e.Remove, change.Ref{Kind: kind, Name: r.GetName()})
	}
	return e, nil
}

// ListRevisions implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) ListRevisions(ctx context.Context, r *pb.ListRevisionsRequest) (*pb.ListRevisionsResponse, error) {
	resp := &pb.ListRevisionsResponse{}
	err := o.Store.View(ctx, func(reader store.Reader) error {
		list, err := reader.Revisions(int(r.GetLimit()))
		for i := range list {
			resp.Revisions = append(resp.Revisions, revision(&list[i]))
		}
		return err
	})
	if err != nil {
		return nil, o.fail("list revisions", err)
	}
	return resp, nil
}

// GetRevision implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) GetRevision(ctx context.Context, r *pb.GetRevisionRequest) (*pb.GetRevisionResponse, error) {
	rev, err := o.revision(ctx, r.GetNumber())
	if err != nil {
		return nil, err
	}
	return &pb.GetRevisionResponse{Revision: revision(rev), Documents: rev.Documents}, nil
}

func revision(r *store.Revision) *pb.Revision {
	return &pb.Revision{
		Number: r.Number, Hash: r.Hash, Author: r.Author, Note: r.Note, TimeMs: millis(r.Time), Documents: uint32(r.Count),
	}
}
