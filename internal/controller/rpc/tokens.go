package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/quarantine"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/store"
	"bulkhead/internal/wire"
)

// CreateToken implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) CreateToken(ctx context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	life, err := seconds(r.GetTtlSeconds())
	if err != nil {
		return nil, err
	}
	text, token, err := o.CA.NewToken(trust.TokenRequest{
		Host: r.GetHost(), Labels: r.GetLabels(), Uses: int(r.GetUses()), Life: life, Note: r.GetNote(), By: actor(ctx),
	}, o.Now())
	if err != nil {
		return nil, o.fail("create token", err)
	}
	if err := o.Store.Update(ctx, func(tx store.Tx) error {
		if err := tx.PutToken(token); err != nil {
			return err
		}
		_, err := tx.AppendAudit(store.AuditEntry{
			Time: token.Created, Actor: token.CreatedBy, Action: audit.CreateToken, Subject: token.ID,
			Detail: fmt.Sprintf("host %q, labels %q, %d uses, until %s: %s", token.Host, token.Labels.String(), token.Uses,
				token.Expires.UTC().Format(time.RFC3339), token.Note),
		})
		return err
	}); err != nil {
		return nil, o.fail("create token", err)
	}
	return &pb.CreateTokenResponse{Id: token.ID, Token: text.Text(), ExpiresMs: millis(token.Expires)}, nil
}

// ListTokens implements bulkheadv1connect.ControllerServiceHandler. A revoked token has no uses left.
func (o *operatorService) ListTokens(ctx context.Context, _ *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	resp := &pb.ListTokensResponse{}
	err := o.Store.View(ctx, func(reader store.Reader) error {
		list, err := reader.Tokens()
		for _, t := range list {
			out := &pb.Token{
				Id: t.ID, Host: t.Host, Labels: t.Labels, UsesLeft: uint32(max(t.UsesLeft, 0)), ExpiresMs: millis(t.Expires),
				CreatedMs: millis(t.Created), CreatedBy: t.CreatedBy, Note: t.Note,
			}
			if !t.RevokedAt.IsZero() {
				out.UsesLeft = 0
			}
			resp.Tokens = append(resp.Tokens, out)
		}
		return err
	})
	if err != nil {
		return nil, o.fail("list tokens", err)
	}
	return resp, nil
}

// RevokeToken implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) RevokeToken(ctx context.Context, r *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	err := o.Store.Update(ctx, func(tx store.Tx) error {
		t, err := tx.Token(r.GetId())
		if errors.Is(err, store.ErrNotFound) {
			return connect.Errorf(connect.CodeNotFound, "there is no join token %s; `bulkhead token list` lists them", r.GetId())
		}
		if err != nil {
			return err
		}
		if !t.RevokedAt.IsZero() {
			return connect.Errorf(connect.CodeFailedPrecondition, "join token %s is revoked already", t.ID)
		}
		t.RevokedAt = o.Now()
		if err := tx.PutToken(*t); err != nil {
			return err
		}
		_, err = tx.AppendAudit(store.AuditEntry{Time: t.RevokedAt, Actor: actor(ctx), Action: audit.RevokeToken, Subject: t.ID})
		return err
	})
	if err != nil {
		return nil, o.fail("revoke token", err)
	}
	return &pb.RevokeTokenResponse{}, nil
}

// SetQuarantine implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) SetQuarantine(ctx context.Context, r *pb.SetQuarantineRequest) (*pb.SetQuarantineResponse, error) {
	level, err := wire.LevelFromProto(r.GetLevel())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	ttl, err := seconds(r.GetTtlSeconds())
	if err != nil {
		return nil, err
	}
	wait := min(max(r.GetWaitMs(), -1), 24*3600*1000) // bounded, so that it can be a duration
	done, err := o.Quarantine.Set(ctx, quarantine.Request{
		Workload: r.GetWorkload(), Level: level, TTL: ttl, Reason: r.GetReason(), By: actor(ctx),
		Wait: time.Duration(wait) * time.Millisecond,
	})
	if err != nil {
		return nil, o.fail("quarantine", err)
	}
	return &pb.SetQuarantineResponse{
		Isolated: done.Held, TookUs: done.Took.Microseconds(), Detail: done.Detail, UntilMs: millis(done.Until),
	}, nil
}

// LiftQuarantine implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) LiftQuarantine(ctx context.Context, r *pb.LiftQuarantineRequest) (*pb.LiftQuarantineResponse, error) {
	if err := o.Quarantine.Lift(ctx, r.GetWorkload(), r.GetReason(), actor(ctx)); err != nil {
		return nil, o.fail("lift quarantine", err)
	}
	return &pb.LiftQuarantineResponse{}, nil
}

// ListQuarantines implements bulkheadv1connect.ControllerServiceHandler.
func (o *operatorService) ListQuarantines(context.Context, *pb.ListQuarantinesRequest) (*pb.ListQuarantinesResponse, error) {
	resp := &pb.ListQuarantinesResponse{}
	for _, l := range o.Quarantine.List() {
		resp.Quarantines = append(resp.Quarantines, &pb.Quarantine{
			Workload: l.Workload, Level: wire.LevelToProto(l.Level), Reason: l.Reason, By: l.By,
			SinceMs: millis(l.Since), UntilMs: millis(l.Until),
		})
	}
	return resp, nil
}

// seconds turns a number of seconds into a duration, if it is not out of all reason.
func seconds(n int64) (time.Duration, error) {
	const limit = 100 * 365 * 24 * 3600
	if n < 0 || n > limit {
		return 0, connect.Errorf(connect.CodeInvalidArgument, "%d seconds: give a number between 1 and %d, or 0 for the default", n, limit)
	}
	return time.Duration(n) * time.Second, nil
}
