package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/wire"
)

// wantError checks the code and the words of what a client is told.
func wantError(t *testing.T, err error, code connect.Code, words ...string) {
	t.Helper()
	var e *connect.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v, want %v", err, code)
		return
	}
	if e.Code() != code {
		t.Errorf("error %v, want code %v", err, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Message(), w) {
			t.Errorf("error %q does not say %q", e.Message(), w)
		}
	}
}

// auditHas checks that the log holds an entry and is intact, and returns it.
func auditHas(t *testing.T, c *Controller, action, subject string, denied bool, word string) *pb.AuditEntry {
	t.Helper()
	resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Intact {
		t.Error("the audit log is not intact")
	}
	for _, e := range resp.Entries {
		if e.Action == action && e.Subject == subject && e.Denied == denied && strings.Contains(e.Detail+e.Actor, word) {
			return e
		}
	}
	t.Errorf("no audit entry %s of %q (denied %v) that says %q among %v", action, subject, denied, word, resp.Entries)
	return nil
}

// world returns what must not change when something is refused.
func world(t *testing.T, c *Controller) string {
	t.Helper()
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, i := range w.Instances {
		b.WriteString(i.String() + "\n")
	}
	return b.String() + w.Documents + "\n" + strings.Join([]string{time.UnixMilli(int64(status.Revision)).String()}, "") + agents(t, c)
}

