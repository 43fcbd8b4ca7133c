package agenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/wire"
)

// Controller serves agents at Addr. Its exported fields may be set before Start only.
type Controller struct {
	Authority *Authority
	TTL       time.Duration // of agents' certificates; default one hour
	Grace     time.Duration // for how long an expired one may be renewed; default none
	HideCA    bool          // do not show the CA in TLS

	Addr string // address:port; set by Start, kept over Stop and Start

	t      testing.TB
	server *http.Server
	done   chan struct{}

	mu       sync.Mutex
	tokens   map[string]*token
	revoked  map[string]bool
	void     map[string]int64 // by host: the serial number up to which certificates were revoked
	holdAcks bool
	deaf     chan struct{} // not nil: the controller reads nothing from its streams until it is closed
	policy   *hostpolicy.Policy
	history  map[hostpolicy.Hash]*hostpolicy.Policy
	sessions []*Session
	changed  chan struct{} // closed and replaced at each change of what tests wait for
	flows    map[string]uint64
	records  []*pb.FlowRecord
	batches  []uint64
	lost     uint64
	renewals int
}

type token struct {
	wire.JoinToken
	host    string
	uses    int
	expires time.Time
}

// Session is one stream of an agent, past or present.
type Session struct {
	Hello       *pb.Hello
	Serial      string // of the certificate that it was opened with
	Inventories []*pb.HostInventory
	Acks        []*pb.Ack
	Statuses    []*pb.AgentStatus
	Open        bool

	send chan *pb.ControllerMessage
}

// New returns a controller that does not serve yet.
func New(t testing.TB) *Controller {
	t.Helper()
	return &Controller{
		Authority: NewAuthority(t),
		TTL:       time.Hour,
		t:         t,
		tokens:    map[string]*token{},
		revoked:   map[string]bool{},
		void:      map[string]int64{},
		history:   map[hostpolicy.Hash]*hostpolicy.Policy{},
		changed:   make(chan struct{}),
		flows:     map[string]uint64{},
	}
}

// Start serves until Stop or the end of the test; a second Start takes the address of the first.
func (c *Controller) Start() *Controller {
	c.t.Helper()
	addr := c.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.Addr = listener.Addr().String()
	cert := c.Authority.Server()
	if c.HideCA {
		cert.Certificate = cert.Certificate[:1]
	}
	rpc := connect.NewServer()
	bulkheadv1connect.RegisterEnrollmentServiceHandler(rpc, c)
	bulkheadv1connect.RegisterAgentServiceHandler(rpc, c)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, rpc)
	pool := x509.NewCertPool()
	pool.AddCert(c.Authority.Cert)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	c.server = &http.Server{
		Handler:   mux,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Protocols: protocols,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{cert},
			ClientAuth:   tls.RequestClientCert,
			// Whether a certificate has expired is looked at where it is known what it is for.
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) == 0 {
					return nil
				}
				leaf := s.PeerCertificates[0]
				at := time.Now()
				if at.After(leaf.NotAfter) {
					at = leaf.NotAfter
				}
				_, err := leaf.Verify(x509.VerifyOptions{
					Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
				})
				return err
			},
		},
	}
	c.done = make(chan struct{})
	go func(server *http.Server, done chan struct{}) {
		defer close(done)
		_ = server.ServeTLS(listener, "", "") // always an error; that of Close is the good one
	}(c.server, c.done)
	c.t.Cleanup(c.Stop)
	return c
}

// Stop drops every connection, as a crash would. It may be called again.
func (c *Controller) Stop() {
	if c.server == nil {
		return
	}
	if err := c.server.Close(); err != nil {
		c.t.Errorf("stop the controller: %v", err)
	}
	<-c.done
	c.server = nil
}

// Token makes a join token for so many uses.
func (c *Controller) Token(id, host string, uses int, ttl time.Duration) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	secret := rand.Text()
	t := &token{
		JoinToken: wire.JoinToken{ID: id, Secret: secret, CA: c.Authority.Fingerprint()},
		host:      host, uses: uses, expires: time.Now().Add(ttl),
	}
	c.tokens[id] = t
	return t.Text()
}

// Revoke refuses the host's certificates and its enrolment from now on, and ends its streams.
func (c *Controller) Revoke(host string) {
	c.mu.Lock()
	c.revoked[host], c.void[host] = true, time.Now().UnixNano()
	c.mu.Unlock()
	c.notify()
}

// Allow lets a revoked host enrol again. Its certificates stay worthless.
func (c *Controller) Allow(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.revoked, host)
}

