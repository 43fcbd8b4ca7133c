package suggest

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

var start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// host is an instance that an agent reports.
func host(name, labels, addr string, listening ...string) model.Instance {
	in := model.Instance{Name: name, Labels: labelsOf(labels), Managed: true, Host: name}
	if addr != "" {
		in.Addresses = []netip.Addr{netip.MustParseAddr(addr)}
	}
	in.Listening = listeners(listening)
	return in
}

func unit(h *model.Instance, name, labels string, listening ...string) model.Instance {
	return model.Instance{
		Name: h.Name + "/" + name, Labels: h.Labels.With(labelsOf(labels)), Managed: true, Host: h.Name, Unit: name,
		Addresses: h.Addresses, Listening: listeners(listening),
	}
}

func device(name, labels, addr string) model.Instance {
	return model.Instance{Name: name, Labels: labelsOf(labels), Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
}

func labelsOf(s string) model.Labels {
	l := model.Labels{}
	for _, p := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
		k, v, _ := strings.Cut(p, "=")
		l[k] = v
	}
	return l
}

// listeners reads "tcp/5432 postgres".
func listeners(list []string) []model.Listener {
	var out []model.Listener
	for _, s := range list {
		port, process, _ := strings.Cut(s, " ")
		p, err := model.ParsePortRange(port)
		if err != nil {
			panic(err)
		}
		out = append(out, model.Listener{Addr: netip.IPv4Unspecified(), Proto: p.Proto, Port: p.Lo, Process: process})
	}
	return out
}

func inventoryOf(list ...model.Instance) *model.Inventory {
	slices.SortFunc(list, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) })
	return &model.Inventory{Instances: list}
}

// flow reads "web-1 db-1 tcp/5432 20" with an optional "client>server" at the end.
func flow(s string) model.RecordedFlow {
	f := strings.Fields(s)
	p, err := model.ParsePortRange(f[2])
	if err != nil {
		panic(err)
	}
	r := model.RecordedFlow{
		Flow:    model.Flow{From: endOfFlow(f[0]), To: endOfFlow(f[1]), Proto: p.Proto, Port: p.Lo},
		Verdict: model.Allow, First: start, Last: start.Add(time.Hour), Connections: 1,
	}
	if len(f) > 3 {
		fmt.Sscan(f[3], &r.Connections)
	}
	if len(f) > 4 {
		r.FromName, r.ToName, _ = strings.Cut(f[4], ">")
	}
	return r
}

func endOfFlow(s string) model.End {
	if a, err := netip.ParseAddr(s); err == nil {
		return model.End{Addr: a}
	}
	return model.End{Workload: s}
}

func flows(lines ...string) []model.RecordedFlow {
	var out []model.RecordedFlow
	for _, l := range lines {
		out = append(out, flow(l))
	}
	return out
}

func bank() *model.Inventory {
	h1 := host("node-1", "env=prod", "10.0.1.1")
	h2 := host("node-2", "env=prod", "10.0.1.2")
	h3 := host("pay-db-1", "env=prod", "10.0.1.3", "tcp/5432 postgres", "tcp/22 sshd")
	dev := host("dev-box-1", "", "10.0.9.1")
	return inventoryOf(h1, h2, h3, dev,
		host("ops-1", "env=prod", "10.0.1.9"),
		unit(&h1, "portal-web.service", "app=portal,role=web", "tcp/8443 nginx"),
		unit(&h2, "portal-web.service", "app=portal,role=web", "tcp/8443 nginx"),
		unit(&h1, "payments-api.service", "app=payments", "tcp/9000 payapi"),
		unit(&h2, "payments-api.service", "", "tcp/9000 payapi"),
		device("printer-1", "", "10.0.2.1"),
	)
}

func bankFlows() []model.RecordedFlow {
	return flows(
		"node-1/portal-web.service node-1/payments-api.service tcp/9000 200 nginx>payapi",
		"node-2/portal-web.service node-2/payments-api.service tcp/9000 180 nginx>payapi",
		"node-1/payments-api.service pay-db-1 tcp/5432 90 payapi>postgres",
		"node-2/payments-api.service pay-db-1 tcp/5432 80 payapi>postgres",
		"10.200.0.5 node-1/portal-web.service tcp/8443 20",
		"10.200.0.6 node-1/portal-web.service tcp/8443 22",
		"10.200.0.9 node-2/portal-web.service tcp/8443 22",
		"ops-1 pay-db-1 tcp/22 4 ssh>sshd",
		"ops-1 node-1 tcp/22 4 ssh>sshd",
		"node-1/payments-api.service 203.0.113.9 tcp/443 12 payapi>",
		"dev-box-1 printer-1 tcp/631 4",
		"pay-db-1 pay-db-1 tcp/5432 4",
	)
}

