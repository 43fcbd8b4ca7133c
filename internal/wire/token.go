package wire

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// JoinToken is what lets a host enrol, as one string: bh1.<id>.<secret>.<fingerprint>. The fingerprint is the
// SHA-256 of the CA certificate, base64url without padding; with it the agent knows its controller before it has
// spoken to it.
type JoinToken struct {
	ID     string
	Secret string
	CA     [sha256.Size]byte
}

const tokenPrefix = "bh1"

// Text returns the token as people pass it on. It holds the secret: never log it.
func (t JoinToken) Text() string {
	return strings.Join([]string{tokenPrefix, t.ID, t.Secret, base64.RawURLEncoding.EncodeToString(t.CA[:])}, ".")
}

// String returns the token without its secret.
func (t JoinToken) String() string { return tokenPrefix + "." + t.ID + ".…" }

// ParseJoinToken is the inverse of Text; space around the token does not count. The error never quotes the secret.
func ParseJoinToken(s string) (JoinToken, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 4 || parts[0] != tokenPrefix || parts[1] == "" || parts[2] == "" {
		return JoinToken{}, fmt.Errorf("this is not a join token: it must read %s.<id>.<secret>.<fingerprint>", tokenPrefix)
	}
	sum, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[3], "="))
	if err != nil || len(sum) != sha256.Size {
		return JoinToken{}, fmt.Errorf("join token %s: the fingerprint of the CA is damaged; copy the token whole", parts[1])
	}
	return JoinToken{ID: parts[1], Secret: parts[2], CA: [sha256.Size]byte(sum)}, nil
}