// Enroll implements the service.
func (c *Controller) Enroll(_ context.Context, req *pb.EnrollRequest) (*pb.EnrollResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	given, err := wire.ParseJoinToken(req.GetToken())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	known := c.tokens[given.ID]
	switch {
	case known == nil || known.Secret != given.Secret:
		return nil, connect.NewError(connect.CodeUnauthenticated, "no such token")
	case known.uses == 0:
		return nil, connect.NewError(connect.CodePermissionDenied, "the token is used up")
	case time.Now().After(known.expires):
		return nil, connect.NewError(connect.CodePermissionDenied, "the token has expired")
	case c.revoked[req.GetHost()]:
		return nil, connect.NewError(connect.CodePermissionDenied, "host "+req.GetHost()+" has been revoked")
	case known.host != "" && known.host != req.GetHost():
		return nil, connect.NewError(connect.CodePermissionDenied, "the token is for host "+known.host)
	}
	leaf, err := c.certify(req.GetHost(), req.GetCsr())
	if err != nil {
		return nil, err
	}
	known.uses--
	return &pb.EnrollResponse{
		Host: req.GetHost(), Chain: [][]byte{leaf.Raw}, Roots: [][]byte{c.Authority.Cert.Raw},
		NotAfterMs: leaf.NotAfter.UnixMilli(),
	}, nil
}

func (c *Controller) certify(host string, der []byte) (*x509.Certificate, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "the certificate request is malformed")
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, connect.NewError(connect.CodeInvalidArgument, "the key is of another kind")
	}
	return c.Authority.Agent(host, key, c.TTL), nil
}

// Expire puts a certificate that has expired in the place of that in an agent's directory. It is of the same host and
// key.
func (c *Controller) Expire(dir string) {
	c.t.Helper()
	path := filepath.Join(dir, "identity.pem")
	data, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	keyBlock, rest := pem.Decode(data)
	certBlock, rest := pem.Decode(rest)
	if keyBlock == nil || certBlock == nil {
		c.t.Fatalf("%s does not hold a key and a certificate", path)
	}
	leaf, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	certBlock.Bytes = c.Authority.Agent(leaf.Subject.CommonName, leaf.PublicKey.(*ecdsa.PublicKey), -time.Minute).Raw
	data = slices.Concat(pem.EncodeToMemory(keyBlock), pem.EncodeToMemory(certBlock), rest)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// peer returns the host and the serial number of the client's certificate, which may have expired up to grace ago.
func (c *Controller) peer(ctx context.Context, grace time.Duration) (host, serial string, err error) {
	info, ok := connecthttp.ServerInfoForContext(ctx)
	if !ok || info.TLS() == nil || len(info.TLS().PeerCertificates) == 0 {
		return "", "", connect.NewError(connect.CodeUnauthenticated, "no client certificate")
	}
	leaf := info.TLS().PeerCertificates[0]
	if time.Since(leaf.NotAfter) > grace {
		return "", "", connect.NewError(connect.CodeUnauthenticated, "the certificate expired")
	}
	if len(leaf.URIs) != 1 {
		return "", "", connect.NewError(connect.CodeUnauthenticated, "the certificate names no agent")
	}
	host = strings.TrimPrefix(leaf.URIs[0].Path, "/agent/")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.revoked[host] || leaf.SerialNumber.Int64() <= c.void[host] {
		return "", "", connect.NewError(connect.CodePermissionDenied, "the agent of host "+host+" has been revoked")
	}
	return host, leaf.SerialNumber.String(), nil
}

// Renew implements the service.
func (c *Controller) Renew(ctx context.Context, req *pb.RenewRequest) (*pb.RenewResponse, error) {
	host, _, err := c.peer(ctx, c.Grace)
	if err != nil {
		return nil, err
	}
	leaf, err := c.certify(host, req.GetCsr())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.renewals++
	c.mu.Unlock()
	c.notify()
	return &pb.RenewResponse{
		Chain: [][]byte{leaf.Raw}, Roots: [][]byte{c.Authority.Cert.Raw}, NotAfterMs: leaf.NotAfter.UnixMilli(),
	}, nil
}

// Renewals returns how often a certificate was renewed.
func (c *Controller) Renewals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewals
}

func (c *Controller) notify() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// WaitFor returns when the condition holds; it fails the test after a minute. The condition may call the methods
// that return what agents said.
func (c *Controller) WaitFor(what string, condition func() bool) {
	c.t.Helper()
	deadline := time.After(time.Minute)
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if condition() {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // what agents do without telling
		case <-deadline:
			c.t.Fatalf("waited a minute for %s", what)
		}
	}
}

// Last returns a copy of the newest session, or nil if there was none.
func (c *Controller) Last() *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sessions) == 0 {
		return nil
	}
	s := *c.sessions[len(c.sessions)-1]
	return &s
}

// Sessions returns how many streams there have been.
func (c *Controller) Sessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Send sends a message on the newest stream.
func (c *Controller) Send(m *pb.ControllerMessage) {
	c.t.Helper()
	c.mu.Lock()
	if len(c.sessions) == 0 || !c.sessions[len(c.sessions)-1].Open {
		c.mu.Unlock()
		c.t.Fatal("no agent is connected")
	}
	s := c.sessions[len(c.sessions)-1]
	c.mu.Unlock()
	select {
	case s.send <- m:
	case <-time.After(time.Minute):
		c.t.Fatal(fmt.Errorf("the agent takes no message"))
	}
}
