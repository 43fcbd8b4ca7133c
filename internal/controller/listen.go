package controller

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"bulkhead/internal/controller/trust"
)

// listenUnix listens at a path that only its owner may use. A socket that a dead process left behind is replaced.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there already and is no socket; move it away", path)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			return nil, errors.Join(fmt.Errorf("somebody else listens at %s; is another controller running?", path), c.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// With this mask the socket is private from its first moment on. Nothing else makes files at this time.
	mask := syscall.Umask(0o177)
	defer syscall.Umask(mask)
	return net.Listen("unix", path)
}

// listenMetrics listens at address:port or unix:PATH.
func listenMetrics(where string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		return listenUnix(path)
	}
	return net.Listen("tcp", where)
}

// addresses returns what agents may reach a listener at: its own address, or all of the machine's.
func addresses(listen netip.AddrPort) ([]netip.AddrPort, error) {
	if !listen.Addr().IsUnspecified() {
		return []netip.AddrPort{listen}, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if listen.Addr().Is4() && !p.Addr().Is4() {
			continue
		}
		out = append(out, netip.AddrPortFrom(p.Addr().Unmap(), listen.Port()))
	}
	return out, nil
}

// identity is the controller's own certificate, renewed when two thirds of its life are over.
type identity struct {
	ca    *trust.CA
	names []string
	addrs []netip.Addr
	now   func() time.Time

	mu      sync.Mutex
	current *tls.Certificate
}

func newIdentity(ca *trust.CA, reach []netip.AddrPort, now func() time.Time) *identity {
	id := &identity{ca: ca, now: now, names: []string{"localhost", "bulkhead-controller"}}
	if name, err := os.Hostname(); err == nil && name != "localhost" {
		id.names = append(id.names, name)
	}
	id.addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, a := range reach {
		if !a.Addr().IsLoopback() {
			id.addrs = append(id.addrs, a.Addr())
		}
	}
	return id
}

func (id *identity) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if c := id.current; c != nil {
		life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
		if id.now().Before(c.Leaf.NotBefore.Add(life * 2 / 3)) {
			return c, nil
		}
	}
	c, err := id.ca.Server(id.names, id.addrs, id.now())
	if err != nil {
		return nil, err
	}
	id.current = c
	return c, nil
}

// tls returns the configuration of the listener. Agents' certificates are asked for, and verified where it is known
// what they are for: so that a refusal says why.
func (id *identity) tls() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: id.certificate,
	}
}
