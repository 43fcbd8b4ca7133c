package suggest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

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
