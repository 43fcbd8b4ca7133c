package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/config"
	"bulkhead/internal/core/model"
)

// Config is the agent's configuration: one YAML file, in which a key that is not known is an error.
type Config struct {
	Controller string        // address:port of the controller
	Standalone string        // in place of a controller: directory of documents
	Labels     model.Labels  // standing alone: of this host, where no document says otherwise
	Confirm    time.Duration // standing alone: how long a change that closes something waits to be confirmed; 0: it need not be
	Token      string        // join token; needed once
	TokenFile  string        // file that holds it; read when it is needed
	Host       string        // name of this host's workload; default the host name
	Data       string        // directory for identity, policy and unsent flows
	Dataplane  string        // auto, ebpf or nftables
	CgroupRoot string        // default the mount of cgroup2
	BPFFS      string        // directory on a bpffs for what stays in the kernel
	Interfaces string        // ports, all or none: which interfaces eBPF guards
	Units      []string      // patterns for names of cgroups that are units
	FlowWindow time.Duration // how long flows of an edge are summed up
	Socket     string        // unix socket for status
	LogLevel   slog.Level

	// asks: nobody runs an agent by it, who would need to know where policy comes from.
	asks bool

	// What the file does not set.
	SpoolBytes  int64         // disk for flows that the controller has not acknowledged
	StatusEvery time.Duration // between two reports of status to the controller
	RetryMin    time.Duration // bounds of the wait before a lost connection is tried again
	RetryMax    time.Duration
}

// What judges packets: eBPF where that can be used and nftables elsewhere, or one of the two.
const (
	DataplaneAuto     = "auto"
	DataplaneEBPF     = "ebpf"
	DataplaneNftables = "nftables"
)

// Which interfaces have programs too, for what no socket of the host sends or receives: those of containers and virtual machines, those
// and the ones that lead away from the host, or none.
const (
	InterfacesPorts = "ports"
	InterfacesAll   = "all"
	InterfacesNone  = "none"
)

// DefaultConfig returns the configuration of an empty file. Controller and a token, or a directory, are still missing.
func DefaultConfig() Config {
	return Config{
		Data:        "/var/lib/bulkhead-agent",
		Dataplane:   DataplaneAuto,
		BPFFS:       "/sys/fs/bpf/bulkhead",
		Interfaces:  InterfacesPorts,
		Units:       []string{"*.service"},
		FlowWindow:  5 * time.Second,
		Confirm:     2 * time.Minute,
		Socket:      "/run/bulkhead/agent.sock",
		SpoolBytes:  64 << 20,
		StatusEvery: 5 * time.Second,
		RetryMin:    500 * time.Millisecond,
		RetryMax:    30 * time.Second,
	}
}

// keys says how each key of the file is read.
var keys = config.Keys[Config]{
	"controller": config.Text(func(c *Config) *string { return &c.Controller }),
	"standalone": config.Text(func(c *Config) *string { return &c.Standalone }),
	"labels": func(c *Config, n *yaml.Node) error {
		c.Labels = nil
		if n.Kind != yaml.MappingNode || n.Decode(&c.Labels) != nil {
			return errors.New("must be a mapping of labels to values, such as {role: web}")
		}
		return nil
	},
	"confirm":    config.Duration(func(c *Config) *time.Duration { return &c.Confirm }, "2m, or 0s for never"),
	"token":      config.Text(func(c *Config) *string { return &c.Token }),
	"tokenFile":  config.Text(func(c *Config) *string { return &c.TokenFile }),
	"host":       config.Text(func(c *Config) *string { return &c.Host }),
	"data":       config.Text(func(c *Config) *string { return &c.Data }),
	"dataplane":  config.Text(func(c *Config) *string { return &c.Dataplane }),
	"cgroupRoot": config.Text(func(c *Config) *string { return &c.CgroupRoot }),
	"bpffs":      config.Text(func(c *Config) *string { return &c.BPFFS }),
	"interfaces": config.Text(func(c *Config) *string { return &c.Interfaces }),
	"socket":     config.Text(func(c *Config) *string { return &c.Socket }),
	"units": func(c *Config, n *yaml.Node) error {
		c.Units = nil
		if n.Kind != yaml.SequenceNode || n.Decode(&c.Units) != nil {
			return errors.New(`must be a list of patterns, such as ["*.service"]`)
		}
		return nil
	},
	"flowWindow": config.Duration(func(c *Config) *time.Duration { return &c.FlowWindow }, "5s"),
	"logLevel":   config.Level(func(c *Config) *slog.Level { return &c.LogLevel }),
}

