// Package scenario holds what a lab is made of: hosts, the units that run on them, what they listen on and whom they
// call, and what the story does with them.
//
// A scenario is a directory: scenario.yaml, which this package reads strictly (an unknown field is an error), and
// documents/, the policy documents of the place. documents/base is what an operator has written before the story
// begins; documents/target is what the policy must hold to once every segment is enforced.
//
// The package only reads. What it describes is built by lab/fabric and run by lab/rig.
package scenario

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// Scenario is one place with everything in it.
type Scenario struct {
	Name       string     `yaml:"name"`  // lower-case letters and digits only: it is part of names in the kernel
	Title      string     `yaml:"title"` // a few words
	About      string     `yaml:"about"` // one sentence
	Network    Network    `yaml:"network"`
	Controller Controller `yaml:"controller"`
	Hosts      []Host     `yaml:"hosts"`
	Story      Story      `yaml:"story"`

	Base   []policy.File    `yaml:"-"` // documents before the story
	Target []policy.File    `yaml:"-"` // documents that are added with enforcement
	Docs   *model.Documents `yaml:"-"` // Base, parsed
}

// Network is the wire that all hosts share. The prefixes are small, because the worm tries every address in them.
type Network struct {
	V4 netip.Prefix `yaml:"v4"`
	V6 netip.Prefix `yaml:"v6"`
}

// Controller is where the controller stands.
type Controller struct {
	Addresses []netip.Addr `yaml:"addresses"`
	Port      uint16       `yaml:"port"` // 0 means 7443
}

// Host is a machine: a network namespace and a cgroup.
type Host struct {
	Name      string            `yaml:"name"`
	About     string            `yaml:"about"`
	Addresses []netip.Addr      `yaml:"addresses"`
	Labels    map[string]string `yaml:"labels"` // bound to the join token
	Agent     *bool             `yaml:"agent"`  // nil means true
	Processes []Program         `yaml:"processes"`
	Units     []Unit            `yaml:"units"`
}

// Managed reports whether the host runs an agent.
func (h *Host) Managed() bool { return h.Agent == nil || *h.Agent }

