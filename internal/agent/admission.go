package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/uplink"
	"bulkhead/internal/wire"
)

// admission sees to it that there is an identity to connect with.
type admission struct {
	keeper *enroll.Keeper
	cfg    *Config
	host   string
	log    *slog.Logger
	report func(key, text string)
	// inForce reports whether this agent enforces a policy. Then it never gives up: somebody must look after it.
	inForce func() bool
	retry   time.Duration // between two attempts to enrol

	loaded bool
	// The token that the controller would not take, what it said, and when to ask again: an administrator may have
	// allowed the host again meanwhile.
	refused string
	refusal error
	again   time.Time
}

const enrollTimeout = 30 * time.Second

// admit implements uplink.Deps.Admit. It returns an error only if nothing but a person can help and nothing is in
// force that would need this agent meanwhile.
func (a *admission) admit(ctx context.Context, refused string) error {
	if !a.loaded {
		a.load()
	}
	for wait := a.retry; ; wait = min(2*wait, time.Minute) {
		id := a.keeper.Current()
		expired := id != nil && !time.Now().Before(id.NotAfter())
		if id != nil && !expired && refused == "" {
			a.report(uplink.ProblemIdentity, "")
			return nil
		}
		err := a.identify(ctx, id, expired)
		if err == nil || errors.Is(err, enroll.ErrNotKept) { // the link tries again to keep it, and reports
			a.report(uplink.ProblemIdentity, "")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := err.Error()
		if expired {
			text = fmt.Sprintf("the certificate expired at %s: %s", id.NotAfter().Format(time.RFC3339), text)
		}
		a.report(uplink.ProblemIdentity, text)
		if id != nil {
			// Perhaps the controller takes the present one after all: the clock may be wrong, a revocation lifted.
			return nil
		}
		if no := (*enroll.RefusedError)(nil); errors.As(err, &no) && !a.inForce() {
			return err
		}
		a.log.Warn("not enrolled", "reason", text)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// load takes the identity from disk, if there is one.
func (a *admission) load() {
	a.loaded = true
	switch err := a.keeper.Load(); {
	case err == nil, errors.Is(err, enroll.ErrNone), errors.Is(err, enroll.ErrExpired):
	default:
		a.log.Error("the identity on disk cannot be used", "error", err)
	}
}

// identify gets an identity in place of the present one (nil: there is none). One that has expired is renewed as long as
// the controller lets that happen, and only then a token is needed.
func (a *admission) identify(ctx context.Context, present *enroll.Identity, expired bool) error {
	if expired {
		if err := a.renew(ctx); err == nil || !enroll.IsRefused(err) {
			return err // or nobody was there who could say no
		}
	}
	return a.enroll(ctx, present, expired)
}

func (a *admission) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	return a.keeper.Renew(ctx)
}

// enroll uses the configured token, unless that was refused before, or gave the identity that the controller now
// refuses: what was revoked does not come back by itself.
func (a *admission) enroll(ctx context.Context, present *enroll.Identity, expired bool) error {
	text, err := a.token()
	if err != nil {
		return err
	}
	if t, err := wire.ParseJoinToken(text); err == nil {
		if present != nil && present.TokenID == t.ID && !expired {
			return a.needsToken(fmt.Sprintf("join token %s has been used", t.ID))
		}
	}
	if a.refused == text && time.Now().Before(a.again) {
		return a.refusal
	}
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	err = a.keeper.Enroll(ctx, text)
	if no := (*enroll.RefusedError)(nil); errors.As(err, &no) {
		a.refused, a.refusal, a.again = text, err, time.Now().Add(a.cfg.RetryMax)
	}
	return err
}

// token returns the join token as configured at this moment.
func (a *admission) token() (string, error) {
	if a.cfg.Token != "" {
		return a.cfg.Token, nil
	}
	if a.cfg.TokenFile == "" {
		return "", a.needsToken("no join token is configured")
	}
	data, err := os.ReadFile(a.cfg.TokenFile)
	if err != nil {
		return "", a.needsToken(fmt.Sprintf("the join token cannot be read: %v", err))
	}
	if text := strings.TrimSpace(string(data)); text != "" {
		return text, nil
	}
	return "", a.needsToken(fmt.Sprintf("the token file %s is empty", a.cfg.TokenFile))
}

func (a *admission) needsToken(why string) error {
	where := "set tokenFile to a file that holds it"
	if a.cfg.TokenFile != "" {
		where = "put it into " + a.cfg.TokenFile
	}
	return &enroll.RefusedError{
		Why: why,
		Do:  fmt.Sprintf("make one with `bulkhead token create --host %s` and %s", a.host, where),
	}
}