func agents(t *testing.T, c *Controller) string {
	t.Helper()
	resp, err := c.API.ListAgents(t.Context(), &pb.ListAgentsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, a := range resp.Agents {
		a.LastSeenMs = 0
		b.WriteString(a.String() + "\n")
	}
	return b.String()
}

func TestEnrolment(t *testing.T) {
	c := Start(t)
	token := c.Token(&pb.CreateTokenRequest{Labels: map[string]string{"app": "shop", "role": "web"}, Note: "for web"})
	a := c.NewAgent("web-1")
	if err := a.Enroll(token); err != nil {
		t.Fatal(err)
	}
	if got := a.Cert.Leaf.URIs[0].String(); got != "spiffe://bulkhead/agent/web-1" {
		t.Errorf("SPIFFE ID %s", got)
	}
	if life := time.Until(a.Cert.Leaf.NotAfter); life > time.Hour || life < 55*time.Minute {
		t.Errorf("the certificate lives for %v, want an hour", life)
	}
	auditHas(t, c, "token.create", strings.Split(token, ".")[1], false, "root@local")
	auditHas(t, c, "agent.enroll", "web-1", false, "token "+strings.Split(token, ".")[1])
	var w *pb.GetWorldResponse
	Eventually(t, "the host is a workload", func() bool {
		var err error
		if w, err = c.API.GetWorld(t.Context(), &pb.GetWorldRequest{}); err != nil {
			t.Fatal(err)
		}
		return len(w.Instances) == 1
	})
	if w.Instances[0].Labels["role"] != "web" || !w.Instances[0].Managed || w.Instances[0].Connected {
		t.Errorf("instances %v", w.Instances)
	}
}

// TestWhoIsNotLetIn tries every way in that must be shut. Each is refused in words that say what to do, is audited,
// and changes nothing.
func TestWhoIsNotLetIn(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	web := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	Eventually(t, "web-1 is current", func() bool { return current(t, c, "web-1") })

	used := c.Token(&pb.CreateTokenRequest{})
	if err := c.NewAgent("used-up").Enroll(used); err != nil {
		t.Fatal(err)
	}
	fresh := c.Token(&pb.CreateTokenRequest{Uses: 3})
	revoked := c.Token(&pb.CreateTokenRequest{})
	if _, err := c.API.RevokeToken(t.Context(), &pb.RevokeTokenRequest{Id: strings.Split(revoked, ".")[1]}); err != nil {
		t.Fatal(err)
	}
	parsed, err := wire.ParseJoinToken(fresh)
	if err != nil {
		t.Fatal(err)
	}
	wrong, unknown := parsed, parsed
	wrong.Secret, unknown.ID = "wrong", "unknown"
	bound := c.Token(&pb.CreateTokenRequest{Host: "db-1"})
	if err := c.NewAgent("banned").Enroll(fresh); err != nil {
		t.Fatal(err)
	}
	if _, err := c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "banned"}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "both hosts are workloads", func() bool { return strings.Count(world(t, c), "managed:true") == 2 })
	before := world(t, c)

	enrol := bulkheadv1connect.NewEnrollmentServiceClient(c.Client(nil, ""))
	for _, x := range []struct {
		name, token, host string
		code              connect.Code
		words             string
	}{
		{"no token", "", "new-1", connect.CodeUnauthenticated, "no join token"},
		{"garbage", "bh1.what", "new-1", connect.CodeUnauthenticated, "not a join token"},
		{"unknown token", unknown.Text(), "new-1", connect.CodeUnauthenticated, "there is no join token"},
		{"wrong secret", wrong.Text(), "new-1", connect.CodeUnauthenticated, "secret"},
		{"used token", used, "new-1", connect.CodePermissionDenied, "used up"},
		{"revoked token", revoked, "new-1", connect.CodePermissionDenied, "revoked"},
		{"token of another host", bound, "new-1", connect.CodePermissionDenied, "for host db-1"},
		{"name that is taken", fresh, "web-1", connect.CodePermissionDenied, "has enrolled already"},
		{"revoked host", fresh, "banned", connect.CodePermissionDenied, "has been revoked"},
		{"no name", fresh, "", connect.CodeInvalidArgument, "host name"},
		{"name with a path", fresh, "../web-1", connect.CodeInvalidArgument, "host name"},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, csr := Request(t)
			_, err := enrol.Enroll(t.Context(), &pb.EnrollRequest{Token: x.token, Host: x.host, Csr: csr})
			wantError(t, err, x.code, x.words)
			auditHas(t, c, "agent.enroll", x.host, true, x.words)
		})
	}
	t.Run("no certificate request", func(t *testing.T) {
		_, err := enrol.Enroll(t.Context(), &pb.EnrollRequest{Token: fresh, Host: "new-1"})
		wantError(t, err, connect.CodeInvalidArgument, "certificate request")
	})

	connectAs := func(t *testing.T, cert *tls.Certificate) error {
		t.Helper()
		stream, err := bulkheadv1connect.NewAgentServiceClient(c.Client(cert, "")).Connect(t.Context())
		if err != nil {
			return err
		}
		defer stream.Close()
		// The refusal may come before or after this is on its way; Receive tells.
		_ = stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{}}})
		_, err = stream.Receive()
		return err
	}
	const procedure = bulkheadv1connect.AgentServiceConnectProcedure
	for name, x := range map[string]struct {
		cert  *tls.Certificate
		words string
	}{
		"no certificate":                      {nil, "no client certificate"},
		"its own CA's certificate":            {forge(t, "web-1"), "not issued to an agent by this controller"},
		"certificate of another installation": {Start(t).Join("web-1", nil).Cert, "not issued to an agent by this controller"},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, connectAs(t, x.cert), connect.CodeUnauthenticated, x.words)
			auditHas(t, c, "agent.connect", procedure, true, x.words)
			_, csr := Request(t)
			_, err := bulkheadv1connect.NewAgentServiceClient(c.Client(x.cert, "")).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
			wantError(t, err, connect.CodeUnauthenticated, x.words)
		})
	}

	for name, token := range map[string]string{"no API token": "", "wrong API token": "bha1.WRONG", "a join token": fresh} {
		t.Run(name, func(t *testing.T) {
			client := bulkheadv1connect.NewControllerServiceClient(c.Client(nil, token))
			_, err := client.GetStatus(t.Context(), &pb.GetStatusRequest{})
			wantError(t, err, connect.CodeUnauthenticated, "API token")
			_, err = client.Apply(t.Context(), &pb.ApplyRequest{Prune: true})
			wantError(t, err, connect.CodeUnauthenticated, "API token")
		})
	}
	t.Run("an agent is no operator", func(t *testing.T) {
		_, err := bulkheadv1connect.NewControllerServiceClient(c.Client(web.Cert, "")).GetStatus(t.Context(), &pb.GetStatusRequest{})
		wantError(t, err, connect.CodeUnauthenticated)
	})
	t.Run("an operator is no agent", func(t *testing.T) {
		stream, err := bulkheadv1connect.NewAgentServiceClient(c.Client(nil, c.AdminToken())).Connect(t.Context())
		if err == nil {
			_ = stream.Send(&pb.AgentMessage{})
			_, err = stream.Receive()
		}
		wantError(t, err, connect.CodeUnauthenticated, "no client certificate")
	})
	if after := world(t, c); after != before {
		t.Errorf("something has changed:\n%s\nwas\n%s", after, before)
	}
	if err := c.NewAgent("new-1").Enroll(fresh); err != nil {
		t.Errorf("the token lost its uses: %v", err)
	}
}

