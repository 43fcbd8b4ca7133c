package trust

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/internal/store"
)

// Admin is the name of the credential that is made at the first start.
const Admin = "admin"

const (
	adminFile   = "admin.token"
	bearerToken = "bha1."
)

// EnsureAdmin makes the administrator's API token if there is none: it is written to admin.token in the directory,
// and only its hash is stored. It reports whether it has made one.
func EnsureAdmin(tx store.Tx, dir string, now time.Time) (bool, error) {
	_, err := tx.Credential(Admin)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	secret := bearerToken + rand.Text()
	if err := writeFile(filepath.Join(dir, adminFile), []byte(secret+"\n"), 0o600); err != nil {
		return false, fmt.Errorf("write the administrator's token: %w", err)
	}
	return true, tx.PutCredential(store.Credential{Name: Admin, Hash: hash(secret), Created: now})
}

// Bearer returns the name of the credential that an Authorization header holds the token of. The error is a *Refusal.
func Bearer(header string, credentials []store.Credential) (string, error) {
	scheme, secret, _ := strings.Cut(header, " ")
	if header == "" {
		return "", refuse(Unauthenticated, "no API token; give one with --token-file (the controller wrote the administrator's to %s in its data directory)", adminFile)
	}
	if !strings.EqualFold(scheme, "bearer") {
		return "", refuse(Unauthenticated, "the Authorization header must read: Bearer <token>")
	}
	found := ""
	for _, c := range credentials { // all of them, so that time tells nothing
		if equal(c.Hash, strings.TrimSpace(secret)) {
			found = c.Name
		}
	}
	if found == "" {
		return "", refuse(Unauthenticated, "this API token is not valid here")
	}
	return found, nil
}