var update = flag.Bool("update", false, "write the golden files anew")

func suggest(t testing.TB, flows []model.RecordedFlow, inv *model.Inventory, o Options) *Proposal {
	t.Helper()
	p, err := Suggest(flows, inv, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBank shows a whole proposal, as documents and as evidence.
func TestBank(t *testing.T) {
	p := suggest(t, bankFlows(), bank(), Options{Now: start, Documents: &model.Documents{}})
	golden(t, "bank.yaml", policy.Marshal(p.Documents))
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "bank.json", append(data, '\n'))
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s differs (run with -update if it should):\n%s", path, d)
	}
}

// rules writes the proposed rules, one a line.
func rules(p *Proposal) []string {
	var out []string
	for _, r := range p.Rules {
		out = append(out, fmt.Sprintf("%s: %s -> %s on %s", r.Rule, r.From, r.To, strings.Join(r.On, ",")))
	}
	return out
}

func labels(p *Proposal) map[string]string {
	out := map[string]string{}
	for _, l := range p.Labels {
		out[l.Workload+" "+l.Key] = l.Value
	}
	return out
}

func TestRoles(t *testing.T) {
	known := []model.Instance{
		host("portal-web-1", "app=portal,role=web,env=prod", "10.0.0.1"),
		host("portal-web-2", "app=portal,role=web,env=prod", "10.0.0.2"),
		host("payments-api-1", "app=payments,role=api,env=prod", "10.0.0.3"),
	}
	node := host("node-7", "env=prod", "10.0.1.7")
	for _, c := range []struct {
		name    string
		add     []model.Instance
		flows   []string
		want    map[string]string // "workload key" to the label, "" for an abstention
		because string            // part of the reason of some label
	}{
		{
			"a name", []model.Instance{host("payments-db-1", "", "10.0.0.9")}, nil,
			map[string]string{"payments-db-1 role": "db", "payments-db-1 app": "payments", "payments-db-1 env": ""},
			`its name says "db"`,
		},
		{
			"words of the inventory win", []model.Instance{host("payments-database-1", "", "10.0.0.9"), host("mes-sql", "role=database,app=mes", "10.0.0.10")}, nil,
			map[string]string{"payments-database-1 role": "database"}, "",
		},
		{
			"what answers", []model.Instance{host("x17", "", "10.0.0.9", "tcp/5432 postgres")}, nil,
			map[string]string{"x17 role": "db"}, "postgres answers there; it serves postgres (tcp/5432)",
		},
		{
			"a port alone, seen in flows", []model.Instance{device("cell-4", "", "10.0.0.9")}, []string{"portal-web-1 cell-4 tcp/502 9"},
			map[string]string{"cell-4 role": "plc"}, "it serves modbus (tcp/502)",
		},
		{
			"a beginning of an app's name", []model.Instance{host("pay-cache-1", "", "10.0.0.9")}, nil,
			map[string]string{"pay-cache-1 app": "payments", "pay-cache-1 role": "cache"}, `"pay" in its name begins`,
		},
		{
			"siblings", []model.Instance{host("portal-web-3", "", "10.0.0.9")}, nil,
			map[string]string{"portal-web-3 role": "web", "portal-web-3 app": "portal", "portal-web-3 env": "prod"},
			"2 workloads of the same name but for numbers have it",
		},
		{
			"behaviour", []model.Instance{host("vm-3921", "", "10.0.0.9")},
			[]string{"portal-web-1 payments-api-1 tcp/8443 50", "portal-web-2 payments-api-1 tcp/8443 50", "vm-3921 payments-api-1 tcp/8443 50"},
			map[string]string{"vm-3921 role": "web", "vm-3921 app": "portal"}, "it behaves like portal-web-1 (similarity 1.00): both call tcp/8443",
		},
		{
			"numbers after a word that says nothing", []model.Instance{host("node-8", "app=pay,role=api", "10.0.0.9"), host("node-9", "", "10.0.0.10"), host("h12", "", "10.0.0.11")}, nil,
			map[string]string{"node-9 role": "", "node-9 app": "", "h12 app": ""}, "",
		},
		{
			"nothing", []model.Instance{host("x17", "", "10.0.0.9")}, nil,
			map[string]string{"x17 role": "", "x17 env": ""}, "",
		},
		{
			"too close", []model.Instance{host("worker-1", "", "10.0.0.9", "tcp/5432 postgres", "tcp/6379 redis-server")}, nil,
			map[string]string{"worker-1 role": ""}, "",
		},
		{
			"a unit, and its host", []model.Instance{node, unit(&node, "custdb.service", "")}, nil,
			map[string]string{"node-7/custdb.service role": "db", "node-7/custdb.service app": "cust", "node-7 role": "", "node-7 app": ""}, "",
		},
		{
			"an environment in a name", []model.Instance{host("dev-box-3", "", "10.0.0.9")}, nil,
			map[string]string{"dev-box-3 env": "dev"}, "",
		},
		{
			"two environments in a name", []model.Instance{host("dev-to-prod-3", "", "10.0.0.9")}, nil,
			map[string]string{"dev-to-prod-3 env": ""}, "",
		},
	} {
		p := suggest(t, flows(c.flows...), inventoryOf(append(slices.Clone(known), c.add...)...), Options{})
		got := labels(p)
		abstained := map[string]string{}
		for _, a := range p.Abstained {
			abstained[a.Workload+" "+a.Key] = a.Why
		}
		for what, want := range c.want {
			if got[what] != want || (want == "") != (abstained[what] != "") {
				t.Errorf("%s: %s is %q, want %q (abstained: %q)", c.name, what, got[what], want, abstained[what])
			}
		}
		var why []string
		for _, l := range p.Labels {
			why = append(why, l.Why)
			if l.Confidence < 0.5 || l.Confidence >= 1 || l.Why == "" {
				t.Errorf("%s: %+v", c.name, l)
			}
		}
		if !strings.Contains(strings.Join(why, "\n"), c.because) {
			t.Errorf("%s: %q is not among the reasons\n%s", c.name, c.because, strings.Join(why, "\n"))
		}
	}
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

func TestNetworks(t *testing.T) {
	var many, internet, six []string
	for i := range 64 {
		many = append(many, fmt.Sprintf("10.200.7.%d web-%d tcp/443 9", i*3, i%2+1))
		internet = append(internet, fmt.Sprintf("%d.0.113.%d web-%d tcp/443 9", 40+i, i, i%2+1))
	}
	for i := range 5 {
		six = append(six, fmt.Sprintf("fd00:1::%x:%x web-%d tcp/443 9", i*4711, i, i%2+1))
	}
	for _, c := range []struct {
		name   string
		flows  []string
		cidrs  string
		except int
	}{
		{"few addresses are themselves", []string{"10.200.0.1 web-1 tcp/443 9", "10.200.0.9 web-2 tcp/443 9"}, "[10.200.0.1/32 10.200.0.9/32]", 0},
		{"four in a row are a prefix", []string{"10.200.0.4 web-1 tcp/443 9", "10.200.0.5 web-1 tcp/443 9", "10.200.0.6 web-2 tcp/443 9", "10.200.0.7 web-2 tcp/443 9"}, "[10.200.0.4/30]", 0},
		{"many of a /24 are the /24", many, "[10.200.7.0/24]", 0},
		{"another address inside splits it", append(slices.Clone(many), "10.200.7.1 db-1 tcp/22 9"), "", 0},
		{"one IPv6 link", six, "[fd00:1::/64]", 0},
		{"clients from everywhere", internet, "[0.0.0.0/0]", 8},
	} {
		p := suggest(t, flows(c.flows...), inventoryOf(estate()...), Options{})
		n := p.Documents.Networks[len(p.Documents.Networks)-1]
		for _, x := range p.Documents.Networks {
			if x.Name == "callers-of-portal-web" {
				n = x
			}
		}
		if c.cidrs == "" {
			if n.Contains(netip.MustParseAddr("10.200.7.1")) || !n.Contains(netip.MustParseAddr("10.200.7.3")) {
				t.Errorf("%s: %v", c.name, n.CIDRs)
			}
			continue
		}
		if got := fmt.Sprint(n.CIDRs); got != c.cidrs || len(n.Except) != c.except {
			t.Errorf("%s: got %s except %v, want %s and %d exceptions", c.name, got, n.Except, c.cidrs, c.except)
		}
		for i := range estate() {
			if n.Contains(estate()[i].Addresses[0]) {
				t.Errorf("%s: holds the workload %s", c.name, estate()[i].Name)
			}
		}
	}
}

// TestPrefixes: every address is covered, and no prefix is wider than what was seen speaks for.
func TestPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		var seen, known []netip.Addr
		for range 1 + rng.IntN(200) {
			a := netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(3)), byte(rng.IntN(256))})
			known = append(known, a)
			if rng.IntN(5) > 0 {
				seen = append(seen, a)
			}
		}
		for _, list := range []*[]netip.Addr{&seen, &known} {
			slices.SortFunc(*list, netip.Addr.Compare)
			*list = slices.Compact(*list)
		}
		got := prefixes(seen, known)
		covered := 0
		for _, p := range got {
			n := 0
			for _, a := range known {
				if !p.Contains(a) {
					continue
				}
				if _, ok := slices.BinarySearchFunc(seen, a, netip.Addr.Compare); !ok {
					t.Fatalf("%v holds %v, which was not seen", p, a)
				}
				n++
			}
			covered += n
			if size := 1 << (32 - p.Bits()); n*prefixShare < size {
				t.Fatalf("%v stands on %d addresses", p, n)
			}
		}
		if covered != len(seen) {
			t.Fatalf("%v covers %d of %d addresses", got, covered, len(seen))
		}
	}
}

