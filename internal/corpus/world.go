package corpus

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// Now is the time of a case that names none.
var Now = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// World is what a case is about: everything that verdicts depend on.
type World struct {
	Docs      *model.Documents
	Inventory *model.Inventory
	Options   compile.Options
}

// World returns what the case is about. The error is a policy.Errors where documents are refused.
func (c *Case) World() (*World, error) { return c.world(false) }

func (c *Case) world(base bool) (*World, error) {
	w := &World{}
	var err error
	if w.Docs, err = parse(c.documents(base)); err != nil {
		return nil, err
	}
	if w.Options, err = c.options(); err != nil {
		return nil, err
	}
	reports, err := c.agents()
	if err != nil {
		return nil, err
	}
	leases, err := c.quarantine()
	if err != nil {
		return nil, err
	}
	if w.Inventory, err = inventory.Build(w.Docs, reports, leases); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	return w, nil
}

func (c *Case) options() (compile.Options, error) {
	o := compile.Options{Now: Now}
	for _, l := range c.textLines(secOptions) {
		key, value, _ := strings.Cut(l.text, " ")
		var err error
		switch key {
		case "now":
			o.Now, err = time.Parse(time.RFC3339, value)
		case "controller":
			var at netip.AddrPort
			at, err = netip.ParseAddrPort(value)
			o.Controllers = append(o.Controllers, at)
		default:
			err = fmt.Errorf("unknown option %q; there are now and controller", key)
		}
		if err != nil {
			return o, c.errorf(l.at, "%w", err)
		}
	}
	return o, nil
}

// agents reads what agents report; nil if the case has no such section, so that every workload is a host of its own.
//
//	host node-1 10.0.0.1,fd00::1 app=x,env=prod
//	unit node-1 nginx.service
//	listen node-1 nginx.service tcp/443 0.0.0.0        ("-" for what no unit owns)
func (c *Case) agents() ([]inventory.Report, error) {
	if c.section(secAgents) < 0 {
		return nil, nil
	}
	reports := []inventory.Report{}
	for _, l := range c.textLines(secAgents) {
		f := strings.Fields(l.text)
		var r *inventory.Report
		for i := range reports {
			if len(f) > 1 && reports[i].Host == f[1] {
				r = &reports[i]
			}
		}
		var err error
		switch {
		case f[0] == "host" && len(f) >= 2:
			reports = append(reports, inventory.Report{Host: f[1]})
			err = parseHost(&reports[len(reports)-1], f[2:])
		case f[0] == "unit" && len(f) == 3 && r != nil:
			r.Units = append(r.Units, inventory.UnitReport{Name: f[2]})
		case f[0] == "listen" && len(f) == 5 && r != nil:
			err = parseListener(r, f[2:])
		case (f[0] == "unit" || f[0] == "listen") && len(f) > 1 && r == nil:
			err = fmt.Errorf("no line above says host %s", f[1])
		default:
			err = fmt.Errorf("write host NAME ADDRESSES LABELS, unit HOST NAME, or listen HOST UNIT PORT ADDRESS")
		}
		if err != nil {
			return nil, c.errorf(l.at, "%w", err)
		}
	}
	return reports, nil
}

// parseHost reads addresses and labels, in either order, each a list with commas.
func parseHost(r *inventory.Report, fields []string) error {
	for _, field := range fields {
		for _, text := range strings.Split(field, ",") {
			key, value, isLabel := strings.Cut(text, "=")
			if !isLabel {
				a, err := netip.ParseAddr(text)
				if err != nil {
					return fmt.Errorf("%q is neither an address nor key=value", text)
				}
				r.Addresses = append(r.Addresses, a)
				continue
			}
			if err := model.CheckSelectorKey(key); err != nil {
				return err
			}
			if err := model.CheckLabelValue(value); err != nil {
				return err
			}
			if r.Labels == nil {
				r.Labels = model.Labels{}
			}
			r.Labels[key] = value
		}
	}
	return nil
}

func parseListener(r *inventory.Report, f []string) error {
	port, err := parsePort(f[1])
	if err != nil {
		return err
	}
	at, err := netip.ParseAddr(f[2])
	if err != nil {
		return fmt.Errorf("%q is no address", f[2])
	}
	l := inventory.ListenerReport{Listener: model.Listener{Addr: at, Proto: port.Proto, Port: port.Lo}}
	if f[0] != "-" {
		l.Unit = f[0]
	}
	r.Listeners = append(r.Listeners, l)
	return nil
}

// quarantine reads leases:
//
//	web-1 isolate
//	db-1 restrict egress:web-1:tcp/80 ingress:api-1:any        (the edges in use that stay open)
func (c *Case) quarantine() ([]inventory.Lease, error) {
	var out []inventory.Lease
	for _, l := range c.textLines(secQuarantine) {
		f := strings.Fields(l.text)
		if len(f) < 2 {
			return nil, c.errorf(l.at, "write WORKLOAD LEVEL")
		}
		level, ok := model.ParseQuarantineLevel(f[1])
		if !ok {
			return nil, c.errorf(l.at, "unknown level %q; use watch, restrict or isolate", f[1])
		}
		lease := inventory.Lease{Workload: f[0], Level: level}
		for _, text := range f[2:] {
			use, err := parseInUse(text)
			if err != nil {
				return nil, c.errorf(l.at, "%w", err)
			}
			lease.InUse = append(lease.InUse, use)
		}
		out = append(out, lease)
	}
	return out, nil
}

func parseInUse(text string) (model.InUse, error) {
	var use model.InUse
	direction, rest, _ := strings.Cut(text, ":")
	at := strings.LastIndex(rest, ":")
	switch {
	case at < 0:
		return use, fmt.Errorf("%q: write egress:WORKLOAD:tcp/80 or ingress:WORKLOAD:tcp/80", text)
	case direction == model.Egress.String():
		use.Direction = model.Egress
	case direction != model.Ingress.String():
		return use, fmt.Errorf("%q: the direction is egress or ingress", text)
	}
	var err error
	use.Peer = rest[:at]
	use.Ports, err = model.ParsePortRange(rest[at+1:])
	return use, err
}

// recorded reads recorded flows.
func (c *Case) recorded() ([]model.RecordedFlow, error) {
	var out []model.RecordedFlow
	for _, l := range c.textLines(secRecorded) {
		var r model.RecordedFlow
		if err := flowline.ParseRecord([]byte(l.text), &r); err != nil {
			return nil, c.errorf(l.at, "%w", err)
		}
		out = append(out, r)
	}
	return out, nil
}
