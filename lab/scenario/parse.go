package scenario

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// Load reads the scenario in the directory name of fsys. The error lists every problem it found.
func Load(fsys fs.FS, name string) (*Scenario, error) {
	file := path.Join(name, "scenario.yaml")
	data, err := fs.ReadFile(fsys, file)
	if errors.Is(err, fs.ErrNotExist) {
		names, listErr := Names(fsys)
		if listErr != nil {
			return nil, listErr
		}
		return nil, fmt.Errorf("no scenario %q; there are %v", name, names)
	}
	if err != nil {
		return nil, err
	}
	s, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	if s.Base, err = documents(fsys, path.Join(name, "documents", "base")); err != nil {
		return nil, err
	}
	if s.Target, err = documents(fsys, path.Join(name, "documents", "target")); err != nil {
		return nil, err
	}
	if s.Docs, err = policy.Parse(s.Base); err != nil {
		return nil, err
	}
	if problems := s.check(); len(problems) > 0 {
		return nil, fmt.Errorf("%s: %w", file, errors.Join(problems...))
	}
	return s, nil
}

// Names lists the scenarios of fsys, sorted.
func Names(fsys fs.FS) ([]string, error) {
	found, err := fs.Glob(fsys, "*/scenario.yaml")
	if err != nil {
		return nil, err
	}
	for i := range found {
		found[i] = path.Dir(found[i])
	}
	slices.Sort(found)
	return found, nil
}

func documents(fsys fs.FS, dir string) ([]policy.File, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var out []policy.File
	for _, n := range names {
		data, err := fs.ReadFile(fsys, n)
		if err != nil {
			return nil, err
		}
		out = append(out, policy.File{Name: n, Data: data})
	}
	return out, nil
}

func parse(file string, data []byte) (*Scenario, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var s Scenario
	if err := dec.Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: there is more than one document in it", file)
	}
	if s.Controller.Port == 0 {
		s.Controller.Port = 7443
	}
	return &s, nil
}

