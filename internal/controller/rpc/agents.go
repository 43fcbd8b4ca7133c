package rpc

import (
	"context"
	"fmt"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/store"
)

// enrollmentService serves hosts that have no certificate yet.
type enrollmentService struct{ *Services }

// Enroll implements bulkheadv1connect.EnrollmentServiceHandler.
func (e *enrollmentService) Enroll(ctx context.Context, r *pb.EnrollRequest) (*pb.EnrollResponse, error) {
	resp, err := e.enroll(ctx, r)
	if err == nil {
		e.Metrics.Enrollments.WithLabelValues("ok").Inc()
		return resp, nil
	}
	e.Metrics.Enrollments.WithLabelValues("refused").Inc()
	if trust.AsRefusal(err) != nil {
		e.Metrics.Denials.WithLabelValues("enrollment").Inc()
		e.Audit.Denied(ctx, peerAddr(ctx), audit.Enroll, r.GetHost(), err.Error())
	}
	return nil, e.fail("enroll", err)
}

func (e *enrollmentService) enroll(ctx context.Context, r *pb.EnrollRequest) (*pb.EnrollResponse, error) {
	host := r.GetHost()
	if inst := e.World.Snapshot().Instance(host); inst != nil && inst.IsUnit() {
		return nil, &trust.Refusal{Kind: trust.Forbidden, Text: fmt.Sprintf(
			"%s is the name of a unit of host %s; enrol the host under its own name", host, inst.Host)}
	}
	var resp *pb.EnrollResponse
	var agent *store.Agent
	err := e.Store.Update(ctx, func(tx store.Tx) error {
		now := e.Now()
		var err error
		if agent, err = trust.Redeem(tx, r.GetToken(), host, now); err != nil {
			return err
		}
		leaf, err := e.CA.Agent(host, agent.Enrollment, r.GetCsr(), e.Certificate, now)
		if err != nil {
			return err // and the token is not used up
		}
		agent.Expires = leaf.NotAfter
		resp = &pb.EnrollResponse{Host: host, Chain: [][]byte{leaf.Raw}, Roots: e.CA.Roots(), NotAfterMs: leaf.NotAfter.UnixMilli()}
		_, err = tx.AppendAudit(store.AuditEntry{
			Time: now, Actor: "token " + agent.Token, Action: audit.Enroll, Subject: host,
			Detail: fmt.Sprintf("from %s, labels %q", peerAddr(ctx), agent.Labels.String()),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	e.Fleet.Enrolled(*agent)
	e.Log.Info("host enrolled", "host", host, "token", agent.Token)
	return resp, nil
}

// agentService serves hosts that have a certificate.
type agentService struct{ *Services }

// Renew implements bulkheadv1connect.AgentServiceHandler.
func (a *agentService) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	peer, err := a.agent(ctx, bulkheadv1connect.AgentServiceRenewProcedure, a.Grace)
	if err != nil {
		return nil, err
	}
	leaf, err := a.CA.Agent(peer.Host, peer.Enrollment, r.GetCsr(), a.Certificate, a.Now())
	if err != nil {
		return nil, a.fail("renew", err)
	}
	if late := a.Now().Sub(peer.NotAfter); late > 0 {
		a.Log.Info("certificate renewed after it had expired", "host", peer.Host, "late", late.Round(time.Second))
	}
	a.Fleet.Renewed(peer.Host, leaf.NotAfter)
	a.Metrics.Renewals.Inc()
	return &pb.RenewResponse{Chain: [][]byte{leaf.Raw}, Roots: a.CA.Roots(), NotAfterMs: leaf.NotAfter.UnixMilli()}, nil
}

// Connect implements bulkheadv1connect.AgentServiceHandler.
func (a *agentService) Connect(ctx context.Context, stream bulkheadv1connect.AgentServiceConnectServerStream) error {
	peer, err := a.agent(ctx, bulkheadv1connect.AgentServiceConnectProcedure, 0)
	if err != nil {
		return err
	}
	return a.Fleet.Serve(ctx, peer, stream, breaker(ctx))
}