func scan(source string, dsts []string, ports ...int) []model.RecordedFlow {
	var out []model.RecordedFlow
	for _, d := range dsts {
		for _, p := range ports {
			f := flow(fmt.Sprintf("%s %s tcp/%d 1", source, d, p))
			f.First = start.Add(time.Duration(len(out)) * time.Second)
			out = append(out, f)
		}
	}
	return out
}

func TestScans(t *testing.T) {
	normal := flows("web-1 api-1 tcp/8443 90", "web-2 api-1 tcp/8443 90", "api-1 db-1 tcp/5432 40", "api-2 db-1 tcp/5432 40")
	all := []string{"api-1", "api-2", "api-9", "db-1", "mon-1", "web-2", "web-3", "web-4"}
	ports := []int{21, 22, 23, 25, 80, 443, 3306, 5432, 6379, 8080, 9200}
	listening := estate()
	for i := range listening {
		listening[i].Listening = listeners([]string{"tcp/22 sshd", "tcp/8443 payapi", "tcp/9100 node_exporter"})
	}
	for _, c := range []struct {
		name       string
		list       []model.Instance
		flows      []model.RecordedFlow
		trusted    []string
		suspicious []string
	}{
		{"ports of one destination", estate(), scan("web-1", []string{"db-1"}, ports...), nil, []string{"web-1"}},
		{"one port of every destination, twice over", estate(), scan("web-1", all, 445, 139), nil, []string{"web-1"}},
		{"several sources that scan the same", estate(), append(scan("web-1", all, ports...), scan("web-2", append(slices.Clone(all[:5]), all[6:]...), ports...)...), nil, []string{"web-1", "web-2"}},
		{"an address", estate(), scan("203.0.113.66", all, 22, 23), nil, []string{"203.0.113.66"}},
		{"one that is trusted", estate(), scan("mon-1", all[:4], 22, 80, 443), []string{"mon-1"}, nil},
		{"few flows", estate(), scan("web-1", all[:3], 22, 80), nil, nil},
		{"what answers is no scan", listening, scan("mon-1", append(slices.Clone(all[:4]), all[5:]...), 9100), nil, nil},
		{"a sweep of administration ports is one although they answer", listening, append(scan("web-1", all, 22), scan("web-1", all, 3389)...), nil, []string{"web-1"}},
		{"closed ports at any rate", listening, repeated(scan("web-1", all, 7, 19)), nil, []string{"web-1"}},
		{"short-lived ports of one pair", estate(), append(scan("web-1", []string{"api-1"}, 50001, 50007, 51234, 52345, 53456, 54567, 55678, 56789, 57890, 58901, 59012), flow("web-1 api-1 tcp/135 90")), nil, nil},
	} {
		f := append(slices.Clone(normal), c.flows...)
		p := suggest(t, f, inventoryOf(slices.Clone(c.list)...), Options{Trusted: c.trusted})
		var got []string
		for _, s := range p.Suspicious {
			got = append(got, s.Source)
			if s.Flows < scanEdges || s.Why == "" || len(s.Examples) == 0 || s.First.IsZero() {
				t.Errorf("%s: %+v", c.name, s)
			}
		}
		if !slices.Equal(got, c.suspicious) {
			t.Errorf("%s: suspicious %v, want %v", c.name, got, c.suspicious)
		}
		for i := range f {
			want := FateLearned
			if i >= len(normal) && slices.Contains(c.suspicious, f[i].From.String()) && f[i].Connections < 90 {
				want = FateSuspicious
			}
			if p.FateOf(i) != want {
				t.Errorf("%s: %s to %s on %d is %s, want %s", c.name, f[i].From, f[i].To, f[i].Port, p.FateOf(i), want)
			}
		}
	}
}

