// Package rpc serves the controller's API: enrolment and streams to agents, and everything else to operators. It
// finds out who is calling, translates between protobuf and the rest of the controller, and says in plain words what
// went wrong. It decides nothing.
package rpc

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/change"
	"bulkhead/internal/controller/fleet"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/metrics"
	"bulkhead/internal/controller/quarantine"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/store"
)

// Limits on messages.
const (
	maxFromAgent    = 16 << 20
	maxFromOperator = 64 << 20
	// Smaller messages cost more to compress than to send.
	worthCompressing = 4 << 10
)

// Services is what the API is made of. All fields must be set.
type Services struct {
	Store       store.Store
	World       *world.World
	Fleet       *fleet.Fleet
	Flows       *flows.Ingester
	Desk        *change.Desk
	Quarantine  *quarantine.Manager
	CA          *trust.CA
	Audit       *audit.Log
	Metrics     *metrics.Metrics
	Log         *slog.Logger
	Now         func() time.Time
	Started     time.Time
	Version     string
	Certificate time.Duration // life of agents' certificates
	Grace       time.Duration // after which an expired one can no longer be renewed
	Controllers []netip.AddrPort
	Closing     context.Context // ends streams when the controller ends
}

// Network returns what is served over TLS: agents by certificate, operators by token.
func (s *Services) Network() http.Handler {
	mux := http.NewServeMux()
	agents := connect.NewServer(s.observe)
	bulkheadv1connect.RegisterEnrollmentServiceHandler(agents, &enrollmentService{s})
	bulkheadv1connect.RegisterAgentServiceHandler(agents, &agentService{s})
	connecthttp.Mount(mux, agents, connecthttp.WithReadMaxBytes(maxFromAgent), connecthttp.WithCompressMinBytes(worthCompressing))
	operators := connect.NewServer(s.observe, s.byToken)
	bulkheadv1connect.RegisterControllerServiceHandler(operators, &operatorService{s})
	connecthttp.Mount(mux, operators, connecthttp.WithReadMaxBytes(maxFromOperator), connecthttp.WithCompressMinBytes(worthCompressing))
	return withControl(mux)
}

// Local returns what is served on the socket: operators on this machine, whom the kernel names.
func (s *Services) Local() http.Handler {
	mux := http.NewServeMux()
	operators := connect.NewServer(s.observe, s.byPeer)
	bulkheadv1connect.RegisterControllerServiceHandler(operators, &operatorService{s})
	connecthttp.Mount(mux, operators, connecthttp.WithReadMaxBytes(maxFromOperator), connecthttp.WithCompressMinBytes(worthCompressing))
	return mux
}
