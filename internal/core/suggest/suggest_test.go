package suggest

import (
	"encoding/json"
	"flag"
	"fmt"
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

func labels(p *Proposal) map[string]string {
	out := map[string]string{}
	for _, l := range p.Labels {
		out[l.Workload+" "+l.Key] = l.Value
	}
	return out
}
