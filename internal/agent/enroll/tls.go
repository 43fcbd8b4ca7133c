package enroll

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
)

const (
	dialTimeout = 10 * time.Second
	// A stream that is silent for this long is asked for a sign of life, so that a controller that vanished without
	// a word is noticed within half a minute.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	// maxMessage bounds what a controller may send at once: a snapshot for a host with 100,000 addresses has 3 MiB.
	maxMessage = 64 << 20
)

// Transport returns an HTTP/2 transport that shows the identity of the moment of each new connection and trusts the
// roots of that moment. Close its idle connections when done.
func (k *Keeper) Transport() *http.Transport {
	t := transport(func(state tls.ConnectionState) error {
		id := k.current.Load()
		if id == nil {
			return ErrNone
		}
		return verify(state.PeerCertificates, id.pool)
	})
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if id := k.current.Load(); id != nil {
			return &id.cert, nil
		}
		return &tls.Certificate{}, nil
	}
	return t
}

// Client returns a client of the controller over the transport.
func (k *Keeper) Client(t *http.Transport) *connect.Client {
	return connectClient(k.cfg.Controller, t)
}

func connectClient(controller string, t *http.Transport) *connect.Client {
	return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: t}, "https://"+controller,
		connecthttp.WithGRPC(), connecthttp.WithReadMaxBytes(maxMessage)))
}

// transport shows no certificate. It verifies the controller by the given function instead of by its name: what counts is that our CA made
// its certificate for a controller. The address at which it answers may be behind a balancer or a translation.
func transport(check func(tls.ConnectionState) error) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: pingAfter}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, // VerifyConnection below takes its place
			VerifyConnection:   check,
		},
	}
}

// verify checks that the chain leads to one of the roots and that its leaf is a controller's.
func verify(chain []*x509.Certificate, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("the controller shows no certificate")
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 || *leaf.URIs[0] != *spiffeID(controllerPath) {
		return errors.New("what answers in the controller's place is no controller")
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: poolOf(chain[1:]),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("the controller's certificate: %w", err)
	}
	return nil
}

// pinError says that the chain which a server shows does not end in the CA that a token names.
type pinError struct{ why string }

func (e *pinError) Error() string { return e.why }

// pinned returns a check that finds the CA of the fingerprint in what the server shows and verifies the rest by it.
func pinned(ca [sha256.Size]byte) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		for _, c := range state.PeerCertificates {
			if sha256.Sum256(c.Raw) != ca || !c.IsCA {
				continue
			}
			if err := verify(state.PeerCertificates, poolOf([]*x509.Certificate{c})); err != nil {
				return &pinError{err.Error()}
			}
			return nil
		}
		return &pinError{"it does not show the CA that the token names"}
	}
}

// IsRefused reports whether the error says that the controller, or whoever is in its place, refuses the identity that it
// was shown: waiting alone will not help.
func IsRefused(err error) bool {
	if e := (*connect.Error)(nil); errors.As(err, &e) && e.IsRemote() {
		return e.Code() == connect.CodeUnauthenticated || e.Code() == connect.CodePermissionDenied
	}
	return IsUntrusted(err)
}

// IsUntrusted reports whether the error says that the far end of TLS does not accept our certificate, or that we do
// not accept theirs: waiting alone will not help.
func IsUntrusted(err error) bool {
	if err == nil {
		return false
	}
	var alert tls.AlertError
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &alert) || errors.As(err, &invalid) || errors.As(err, &unknown) {
		return true
	}
	// net/http hands on a peer's alert as text.
	return strings.Contains(err.Error(), "remote error: tls: ")
}
