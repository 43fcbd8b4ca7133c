package controller

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/config"
)

// Config is the controller's configuration: one YAML file, in which a key that is not known is an error.
type Config struct {
	Data           string           // directory for everything that lasts
	Listen         netip.AddrPort   // agents and API, with TLS
	Advertise      []netip.AddrPort // where agents reach it; default the machine's addresses with the port of Listen
	Socket         string           // unix socket of the API for root on this machine; "" none
	Metrics        string           // address:port or unix:PATH of /metrics, /healthz and /readyz; "" none
	CertificateTTL time.Duration    // life of agents' certificates
	// CertificateGrace is for how long an agent whose certificate has expired may still trade it for a new one, and
	// nothing else: it is what brings agents back by themselves after the controller was away. 0 asks for a join token.
	CertificateGrace time.Duration
	LogLevel         slog.Level
}

// DefaultConfig returns the configuration of an empty file.
func DefaultConfig() Config {
	return Config{
		Data:             "/var/lib/bulkhead",
		Listen:           netip.MustParseAddrPort("0.0.0.0:7443"),
		Socket:           "/run/bulkhead/controller.sock",
		Metrics:          "127.0.0.1:7480",
		CertificateTTL:   time.Hour,
		CertificateGrace: 30 * 24 * time.Hour,
	}
}

const (
	minCertificateTTL   = time.Minute
	maxCertificateTTL   = 90 * 24 * time.Hour
	maxCertificateGrace = 365 * 24 * time.Hour
	maxSocketPath       = 107 // sun_path of unix(7)
)

// keys says how each key of the file is read.
var keys = config.Keys[Config]{
	"data":    config.Text(func(c *Config) *string { return &c.Data }),
	"socket":  config.Text(func(c *Config) *string { return &c.Socket }),
	"metrics": config.Text(func(c *Config) *string { return &c.Metrics }),
	"listen": func(c *Config, n *yaml.Node) (err error) {
		c.Listen, err = addrPort(n)
		return err
	},
	"advertise": func(c *Config, n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return errors.New("must be a list of addresses and ports, such as [10.0.0.5:7443]")
		}
		c.Advertise = nil
		for _, item := range n.Content {
			a, err := addrPort(item)
			if err != nil {
				return err
			}
			c.Advertise = append(c.Advertise, a)
		}
		return nil
	},
	"certificateTTL":   duration(func(c *Config) *time.Duration { return &c.CertificateTTL }, "1h"),
	"certificateGrace": duration(func(c *Config) *time.Duration { return &c.CertificateGrace }, "720h"),
	"logLevel":         config.Level(func(c *Config) *slog.Level { return &c.LogLevel }),
}

func duration(field func(*Config) *time.Duration, example string) func(*Config, *yaml.Node) error {
	return func(c *Config, n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Decode(field(c)) != nil {
			return errors.New("must be a duration, such as " + example)
		}
		return nil
	}
}

func addrPort(n *yaml.Node) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		return a, fmt.Errorf("%q is not an address and a port, such as 10.0.0.5:7443 or [fd00::5]:7443", n.Value)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// ParseConfig reads a configuration over the defaults. The error holds every problem, one a line, each with its place;
// name is what the places are in.
func ParseConfig(name string, data []byte) (Config, error) {
	c := DefaultConfig()
	err := config.Parse(name, data, &c, keys, (*Config).check)
	return c, err
}

// check reports what cannot work, whatever the machine.
func (c *Config) check(p *config.Problems) {
	path := func(key, path string) {
		switch {
		case !filepath.IsAbs(path):
			p.Add(key, "%q is not an absolute path", path)
		case key != "data" && len(path) > maxSocketPath:
			p.Add(key, "the path is longer than the %d bytes that a socket may have", maxSocketPath)
		}
	}
	path("data", c.Data)
	if c.Socket != "" {
		path("socket", c.Socket)
	}
	if socket, ok := strings.CutPrefix(c.Metrics, "unix:"); ok {
		path("metrics", socket)
	} else if _, _, err := net.SplitHostPort(c.Metrics); c.Metrics != "" && err != nil {
		p.Add("metrics", "%q is not address:port or unix:PATH", c.Metrics)
	}
	for _, a := range c.Advertise {
		if a.Addr().IsUnspecified() || a.Port() == 0 {
			p.Add("advertise", "%s is not an address that agents can connect to", a)
		}
	}
	if c.CertificateTTL < minCertificateTTL || c.CertificateTTL > maxCertificateTTL {
		p.Add("certificateTTL", "%v is not between %v and %v", c.CertificateTTL, minCertificateTTL, maxCertificateTTL)
	}
	if c.CertificateGrace < 0 || c.CertificateGrace > maxCertificateGrace {
		p.Add("certificateGrace", "%v is not between 0s and %v", c.CertificateGrace, maxCertificateGrace)
	}
}
