// Package compiletest reads the test cases that packages compile and verdict share: documents, what agents report,
// quarantines and options in one txtar file.
package compiletest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// Case is a test written as one txtar file:
//
//	-- policy.yaml --      documents
//	-- agents --           optional: what agents report
//	host node-1 10.0.0.1,fd00::1 app=x,env=prod
//	unit node-1 nginx.service
//	listen node-1 nginx.service tcp/443 0.0.0.0     ("-" for no unit)
//	-- leases --           optional: quarantines, with the edges in use of a restricted workload
//	web-1 restrict egress:db-1:tcp/5432
//	-- options --          optional
//	now 2026-01-02T03:04:05Z
//	controller 10.0.0.9:8443
//
// Other files of the archive are for the test to read. Lines that begin with # are comments.
type Case struct {
	Docs      *model.Documents
	Inventory *model.Inventory
	Options   compile.Options
	Archive   *txtar.Archive
}

// ParseCase reads a test case. Without an agents file it is an offline world.
func ParseCase(data []byte) (*Case, error) {
	c := &Case{Archive: txtar.Parse(data)}
	var err error
	if c.Docs, err = policy.Parse([]policy.File{{Name: "policy.yaml", Data: []byte(c.File("policy.yaml"))}}); err != nil {
		return nil, err
	}
	var reports []inventory.Report
	if agents := c.Lines("agents"); agents != nil {
		if reports, err = parseAgents(agents); err != nil {
			return nil, err
		}
	}
	leases, err := parseLeases(c.Lines("leases"))
	if err != nil {
		return nil, err
	}
	for _, line := range c.Lines("options") {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "now":
			c.Options.Now, err = time.Parse(time.RFC3339, value)
		case "controller":
			var at netip.AddrPort
			at, err = netip.ParseAddrPort(value)
			c.Options.Controllers = append(c.Options.Controllers, at)
		default:
			err = fmt.Errorf("unknown option %q", line)
		}
		if err != nil {
			return nil, err
		}
	}
	c.Inventory, err = inventory.Build(c.Docs, reports, leases)
	return c, err
}

// File returns the text of a file of the archive, "" if there is none.
func (c *Case) File(name string) string {
	for _, f := range c.Archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// Lines returns the lines of a file that say something; nil if there is no such file.
func (c *Case) Lines(name string) []string {
	for _, f := range c.Archive.Files {
		if f.Name != name {
			continue
		}
		out := []string{}
		for _, line := range strings.Split(string(f.Data), "\n") {
			line, _, _ = strings.Cut(line, " # ")
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				out = append(out, line)
			}
		}
		return out
	}
	return nil
}

func parseAgents(lines []string) ([]inventory.Report, error) {
	reports := []inventory.Report{}
	find := func(host string) *inventory.Report {
		for i := range reports {
			if reports[i].Host == host {
				return &reports[i]
			}
		}
		return nil
	}
	for _, line := range lines {
		f := strings.Fields(line)
		r := find(f[min(1, len(f)-1)])
		var err error
		switch {
		case f[0] == "host" && len(f) >= 2:
			reports = append(reports, inventory.Report{Host: f[1]})
			err = parseHost(&reports[len(reports)-1], f[2:])
		case f[0] == "unit" && len(f) == 3 && r != nil:
			r.Units = append(r.Units, inventory.UnitReport{Name: f[2]})
		case f[0] == "listen" && len(f) == 5 && r != nil:
			err = parseListener(r, f[2:])
		default:
			err = fmt.Errorf("agents: cannot read %q", line)
		}
		if err != nil {
			return nil, err
		}
	}
	return reports, nil
}

func parseHost(r *inventory.Report, f []string) error {
	for _, field := range f {
		if key, _, isLabel := strings.Cut(field, "="); isLabel && !strings.Contains(key, ":") {
			r.Labels = model.Labels{}
			for _, pair := range strings.Split(field, ",") {
				k, v, _ := strings.Cut(pair, "=")
				r.Labels[k] = v
			}
			continue
		}
		for _, text := range strings.Split(field, ",") {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return err
			}
			r.Addresses = append(r.Addresses, a)
		}
	}
	return nil
}

func parseListener(r *inventory.Report, f []string) error {
	ports, err := model.ParsePortRange(f[1])
	if err != nil {
		return err
	}
	at, err := netip.ParseAddr(f[2])
	if err != nil {
		return err
	}
	l := inventory.ListenerReport{Listener: model.Listener{Addr: at, Proto: ports.Proto, Port: ports.Lo}}
	if f[0] != "-" {
		l.Unit = f[0]
	}
	r.Listeners = append(r.Listeners, l)
	return nil
}

func parseLeases(lines []string) ([]inventory.Lease, error) {
	var out []inventory.Lease
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) < 2 {
			return nil, fmt.Errorf("leases: cannot read %q", line)
		}
		level, ok := model.ParseQuarantineLevel(f[1])
		if !ok {
			return nil, fmt.Errorf("leases: no level %q", f[1])
		}
		lease := inventory.Lease{Workload: f[0], Level: level}
		for _, text := range f[2:] {
			edge := strings.SplitN(text, ":", 3)
			if len(edge) != 3 {
				return nil, fmt.Errorf("leases: cannot read edge %q", text)
			}
			ports, err := model.ParsePortRange(edge[2])
			if err != nil {
				return nil, err
			}
			use := model.InUse{Peer: edge[1], Ports: ports}
			if edge[0] == model.Egress.String() {
				use.Direction = model.Egress
			}
			lease.InUse = append(lease.InUse, use)
		}
		out = append(out, lease)
	}
	return out, nil
}
