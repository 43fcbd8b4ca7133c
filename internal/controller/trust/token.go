package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
	"bulkhead/internal/wire"
)

// Limits on join tokens.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 365 * 24 * time.Hour
	MaxTokenUses     = 1_000_000
)

// TokenRequest says what a join token may be used for.
type TokenRequest struct {
	Host   string // "" any name that is free
	Labels model.Labels
	Uses   int           // 0 means 1
	Life   time.Duration // 0 means DefaultTokenLife
	Note   string
	By     string
}

// NewToken returns a join token and what to store of it: the secret is in the former only. The error is a *Refusal.
func (ca *CA) NewToken(r TokenRequest, now time.Time) (wire.JoinToken, store.Token, error) {
	var none wire.JoinToken
	if r.Uses == 0 {
		r.Uses = 1
	}
	if r.Life == 0 {
		r.Life = DefaultTokenLife
	}
	switch {
	case r.Uses < 0 || r.Uses > MaxTokenUses:
		return none, store.Token{}, refuse(Malformed, "uses: %d is not between 1 and %d", r.Uses, MaxTokenUses)
	case r.Life < 0 || r.Life > MaxTokenLife:
		return none, store.Token{}, refuse(Malformed, "a join token lives between a second and %d days", MaxTokenLife/(24*time.Hour))
	case r.Host != "" && CheckHost(r.Host) != nil:
		return none, store.Token{}, CheckHost(r.Host)
	}
	for _, k := range r.Labels.Keys() {
		err := model.CheckLabelKey(k)
		if err == nil {
			err = model.CheckLabelValue(r.Labels[k])
		}
		if err == nil && strings.HasPrefix(k, model.SystemLabelPrefix) {
			err = fmt.Errorf("label key %q: labels under %s are set by the system only", k, model.SystemLabelPrefix)
		}
		if err != nil {
			return none, store.Token{}, refuse(Malformed, "%v", err)
		}
	}
	id := strings.ToLower(rand.Text()[:12])
	token := wire.JoinToken{ID: id, Secret: rand.Text(), CA: ca.Fingerprint()}
	return token, store.Token{
		ID: id, SecretHash: hash(token.Secret), Host: r.Host, Labels: r.Labels, Uses: r.Uses, UsesLeft: r.Uses,
		Created: now, Expires: now.Add(r.Life), CreatedBy: r.By, Note: r.Note,
	}, nil
}

// Redeem uses the token up by one and enrols the host: it returns the agent as it now is in the store. The error is a
// *Refusal, or one of the store.
func Redeem(tx store.Tx, text, host string, now time.Time) (*store.Agent, error) {
	if err := CheckHost(host); err != nil {
		return nil, err
	}
	if strings.TrimSpace(text) == "" {
		return nil, refuse(Unauthenticated, "no join token; an administrator makes one by `bulkhead token create`")
	}
	given, err := wire.ParseJoinToken(text)
	if err != nil {
		return nil, refuse(Unauthenticated, "%v", err)
	}
	token, err := tx.Token(given.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, refuse(Unauthenticated, "there is no join token %s here", given.ID)
	case err != nil:
		return nil, err
	case !equal(token.SecretHash, given.Secret):
		return nil, refuse(Unauthenticated, "the secret of join token %s is wrong", token.ID)
	case !token.RevokedAt.IsZero():
		return nil, refuse(Forbidden, "join token %s has been revoked", token.ID)
	case !now.Before(token.Expires):
		return nil, refuse(Forbidden, "join token %s expired at %s", token.ID, token.Expires.Format(time.RFC3339))
	case token.UsesLeft <= 0:
		return nil, refuse(Forbidden, "join token %s is used up: all of its %d uses are over", token.ID, token.Uses)
	case token.Host != "" && token.Host != host:
		return nil, refuse(Forbidden, "join token %s is for host %s, not for %s", token.ID, token.Host, host)
	}
	agent, err := tx.Agent(host)
	switch {
	case errors.Is(err, store.ErrNotFound):
		agent = &store.Agent{Host: host}
	case err != nil:
		return nil, err
	case agent.Revoked():
		return nil, refuse(Forbidden, "host %s has been revoked; an administrator must allow it again before it may enrol (`bulkhead agents allow %s`)", host, host)
	case agent.Enrolled() && token.Host != host:
		return nil, refuse(Forbidden, "host %s has enrolled already; use a token made for it (`bulkhead token create --host %s`)", host, host)
	}
	if agent.Enrollment, err = newEnrollment(); err != nil {
		return nil, err
	}
	agent.Labels, agent.Token = token.Labels, token.ID
	agent.EnrolledAt = now
	token.UsesLeft--
	if err := tx.PutToken(*token); err != nil {
		return nil, err
	}
	return agent, tx.PutAgent(*agent)
}

// newEnrollment returns a random number of 62 bits that is not zero.
func newEnrollment() (int64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(b[:])&(math.MaxInt64>>1)) + 1, nil
}

// CheckEnrollment reports whether the certificate is of the present enrolment of its host; agent is nil if there is
// none. The error is a *Refusal.
func CheckEnrollment(p *Peer, agent *store.Agent) error {
	switch {
	case agent == nil:
		return refuse(Unauthenticated, "host %s is not known here; enrol with a join token", p.Host)
	case agent.Revoked():
		return Revoked(p.Host)
	case !agent.Enrolled():
		return refuse(Forbidden, "host %s has been allowed again since this certificate was revoked; enrol with a new join token", p.Host)
	case agent.Enrollment != p.Enrollment:
		return refuse(Forbidden, "host %s has enrolled again since this certificate was issued; if that was not you, tell your administrator", p.Host)
	}
	return nil
}

// Revoked is what the agent of a revoked host is told, a *Refusal.
func Revoked(host string) error {
	return refuse(Forbidden, "the agent of host %s has been revoked; an administrator must allow it again (`bulkhead agents allow %s`) before it may enrol with a new join token", host, host)
}

// hash returns what is stored of a secret. Secrets have 128 random bits, so a plain hash is enough.
func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

func equal(stored []byte, secret string) bool {
	return subtle.ConstantTimeCompare(stored, hash(secret)) == 1
}
