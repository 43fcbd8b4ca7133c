package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Config is the agent's configuration: one YAML file, in which a key that is not known is an error.
type Config struct {
	Controller string        // address:port of the controller
	Token      string        // join token; needed once
	TokenFile  string        // file that holds it; read when it is needed
	Host       string        // name of this host's workload; default the host name
	Data       string        // directory for identity, policy and unsent flows
	CgroupRoot string        // default the mount of cgroup2
	BPFFS      string        // directory on a bpffs for what stays in the kernel
	Units      []string      // patterns for names of cgroups that are units
	FlowWindow time.Duration // how long flows of an edge are summed up
	Socket     string        // unix socket for status
	LogLevel   slog.Level

	// What the file does not set.
	SpoolBytes  int64         // disk for flows that the controller has not acknowledged
	StatusEvery time.Duration // between two reports of status to the controller
	RetryMin    time.Duration // bounds of the wait before a lost connection is tried again
	RetryMax    time.Duration
}

// DefaultConfig returns the configuration of an empty file. Controller and a token are still missing.
func DefaultConfig() Config {
	return Config{
		Data:        "/var/lib/bulkhead-agent",
		BPFFS:       "/sys/fs/bpf/bulkhead",
		Units:       []string{"*.service"},
		FlowWindow:  5 * time.Second,
		Socket:      "/run/bulkhead/agent.sock",
		SpoolBytes:  64 << 20,
		StatusEvery: 5 * time.Second,
		RetryMin:    500 * time.Millisecond,
		RetryMax:    30 * time.Second,
	}
}

// keys says how each key of the file is read.
var keys = map[string]func(*Config, *yaml.Node) error{
	"controller": text(func(c *Config) *string { return &c.Controller }),
	"token":      text(func(c *Config) *string { return &c.Token }),
	"tokenFile":  text(func(c *Config) *string { return &c.TokenFile }),
	"host":       text(func(c *Config) *string { return &c.Host }),
	"data":       text(func(c *Config) *string { return &c.Data }),
	"cgroupRoot": text(func(c *Config) *string { return &c.CgroupRoot }),
	"bpffs":      text(func(c *Config) *string { return &c.BPFFS }),
	"socket":     text(func(c *Config) *string { return &c.Socket }),
	"units": func(c *Config, n *yaml.Node) error {
		c.Units = nil
		if n.Kind != yaml.SequenceNode || n.Decode(&c.Units) != nil {
			return errors.New(`must be a list of patterns, such as ["*.service"]`)
		}
		return nil
	},
	"flowWindow": func(c *Config, n *yaml.Node) error {
		if n.Decode(&c.FlowWindow) != nil {
			return errors.New("must be a duration, such as 5s")
		}
		return nil
	},
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
	if len(problems) == 0 {
		return c, nil
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

const (
	minFlowWindow = 100 * time.Millisecond
	maxFlowWindow = 10 * time.Minute
)

// check reports what cannot work, whatever the machine.
func (c *Config) check() (problems []problem) {
	complain := func(key, format string, args ...any) {
		problems = append(problems, problem{key: key, text: fmt.Sprintf(format, args...)})
	}
	if c.Controller == "" {
		complain("controller", "is missing; name the controller's address, such as 10.0.0.5:7443")
	} else if _, err := netip.ParseAddrPort(c.Controller); err != nil {
		complain("controller", "%q is not an address and a port, such as 10.0.0.5:7443 (a name would depend on DNS, which policy may close)", c.Controller)
	}
	if c.Token != "" && c.TokenFile != "" {
		complain("token", "give the token itself or a tokenFile, not both")
	}
	for _, d := range []struct{ key, dir string }{{"data", c.Data}, {"bpffs", c.BPFFS}, {"socket", c.Socket}} {
		if !filepath.IsAbs(d.dir) {
			complain(d.key, "%q is not an absolute path", d.dir)
		}
	}
	if c.CgroupRoot != "" && !filepath.IsAbs(c.CgroupRoot) {
		complain("cgroupRoot", "%q is not an absolute path", c.CgroupRoot)
	}
	if len(c.Socket) > 107 { // sun_path of unix(7)
		complain("socket", "the path is longer than the 107 bytes that a socket may have")
	}
	for _, p := range c.Units {
		if _, err := path.Match(p, "x"); err != nil || p == "" || strings.Contains(p, "/") {
			complain("units", "%q is not a pattern for one name; use *, ? and [a-z], and no slash", p)
		}
	}
	if c.FlowWindow < minFlowWindow || c.FlowWindow > maxFlowWindow {
		complain("flowWindow", "%v is not between %v and %v", c.FlowWindow, minFlowWindow, maxFlowWindow)
	}
	return problems
}
