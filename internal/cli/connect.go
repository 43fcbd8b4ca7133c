package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
)

// defaultController is where a controller on this machine answers its administrator.
const defaultController = "unix:///run/bulkhead/controller.sock"

// maxAnswer bounds one message of the controller; the largest is the world of a hundred thousand workloads.
const maxAnswer = 512 << 20

// client is the connection to the controller.
type client struct {
	bulkheadv1connect.ControllerServiceClient
	where   string
	timeout time.Duration
}

// connect prepares the connection that the flags describe. Nothing is sent yet.
func (a *app) connect() (*client, error) {
	where := a.controller
	if where == "" {
		where = defaultController
	}
	transport := &http.Transport{ForceAttemptHTTP2: true}
	base, err := a.route(where, transport)
	if err != nil {
		return nil, err
	}
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	h := &http.Client{Transport: &bearer{token: token, next: transport}}
	calls := connect.NewClient(connecthttp.NewTransport(h, base, connecthttp.WithReadMaxBytes(maxAnswer)))
	return &client{bulkheadv1connect.NewControllerServiceClient(calls), where, a.timeout}, nil
}

// ask makes one call within the time of --timeout. Its error is one to end the program with.
func ask[Q, R any](ctx context.Context, c *client, call func(context.Context, *Q) (*R, error), q *Q) (*R, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := call(ctx, q)
	if err != nil {
		return nil, c.explain(err)
	}
	return r, nil
}

// route makes t reach the controller at where, and returns the base of its URLs.
func (a *app) route(where string, t *http.Transport) (string, error) {
	if filepath.IsAbs(where) {
		where = "unix://" + where
	}
	if !strings.Contains(where, "://") {
		where = "https://" + where
	}
	u, err := url.Parse(where)
	if err != nil {
		return "", usagef("--controller %s: use unix:///path.sock or https://host:port", where)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", u.Path)
		}
		return "http://controller", nil
	case u.Scheme == "https" && u.Host != "" && strings.Trim(u.Path, "/") == "":
		t.TLSClientConfig, err = a.tls()
		return "https://" + u.Host, err
	}
	return "", usagef("--controller %s: use unix:///path.sock or https://host:port", where)
}

func (a *app) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if a.ca == "" {
		return cfg, nil
	}
	data, err := os.ReadFile(a.ca)
	if err != nil {
		return nil, cannotf("read the CA certificate: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(data) {
		return nil, usagef("--ca %s: there is no PEM certificate in it", a.ca)
	}
	return cfg, nil
}

func (a *app) token() (string, error) {
	if a.tokenFile == "" {
		return "", nil
	}
	data, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return "", cannotf("read the API token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("--token-file %s: it should hold one token and nothing else", a.tokenFile)
	}
	return token, nil
}

// bearer adds the API token to every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// explain turns an error of a call into one that says what to do next, with its exit status.
func (c *client) explain(err error) error {
	if errors.Is(err, context.Canceled) {
		return &exitError{ExitCannot, err}
	}
	var e *connect.Error
	if !errors.As(err, &e) {
		return c.unreachable(err)
	}
	if !e.IsRemote() {
		if errors.Is(err, context.DeadlineExceeded) {
			return cannotf("the controller at %s did not answer in time. Is it overloaded? Wait longer with --timeout", c.where)
		}
		return c.unreachable(err)
	}
	switch e.Code() {
	case connect.CodeInvalidArgument:
		return usagef("%s", e.Message())
	case connect.CodeFailedPrecondition, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodeAborted:
		return nof("%s", e.Message())
	case connect.CodeUnauthenticated:
		return cannotf("the controller at %s does not know you: %s. Pass the file of your API token with --token-file or BULKHEAD_TOKEN_FILE", c.where, e.Message())
	case connect.CodePermissionDenied:
		return cannotf("you may not do this: %s", e.Message())
	case connect.CodeUnimplemented:
		return cannotf("the controller at %s cannot do this: it is of another version than this command (bulkhead version says which)", c.where)
	}
	return cannotf("the controller at %s: %s", c.where, e.Message())
}

// unreachable says why the controller was not reached and what to look at.
func (c *client) unreachable(err error) error {
	var (
		unknownCA x509.UnknownAuthorityError
		wrongName x509.HostnameError
		noName    *net.DNSError
	)
	hint := "Is it running? Set --controller or BULKHEAD_CONTROLLER; to ask about files, add -f DIR where the verb takes it"
	reason := rootCause(err)
	switch {
	case errors.As(err, &unknownCA):
		hint = "Copy ca.crt from the controller's data directory and pass it with --ca or BULKHEAD_CA"
		reason = "its certificate is signed by an authority not known here"
	case errors.As(err, &wrongName):
		hint = "Use a name or address that its certificate holds"
	case errors.As(err, &noName):
		hint = "Check the name in --controller or BULKHEAD_CONTROLLER"
		reason = "no such host"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "connection refused"
	case errors.Is(err, fs.ErrNotExist):
		reason = "there is no such socket"
	case errors.Is(err, fs.ErrPermission):
		reason = "permission denied"
		hint = "The socket is for root: use sudo, or https:// with a token"
	}
	return cannotf("cannot reach the controller at %s: %s. %s", c.where, reason, hint)
}

// rootCause returns the text of the innermost error: what really went wrong, without the layers around it.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return fmt.Sprint(err)
		}
		err = next
	}
}
