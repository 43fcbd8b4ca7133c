package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"golang.org/x/sys/unix"

	"bulkhead/internal/controller/audit"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/store"
)

type (
	actorKey   struct{}
	controlKey struct{}
	ucredKey   struct{}
)

// actor returns who is calling, as the audit log names him.
func actor(ctx context.Context) string {
	name, _ := ctx.Value(actorKey{}).(string)
	return name
}

// peerAddr returns the address of the caller without its port.
func peerAddr(ctx context.Context) string {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		return "unknown"
	}
	host, _, err := net.SplitHostPort(info.PeerAddr)
	if err != nil {
		return info.PeerAddr
	}
	return host
}

// byToken lets in who has an API token.
func (s *Services) byToken(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		info, ok := connect.CallInfoForServerContext(ctx)
		if !ok {
			return errors.New("no call info")
		}
		var known []store.Credential
		if err := s.Store.View(ctx, func(r store.Reader) (err error) {
			known, err = r.Credentials()
			return err
		}); err != nil {
			return s.fail(spec.Procedure, err)
		}
		name, err := trust.Bearer(info.RequestHeader().Get("Authorization"), known)
		if err != nil {
			s.Metrics.Denials.WithLabelValues("operator").Inc()
			s.Audit.Denied(ctx, peerAddr(ctx), audit.Login, spec.Procedure, err.Error())
			return s.fail(spec.Procedure, err)
		}
		return next(context.WithValue(ctx, actorKey{}, name+"@"+peerAddr(ctx)), spec, stream)
	}
}

// byPeer lets in root, and the user that the controller runs as.
func (s *Services) byPeer(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		who, _ := ctx.Value(ucredKey{}).(*unix.Ucred)
		switch {
		case who != nil && who.Uid == 0:
			ctx = context.WithValue(ctx, actorKey{}, "root@local")
		case who != nil && who.Uid == uint32(os.Geteuid()):
			ctx = context.WithValue(ctx, actorKey{}, fmt.Sprintf("uid %d@local", who.Uid))
		default:
			s.Metrics.Denials.WithLabelValues("operator").Inc()
			s.Audit.Denied(ctx, "local", audit.Login, spec.Procedure, "the caller on the socket is not root")
			return connect.NewError(connect.CodePermissionDenied, "only root may use the controller's socket; run this with sudo, or use the address and a token")
		}
		return next(ctx, spec, stream)
	}
}

// LocalContext puts what the kernel says about the other end of a Unix socket into the context of its requests. It is
// made for http.Server.ConnContext.
func LocalContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var who *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || who == nil {
		return ctx // whom nobody names is not let in
	}
	return context.WithValue(ctx, ucredKey{}, who)
}

// withControl puts a way to break the request's stream into its context.
func withControl(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), controlKey{}, control)))
	})
}

// breaker returns a function that makes reads and writes of the request's stream fail from now on.
func breaker(ctx context.Context) func() {
	control, _ := ctx.Value(controlKey{}).(*http.ResponseController)
	return func() {
		if control == nil {
			return
		}
		past := time.Unix(1, 0)
		// A stream that has no deadlines is not served by net/http, and ends with its context.
		_ = errors.Join(control.SetReadDeadline(past), control.SetWriteDeadline(past))
	}
}

// certificate returns what the caller's certificate says, which may have expired up to grace ago. The error is a
// *trust.Refusal.
func (s *Services) certificate(ctx context.Context, grace time.Duration) (*trust.Peer, error) {
	info, ok := connecthttp.ServerInfoForContext(ctx)
	if !ok || info.TLS() == nil {
		return s.CA.Verify(nil, s.Now())
	}
	peer, err := s.CA.VerifyForRenewal(info.TLS().PeerCertificates, s.Now(), grace)
	if err != nil {
		return nil, err
	}
	return peer, s.Fleet.Check(peer)
}

// agent lets an agent in by its certificate, which may have expired up to grace ago.
func (s *Services) agent(ctx context.Context, procedure string, grace time.Duration) (*trust.Peer, error) {
	peer, err := s.certificate(ctx, grace)
	if err == nil {
		return peer, nil
	}
	s.Metrics.Denials.WithLabelValues("agent").Inc()
	who := peerAddr(ctx)
	if peer != nil {
		who = peer.Host + "@" + who
	}
	s.Audit.Denied(ctx, who, audit.Connect, procedure, err.Error())
	return nil, s.fail(procedure, err)
}
