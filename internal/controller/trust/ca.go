package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 24 * time.Hour
	// clockSkew is how far agents' clocks may be behind.
	clockSkew = 5 * time.Minute

	keyFile  = "ca.key"
	certFile = "ca.crt"
)

// CA is the certificate authority of one installation. It does not change once it is there.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

// OpenCA reads the CA from the directory, and makes one there if there is none: ca.key, for its owner only, and
// ca.crt, which agents and users are given.
func OpenCA(dir string, now time.Time) (*CA, error) {
	key, err := openKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, certFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if data, err = selfSign(key, now); err == nil {
			err = writeFile(path, data, 0o644)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of the CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("certificate of the CA: %s holds no certificate in PEM form; restore it from a backup", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate of the CA: %s: %w", path, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, fmt.Errorf("certificate of the CA: %s does not belong to %s; restore both from one backup", certFile, keyFile)
	}
	if now.After(cert.NotAfter) {
		return nil, fmt.Errorf("certificate of the CA: %s has expired on %s", path, cert.NotAfter.Format(time.DateOnly))
	}
	ca := &CA{key: key, cert: cert, pool: x509.NewCertPool()}
	ca.pool.AddCert(cert)
	return ca, nil
}

func openKey(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("key of the CA: %s has mode %04o and others may read it; run chmod 600 %s, and consider the key known", path, mode, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("key of the CA: %s holds no key in PEM form; restore it from a backup", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key of the CA: %s holds a %T; it must be an ECDSA key", path, parsed)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	if err := writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("key of the CA: %w", err)
	}
	return key, nil
}

func selfSign(key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	serial, err := newSerial(0)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Bulkhead"}, CommonName: "Bulkhead CA"},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// Fingerprint is the SHA-256 of the CA's certificate, by which join tokens pin it.
func (ca *CA) Fingerprint() [sha256.Size]byte { return sha256.Sum256(ca.cert.Raw) }

// Roots returns the CA's certificates in DER.
func (ca *CA) Roots() [][]byte { return [][]byte{ca.cert.Raw} }

// Server returns a certificate for a controller that answers at the names and addresses, with the CA in its chain.
func (ca *CA) Server(names []string, addrs []netip.Addr, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ips := make([]net.IP, len(addrs))
	for i, a := range addrs {
		ips[i] = a.AsSlice()
	}
	leaf, err := ca.sign(&key.PublicKey, 0, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "bulkhead-controller"},
		DNSNames:    names,
		IPAddresses: ips,
		URIs:        []*url.URL{spiffe("/controller")},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(serverLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// Agent returns a certificate for the key that the request (PKCS#10 in DER) proves to hold. Host and enrolment are
// the controller's word; nothing else of the request counts.
func (ca *CA) Agent(host string, enrollment int64, csr []byte, life time.Duration, now time.Time) (*x509.Certificate, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, refuse(Malformed, "the certificate request cannot be read: it must be PKCS#10 in DER form")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, refuse(Malformed, "the certificate request is not signed with its own key")
	}
	switch key := request.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, refuse(Malformed, "the key is on curve %s; use P-256, P-384 or Ed25519", key.Curve.Params().Name)
		}
	default:
		return nil, refuse(Malformed, "the certificate request holds a %T; use an ECDSA or Ed25519 key", key)
	}
	return ca.sign(request.PublicKey, enrollment, &x509.Certificate{
		Subject:     pkix.Name{CommonName: host},
		URIs:        []*url.URL{spiffe(agentPath + host)},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (ca *CA) sign(key crypto.PublicKey, enrollment int64, template *x509.Certificate) (*x509.Certificate, error) {
	serial, err := newSerial(enrollment)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a serial number that carries the enrolment in front of 64 random bits.
func newSerial(enrollment int64) (*big.Int, error) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(enrollment))
	if _, err := rand.Read(b[8:]); err != nil {
		return nil, err
	}
	b[15] |= 1 // zero is no serial number
	return new(big.Int).SetBytes(b[:]), nil
}

func enrollmentOf(serial *big.Int) int64 {
	n := new(big.Int).Rsh(serial, 64)
	if !n.IsInt64() {
		return 0
	}
	return n.Int64()
}

const (
	trustDomain = "bulkhead"
	agentPath   = "/agent/"
)

func spiffe(path string) *url.URL { return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: path} }

// Peer is what an agent's certificate says.
type Peer struct {
	Host       string
	Enrollment int64
	NotAfter   time.Time
}

// Verify returns what the certificate says that a client has shown, and has proved to hold the key of. The enrolment
// must still be compared with that of the host. The error is a *Refusal.
func (ca *CA) Verify(chain []*x509.Certificate, now time.Time) (*Peer, error) {
	return ca.VerifyForRenewal(chain, now, 0)
}

// VerifyForRenewal is Verify for a client that asks for nothing but another certificate: its own may have expired up to
// grace ago. Without that, every agent would have to be enrolled again by hand after a controller was away for longer
// than a certificate lasts. What a certificate may do otherwise still ends when it says; and a revocation ends this, too.
func (ca *CA) VerifyForRenewal(chain []*x509.Certificate, now time.Time, grace time.Duration) (*Peer, error) {
	if len(chain) == 0 {
		return nil, refuse(Unauthenticated, "no client certificate; enrol with a join token first")
	}
	leaf := chain[0]
	at := now
	if now.After(leaf.NotAfter) && now.Sub(leaf.NotAfter) <= grace {
		at = leaf.NotAfter
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: ca.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.After(leaf.NotAfter):
		return nil, refuse(Unauthenticated, "the certificate expired at %s; enrol again with a join token", leaf.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return nil, refuse(Unauthenticated, "the certificate is not valid before %s; set the clocks right", leaf.NotBefore.UTC().Format(time.RFC3339))
	case err != nil:
		return nil, refuse(Unauthenticated, "the certificate was not issued to an agent by this controller; enrol here with a join token")
	}
	host, ok := agentHost(leaf)
	if !ok {
		return nil, refuse(Unauthenticated, "the certificate names no agent; enrol with a join token")
	}
	return &Peer{Host: host, Enrollment: enrollmentOf(leaf.SerialNumber), NotAfter: leaf.NotAfter}, nil
}

// agentHost returns the host of an agent's certificate. Name and SPIFFE ID must agree, and there is one of each.
func agentHost(leaf *x509.Certificate) (string, bool) {
	if len(leaf.URIs) != 1 {
		return "", false
	}
	u := leaf.URIs[0]
	host, ok := strings.CutPrefix(u.Path, agentPath)
	if !ok || u.Scheme != "spiffe" || u.Host != trustDomain || host != leaf.Subject.CommonName || CheckHost(host) != nil {
		return "", false
	}
	return host, true
}