// ParseConfig reads a configuration over the defaults, and lays what was said elsewhere over it. The error holds every
// problem, one a line, each with its place; name is what the places are in.
func ParseConfig(name string, data []byte, over ...func(*Config)) (Config, error) {
	c := DefaultConfig()
	err := config.Parse(name, data, &c, keys, func(c *Config, p *config.Problems) {
		for _, set := range over {
			set(c)
		}
		c.check(p)
	})
	return c, err
}

// ForClients, given to ParseConfig, lets a configuration pass that does not say where policy comes from: who only asks the
// agent need not know.
func ForClients(c *Config) { c.asks = true }

const (
	minFlowWindow = 100 * time.Millisecond
	maxFlowWindow = 10 * time.Minute
)

// check reports what cannot work, whatever the machine.
func (c *Config) check(p *config.Problems) {
	if c.Standalone != "" {
		c.checkAlone(p)
	} else if !c.asks || c.Controller != "" {
		c.checkController(p)
	}
	if c.Token != "" && c.TokenFile != "" {
		p.Add("token", "give the token itself or a tokenFile, not both")
	}
	for _, d := range []struct{ key, dir string }{{"data", c.Data}, {"bpffs", c.BPFFS}, {"socket", c.Socket}} {
		if !filepath.IsAbs(d.dir) {
			p.Add(d.key, "%q is not an absolute path", d.dir)
		}
	}
	if !slices.Contains([]string{DataplaneAuto, DataplaneEBPF, DataplaneNftables}, c.Dataplane) {
		p.Add("dataplane", "%q is none; use auto, ebpf or nftables", c.Dataplane)
	}
	if !slices.Contains([]string{InterfacesPorts, InterfacesAll, InterfacesNone}, c.Interfaces) {
		p.Add("interfaces", "%q is none; use ports, all or none", c.Interfaces)
	}
	if c.CgroupRoot != "" && !filepath.IsAbs(c.CgroupRoot) {
		p.Add("cgroupRoot", "%q is not an absolute path", c.CgroupRoot)
	}
	if len(c.Socket) > 107 { // sun_path of unix(7)
		p.Add("socket", "the path is longer than the 107 bytes that a socket may have")
	}
	for _, u := range c.Units {
		if _, err := path.Match(u, "x"); err != nil || u == "" || strings.Contains(u, "/") {
			p.Add("units", "%q is not a pattern for one name; use *, ? and [a-z], and no slash", u)
		}
	}
	if c.FlowWindow < minFlowWindow || c.FlowWindow > maxFlowWindow {
		p.Add("flowWindow", "%v is not between %v and %v", c.FlowWindow, minFlowWindow, maxFlowWindow)
	}
}

func (c *Config) checkController(p *config.Problems) {
	if c.Controller == "" {
		p.Add("controller", "is missing; name the controller's address, such as 10.0.0.5:7443, or a directory of documents with standalone")
	} else if _, err := netip.ParseAddrPort(c.Controller); err != nil {
		p.Add("controller", "%q is not an address and a port, such as 10.0.0.5:7443 (a name would depend on DNS, which policy may close)", c.Controller)
	}
	if len(c.Labels) > 0 {
		p.Add("labels", "are the controller's to give, with the join token; they go with standalone")
	}
}

// maxConfirm is how long a trial may last: longer is no trial.
const maxConfirm = 24 * time.Hour

func (c *Config) checkAlone(p *config.Problems) {
	if c.Controller != "" {
		p.Add("standalone", "policy comes from a controller or from a directory, not from both; take one of them out")
	}
	if !filepath.IsAbs(c.Standalone) {
		p.Add("standalone", "%q is not an absolute path", c.Standalone)
	}
	if c.Confirm < 0 || c.Confirm > maxConfirm || c.Confirm > 0 && c.Confirm < 10*time.Second {
		p.Add("confirm", "%v is not between 10s and %v; 0s is for never", c.Confirm, maxConfirm)
	}
	for _, key := range c.Labels.Keys() {
		err := model.CheckLabelKey(key)
		if err == nil {
			err = model.CheckLabelValue(c.Labels[key])
		}
		if err == nil && strings.HasPrefix(key, model.SystemLabelPrefix) {
			err = fmt.Errorf("label key %q: keys under %s are set by the system", key, model.SystemLabelPrefix)
		}
		if err != nil {
			p.Add("labels", "%v", err)
		}
	}
}
