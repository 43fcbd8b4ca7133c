package suggest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
)

// rules writes the proposed rules, one a line.
func rules(p *Proposal) []string {
	var out []string
	for _, r := range p.Rules {
		out = append(out, fmt.Sprintf("%s: %s -> %s on %s", r.Rule, r.From, r.To, strings.Join(r.On, ",")))
	}
	return out
}

func estate() []model.Instance {
	var list []model.Instance
	for i := range 4 {
		list = append(list, host(fmt.Sprintf("web-%d", i+1), "app=portal,role=web,env=prod", fmt.Sprintf("10.0.0.%d", i+1)))
	}
	return append(list,
		host("api-1", "app=pay,role=api,env=prod", "10.0.1.1"), host("api-2", "app=pay,role=api,env=prod", "10.0.1.2"),
		host("api-9", "app=pay,role=api,env=dev", "10.0.1.9"), host("db-1", "app=pay,role=db,env=prod", "10.0.2.1"),
		host("mon-1", "app=mon,role=monitor,env=prod", "10.0.3.1"),
	)
}

func TestRules(t *testing.T) {
	dynamic := []string{"web-1 api-1 tcp/135 9"}
	for i := range 6 {
		dynamic = append(dynamic, fmt.Sprintf("web-1 api-1 tcp/%d 1", 49700+i*37))
	}
	linux := []string{"web-1 api-1 tcp/111 9"}
	for i := range 6 {
		linux = append(linux, fmt.Sprintf("web-1 api-1 tcp/%d 1", 33000+i*37))
	}
	for _, c := range []struct {
		name  string
		flows []string
		want  []string
	}{
		{"two of a group stand for it", []string{"web-1 api-1 tcp/8443 9", "web-2 api-2 tcp/8443 9"},
			[]string{"pay/portal-web-to-pay-api: app=portal,env=prod,role=web -> app=pay,env=prod,role=api on tcp/8443"}},
		{"one of four does not", []string{"web-1 db-1 tcp/5432 9"},
			[]string{"pay/web-1-to-pay-db: workload=web-1 -> app=pay,env=prod,role=db on postgres"}},
		{"one of two does", []string{"api-1 db-1 tcp/5432 9"},
			[]string{"pay/pay-api-to-pay-db: app=pay,env=prod,role=api -> app=pay,env=prod,role=db on postgres"}},
		{"ports of one pair are one rule, neighbours one range", []string{"api-1 db-1 tcp/5432 9", "api-1 db-1 tcp/8001 9", "api-1 db-1 tcp/8002 9", "api-1 db-1 udp/8002 9"},
			[]string{"pay/pay-api-to-pay-db: app=pay,env=prod,role=api -> app=pay,env=prod,role=db on postgres,tcp/8001-8002,udp/8002"}},
		{"environments stay apart", []string{"web-1 api-1 tcp/8443 9", "web-2 api-9 tcp/8443 9"},
			[]string{
				"pay-dev/prod-web-2-to-pay-api: workload=web-2 -> app=pay,env=dev,role=api on tcp/8443",
				"pay-prod/web-1-to-pay-api: workload=web-1 -> app=pay,env=prod,role=api on tcp/8443",
			}},
		{"everybody in an environment", []string{"web-1 mon-1 udp/514 9", "web-2 mon-1 udp/514 9", "api-1 mon-1 udp/514 9", "db-1 mon-1 udp/514 9", "mon-1 mon-1 udp/514 9"},
			[]string{
				"mon/pay-api-to-mon-monitor: app=pay,env=prod,role=api -> app=mon,env=prod,role=monitor on syslog",
				"mon/pay-db-to-mon-monitor: app=pay,env=prod,role=db -> app=mon,env=prod,role=monitor on syslog",
				"mon/portal-web-to-mon-monitor: app=portal,env=prod,role=web -> app=mon,env=prod,role=monitor on syslog",
			}},
		{"everybody but the destination itself", []string{"mon-1 web-1 tcp/9100 9", "mon-1 web-2 tcp/9100 9", "mon-1 api-1 tcp/9100 9", "mon-1 db-1 tcp/9100 9"},
			[]string{
				"pay/mon-monitor-to-pay-api: app=mon,env=prod,role=monitor -> app=pay,env=prod,role=api on node-exporter",
				"pay/mon-monitor-to-pay-db: app=mon,env=prod,role=monitor -> app=pay,env=prod,role=db on node-exporter",
				"portal/mon-monitor-to-portal-web: app=mon,env=prod,role=monitor -> app=portal,env=prod,role=web on node-exporter",
			}},
		{"short-lived ports of IANA", dynamic,
			[]string{
				"pay/web-1-to-pay-api: workload=web-1 -> app=pay,env=prod,role=api on msrpc",
				"pay/web-1-to-pay-api-dynamic: workload=web-1 -> app=pay,env=prod,role=api on tcp/49152-65535",
			}},
		{"short-lived ports of Linux", linux,
			[]string{
				"pay/web-1-to-pay-api: workload=web-1 -> app=pay,env=prod,role=api on tcp/111",
				"pay/web-1-to-pay-api-dynamic: workload=web-1 -> app=pay,env=prod,role=api on tcp/32768-60999",
			}},
		{"a high port that is used regularly is what it is", []string{"web-1 api-1 tcp/50000 90", "web-2 api-1 tcp/50000 90"},
			[]string{"pay/portal-web-to-pay-api: app=portal,env=prod,role=web -> app=pay,env=prod,role=api on tcp/50000"}},
		{"essentials and oneself need none", []string{"web-1 web-1 tcp/80 9", "web-1 api-1 udp/68 9", "web-1 api-1 icmp/3/1 9", "10.9.9.9 10.9.9.8 tcp/80 9"}, nil},
		{"pings do", []string{"mon-1 api-1 icmp/8/0 90"},
			[]string{"pay/mon-monitor-to-pay-api: app=mon,env=prod,role=monitor -> app=pay,env=prod,role=api on icmp/8/0"}},
		{"addresses", []string{"10.200.0.1 web-1 tcp/443 9", "10.200.0.2 web-2 tcp/443 9", "10.200.0.1 web-1 tcp/9999 9", "api-1 198.51.100.7 tcp/443 9", "api-1 198.51.100.7 tcp/25 9"},
			[]string{
				"pay-outbound/pay-api-calls-out: app=pay,env=prod,role=api -> network called-by-pay-api on smtp,https",
				"portal/callers-of-portal-web: network callers-of-portal-web -> app=portal,env=prod,role=web on https",
				"portal/callers-of-portal-web-to-web-1: network callers-of-portal-web -> workload=web-1 on tcp/9999",
			}},
		{"one address of two habits is in two networks", []string{"10.200.0.1 web-1 tcp/443 9", "10.200.0.2 web-2 tcp/443 9", "10.200.0.1 db-1 tcp/5432 9"},
			[]string{
				"pay/callers-of-pay-db: network callers-of-pay-db -> app=pay,env=prod,role=db on postgres",
				"portal/callers-of-portal-web: network callers-of-portal-web -> app=portal,env=prod,role=web on https",
			}},
		{"the same addresses with two habits are in one", []string{"api-1 10.200.0.1 udp/123 9", "db-1 10.200.0.1 udp/123 9"},
			[]string{
				"pay-outbound/pay-api-to-ntp-servers: app=pay,env=prod,role=api -> network ntp-servers on ntp",
				"pay-outbound/pay-db-to-ntp-servers: app=pay,env=prod,role=db -> network ntp-servers on ntp",
			}},
	} {
		p := suggest(t, flows(c.flows...), inventoryOf(estate()...), Options{})
		if got := rules(p); !slices.Equal(got, c.want) {
			t.Errorf("%s: got\n  %s\nwant\n  %s", c.name, strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
		}
	}
}

// TestWholeEnvironment: what every workload of an environment does becomes one rule.
func TestWholeEnvironment(t *testing.T) {
	list := estate()
	resolver := device("resolver", "role=dns", "10.0.53.53")
	p := suggest(t, flows("web-1 resolver udp/53 9", "web-2 resolver udp/53 9", "api-1 resolver udp/53 9", "db-1 resolver udp/53 9", "mon-1 resolver udp/53 9"),
		inventoryOf(append(list, resolver)...), Options{})
	want := []string{"dns/prod-to-dns: env=prod -> !env,role=dns on dns"}
	if got := rules(p); !slices.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if e := p.Rules[0]; e.OverPermission != (OverPermission{8, 5, 1.6}) || e.Flows != 5 || e.Sources != 5 || e.Destinations != 1 {
		t.Errorf("evidence %+v", e)
	}
}

func TestEvidence(t *testing.T) {
	f := flows("web-1 api-1 tcp/8443 9 nginx>payapi", "web-2 api-2 tcp/8443 1 nginx>payapi", "web-2 api-2 tcp/8443 2 curl>payapi")
	f[1].First, f[1].Last = start.Add(-time.Hour), start.Add(5*time.Hour)
	p := suggest(t, f, inventoryOf(estate()...), Options{})
	want := RuleEvidence{
		Rule: "pay/portal-web-to-pay-api", From: "app=portal,env=prod,role=web", To: "app=pay,env=prod,role=api", On: []string{"tcp/8443"},
		Flows: 2, Connections: 12, Sources: 2, Destinations: 2, First: start.Add(-time.Hour), Last: start.Add(5 * time.Hour),
		Processes: []string{"curl > payapi", "nginx > payapi"}, OverPermission: OverPermission{8, 2, 4},
		WouldBreak: "portal-web could not reach pay-api on tcp/8443: 2 flows and 12 connections, last seen 2026-03-01 14:00 UTC, would fail.",
	}
	if d := cmp.Diff([]RuleEvidence{want}, p.Rules); d != "" {
		t.Error(d)
	}
	if s := p.Stats; s != (Stats{Recorded: 3, Distinct: 2, Covered: 2, Rules: 1, Compression: 2, Surface: 1, Segments: 4}) {
		t.Errorf("stats %+v", s)
	}
}

// TestHostBesideUnits: a host that is meant alone does not bring its units along.
func TestHostBesideUnits(t *testing.T) {
	h := host("node-1", "env=prod", "10.0.5.1")
	for _, labels := range []string{"app=pay,role=api", "", "role=api"} {
		u := unit(&h, "thing.service", labels)
		p := suggest(t, flows("node-1 db-1 tcp/5432 9"), inventoryOf(append(estate(), h, u)...), Options{})
		hostLabels, unitLabels := h.Labels.With(nil), u.Labels.With(nil)
		for _, w := range p.Documents.Workloads {
			switch w.Name {
			case h.Name:
				hostLabels = hostLabels.With(w.Labels)
			case u.Name:
				unitLabels = unitLabels.With(w.Labels)
			}
		}
		unitLabels = hostLabels.With(unitLabels)
		from := p.Documents.Policies[0].Rules[0].From[0].Workloads
		if !from.Matches(hostLabels) || from.Matches(unitLabels) {
			t.Errorf("unit %q: %s selects host %v: %v, unit %v: %v", labels, from, hostLabels, from.Matches(hostLabels), unitLabels, from.Matches(unitLabels))
		}
	}
}