// forge returns a certificate that says what an agent's says, and that nobody vouches for.
func forge(t *testing.T, host string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "bulkhead", Path: "/agent/" + host}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestAPIOverTheNetwork(t *testing.T) {
	c := Start(t)
	client := bulkheadv1connect.NewControllerServiceClient(c.Client(nil, c.AdminToken()))
	resp, err := client.Apply(t.Context(), &pb.ApplyRequest{Files: []*pb.File{{Name: "a.yaml", Content: shop}}, Note: "first"})
	if err != nil || resp.Revision != 1 || !resp.Changed {
		t.Fatalf("apply: %v, %v", resp, err)
	}
	auditHas(t, c, "policy.apply", "revision 1", false, "admin@127.0.0.1")
	auditHas(t, c, "policy.apply", "revision 1", false, "first")
}

func TestRenewal(t *testing.T) {
	c := Start(t)
	a := c.Join("web-1", nil, "10.0.0.1")
	key, csr := Request(t)
	resp, err := a.Service(nil).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	old := a.Cert
	leaf, err := x509.ParseCertificate(resp.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if leaf.Subject.CommonName != "web-1" || leaf.SerialNumber.Cmp(old.Leaf.SerialNumber) == 0 || resp.NotAfterMs != leaf.NotAfter.UnixMilli() {
		t.Errorf("new certificate %v", leaf.Subject)
	}
	a.Cert = &tls.Certificate{Certificate: resp.Chain, PrivateKey: key, Leaf: leaf}
	a.Connect()
	Eventually(t, "the stream with the new certificate is current", func() bool { return current(t, c, "web-1") })
	a.Cert = old // both are good until the old one expires: there is no gap
	a.Connect()
	Eventually(t, "the stream with the old certificate is current", func() bool { return current(t, c, "web-1") })
}

func TestRevocationEndsEverythingAtOnce(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	web := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	db := c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "both are current", func() bool { return current(t, c, "web-1") && current(t, c, "db-1") })
	sum := db.Policy().Hash()
	session := web.Session()
	if _, err := c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "web-1"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, session.Err(t), connect.CodePermissionDenied, "revoked", "join token")
	wantError(t, web.Connect().Err(t), connect.CodePermissionDenied, "revoked")
	_, csr := Request(t)
	_, err := web.Service(nil).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
	wantError(t, err, connect.CodePermissionDenied, "revoked")
	auditHas(t, c, "agent.revoke", "web-1", false, "root@local")
	Eventually(t, "its labels open nothing any more", func() bool { return db.Policy().Hash() != sum })

	_, err = c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "web-1"})
	wantError(t, err, connect.CodeFailedPrecondition, "already")
	_, err = c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "nobody"})
	wantError(t, err, connect.CodeNotFound, "nobody")

	// It comes back with no token, also over a restart, until somebody allows that; then only its new certificate counts.
	old := web.Cert
	many := c.Token(&pb.CreateTokenRequest{Labels: map[string]string{"app": "shop", "role": "web"}, Uses: 10})
	wantError(t, web.Enroll(many), connect.CodePermissionDenied, "revoked", "agents allow web-1")
	c.Stop()
	c.Restart()
	db.Connect()
	wantError(t, web.Enroll(many), connect.CodePermissionDenied, "revoked", "agents allow web-1")
	wantError(t, web.Enroll(c.Token(&pb.CreateTokenRequest{Host: "web-1"})), connect.CodePermissionDenied, "revoked", "agents allow web-1")
	auditHas(t, c, "agent.enroll", "web-1", true, "revoked")
	if got := usesLeft(t, c, strings.Split(many, ".")[1]); got != 10 {
		t.Errorf("the token has %d uses left, want all 10", got)
	}
	if !agent(t, c, "web-1").Revoked {
		t.Error("it is not shown as revoked")
	}
	_, err = c.API.AllowAgent(t.Context(), &pb.AllowAgentRequest{Host: "db-1"})
	wantError(t, err, connect.CodeFailedPrecondition, "not revoked")
	_, err = c.API.AllowAgent(t.Context(), &pb.AllowAgentRequest{Host: "nobody"})
	wantError(t, err, connect.CodeNotFound, "nobody")
	if _, err := c.API.AllowAgent(t.Context(), &pb.AllowAgentRequest{Host: "web-1"}); err != nil {
		t.Fatal(err)
	}
	auditHas(t, c, "agent.allow", "web-1", false, "root@local")
	if agent(t, c, "web-1").Revoked {
		t.Error("it is still shown as revoked")
	}
	wantError(t, web.Connect().Err(t), connect.CodePermissionDenied, "allowed again", "join token")
	if err := web.Enroll(many); err != nil {
		t.Fatal(err)
	}
	web.Connect()
	Eventually(t, "web-1 is current again", func() bool { return current(t, c, "web-1") })
	Eventually(t, "db-1 has its policy of before", func() bool { return db.Policy().Hash() == sum })
	web.Cert = old
	wantError(t, web.Connect().Err(t), connect.CodePermissionDenied, "enrolled again")
}