// repeated makes each flow one that was tried often, over a long time.
func repeated(list []model.RecordedFlow) []model.RecordedFlow {
	for i := range list {
		list[i].Connections = 50
		list[i].First = start.Add(time.Duration(i) * time.Hour)
	}
	return list
}

// TestScanTakesAlong: what a worm touches among its attempts is not learnt, though others use it regularly; what its
// siblings do as well is.
func TestScanTakesAlong(t *testing.T) {
	f := flows("api-1 db-1 tcp/5432 90", "web-2 api-1 tcp/8443 90", "web-1 api-1 tcp/8443 1")
	f = append(f, scan("web-1", []string{"api-1", "api-2", "db-1", "mon-1", "web-3"}, 21, 22, 23)...)
	touched := flow("web-1 db-1 tcp/5432 1")
	touched.First = start.Add(3 * time.Second)
	f = append(f, touched)
	p := suggest(t, f, inventoryOf(estate()...), Options{})
	if got := p.FateOf(len(f) - 1); got != FateSuspicious {
		t.Errorf("the touched service is %s", got)
	}
	if got := p.FateOf(2); got != FateLearned {
		t.Errorf("what a sibling does is %s", got)
	}
	if len(p.Suspicious) != 1 || p.Suspicious[0].Flows != 16 || !strings.Contains(p.Suspicious[0].Why, "15 of these flows") {
		t.Errorf("%+v", p.Suspicious)
	}
}

