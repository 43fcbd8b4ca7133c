// Package enroll gives an agent its identity: it trades a join token for a short-lived certificate, keeps key and
// certificate on disk, renews them in time and speaks TLS with them.
//
// A token pins the CA by its fingerprint, so the first connection is as safe as every later one: the token is sent
// only to a controller that shows the CA the token was made with.
package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/version"
	"bulkhead/internal/wire"
)

// ErrNone says that this agent has no identity yet.
var ErrNone = errors.New("this agent has not enrolled yet")

// ErrNotKept says that the identity is in use and not on disk: a restart would miss it.
var ErrNotKept = errors.New("the identity is in use and could not be kept on disk")

// RefusedError says that an identity cannot be had this way, however often one tries.
type RefusedError struct {
	Why string // what is wrong
	Do  string // what to do about it
	Err error  // what lies beneath; may be nil
}

// Error returns one line: what is wrong, and what to do about it.
func (e *RefusedError) Error() string { return e.Why + "; " + e.Do }

// Unwrap returns what lies beneath.
func (e *RefusedError) Unwrap() error { return e.Err }

// Config says who the agent is and where its identity lives.
type Config struct {
	Host       string // the name to ask for
	Dir        string // holds identity.pem (0600) and ca.crt
	Controller string // address:port
}

// Keeper keeps the identity of one agent. Its methods may be called from several goroutines; only one of them at a
// time may call Enroll, Renew or Keep.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	current atomic.Pointer[Identity]
	kept    *Identity // is on disk
}

// New returns a keeper without an identity; Load or Enroll gives it one.
func New(cfg Config, log *slog.Logger) *Keeper {
	return &Keeper{cfg: cfg, log: log}
}

// Identity is who the agent is. It does not change.
type Identity struct {
	Host    string
	TokenID string // the token that it was enrolled with; "" if not known
	since   time.Time
	cert    tls.Certificate
	roots   []*x509.Certificate
	pool    *x509.CertPool
}

// NotAfter is when the certificate expires.
func (i *Identity) NotAfter() time.Time { return i.cert.Leaf.NotAfter }

// RenewAt is when two thirds of the time are over that the certificate was good for when the agent got it. (Its
// NotBefore lies earlier, to make up for clocks that differ.)
func (i *Identity) RenewAt() time.Time {
	return i.since.Add(i.NotAfter().Sub(i.since) * 2 / 3)
}

// Current returns the identity in use, or nil if there is none.
func (k *Keeper) Current() *Identity { return k.current.Load() }

// Enroll trades the token for an identity and keeps it. A *RefusedError says that trying again makes no sense. ErrNotKept
// is for Keep to mend: the token is used up, and the identity in use.
func (k *Keeper) Enroll(ctx context.Context, token string) error {
	t, err := wire.ParseJoinToken(token)
	if err != nil {
		return &RefusedError{Why: err.Error(), Do: newToken(k.cfg.Host), Err: err}
	}
	key, csr, err := request(k.cfg.Host)
	if err != nil {
		return err
	}
	anonymous := transport(pinned(t.CA)) // an old certificate would only be refused
	defer anonymous.CloseIdleConnections()
	client := bulkheadv1connect.NewEnrollmentServiceClient(connectClient(k.cfg.Controller, anonymous))
	resp, err := client.Enroll(ctx, &pb.EnrollRequest{
		Token: t.Text(), Host: k.cfg.Host, Csr: csr, AgentVersion: version.String(),
	})
	if err != nil {
		return k.explain(err, t)
	}
	id, err := newIdentity(key, resp.GetChain(), resp.GetRoots())
	if err != nil {
		return fmt.Errorf("enrol at %s: the controller's answer is of no use: %w", k.cfg.Controller, err)
	}
	if !id.trusts(t.CA) {
		return &RefusedError{
			Why: fmt.Sprintf("the controller at %s hands out another CA than the one of join token %s", k.cfg.Controller, t.ID),
			Do:  "find out who answers at this address before you go on",
		}
	}
	id.TokenID = t.ID
	k.current.Store(id)
	k.log.Info("enrolled", "host", id.Host, "certificate_until", id.NotAfter())
	return k.Keep()
}