// usesLeft returns how often a join token may still be used.
func usesLeft(t *testing.T, c *Controller, id string) uint32 {
	t.Helper()
	resp, err := c.API.ListTokens(t.Context(), &pb.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range resp.Tokens {
		if k.Id == id {
			return k.UsesLeft
		}
	}
	t.Fatalf("there is no token %s", id)
	return 0
}

func TestEnrollingAgainEndsTheOldStream(t *testing.T) {
	c := Start(t)
	a := c.Join("web-1", nil, "10.0.0.1")
	Eventually(t, "web-1 is current", func() bool { return current(t, c, "web-1") })
	session := a.Session()
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Host: "web-1"})); err != nil {
		t.Fatal(err)
	}
	wantError(t, session.Err(t), connect.CodeAborted)
}

// TestRevokedAgentThatDoesNotListen is about an agent that reads nothing, so that the controller hangs in a write.
func TestRevokedAgentThatDoesNotListen(t *testing.T) {
	c := Start(t)
	a := c.NewAgent("web-1")
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := a.Service(nil).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{}}}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it is connected", func() bool { return connected(t, c) == 1 })
	if _, err := c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "web-1"}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it is not connected any more", func() bool { return connected(t, c) == 0 })
}

func TestTokens(t *testing.T) {
	c := Start(t)
	resp, err := c.API.CreateToken(t.Context(), &pb.CreateTokenRequest{
		Host: "db-1", Labels: map[string]string{"app": "shop"}, Uses: 5, TtlSeconds: 60, Note: "n",
	})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.UnixMilli(resp.ExpiresMs)); left > time.Minute || left < 50*time.Second {
		t.Errorf("it expires in %v", left)
	}
	if err := c.NewAgent("db-1").Enroll(resp.Token); err != nil {
		t.Fatal(err)
	}
	list, err := c.API.ListTokens(t.Context(), &pb.ListTokensRequest{})
	if err != nil || len(list.Tokens) != 1 {
		t.Fatalf("tokens %v, %v", list, err)
	}
	got := list.Tokens[0]
	if got.Id != resp.Id || got.Host != "db-1" || got.Labels["app"] != "shop" || got.UsesLeft != 4 || got.CreatedBy != "root@local" || got.Note != "n" {
		t.Errorf("token %v", got)
	}
	if strings.Contains(list.String(), strings.Split(resp.Token, ".")[2]) {
		t.Error("the list shows the secret")
	}
	if _, err := c.API.RevokeToken(t.Context(), &pb.RevokeTokenRequest{Id: resp.Id}); err != nil {
		t.Fatal(err)
	}
	if list, err = c.API.ListTokens(t.Context(), &pb.ListTokensRequest{}); err != nil || list.Tokens[0].UsesLeft != 0 {
		t.Errorf("a revoked token: %v, %v", list, err)
	}
	_, err = c.API.RevokeToken(t.Context(), &pb.RevokeTokenRequest{Id: resp.Id})
	wantError(t, err, connect.CodeFailedPrecondition, "already")
	_, err = c.API.RevokeToken(t.Context(), &pb.RevokeTokenRequest{Id: "nope"})
	wantError(t, err, connect.CodeNotFound, "nope")
	for _, bad := range []*pb.CreateTokenRequest{
		{Host: "a b"}, {TtlSeconds: -1}, {TtlSeconds: 1 << 60}, {Labels: map[string]string{"bulkhead/x": "y"}}, {Uses: 1 << 31},
	} {
		_, err := c.API.CreateToken(t.Context(), bad)
		wantError(t, err, connect.CodeInvalidArgument)
	}
}

