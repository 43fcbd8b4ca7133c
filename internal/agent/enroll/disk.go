package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"bulkhead/internal/agent/durable"
)

const (
	identityFile = "identity.pem"
	rootsFile    = "ca.crt"
	keyBlock     = "PRIVATE KEY"
	certBlock    = "CERTIFICATE"
	tokenHeader  = "Bulkhead-Token"
	sinceHeader  = "Bulkhead-Since"
)

// save writes the roots first: an identity is of no use without them. Key and certificate are one file, so they
// always belong together.
func save(dir string, id *Identity) error {
	var roots bytes.Buffer
	for _, r := range id.roots {
		if err := pem.Encode(&roots, &pem.Block{Type: certBlock, Bytes: r.Raw}); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(filepath.Join(dir, rootsFile), roots.Bytes(), 0o644); err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(id.cert.PrivateKey)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	headers := map[string]string{tokenHeader: id.TokenID, sinceHeader: id.since.UTC().Format(time.RFC3339)}
	block := &pem.Block{Type: keyBlock, Headers: headers, Bytes: key}
	if err := pem.Encode(&out, block); err != nil {
		return err
	}
	for _, c := range id.cert.Certificate {
		if err := pem.Encode(&out, &pem.Block{Type: certBlock, Bytes: c}); err != nil {
			return err
		}
	}
	return durable.WriteFile(filepath.Join(dir, identityFile), out.Bytes(), 0o600)
}

// ErrExpired says that the certificate on disk is too old to connect with.
var ErrExpired = errors.New("the certificate has expired")

// Load takes the identity from disk. ErrNone says that there is none, ErrExpired that there is one whose time is
// over (it is loaded all the same). Any other error says what is wrong with the files; they are left as they are.
func (k *Keeper) Load() error {
	data, err := os.ReadFile(filepath.Join(k.cfg.Dir, identityFile))
	if errors.Is(err, os.ErrNotExist) {
		return ErrNone
	}
	if err != nil {
		return err
	}
	rootsPEM, err := os.ReadFile(filepath.Join(k.cfg.Dir, rootsFile))
	if err != nil {
		return err
	}
	id, err := decode(data, rootsPEM)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(k.cfg.Dir, identityFile), err)
	}
	if id.Host != k.cfg.Host {
		return fmt.Errorf("%s is the identity of host %q, this is %q", filepath.Join(k.cfg.Dir, identityFile), id.Host, k.cfg.Host)
	}
	k.current.Store(id)
	k.kept = id
	if !time.Now().Before(id.NotAfter()) {
		return fmt.Errorf("%w at %s", ErrExpired, id.NotAfter().Format(time.RFC3339))
	}
	return nil
}

// decode is the inverse of save. It does not ask whether the certificate is still valid.
func decode(identity, rootsPEM []byte) (*Identity, error) {
	id := &Identity{}
	for rest := identity; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch b.Type {
		case keyBlock:
			key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, err
			}
			id.cert.PrivateKey, id.TokenID = key, b.Headers[tokenHeader]
			if id.since, err = time.Parse(time.RFC3339, b.Headers[sinceHeader]); err != nil {
				return nil, err
			}
		case certBlock:
			id.cert.Certificate = append(id.cert.Certificate, b.Bytes)
		}
	}
	key, ok := id.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || len(id.cert.Certificate) == 0 {
		return nil, errors.New("it does not hold a key and a certificate")
	}
	var err error
	if id.cert.Leaf, err = x509.ParseCertificate(id.cert.Certificate[0]); err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(id.cert.Leaf.PublicKey) {
		return nil, errors.New("key and certificate do not belong together")
	}
	if id.Host, err = hostOf(id.cert.Leaf); err != nil {
		return nil, err
	}
	for rest := rootsPEM; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		root, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rootsFile, err)
		}
		id.roots = append(id.roots, root)
	}
	if len(id.roots) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", rootsFile)
	}
	id.pool = poolOf(id.roots)
	return id, nil
}
