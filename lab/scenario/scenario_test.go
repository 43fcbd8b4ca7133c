package scenario

import (
	"strings"
	"testing"
	"testing/fstest"
)

const good = `name: tiny
title: Two machines
network: {v4: 10.50.0.0/28, v6: "fd50::/124"}
controller: {addresses: [10.50.0.14]}
hosts:
  - name: a
    addresses: [10.50.0.1, "fd50::1"]
    labels: {app: x, env: prod}
    units:
      - name: client.service
        process: client
        calls:
          - {to: b/server.service, port: tcp/80, every: 100ms, kind: long-lived}
          - {to: c, port: udp/53, every: 1s, family: v6}
  - name: b
    addresses: [10.50.0.2, "fd50::2"]
    units:
      - {name: server.service, process: server, listen: [{port: tcp/80}, {port: tcp/81, wayIn: true}]}
  - name: c
    agent: false
    addresses: [10.50.0.3, "fd50::3"]
    processes:
      - {process: device, listen: [{port: udp/53}]}
story:
  enforce: [x]
  breach: {from: a/client.service}
  contain: {from: a/client.service, to: b/server.service, port: tcp/80}
  fail: {probes: [{from: c, to: b/server.service, port: tcp/81}]}
`

const goodDocuments = `apiVersion: bulkhead/v1
kind: Segment
metadata: {name: x}
spec: {selector: "app=x", mode: observe}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: web, labels: {role: web}}
spec: {unit: {host: b, name: server.service}}
`

func load(scenario, documents string) (*Scenario, error) {
	return Load(fstest.MapFS{
		"tiny/scenario.yaml":           {Data: []byte(scenario)},
		"tiny/documents/base/all.yaml": {Data: []byte(documents)},
	}, "tiny")
}

func TestLoad(t *testing.T) {
	s, err := load(good, goodDocuments)
	if err != nil {
		t.Fatal(err)
	}
	calls := s.Hosts[0].Units[0].Calls
	if c := calls[0]; c.Kind != Long || c.Family != V4 || c.Bytes != 64 {
		t.Errorf("defaults of the first call: %+v", c)
	}
	if c := calls[1]; c.Kind != Short || c.Family != V6 || c.Port.String() != "udp/53" {
		t.Errorf("the second call: %+v", c)
	}
	if s.Hosts[2].Managed() || !s.Hosts[0].Managed() {
		t.Error("a host without agent: false has one, and only such a host")
	}
	if s.Controller.Port != 7443 {
		t.Errorf("port of the controller %d, want 7443", s.Controller.Port)
	}
	for id, want := range map[ID]string{{"b", "server.service"}: "web", {"a", "client.service"}: "a/client.service", {"c", ""}: "c"} {
		if got := s.Workload(id); got != want {
			t.Errorf("workload of %s is %s, want %s", id, got, want)
		}
	}
	if id, ok := s.OwnerOf("b", Port{6, 81}); !ok || id.Unit != "server.service" {
		t.Errorf("tcp/81 of b belongs to %v, %v", id, ok)
	}
	if id, ok := s.OwnerOf("b", Port{6, 22}); ok || id != (ID{Host: "b"}) {
		t.Errorf("tcp/22 of b belongs to %v, %v; want the host, listening to nothing", id, ok)
	}
	if got := len(s.Ports()); got != 3 {
		t.Errorf("%d ports, want 3", got)
	}
	if want := "2 hosts with an agent, 1 without, 3 workloads in 3 processes, 2 calls between them"; s.Summary() != want {
		t.Errorf("summary %q, want %q", s.Summary(), want)
	}
}

