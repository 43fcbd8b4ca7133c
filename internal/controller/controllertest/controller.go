// Package controllertest runs a real controller for tests, on real sockets and in a directory of its own, and has an
// agent for it that enforces in memory.
package controllertest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller"
)

const maxMessage = 64 << 20

// Controller is a running controller.
type Controller struct {
	t    testing.TB
	cfg  controller.Config
	deps controller.Deps

	API   bulkheadv1connect.ControllerServiceClient // as root, over the socket
	Addrs controller.Addrs
	Dir   string

	local *http.Transport
	stop  context.CancelFunc
	done  chan error
}

// Option changes how a controller is set up.
type Option func(*controller.Config, *controller.Deps)

// Start starts a controller, which ends with the test. It listens on 127.0.0.1, at ports that the system chooses.
func Start(t testing.TB, options ...Option) *Controller {
	t.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-") // short: a socket's path has a limit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c := &Controller{t: t, cfg: controller.DefaultConfig()}
	c.cfg.Data, c.cfg.Socket = filepath.Join(dir, "data"), filepath.Join(dir, "api.sock")
	c.cfg.Listen, c.cfg.Metrics = netip.MustParseAddrPort("127.0.0.1:0"), "127.0.0.1:0"
	c.deps = controller.Deps{Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, o := range options {
		o(&c.cfg, &c.deps)
	}
	c.Dir = c.cfg.Data
	c.local = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.cfg.Socket)
		},
		ResponseHeaderTimeout: time.Minute, // a controller that hangs fails one test, and does not hold all of them up
	}
	c.API = bulkheadv1connect.NewControllerServiceClient(connect.NewClient(
		connecthttp.NewTransport(&http.Client{Transport: c.local}, "http://controller", connecthttp.WithReadMaxBytes(maxMessage))))
	t.Cleanup(c.Stop)
	c.Restart()
	return c
}

// Restart starts the controller on the same data, at the same address, after Stop.
func (c *Controller) Restart() {
	c.t.Helper()
	ready := make(chan controller.Addrs, 1)
	c.deps.Ready = func(a controller.Addrs) { ready <- a }
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controller.New(c.cfg, c.deps).Run(ctx) }()
	select {
	case c.Addrs = <-ready:
		c.stop, c.done = stop, done
		c.cfg.Listen = c.Addrs.Network
	case err := <-done:
		stop()
		c.t.Fatalf("the controller ended: %v", err)
	case <-time.After(time.Minute):
		stop()
		c.t.Fatal("the controller does not start")
	}
}

// Stop ends the controller as SIGTERM would. It may be called again.
func (c *Controller) Stop() {
	c.t.Helper()
	if c.stop == nil {
		return
	}
	c.local.CloseIdleConnections()
	c.stop()
	c.stop = nil
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Errorf("the controller ended with %v", err)
		}
	case <-time.After(time.Minute):
		c.t.Error("the controller does not end")
	}
}

// Apply applies documents and returns the new revision. The documents replace those there were.
func (c *Controller) Apply(yaml string) *pb.ApplyResponse {
	c.t.Helper()
	resp, err := c.API.Apply(context.Background(), &pb.ApplyRequest{Prune: true, Files: []*pb.File{{Name: "test.yaml", Content: yaml}}})
	if err != nil {
		c.t.Fatalf("apply: %v", err)
	}
	return resp
}

// Token makes a join token.
func (c *Controller) Token(r *pb.CreateTokenRequest) string {
	c.t.Helper()
	resp, err := c.API.CreateToken(context.Background(), r)
	if err != nil {
		c.t.Fatalf("create token: %v", err)
	}
	return resp.Token
}

// CA returns the certificate of the controller's CA.
func (c *Controller) CA() *x509.Certificate {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.Dir, "ca.crt"))
	if err != nil {
		c.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

// Fingerprint is what join tokens pin.
func (c *Controller) Fingerprint() [sha256.Size]byte { return sha256.Sum256(c.CA().Raw) }

// transport returns an HTTP/2 transport that trusts the controller's CA and shows the certificate, if there is one.
func (c *Controller) transport(cert *tls.Certificate) *http.Transport {
	c.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(c.CA())
	cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, Time: c.deps.Now}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{TLSClientConfig: cfg, Protocols: protocols}
}

// Client returns a client over the network that shows the certificate, if there is one, and the token, if there is
// one.
func (c *Controller) Client(cert *tls.Certificate, token string) *connect.Client {
	c.t.Helper()
	t := c.transport(cert)
	c.t.Cleanup(t.CloseIdleConnections)
	bearer := func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if info, ok := connect.CallInfoForClientContext(ctx); ok && token != "" {
				info.RequestHeader().Set("Authorization", "Bearer "+token)
			}
			return next(ctx, spec)
		}
	}
	return c.over(t, bearer)
}

func (c *Controller) over(t *http.Transport, interceptors ...connect.ClientInterceptor) *connect.Client {
	return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: t}, "https://"+c.Addrs.Network.String(),
		connecthttp.WithGRPC(), connecthttp.WithReadMaxBytes(maxMessage)), interceptors...)
}

// AdminToken returns the token that the controller wrote at its first start.
func (c *Controller) AdminToken() string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.Dir, "admin.token"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// Eventually waits until the condition holds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("it never came to this: %s", what)
}

// Metric returns a value of /metrics; the name may carry labels as they are written there.
func (c *Controller) Metric(name string) float64 {
	c.t.Helper()
	body := c.Get("/metrics")
	for line := range strings.SplitSeq(body, "\n") {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err != nil {
				c.t.Fatalf("metric %s: %v", line, err)
			}
			return v
		}
	}
	c.t.Fatalf("there is no metric %s", name)
	return 0
}
