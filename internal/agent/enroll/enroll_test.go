package enroll_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/enroll"
)

func keeper(t *testing.T, c *agenttest.Controller, dir string) *enroll.Keeper {
	t.Helper()
	return enroll.New(enroll.Config{Host: "node-1", Dir: dir, Controller: c.Addr}, slog.New(slog.DiscardHandler))
}

func TestEnrollThenLoad(t *testing.T) {
	c := agenttest.New(t).Start()
	dir := t.TempDir()
	k := keeper(t, c, dir)
	if err := k.Load(); !errors.Is(err, enroll.ErrNone) {
		t.Fatalf("load from an empty directory: %v, want ErrNone", err)
	}
	if err := k.Enroll(t.Context(), c.Token("one", "node-1", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "identity.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity.pem has mode %v (%v), want 0600", info.Mode(), err)
	}
	again := keeper(t, c, dir)
	if err := again.Load(); err != nil {
		t.Fatal(err)
	}
	got, want := again.Current(), k.Current()
	if got.Host != "node-1" || got.TokenID != "one" || !got.NotAfter().Equal(want.NotAfter()) {
		t.Errorf("loaded %+v, want %+v", got, want)
	}
	third := got.NotAfter().Sub(got.RenewAt())
	if third < 19*time.Minute || third > 21*time.Minute {
		t.Errorf("a certificate of one hour is renewed %v before its end, want a third of its life", third)
	}
}

func TestRefusedEnrolment(t *testing.T) {
	c := agenttest.New(t).Start()
	other := agenttest.New(t) // another CA
	used := c.Token("used", "", 1, time.Hour)
	if err := keeper(t, c, t.TempDir()).Enroll(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	revoked := agenttest.New(t)
	revoked.Authority = c.Authority
	cases := map[string]struct{ token, want string }{
		"no token at all":      {"", "not a join token"},
		"a damaged token":      {used[:len(used)-6], "copy the token whole"},
		"a used token":         {used, "used up"},
		"an expired token":     {c.Token("late", "", 1, -time.Second), "expired"},
		"a token of another":   {c.Token("theirs", "node-2", 1, time.Hour), "for host node-2"},
		"an unknown token":     {revoked.Token("unknown", "", 1, time.Hour), "no such token"},
		"another controller's": {other.Token("other", "", 1, time.Hour), "not the controller that made join token other"},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			k := keeper(t, c, dir)
			err := k.Enroll(t.Context(), test.token)
			refused := (*enroll.RefusedError)(nil)
			if !errors.As(err, &refused) {
				t.Fatalf("error %v, want a refusal", err)
			}
			if !strings.Contains(err.Error(), test.want) || refused.Do == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q: want one line with %q and what to do", err, test.want)
			}
			if k.Current() != nil {
				t.Error("it has an identity all the same")
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("it left %v behind (%v)", entries, err)
			}
		})
	}
}

func TestControllerThatDoesNotShowItsCA(t *testing.T) {
	c := agenttest.New(t)
	c.HideCA = true
	c.Start()
	err := keeper(t, c, t.TempDir()).Enroll(t.Context(), c.Token("one", "", 1, time.Hour))
	if refused := (*enroll.RefusedError)(nil); !errors.As(err, &refused) {
		t.Errorf("error %v, want a refusal: nothing proves who the controller is", err)
	}
}

func TestUnreachableControllerIsWorthAnotherTry(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := agenttest.New(t)
	c.Addr = listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	err = keeper(t, c, t.TempDir()).Enroll(t.Context(), c.Token("one", "", 1, time.Hour))
	if refused := (*enroll.RefusedError)(nil); err == nil || errors.As(err, &refused) {
		t.Errorf("error %v, want one that is worth another try", err)
	}
}

func TestRenewServesTheNextConnection(t *testing.T) {
	c := agenttest.New(t)
	c.TTL = time.Minute
	c.Start()
	dir := t.TempDir()
	k := keeper(t, c, dir)
	if err := k.Enroll(t.Context(), c.Token("one", "", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	first := k.Current()
	if err := k.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if k.Current() == first || c.Renewals() != 1 {
		t.Error("the identity is the old one")
	}
	after, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil || bytes.Equal(before, after) {
		t.Errorf("the file is the old one (%v)", err)
	}
	if k.Current().TokenID != "one" {
		t.Error("the renewed identity forgot its token")
	}
}

func TestRenewWithAnothersCertificate(t *testing.T) {
	c := agenttest.New(t).Start()
	foreign := agenttest.New(t).Start()
	dir := t.TempDir()
	k := keeper(t, foreign, dir)
	if err := k.Enroll(t.Context(), foreign.Token("one", "", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	// The same identity, shown to a controller with another CA.
	k = keeper(t, c, dir)
	if err := k.Load(); err != nil {
		t.Fatal(err)
	}
	err := k.Renew(t.Context())
	if err == nil || !enroll.IsUntrusted(err) {
		t.Errorf("error %v, want one of trust", err)
	}
	if c.Renewals() != 0 {
		t.Error("the controller renewed it")
	}
}

func TestLoadRefusesWhatItCannotUse(t *testing.T) {
	c := agenttest.New(t).Start()
	good := t.TempDir()
	if err := keeper(t, c, good).Enroll(t.Context(), c.Token("one", "", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	identity, err := os.ReadFile(filepath.Join(good, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.ReadFile(filepath.Join(good, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		identity, roots []byte
		host, want      string
	}{
		"truncated":        {identity[:len(identity)/2], roots, "node-1", "key and a certificate"},
		"empty":            {nil, roots, "node-1", "key and a certificate"},
		"no roots":         {identity, nil, "node-1", "no certificate"},
		"of another host":  {identity, roots, "node-2", `of host "node-1"`},
		"another key":      {append(otherKey(t), identity[bytes.Index(identity, []byte("-----BEGIN CERT")):]...), roots, "node-1", "do not belong together"},
		"a damaged letter": {bytes.Replace(identity, []byte("MI"), []byte("XX"), 1), roots, "node-1", "identity.pem"},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, data := range map[string][]byte{"identity.pem": test.identity, "ca.crt": test.roots} {
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k := enroll.New(enroll.Config{Host: test.host, Dir: dir, Controller: c.Addr}, slog.New(slog.DiscardHandler))
			if err := k.Load(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if k.Current() != nil {
				t.Error("it has an identity all the same")
			}
		})
	}
}

func otherKey(t *testing.T) []byte {
	t.Helper()
	c := agenttest.New(t).Start()
	dir := t.TempDir()
	if err := keeper(t, c, dir).Enroll(t.Context(), c.Token("k", "", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return data[:bytes.Index(data, []byte("-----BEGIN CERT"))]
}

func TestExpiredIdentityIsLoadedAndSaysSo(t *testing.T) {
	c := agenttest.New(t).Start()
	dir := t.TempDir()
	k := keeper(t, c, dir)
	if err := k.Enroll(t.Context(), c.Token("one", "", 1, time.Hour)); err != nil {
		t.Fatal(err)
	}
	c.Expire(dir)
	k = keeper(t, c, dir)
	if err := k.Load(); !errors.Is(err, enroll.ErrExpired) {
		t.Errorf("error %v, want ErrExpired", err)
	}
	if k.Current() == nil {
		t.Error("the expired identity was not loaded")
	}
}