func TestDocumentsInForce(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "in-force.yaml", Data: []byte(`
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: db-1, labels: {app: pay}, owner: team-pay, note: the big one}
spec: {addresses: [10.0.2.1]}
---
apiVersion: bulkhead/v1
kind: Service
metadata: {name: pg}
spec: {ports: [tcp/5432]}
---
apiVersion: bulkhead/v1
kind: Network
metadata: {name: branch}
spec: {cidrs: [10.200.0.0/16]}
---
apiVersion: bulkhead/v1
kind: Network
metadata: {name: resolvers}
spec: {cidrs: [10.53.0.0/24], purpose: resolvers}
---
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: mine}
spec: {selector: app=portal, mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: pay}
spec:
  rules:
    - name: web-api
      allow: {from: "app=portal", to: "app=pay,role=api,env=prod", on: [tcp/8443]}
    - name: no-dev
      deny: {from: "env=dev", to: "env=prod", on: [any]}
    - name: gone
      deny: {from: "app=mon", to: "app=pay", on: [any]}
      expires: 2026-01-01T00:00:00Z
`)}})
	if err != nil {
		t.Fatal(err)
	}
	list := estate()
	for i := range list {
		if list[i].Name == "db-1" {
			list[i].Labels = model.Labels{"app": "pay"}
		}
	}
	f := flows(
		"web-1 api-1 tcp/8443 9",     // allowed already
		"api-9 api-1 tcp/8443 9",     // denied by a rule, whatever was recorded
		"mon-1 api-1 tcp/9100 9",     // the rule that denied it has expired
		"api-1 db-1 tcp/5432 9",      // new
		"10.200.1.1 web-1 tcp/443 9", // in a network in force
		"10.200.2.1 web-2 tcp/443 9",
		"web-1 10.53.0.7 udp/53 9",  // essential
		"web-1 10.0.99.1 tcp/443 9", // a controller
		"web-1 api-2 tcp/22 9",      // was denied
	)
	f[8].Verdict = model.Deny
	p := suggest(t, f, inventoryOf(list...), Options{Now: start, Documents: docs, Controllers: []netip.AddrPort{netip.MustParseAddrPort("10.0.99.1:443")}})
	want := []Fate{FateAllowed, FateDenied, FateLearned, FateLearned, FateLearned, FateLearned, FateEssential, FateEssential, FateDenied}
	for i := range f {
		if p.FateOf(i) != want[i] {
			t.Errorf("%s to %s: %s, want %s", f[i].From, f[i].To, p.FateOf(i), want[i])
		}
	}
	for _, r := range rules(p) {
		if strings.HasPrefix(r, "pay/") {
			t.Errorf("%s stands in a policy that is in force", r)
		}
	}
	text := strings.Join(rules(p), "\n")
	for _, part := range []string{"network branch -> app=portal", "on pg"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
	for _, s := range p.Documents.Segments {
		if s.Selector.Matches(model.Labels{"app": "portal", "env": "prod"}) {
			t.Errorf("segment %s holds workloads that segment mine holds already", s.Name)
		}
	}
	for _, w := range p.Documents.Workloads {
		if w.Name == "db-1" && (w.Owner != "team-pay" || !strings.HasPrefix(w.Note, "the big one\n") || w.Labels["role"] != "db" || len(w.Addresses) != 1) {
			t.Errorf("the document of db-1 became %+v", w)
		}
	}
	if s := p.Stats; s.Distinct != 7 || s.Covered != 5 || s.Denied != 2 {
		t.Errorf("stats %+v", s)
	}
}