// Renew trades the present certificate for a new one. Connections that are open keep the old one; the next
// connection uses the new. It makes a connection of its own, for one that has been open for longer than a certificate
// lasts still shows the one that it was opened with. ErrNotKept is for Keep to mend.
func (k *Keeper) Renew(ctx context.Context) error {
	old := k.current.Load()
	if old == nil {
		return ErrNone
	}
	transport := k.Transport()
	defer transport.CloseIdleConnections()
	client := bulkheadv1connect.NewAgentServiceClient(k.Client(transport))
	key, csr, err := request(old.Host)
	if err != nil {
		return err
	}
	resp, err := client.Renew(ctx, &pb.RenewRequest{Csr: csr})
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	id, err := newIdentity(key, resp.GetChain(), resp.GetRoots())
	if err != nil {
		return fmt.Errorf("renew the certificate: the controller's answer is of no use: %w", err)
	}
	if id.Host != old.Host {
		return fmt.Errorf("renew the certificate: the new one is for host %q, this is %q", id.Host, old.Host)
	}
	id.TokenID = old.TokenID
	k.current.Store(id)
	k.log.Info("certificate renewed", "until", id.NotAfter())
	return k.Keep()
}

// Keep puts the present identity on disk, unless it is there. An error wraps ErrNotKept.
func (k *Keeper) Keep() error {
	id := k.current.Load()
	if id == nil || id == k.kept {
		return nil
	}
	if err := save(k.cfg.Dir, id); err != nil {
		return fmt.Errorf("%w: %w", ErrNotKept, err)
	}
	k.kept = id
	return nil
}

// explain turns the controller's refusal into a line that says what to do. Everything else may pass by itself.
func (k *Keeper) explain(err error, t wire.JoinToken) error {
	var mismatch *pinError
	if errors.As(err, &mismatch) {
		return &RefusedError{
			Why: fmt.Sprintf("whoever answers at %s is not the controller that made join token %s: %v", k.cfg.Controller, t.ID, mismatch),
			Do:  "check the address in `controller:`, or make a token at that controller",
			Err: err,
		}
	}
	why := fmt.Sprintf("the controller at %s refuses to enrol this host", k.cfg.Controller)
	if e := (*connect.Error)(nil); errors.As(err, &e) && e.Message() != "" {
		why += ": " + e.Message()
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeInvalidArgument:
		return &RefusedError{Why: why, Do: newToken(k.cfg.Host), Err: err}
	}
	return fmt.Errorf("enrol at %s: %w", k.cfg.Controller, err)
}

func newToken(host string) string {
	return fmt.Sprintf("make a new one with `bulkhead token create --host %s` and put it into the agent's token file", host)
}

// request makes a key and asks for a certificate for it.
func request(host string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: host},
		URIs:    []*url.URL{spiffeID(agentPath + host)},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}

const (
	trustDomain    = "bulkhead"
	agentPath      = "/agent/"
	controllerPath = "/controller"
)

func spiffeID(path string) *url.URL { return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: path} }

// newIdentity checks that the certificate is for the key, names a host, is valid now and leads to one of the roots.
func newIdentity(key *ecdsa.PrivateKey, chain, roots [][]byte) (*Identity, error) {
	if len(chain) == 0 || len(roots) == 0 {
		return nil, errors.New("it holds no certificate, or no CA")
	}
	certs, err := parseAll(chain)
	if err != nil {
		return nil, err
	}
	id := &Identity{since: time.Now(), cert: tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: certs[0]}}
	if id.roots, err = parseAll(roots); err != nil {
		return nil, err
	}
	id.pool = poolOf(id.roots)
	if !key.PublicKey.Equal(id.cert.Leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if id.Host, err = hostOf(id.cert.Leaf); err != nil {
		return nil, err
	}
	_, err = id.cert.Leaf.Verify(x509.VerifyOptions{
		Roots:         id.pool,
		Intermediates: poolOf(certs[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	return id, nil
}

// hostOf returns the host that the certificate of an agent names.
func hostOf(leaf *x509.Certificate) (string, error) {
	if len(leaf.URIs) == 1 {
		host, ok := strings.CutPrefix(leaf.URIs[0].Path, agentPath)
		if ok && host != "" && *leaf.URIs[0] == *spiffeID(agentPath + host) {
			return host, nil
		}
	}
	return "", errors.New("the certificate names no agent")
}

// trusts reports whether one of the roots has the fingerprint.
func (i *Identity) trusts(ca [sha256.Size]byte) bool {
	for _, r := range i.roots {
		if sha256.Sum256(r.Raw) == ca {
			return true
		}
	}
	return false
}

func parseAll(der [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, len(der))
	for i, d := range der {
		c, err := x509.ParseCertificate(d)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		out[i] = c
	}
	return out, nil
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}