func TestExpiredToken(t *testing.T) {
	now := newClock()
	c := Start(t, func(_ *controller.Config, d *controller.Deps) { d.Now = now.Now })
	token := c.Token(&pb.CreateTokenRequest{TtlSeconds: 60})
	now.Advance(61 * time.Second)
	wantError(t, c.NewAgent("web-1").Enroll(token), connect.CodePermissionDenied, "expired")
	auditHas(t, c, "agent.enroll", "web-1", true, "expired")
}

func TestExpiredCertificate(t *testing.T) {
	now := newClock()
	c := Start(t, func(_ *controller.Config, d *controller.Deps) { d.Now = now.Now })
	a := c.Join("web-1", nil, "10.0.0.1")
	Eventually(t, "it is connected", func() bool { return connected(t, c) == 1 })
	now.Advance(2 * time.Hour)
	wantError(t, a.Connect().Err(t), connect.CodeUnauthenticated, "expired", "enrol again")
	auditHas(t, c, "agent.connect", bulkheadv1connect.AgentServiceConnectProcedure, true, "expired")
}

// TestRenewalOfAnExpiredCertificate is about agents whose controller was away for longer than a certificate lasts.
func TestRenewalOfAnExpiredCertificate(t *testing.T) {
	now := newClock()
	c := Start(t, func(cfg *controller.Config, d *controller.Deps) {
		d.Now, cfg.CertificateTTL, cfg.CertificateGrace = now.Now, time.Hour, 24*time.Hour
	})
	renew := func(a *Agent) error {
		t.Helper()
		key, csr := Request(t)
		resp, err := a.Service(nil).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
		if err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(resp.Chain[0])
		if err != nil {
			return err
		}
		a.Cert = &tls.Certificate{Certificate: resp.Chain, PrivateKey: key, Leaf: leaf}
		return nil
	}
	web, db, lost := c.Join("web-1", nil, "10.0.0.1"), c.Join("db-1", nil, "10.0.0.2"), c.Join("lost-1", nil, "10.0.0.3")
	Eventually(t, "all are current", func() bool { return current(t, c, "web-1") && current(t, c, "db-1") && current(t, c, "lost-1") })
	for _, a := range []*Agent{web, db, lost} {
		a.Session().Close()
	}
	c.Stop()
	now.Advance(24 * time.Hour)
	c.Restart()

	wantError(t, web.Connect().Err(t), connect.CodeUnauthenticated, "expired") // it is good for nothing else
	if err := renew(web); err != nil {
		t.Fatal(err)
	}
	web.Connect()
	Eventually(t, "it is current again", func() bool { return current(t, c, "web-1") })
	if left := time.UnixMilli(agent(t, c, "web-1").CertificateExpiresMs).Sub(now.Now()); left < 50*time.Minute || left > time.Hour {
		t.Errorf("the certificate is shown to be good for %v", left)
	}

	if _, err := c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "db-1"}); err != nil {
		t.Fatal(err)
	}
	wantError(t, renew(db), connect.CodePermissionDenied, "revoked")
	forged := c.NewAgent("db-1")
	forged.Cert = forge(t, "db-1")
	wantError(t, renew(forged), connect.CodeUnauthenticated, "not issued to an agent by this controller")

	now.Advance(2 * time.Hour)
	wantError(t, renew(lost), connect.CodeUnauthenticated, "expired", "enrol again")
	auditHas(t, c, "agent.connect", bulkheadv1connect.AgentServiceRenewProcedure, true, "expired")
}

