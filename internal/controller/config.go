package controller

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
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
var keys = map[string]func(*Config, *yaml.Node) error{
	"data":    text(func(c *Config) *string { return &c.Data }),
	"socket":  text(func(c *Config) *string { return &c.Socket }),
	"metrics": text(func(c *Config) *string { return &c.Metrics }),
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
	"logLevel": func(c *Config, n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || c.LogLevel.UnmarshalText([]byte(n.Value)) != nil {
			return errors.New("must be debug, info, warn or error")
		}
		return nil
	},
}

func text(field func(*Config) *string) func(*Config, *yaml.Node) error {
	return func(c *Config, n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return errors.New("must be a text")
		}
		*field(c) = n.Value
		return nil
	}
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
	var root yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(&yaml.Node{}); err == nil {
		return c, fmt.Errorf("%s: there must be one document, not several", name)
	}
	places := map[string]*yaml.Node{}
	problems := c.read(&root, places)
	if len(problems) == 0 {
		problems = c.check()
	}
	lines := make([]error, len(problems))
	for i, p := range problems {
		lines[i] = p.in(name, places)
	}
	return c, errors.Join(lines...)
}

// problem is what is wrong with a key.
type problem struct {
	key  string
	at   *yaml.Node // nil: where the key is
	text string
}

func (p problem) in(name string, places map[string]*yaml.Node) error {
	at := p.at
	if at == nil {
		at = places[p.key]
	}
	if at == nil {
		return fmt.Errorf("%s: %s: %s", name, p.key, p.text)
	}
	return fmt.Errorf("%s:%d:%d: %s: %s", name, at.Line, at.Column, p.key, p.text)
}

func (c *Config) read(root *yaml.Node, places map[string]*yaml.Node) (problems []problem) {
	if root.Kind == 0 {
		return nil // an empty file
	}
	top := root.Content[0]
	if top.Kind != yaml.MappingNode {
		return []problem{{key: "file", at: top, text: "must be a mapping of keys to values"}}
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		set := keys[key.Value]
		switch {
		case set == nil:
			known := strings.Join(slices.Sorted(maps.Keys(keys)), ", ")
			problems = append(problems, problem{key.Value, key, "unknown key; known are " + known})
			continue
		case places[key.Value] != nil:
			problems = append(problems, problem{key.Value, key, "is there twice"})
			continue
		}
		places[key.Value] = value
		if err := set(c, value); err != nil {
			problems = append(problems, problem{key.Value, value, err.Error()})
		}
	}
	return problems
}

// check reports what cannot work, whatever the machine.
func (c *Config) check() (problems []problem) {
	complain := func(key, format string, args ...any) {
		problems = append(problems, problem{key: key, text: fmt.Sprintf(format, args...)})
	}
	path := func(key, path string) {
		switch {
		case !filepath.IsAbs(path):
			complain(key, "%q is not an absolute path", path)
		case key != "data" && len(path) > maxSocketPath:
			complain(key, "the path is longer than the %d bytes that a socket may have", maxSocketPath)
		}
	}
	path("data", c.Data)
	if c.Socket != "" {
		path("socket", c.Socket)
	}
	if socket, ok := strings.CutPrefix(c.Metrics, "unix:"); ok {
		path("metrics", socket)
	} else if _, _, err := net.SplitHostPort(c.Metrics); c.Metrics != "" && err != nil {
		complain("metrics", "%q is not address:port or unix:PATH", c.Metrics)
	}
	for _, a := range c.Advertise {
		if a.Addr().IsUnspecified() || a.Port() == 0 {
			complain("advertise", "%s is not an address that agents can connect to", a)
		}
	}
	if c.CertificateTTL < minCertificateTTL || c.CertificateTTL > maxCertificateTTL {
		complain("certificateTTL", "%v is not between %v and %v", c.CertificateTTL, minCertificateTTL, maxCertificateTTL)
	}
	if c.CertificateGrace < 0 || c.CertificateGrace > maxCertificateGrace {
		complain("certificateGrace", "%v is not between 0s and %v", c.CertificateGrace, maxCertificateGrace)
	}
	return problems
}