// TestNoInventory: flows alone declare their workloads.
func TestNoInventory(t *testing.T) {
	f := flows("portal-web-1 payments-db-1 tcp/5432 9", "portal-web-2 payments-db-1 tcp/5432 9", "10.0.0.7 payments-db-1 tcp/5432 9")
	f[0].FromAddr, f[0].ToAddr = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.3")
	f[1].FromAddr = netip.MustParseAddr("10.0.0.2")
	f = append(f, flow("10.0.0.1 payments-db-1 tcp/22 9")) // portal-web-1 by its address
	p := suggest(t, f, nil, Options{})
	want := []string{
		"payments/callers-of-payments-db: network callers-of-payments-db -> app=payments,role=db on postgres",
		"payments/portal-web-to-payments-db: app=portal,role=web -> app=payments,role=db on ssh,postgres",
	}
	if got := rules(p); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if w := p.Documents.Workloads; len(w) != 3 || len(w[0].Addresses) != 1 || !w[0].Managed {
		t.Errorf("workloads %+v", w)
	}
}

func TestUnknownEnds(t *testing.T) {
	list := estate()
	list = append(list, host("twin", "app=x", "10.0.0.1"))
	f := flows("gone-1 api-1 tcp/1 9", "gone-1 api-2 tcp/1 9", "10.0.0.1 api-1 tcp/1 9")
	p := suggest(t, f, inventoryOf(list...), Options{})
	want := []Unknown{
		{"10.0.0.1", 1, "several workloads have this address: twin, web-1"},
		{"gone-1", 2, "no workload has this name"},
	}
	if d := cmp.Diff(want, p.Unknown); d != "" || p.FateOf(0) != FateUnknown || len(p.Rules) != 0 {
		t.Error(d, p.Rules)
	}
	_, err := Suggest([]model.RecordedFlow{f[0], {}}, inventoryOf(list...), Options{})
	if err == nil || !strings.Contains(err.Error(), "flow 2: the source has neither") {
		t.Errorf("got %v", err)
	}
}

func TestEmpty(t *testing.T) {
	p := suggest(t, nil, nil, Options{})
	if len(p.Rules)+len(p.Labels)+len(p.Documents.Policies)+len(p.Documents.Workloads) != 0 || p.Stats != (Stats{}) {
		t.Errorf("%+v", p)
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