// TestBrokenGlassIsAudited: when root on a host opens it against its policy, and when that is over.
func TestBrokenGlassIsAudited(t *testing.T) {
	c := Start(t)
	a := c.NewAgent("web-1")
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Host: "web-1"})); err != nil {
		t.Fatal(err)
	}
	a.Connect()
	until := uint64(time.Now().Add(time.Hour).UnixMilli())
	tell := func(until uint64) {
		a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: &pb.AgentStatus{GlassUntilMs: until, GlassReason: "payments are down"}}})
	}
	count := func() (n int) {
		resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Entries {
			if e.Action == "agent.break-glass" {
				n++
			}
		}
		return n
	}
	tell(until)
	tell(until + 3) // an agent that knows it from the kernel is not as exact
	Eventually(t, "it is audited", func() bool { return count() == 1 })
	auditHas(t, c, "agent.break-glass", "web-1", false, "payments are down")
	tell(0)
	Eventually(t, "its end is audited", func() bool { return count() == 2 })
	auditHas(t, c, "agent.break-glass", "web-1", false, "in force again")
}

// TestTamperingIsAudited: once each time that an agent says that somebody has changed what it had put into the kernel.
func TestTamperingIsAudited(t *testing.T) {
	c := Start(t)
	a := c.NewAgent("web-1")
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Host: "web-1"})); err != nil {
		t.Fatal(err)
	}
	a.Connect()
	at := uint64(time.Now().UnixMilli())
	for _, told := range []struct {
		at    uint64
		found string
	}{{0, ""}, {at, "bulkhead_egress had been detached"}, {at, "bulkhead_egress had been detached"}, {at + 1000, "policy rows had been changed"}} {
		a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: &pb.AgentStatus{TamperedAtMs: told.at, Tampered: told.found}}})
	}
	var details []string
	Eventually(t, "both are audited", func() bool {
		resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
		if err != nil {
			t.Fatal(err)
		}
		details = nil
		for _, e := range resp.Entries {
			if e.Action == "agent.tampered" {
				details = append(details, e.Detail)
			}
		}
		return len(details) >= 2
	})
	if len(details) != 2 {
		t.Errorf("audited: %q", details)
	}
	auditHas(t, c, "agent.tampered", "web-1", false, "bulkhead_egress had been detached")
	auditHas(t, c, "agent.tampered", "web-1", false, "policy rows had been changed")
}