// Addr returns the host's first address of the family.
func (h *Host) Addr(f Family) (netip.Addr, bool) {
	for _, a := range h.Addresses {
		if a.Is4() == (f == V4) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Unit is a cgroup on a host with one process in it.
type Unit struct {
	Name    string `yaml:"name"` // payapi.service
	Program `yaml:",inline"`
}

// Program serves and calls. A program directly on a host belongs to the host itself.
type Program struct {
	Process string   `yaml:"process"` // the name that ps shows, up to 15 bytes
	Real    Real     `yaml:"real"`
	Listen  []Listen `yaml:"listen"`
	Calls   []Call   `yaml:"calls"`
}

// Real names a program that takes the part of the traffic program where it is installed.
type Real string

// What may be real.
const (
	RealNone     Real = ""
	RealPostgres Real = "postgres"
)

// Listen is one port that a process serves on every address of its host.
type Listen struct {
	Port  Port  `yaml:"port"`
	Speak Speak `yaml:"speak"`
	// WayIn says that whoever may reach the port can take the process over: a management port, a database that
	// trusts, a controller of machines that asks for no password.
	WayIn bool `yaml:"wayIn"`
}

// Speak is the protocol of a port.
type Speak string

// The protocols.
const (
	SpeakEcho     Speak = ""       // the lab's own: numbered requests and replies
	SpeakModbus   Speak = "modbus" // Modbus/TCP, read holding registers
	SpeakPostgres Speak = "postgres"
)

// Call is something that a process does again and again.
type Call struct {
	To     string   `yaml:"to"` // "host/unit", or "host" for a process of the host itself
	Port   Port     `yaml:"port"`
	Every  Duration `yaml:"every"`
	Kind   Kind     `yaml:"kind"`
	Family Family   `yaml:"family"`
	Bytes  int      `yaml:"bytes"` // of each request and of each reply; 0 means 64
}

// Kind is how a call uses connections.
type Kind string

// The kinds of call. A UDP call uses a fresh source port for each request.
const (
	Short Kind = "short"
	Long  Kind = "long-lived"
)

// Family is the version of IP.
type Family string

// The families.
const (
	V4 Family = "v4"
	V6 Family = "v6"
)

// HasStory reports whether the seven steps can be told of it. A scenario without them is a place to try things.
func (s *Scenario) HasStory() bool {
	return len(s.Story.Enforce) > 0 || len(s.Story.Fail.Probes) > 0 || s.Story.Breach.From != "" || s.Story.Contain.From != ""
}

// Story says where the steps of the story play.
type Story struct {
	Enforce []string `yaml:"enforce"` // segments in the order in which they are enforced
	Breach  Breach   `yaml:"breach"`
	Contain Contain  `yaml:"contain"`
	Fail    Fail     `yaml:"fail"`
}

// Breach is where the worm begins.
type Breach struct {
	From string `yaml:"from"`
}

// Contain is the long-lived connection that quarantine cuts: that of workload From to To.
type Contain struct {
	From string `yaml:"from"` // the workload that is quarantined
	To   string `yaml:"to"`
	Port Port   `yaml:"port"`
}

// Fail lists connections that the policy denies; they are tried while controller and agents are dead.
type Fail struct {
	Probes []Probe `yaml:"probes"`
}

// Probe is one connection that must not come about.
type Probe struct {
	From   string `yaml:"from"`
	To     string `yaml:"to"`
	Port   Port   `yaml:"port"`
	Family Family `yaml:"family"`
}

// Port is a single port as documents spell it, such as tcp/5432.
type Port struct {
	Proto model.Proto
	Port  uint16
}

// String returns the port as documents spell it.
func (p Port) String() string {
	return model.PortRange{Proto: p.Proto, Lo: p.Port, Hi: p.Port}.String()
}

// Network returns "tcp" or "udp".
func (p Port) Network() string { return p.Proto.String() }

// Duration is a time.Duration spelled as "250ms" or "5s".
type Duration time.Duration

// ID names a process within the scenario: "host" or "host/unit".
type ID struct{ Host, Unit string }

// ParseID splits "host/unit" or "host".
func ParseID(s string) ID {
	host, unit, _ := strings.Cut(s, "/")
	return ID{host, unit}
}

// String returns "host/unit", or "host" where there is no unit. It is the name of the workload unless a document
// gives another.
func (id ID) String() string {
	if id.Unit == "" {
		return id.Host
	}
	return id.Host + "/" + id.Unit
}

// Placed is a process and where it runs.
type Placed struct {
	ID   ID
	Host *Host
	// Index tells the processes of a host apart: those of the host come first, then the units.
	Index int
	*Program
}

// Placed returns every process, in the order of the file.
func (s *Scenario) Placed() []Placed {
	var out []Placed
	for i := range s.Hosts {
		h := &s.Hosts[i]
		for j := range h.Processes {
			out = append(out, Placed{ID{h.Name, ""}, h, j, &h.Processes[j]})
		}
		for j := range h.Units {
			out = append(out, Placed{ID{h.Name, h.Units[j].Name}, h, len(h.Processes) + j, &h.Units[j].Program})
		}
	}
	return out
}

// Host returns the host of that name, or nil.
func (s *Scenario) Host(name string) *Host {
	for i := range s.Hosts {
		if s.Hosts[i].Name == name {
			return &s.Hosts[i]
		}
	}
	return nil
}

// Listener returns the process that serves the port for id, or nil.
func (s *Scenario) Listener(id ID, port Port) (*Program, *Listen) {
	for _, p := range s.Placed() {
		if p.ID != id {
			continue
		}
		for i := range p.Listen {
			if p.Listen[i].Port == port {
				return p.Program, &p.Listen[i]
			}
		}
	}
	return nil, nil
}

// OwnerOf returns what answers at the port of the host: a unit, else the host itself.
func (s *Scenario) OwnerOf(host string, port Port) (ID, bool) {
	for _, p := range s.Placed() {
		if p.ID.Host != host {
			continue
		}
		for i := range p.Listen {
			if p.Listen[i].Port == port {
				return p.ID, true
			}
		}
	}
	return ID{Host: host}, false
}

// Workload returns the name under which the controller knows id: that of the document for the unit, else the id.
func (s *Scenario) Workload(id ID) string {
	if id.Unit != "" {
		for i := range s.Docs.Workloads {
			w := &s.Docs.Workloads[i]
			if w.Unit != nil && w.Unit.Host == id.Host && w.Unit.Name == id.Unit {
				return w.Name
			}
		}
	}
	return id.String()
}

// Find returns the place that a process of the scenario has, by the name of its workload or as host/unit.
func (s *Scenario) Find(name string) (ID, error) {
	for _, p := range s.Placed() {
		if p.ID.String() == name || s.Workload(p.ID) == name {
			return p.ID, nil
		}
	}
	return ID{}, fmt.Errorf("nothing runs as %q in %s: bulkhead get workloads lists the names", name, s.Name)
}

// Ports returns every port that something in the scenario serves, sorted and without repetition.
func (s *Scenario) Ports() []Port {
	seen := map[Port]bool{}
	var out []Port
	for _, p := range s.Placed() {
		for _, l := range p.Listen {
			if !seen[l.Port] {
				seen[l.Port] = true
				out = append(out, l.Port)
			}
		}
	}
	sortPorts(out)
	return out
}

// Summary says how big the scenario is.
func (s *Scenario) Summary() string {
	var agents, devices, processes, calls int
	for i := range s.Hosts {
		if s.Hosts[i].Managed() {
			agents++
		} else {
			devices++
		}
	}
	workloads := map[ID]bool{}
	for _, p := range s.Placed() {
		processes++
		workloads[p.ID] = true
		calls += len(p.Calls)
	}
	return fmt.Sprintf("%d hosts with an agent, %d without, %d workloads in %d processes, %d calls between them", agents, devices, len(workloads), processes, calls)
}