// UnmarshalYAML reads one port, such as tcp/5432.
func (p *Port) UnmarshalYAML(n *yaml.Node) error {
	r, err := model.ParsePortRange(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	if !r.Single() || r.Proto != model.ProtoTCP && r.Proto != model.ProtoUDP {
		return fmt.Errorf("line %d: port %q: use one port of tcp or udp, such as tcp/5432", n.Line, n.Value)
	}
	p.Proto, p.Port = r.Proto, r.Lo
	return nil
}

// UnmarshalYAML reads a duration, such as 250ms.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if err != nil || v <= 0 {
		return fmt.Errorf("line %d: %q is not a length of time such as 250ms or 5s", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

var (
	scenarioName = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	hostName     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`)
	unitName     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}\.service$`)
	processName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,14}$`)
)

// AgentUnit is the unit in which the agent of a host runs. No unit of a scenario may have its name.
const AgentUnit = "bulkhead-agent.service"

// checker collects what is wrong.
type checker struct {
	s        *Scenario
	problems []error
}

func (c *checker) failf(format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf(format, args...))
}

func (s *Scenario) check() []error {
	c := &checker{s: s}
	if !scenarioName.MatchString(s.Name) {
		c.failf("name %q: use up to 12 lower-case letters and digits", s.Name)
	}
	c.network()
	c.hosts()
	for _, p := range s.Placed() {
		c.process(p)
	}
	if s.HasStory() {
		c.story()
	}
	return c.problems
}

func (c *checker) network() {
	n := c.s.Network
	if !n.V4.IsValid() || !n.V4.Addr().Is4() || n.V4.Bits() < 24 || n.V4.Bits() > 30 {
		c.failf("network v4 %v: use an IPv4 prefix of /24 to /30; the worm tries every address in it", n.V4)
	}
	if !n.V6.IsValid() || !n.V6.Addr().Is6() || n.V6.Bits() < 120 || n.V6.Bits() > 126 {
		c.failf("network v6 %v: use an IPv6 prefix of /120 to /126; the worm tries every address in it", n.V6)
	}
	if len(c.s.Controller.Addresses) == 0 {
		c.failf("controller: it needs an address")
	}
}

func (c *checker) hosts() {
	owner := map[netip.Addr]string{}
	own := func(who string, addrs []netip.Addr) {
		for _, a := range addrs {
			if !c.s.Network.V4.Contains(a) && !c.s.Network.V6.Contains(a) {
				c.failf("%s: address %s is not in the network", who, a)
			}
			if other, ok := owner[a]; ok {
				c.failf("%s: address %s belongs to %s already", who, a, other)
			}
			owner[a] = who
		}
	}
	own("controller", c.s.Controller.Addresses)
	names := map[string]bool{"controller": true, "fabric": true}
	if len(c.s.Hosts) == 0 {
		c.failf("there is no host")
	}
	for i := range c.s.Hosts {
		h := &c.s.Hosts[i]
		if !hostName.MatchString(h.Name) {
			c.failf("host %q: use up to 20 lower-case letters, digits and '-'", h.Name)
		}
		if names[h.Name] {
			c.failf("host %s: the name is taken", h.Name)
		}
		names[h.Name] = true
		if len(h.Addresses) == 0 {
			c.failf("host %s: it needs an address", h.Name)
		}
		own("host "+h.Name, h.Addresses)
		c.labels(h)
		units := map[string]bool{AgentUnit: true}
		for j := range h.Units {
			name := h.Units[j].Name
			if !unitName.MatchString(name) {
				c.failf("host %s, unit %q: use a name such as payapi.service", h.Name, name)
			}
			if units[name] {
				c.failf("host %s, unit %s: the name is taken", h.Name, name)
			}
			units[name] = true
		}
	}
}

func (c *checker) labels(h *Host) {
	if !h.Managed() && len(h.Labels) > 0 {
		c.failf("host %s: labels are bound to the token of an agent; give a device its labels in a document", h.Name)
	}
	for k, v := range h.Labels {
		if err := errors.Join(model.CheckLabelKey(k), model.CheckLabelValue(v)); err != nil {
			c.failf("host %s: %w", h.Name, err)
		}
	}
}

func (c *checker) process(p Placed) {
	if !processName.MatchString(p.Process) {
		c.failf("%s: process %q: use up to 15 lower-case letters, digits and '-'", p.ID, p.Process)
	}
	if p.Real != RealNone && p.Real != RealPostgres {
		c.failf("%s: real %q: use %q", p.ID, p.Real, RealPostgres)
	}
	for i, l := range p.Listen {
		if slices.ContainsFunc(p.Listen[:i], func(m Listen) bool { return m.Port == l.Port }) {
			c.failf("%s listens on %s twice", p.ID, l.Port)
		}
		if l.Speak != SpeakEcho && l.Speak != SpeakModbus && l.Speak != SpeakPostgres {
			c.failf("%s: %s: speak %q: use modbus or postgres, or leave it out", p.ID, l.Port, l.Speak)
		}
		for _, q := range c.s.Placed() {
			if q.ID.Host != p.ID.Host || q.Index <= p.Index {
				continue
			}
			for _, m := range q.Listen {
				if m.Port == l.Port {
					c.failf("%s and %s both listen on %s", p.ID, q.ID, l.Port)
				}
			}
		}
	}
	for i := range p.Calls {
		c.call(p, i)
	}
}

func (c *checker) call(p Placed, i int) {
	call := &p.Calls[i]
	where := fmt.Sprintf("%s: call %d to %q", p.ID, i+1, call.To)
	if call.Kind == "" {
		call.Kind = Short
	}
	if call.Family == "" {
		call.Family = V4
	}
	if call.Bytes == 0 {
		call.Bytes = 64
	}
	if call.Kind != Short && call.Kind != Long {
		c.failf("%s: kind %q: use short or long-lived", where, call.Kind)
	}
	if call.Port.Proto == model.ProtoUDP && call.Kind == Long {
		c.failf("%s: a UDP call is short", where)
	}
	if call.Bytes < 1 || call.Bytes > 60_000 || call.Port.Proto == model.ProtoUDP && call.Bytes > 1200 {
		c.failf("%s: bytes %d: use 1 to 60000, for UDP 1 to 1200", where, call.Bytes)
	}
	if call.Every <= 0 {
		c.failf("%s: say how often: every", where)
	}
	c.reach(where, call.To, call.Port, call.Family, p.Host)
}

// reach checks that what is called exists and that both ends have an address of the family.
func (c *checker) reach(where, to string, port Port, f Family, from *Host) {
	id := ParseID(to)
	if f != V4 && f != V6 {
		c.failf("%s: family %q: use v4 or v6", where, f)
		return
	}
	h := c.s.Host(id.Host)
	if h == nil {
		c.failf("%s: there is no host %q", where, id.Host)
		return
	}
	if _, l := c.s.Listener(id, port); l == nil {
		c.failf("%s: nothing listens on %s there", where, port)
	}
	for _, end := range []*Host{from, h} {
		if _, ok := end.Addr(f); !ok {
			c.failf("%s: %s has no address of family %s", where, end.Name, f)
		}
	}
}

func (c *checker) story() {
	exists := func(where, id string) *Host {
		for _, p := range c.s.Placed() {
			if p.ID.String() == id {
				return p.Host
			}
		}
		c.failf("story: %s: there is no workload %q", where, id)
		return nil
	}
	exists("breach.from", c.s.Story.Breach.From)
	contain := c.s.Story.Contain
	exists("contain.from", contain.From)
	found := false
	for _, p := range c.s.Placed() {
		for _, call := range p.Calls {
			found = found || p.ID.String() == contain.From && call.To == contain.To && call.Port == contain.Port && call.Kind == Long
		}
	}
	if !found {
		c.failf("story: contain: %s has no long-lived call to %s on %s", contain.From, contain.To, contain.Port)
	}
	if len(c.s.Story.Fail.Probes) == 0 {
		c.failf("story: fail.probes: name at least one connection that the policy denies")
	}
	for i := range c.s.Story.Fail.Probes {
		p := &c.s.Story.Fail.Probes[i]
		if p.Family == "" {
			p.Family = V4
		}
		where := fmt.Sprintf("story: probe %d", i+1)
		if h := exists(where, p.From); h != nil {
			c.reach(where, p.To, p.Port, p.Family, h)
		}
	}
	segments := map[string]bool{}
	for i := range c.s.Docs.Segments {
		segments[c.s.Docs.Segments[i].Name] = true
	}
	for _, name := range c.s.Story.Enforce {
		if !segments[name] {
			c.failf("story: enforce: there is no segment %q in the base documents", name)
		}
	}
	if len(c.s.Story.Enforce) == 0 {
		c.failf("story: enforce: name the segments in the order in which they are enforced")
	}
}

func sortPorts(ports []Port) {
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
	})
}