func TestBadScenarios(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown field", "title:", "titel: x\ntitle:", "line 2: field titel not found"},
		{"not YAML", "hosts:", "hosts: [", "line"},
		{"two documents", "story:", "---\nstory:", "more than one document"},
		{"name", "name: tiny", "name: Tiny-1", "lower-case letters and digits"},
		{"port out of range", "tcp/80,", "tcp/70000,", "out of range"},
		{"range of ports", "tcp/80,", "tcp/80-90,", "use one port of tcp or udp"},
		{"protocol", "udp/53, every", "icmp, every", "use one port of tcp or udp"},
		{"duration", "every: 100ms", "every: often", `"often" is not a length of time`},
		{"no duration", "every: 100ms, ", "", "say how often"},
		{"negative duration", "every: 100ms", "every: -1s", "not a length of time"},
		{"kind", "kind: long-lived", "kind: eternal", "use short or long-lived"},
		{"long UDP", "every: 1s,", "every: 1s, kind: long-lived,", "a UDP call is short"},
		{"family", "family: v6", "family: v5", "use v4 or v6"},
		{"bytes", "every: 1s,", "every: 1s, bytes: 5000,", "for UDP 1 to 1200"},
		{"unknown host", "to: b/server.service, port: tcp/80, every", "to: x/server.service, port: tcp/80, every", `no host "x"`},
		{"nobody listens", "port: tcp/80, every", "port: tcp/82, every", "nothing listens on tcp/82"},
		{"no such family there", `[10.50.0.3, "fd50::3"]`, "[10.50.0.3]", "c has no address of family v6"},
		{"address twice", "10.50.0.2,", "10.50.0.1,", "belongs to host a already"},
		{"address outside", "10.50.0.2,", "10.51.0.2,", "is not in the network"},
		{"bad address", "10.50.0.2,", "10.50.0.256,", "10.50.0.256"},
		{"large network", "10.50.0.0/28", "10.50.0.0/16", "use an IPv4 prefix of /24 to /30"},
		{"host twice", "- name: b", "- name: a", "the name is taken"},
		{"host name", "- name: b", "- name: B", "use up to 20 lower-case"},
		{"unit name", "name: client.service", "name: client", "use a name such as payapi.service"},
		{"unit of the agent", "name: client.service", "name: bulkhead-agent.service", "the name is taken"},
		{"process name", "process: client", "process: averylongnameofaprocess", "up to 15"},
		{"port twice", "{port: tcp/81, wayIn: true}", "{port: tcp/80}", "listens on tcp/80 twice"},
		{"port of another unit", "- {name: server.service, process: server,", "- {name: other.service, process: other, listen: [{port: tcp/80}]}\n      - {name: server.service, process: server,", "both listen on tcp/80"},
		{"labels of a device", "agent: false", "agent: false\n    labels: {app: y}", "bound to the token"},
		{"label", "app: x,", "app: x y,", "label value"},
		{"speak", "{port: tcp/80}", "{port: tcp/80, speak: klingon}", "use modbus or postgres"},
		{"real", "process: client", "process: client\n        real: oracle", `use "postgres"`},
		{"breach", "breach: {from: a/client.service}", "breach: {from: a}", `no workload "a"`},
		{"contain", "port: tcp/80}\n  fail", "port: tcp/81}\n  fail", "has no long-lived call"},
		{"no probes", "probes: [{from: c, to: b/server.service, port: tcp/81}]", "probes: []", "name at least one"},
		{"segment", "enforce: [x]", "enforce: [y]", `no segment "y"`},
		{"no segment", "enforce: [x]", "enforce: []", "name the segments"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(good, c.old) {
				t.Fatalf("the good scenario has no %q", c.old)
			}
			_, err := load(strings.Replace(good, c.old, c.new, 1), goodDocuments)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "tiny/scenario.yaml") {
				t.Errorf("the error is %q; want the file and %q", err, c.want)
			}
		})
	}
}

func TestEveryProblemIsNamed(t *testing.T) {
	bad := strings.NewReplacer("10.50.0.2,", "10.50.0.1,", "enforce: [x]", "enforce: [y]", "kind: long-lived", "kind: eternal").Replace(good)
	_, err := load(bad, goodDocuments)
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, want := range []string{"belongs to host a", `no segment "y"`, "use short or long-lived"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func TestBadDocumentsAreRefused(t *testing.T) {
	_, err := load(good, strings.Replace(goodDocuments, "selector", "selektor", 1))
	if err == nil || !strings.Contains(err.Error(), "tiny/documents/base/all.yaml:4") {
		t.Errorf("got %v, want the place in the file", err)
	}
}

func TestUnknownScenarioNamesThoseThereAre(t *testing.T) {
	_, err := Load(fstest.MapFS{"bank/scenario.yaml": {}}, "bink")
	if err == nil || !strings.Contains(err.Error(), "bank") {
		t.Errorf("got %v, want the names there are", err)
	}
}
