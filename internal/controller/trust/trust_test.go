package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
	"bulkhead/internal/store/fake"
	"bulkhead/internal/wire"
)

var now = time.Now().Truncate(time.Second)

func openCA(t *testing.T, dir string) *CA {
	t.Helper()
	ca, err := OpenCA(dir, now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// request returns a certificate request that asks for more than it should get.
func request(t *testing.T, key any) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "somebody-else"},
		DNSNames: []string{"controller.example"},
		URIs:     []*url.URL{{Scheme: "spiffe", Host: "bulkhead", Path: "/agent/somebody-else"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func ecKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func agentCert(t *testing.T, ca *CA, host string, enrollment int64, life time.Duration) *x509.Certificate {
	t.Helper()
	cert, err := ca.Agent(host, enrollment, request(t, ecKey(t, elliptic.P256())), life, now)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func refusal(t *testing.T, err error, kind Kind, words ...string) {
	t.Helper()
	r := AsRefusal(err)
	if r == nil {
		t.Errorf("error %v, want a refusal", err)
		return
	}
	if r.Kind != kind {
		t.Errorf("refusal %q is of kind %d, want %d", r.Text, r.Kind, kind)
	}
	for _, w := range words {
		if !strings.Contains(r.Text, w) {
			t.Errorf("refusal %q does not say %q", r.Text, w)
		}
	}
}

func TestCALasts(t *testing.T) {
	dir := t.TempDir()
	first := openCA(t, dir)
	if again := openCA(t, dir); again.Fingerprint() != first.Fingerprint() {
		t.Error("the CA is another one after a restart")
	}
	if openCA(t, t.TempDir()).Fingerprint() == first.Fingerprint() {
		t.Error("two installations have one CA")
	}
	for name, want := range map[string]os.FileMode{"ca.key": 0o600, "ca.crt": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode().Perm(), err, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCAThatCannotBeUsed(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"key for all": {func(dir string) error { return os.Chmod(filepath.Join(dir, "ca.key"), 0o644) }, "chmod 600"},
		"key is text": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.key"), []byte("hello"), 0o600) }, "no key in PEM"},
		"certificate is text": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("hello"), 0o600)
		}, "no certificate in PEM"},
		"certificate of another key": {func(dir string) error {
			other := filepath.Join(dir, "other")
			if err := os.Mkdir(other, 0o700); err != nil {
				return err
			}
			if _, err := OpenCA(other, now); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, "ca.crt"), filepath.Join(dir, "ca.crt"))
		}, "does not belong to"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openCA(t, dir)
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenCA(dir, now); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
	dir := t.TempDir()
	openCA(t, dir)
	if _, err := OpenCA(dir, now.Add(11*365*24*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired CA: %v", err)
	}
}

func TestVerifyAgent(t *testing.T) {
	ca, other := openCA(t, t.TempDir()), openCA(t, t.TempDir())
	cert := agentCert(t, ca, "node-1", 1<<61+7, time.Hour)
	peer, err := ca.Verify([]*x509.Certificate{cert}, now)
	if err != nil {
		t.Fatal(err)
	}
	if peer.Host != "node-1" || peer.Enrollment != 1<<61+7 || !peer.NotAfter.Equal(cert.NotAfter) {
		t.Errorf("peer %+v", peer)
	}
	if len(cert.DNSNames) > 0 || cert.Subject.CommonName != "node-1" || len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://bulkhead/agent/node-1" {
		t.Errorf("the certificate says what its request asked for: %v %v %v", cert.Subject, cert.DNSNames, cert.URIs)
	}
	verify := func(at time.Time, chain ...*x509.Certificate) error {
		_, err := ca.Verify(chain, at)
		return err
	}
	refusal(t, verify(now), Unauthenticated, "join token")
	refusal(t, verify(now.Add(2*time.Hour), cert), Unauthenticated, "expired", "enrol again")
	refusal(t, verify(now.Add(-time.Hour), cert), Unauthenticated, "clocks")
	refusal(t, verify(now, agentCert(t, other, "node-1", 7, time.Hour)), Unauthenticated, "not issued", "by this controller")

	// For another certificate an expired one is good for a while, if nothing else is wrong with it.
	renew := func(at time.Time, cert *x509.Certificate) error {
		peer, err := ca.VerifyForRenewal([]*x509.Certificate{cert}, at, 24*time.Hour)
		if err == nil && (peer.Host != "node-1" || !peer.NotAfter.Equal(cert.NotAfter)) {
			t.Errorf("peer %+v", peer)
		}
		return err
	}
	for _, late := range []time.Duration{-time.Minute, 0, time.Second, 24 * time.Hour} {
		if err := renew(cert.NotAfter.Add(late), cert); err != nil {
			t.Errorf("%v after it expired: %v", late, err)
		}
	}
	refusal(t, renew(cert.NotAfter.Add(24*time.Hour+time.Second), cert), Unauthenticated, "expired", "enrol again")
	refusal(t, renew(now.Add(-time.Hour), cert), Unauthenticated, "clocks")
	refusal(t, renew(now.Add(2*time.Hour), agentCert(t, other, "node-1", 7, time.Hour)), Unauthenticated, "not issued")

	server, err := ca.Server([]string{"localhost"}, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	refusal(t, renew(server.Leaf.NotAfter.Add(time.Minute), server.Leaf), Unauthenticated, "not issued to an agent")
	refusal(t, verify(now, server.Leaf), Unauthenticated, "not issued to an agent")
	refusal(t, verify(now, ca.cert), Unauthenticated)

	// Certificates that our CA would never make: the name and the SPIFFE ID must agree.
	forged := func(name string, ids ...string) *x509.Certificate {
		t.Helper()
		template := &x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		for _, id := range ids {
			u, err := url.Parse(id)
			if err != nil {
				t.Fatal(err)
			}
			template.URIs = append(template.URIs, u)
		}
		cert, err := ca.sign(ecKey(t, elliptic.P256()).Public(), 7, template)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	for name, cert := range map[string]*x509.Certificate{
		"another name":   forged("node-2", "spiffe://bulkhead/agent/node-1"),
		"no id":          forged("node-1"),
		"two ids":        forged("node-1", "spiffe://bulkhead/agent/node-1", "spiffe://bulkhead/agent/node-2"),
		"another domain": forged("node-1", "spiffe://elsewhere/agent/node-1"),
		"another scheme": forged("node-1", "https://bulkhead/agent/node-1"),
		"a path":         forged("a/b", "spiffe://bulkhead/agent/a/b"),
		"a controller":   forged("controller", "spiffe://bulkhead/controller"),
	} {
		t.Run(name, func(t *testing.T) { refusal(t, verify(now, cert), Unauthenticated, "names no agent") })
	}
}

func TestCertificateRequests(t *testing.T) {
	ca := openCA(t, t.TempDir())
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "Ed25519": edKey} {
		if _, err := ca.Agent("h", 1, request(t, key), time.Hour, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, ecKey(t, elliptic.P256()))
	spoiled := append([]byte(nil), good...)
	spoiled[len(spoiled)-1] ^= 1
	for name, csr := range map[string][]byte{
		"none": nil, "garbage": []byte("garbage"), "cut short": good[:len(good)-10],
		"P-224": request(t, ecKey(t, elliptic.P224())), "RSA": request(t, rsaKey), "signature of another": spoiled,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.Agent("h", 1, csr, time.Hour, now)
			refusal(t, err, Malformed)
		})
	}
}

// TestServerCertificate makes the checks that an agent makes that knows nothing but the fingerprint.
func TestServerCertificate(t *testing.T) {
	ca := openCA(t, t.TempDir())
	cert, err := ca.Server([]string{"localhost"}, []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Certificate) != 2 || sha256.Sum256(cert.Certificate[1]) != ca.Fingerprint() {
		t.Fatal("the chain does not show the CA")
	}
	pool := x509.NewCertPool()
	root, err := x509.ParseCertificate(ca.Roots()[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(root)
	for _, name := range []string{"localhost", "10.0.0.5", "fd00::5"} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckHost(t *testing.T) {
	for _, good := range []string{"a", "node-1", "Node_1.example.org", strings.Repeat("a", 253)} {
		if err := CheckHost(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "a b", "a/b", "../x", "a\n", "ü", strings.Repeat("a", 254)} {
		refusal(t, CheckHost(bad), Malformed)
	}
}

func TestNewToken(t *testing.T) {
	ca := openCA(t, t.TempDir())
	given, stored, err := ca.NewToken(TokenRequest{Host: "node-1", Labels: model.Labels{"app": "pay"}, Note: "n", By: "ana"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if given.CA != ca.Fingerprint() || stored.Uses != 1 || stored.UsesLeft != 1 || !stored.Expires.Equal(now.Add(time.Hour)) || stored.ID != given.ID {
		t.Errorf("token %+v stored as %+v", given, stored)
	}
	if strings.Contains(string(stored.SecretHash), given.Secret) || len(stored.SecretHash) != sha256.Size {
		t.Error("the secret is stored")
	}
	if parsed, err := wire.ParseJoinToken(given.Text()); err != nil || parsed != given {
		t.Errorf("text %q gives %+v, %v", given.Text(), parsed, err)
	}
	for name, r := range map[string]TokenRequest{
		"bad host":      {Host: "a b"},
		"negative uses": {Uses: -1},
		"too many uses": {Uses: MaxTokenUses + 1},
		"negative life": {Life: -1},
		"too long":      {Life: MaxTokenLife + 1},
		"bad key":       {Labels: model.Labels{"a b": "c"}},
		"bad value":     {Labels: model.Labels{"a": "c d"}},
		"system label":  {Labels: model.Labels{"bulkhead/quarantine": "none"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ca.NewToken(r, now)
			refusal(t, err, Malformed)
		})
	}
}

// redeem redeems in a transaction of its own, as the API does.
func redeem(s store.Store, text, host string, at time.Time) (agent *store.Agent, err error) {
	err = s.Update(context.Background(), func(tx store.Tx) (err error) {
		agent, err = Redeem(tx, text, host, at)
		return err
	})
	return agent, err
}

func TestRedeem(t *testing.T) {
	ca := openCA(t, t.TempDir())
	s := &fake.Store{}
	put := func(r TokenRequest) wire.JoinToken {
		t.Helper()
		given, stored, err := ca.NewToken(r, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.PutToken(stored) }); err != nil {
			t.Fatal(err)
		}
		return given
	}
	usesLeft := func(id string) (n int) {
		t.Helper()
		if err := s.View(t.Context(), func(r store.Reader) error {
			k, err := r.Token(id)
			if err == nil {
				n = k.UsesLeft
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}

	token := put(TokenRequest{Uses: 2, Labels: model.Labels{"app": "pay"}})
	first, err := redeem(s, token.Text(), "node-1", now)
	if err != nil {
		t.Fatal(err)
	}
	if first.Enrollment <= 0 || first.Labels["app"] != "pay" || first.Token != token.ID || usesLeft(token.ID) != 1 {
		t.Errorf("agent %+v, %d uses left", first, usesLeft(token.ID))
	}

	wrong := token
	wrong.Secret = "X" + token.Secret[1:]
	unknown := token
	unknown.ID = "unknown"
	for _, c := range []struct {
		name, text, host string
		at               time.Time
		kind             Kind
		words            []string
	}{
		{"none", "", "node-2", now, Unauthenticated, []string{"no join token", "bulkhead token create"}},
		{"not a token", "hello", "node-2", now, Unauthenticated, []string{"not a join token"}},
		{"unknown", unknown.Text(), "node-2", now, Unauthenticated, []string{"there is no join token unknown"}},
		{"wrong secret", wrong.Text(), "node-2", now, Unauthenticated, []string{"secret", "wrong"}},
		{"wrong secret of an expired one", wrong.Text(), "node-2", now.Add(2 * time.Hour), Unauthenticated, []string{"wrong"}},
		{"expired", token.Text(), "node-2", now.Add(time.Hour), Forbidden, []string{"expired"}},
		{"bad name", token.Text(), "node 2", now, Malformed, []string{"host name"}},
		{"name taken", token.Text(), "node-1", now, Forbidden, []string{"enrolled already", "--host node-1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := redeem(s, c.text, c.host, c.at)
			refusal(t, err, c.kind, c.words...)
			if strings.Contains(err.Error(), token.Secret) {
				t.Error("the refusal quotes the secret")
			}
			if usesLeft(token.ID) != 1 {
				t.Error("a refused token lost a use")
			}
		})
	}

	if _, err := redeem(s, token.Text(), "node-2", now); err != nil {
		t.Fatal(err)
	}
	_, err = redeem(s, token.Text(), "node-3", now)
	refusal(t, err, Forbidden, "used up", "2 uses")

	bound := put(TokenRequest{Host: "node-1"})
	_, err = redeem(s, bound.Text(), "node-9", now)
	refusal(t, err, Forbidden, "is for host node-1")
	second, err := redeem(s, bound.Text(), "node-1", now)
	if err != nil {
		t.Fatalf("a token made for an enrolled host: %v", err)
	}
	if second.Enrollment == first.Enrollment || len(second.Labels) != 0 {
		t.Errorf("enrolled again as %+v", second)
	}
	old := &Peer{Host: "node-1", Enrollment: first.Enrollment}
	refusal(t, CheckEnrollment(old, second), Forbidden, "enrolled again")
	if err := CheckEnrollment(&Peer{Host: "node-1", Enrollment: second.Enrollment}, second); err != nil {
		t.Errorf("the present enrolment: %v", err)
	}
	refusal(t, CheckEnrollment(old, nil), Unauthenticated, "not known")
	gone := *second
	gone.Enrollment, gone.RevokedAt = 0, now
	refusal(t, CheckEnrollment(old, &gone), Forbidden, "revoked")
	refusal(t, CheckEnrollment(&Peer{Host: "node-1"}, &gone), Forbidden, "revoked")

	// After a revocation no token will do, and after that was lifted any.
	keep := func(a store.Agent) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.PutAgent(a) }); err != nil {
			t.Fatal(err)
		}
	}
	keep(gone)
	open, made := put(TokenRequest{}), put(TokenRequest{Host: "node-1"})
	for _, token := range []wire.JoinToken{open, made} {
		_, err := redeem(s, token.Text(), "node-1", now)
		refusal(t, err, Forbidden, "revoked", "bulkhead agents allow node-1")
		if usesLeft(token.ID) != 1 {
			t.Error("a refused token lost a use")
		}
	}
	gone.RevokedAt = time.Time{}
	keep(gone)
	refusal(t, CheckEnrollment(old, &gone), Forbidden, "enrol with a new join token")
	refusal(t, CheckEnrollment(&Peer{Host: "node-1"}, &gone), Forbidden, "enrol with a new join token")
	if _, err := redeem(s, open.Text(), "node-1", now); err != nil {
		t.Errorf("enrol after a revocation was lifted: %v", err)
	}

	revoked := put(TokenRequest{})
	if err := s.Update(t.Context(), func(tx store.Tx) error {
		k, err := tx.Token(revoked.ID)
		if err != nil {
			return err
		}
		k.RevokedAt = now
		return tx.PutToken(*k)
	}); err != nil {
		t.Fatal(err)
	}
	_, err = redeem(s, revoked.Text(), "node-7", now)
	refusal(t, err, Forbidden, "revoked")
}

func TestAdminToken(t *testing.T) {
	dir := t.TempDir()
	s := &fake.Store{}
	ensure := func() (made bool) {
		t.Helper()
		if err := s.Update(t.Context(), func(tx store.Tx) (err error) {
			made, err = EnsureAdmin(tx, dir, now)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return made
	}
	if !ensure() || ensure() {
		t.Fatal("the administrator's token is made once")
	}
	path := filepath.Join(dir, "admin.token")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("admin.token: %v, %v", info, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(data))
	var known []store.Credential
	if err := s.View(t.Context(), func(r store.Reader) (err error) {
		known, err = r.Credentials()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(known[0].Hash), token) {
		t.Error("the token itself is stored")
	}
	for _, header := range []string{"Bearer " + token, "bearer  " + token} {
		if name, err := Bearer(header, known); err != nil || name != Admin {
			t.Errorf("%q: %q, %v", header, name, err)
		}
	}
	for header, word := range map[string]string{
		"": "no API token", "Basic " + token: "must read: Bearer", token: "must read", "Bearer x": "not valid", "Bearer ": "not valid",
		"Bearer " + token + "x": "not valid",
	} {
		_, err := Bearer(header, known)
		refusal(t, err, Unauthenticated, word)
	}
	_, err = Bearer("Bearer "+token, nil)
	refusal(t, err, Unauthenticated)
}
