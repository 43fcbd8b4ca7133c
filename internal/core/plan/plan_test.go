package plan_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/verdict"
)

var update = flag.Bool("update", false, "write the golden files anew")

const workloads = `
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: web-1, labels: {app: portal, env: prod, role: web}}
spec: {addresses: [10.0.0.1]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: api-1, labels: {app: payments, env: prod, role: api}}
spec: {addresses: [10.0.0.2]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: api-2, labels: {app: payments, env: prod, role: api}}
spec: {addresses: [10.0.0.3]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: db-1, labels: {app: payments, env: prod, role: db}}
spec: {addresses: [10.0.0.4]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: dev-1, labels: {app: payments, env: dev, role: api}}
spec: {addresses: [10.0.9.1]}
---
apiVersion: bulkhead/v1
kind: Service
metadata: {name: postgres}
spec: {ports: [tcp/5432]}
---
`

const before = workloads + `
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: payments-prod}
spec: {selector: "app=payments,env=prod", mode: observe}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: payments}
spec:
  rules:
    - name: everybody
      allow: {from: "app=payments", to: "app=payments,role=db", on: [postgres]}
`

const after = workloads + `
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: payments-prod}
spec: {selector: "app=payments,env=prod", mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: payments}
spec:
  rules:
    - name: api-reads-db
      allow: {from: "app=payments,env=prod,role=api", to: "app=payments,env=prod,role=db", on: [postgres]}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: portal}
spec:
  rules:
    - name: portal-calls-api
      allow: {from: "app=portal", to: "app=payments,env=prod,role=api", on: [tcp/8443]}
---
apiVersion: bulkhead/v1
kind: Guardrail
metadata: {name: dev-never-reaches-prod-data}
spec: {never: {from: "env=dev", to: "app=payments,env=prod,role=db", on: [any]}}
---
apiVersion: bulkhead/v1
kind: Expectation
metadata: {name: basics}
spec:
  cases:
    - {from: web-1, to: api-1, on: tcp/8443, expect: allow}
    - {from: web-1, to: db-1, on: tcp/5432, expect: deny}
`

func world(t testing.TB, text string) *compile.World {
	t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func record(from, to, on string, connections uint64, minutes int) model.RecordedFlow {
	p, err := model.ParsePortRange(on)
	if err != nil {
		panic(err)
	}
	return model.RecordedFlow{
		Flow:        model.Flow{From: model.End{Workload: from}, To: model.End{Workload: to}, Proto: p.Proto, Port: p.Lo},
		Connections: connections, First: policytest.Now.Add(-24 * time.Hour), Last: policytest.Now.Add(-time.Duration(minutes) * time.Minute),
		Verdict: model.Allow, FromName: "curl",
	}
}

var flows = []model.RecordedFlow{
	record("web-1", "api-1", "tcp/8443", 100, 5),
	record("web-1", "api-2", "tcp/8443", 80, 5),
	record("api-1", "db-1", "tcp/5432", 1000, 1),
	record("dev-1", "db-1", "tcp/5432", 3, 600),
	record("dev-1", "db-1", "tcp/5432", 4, 700),
	record("web-1", "db-1", "tcp/22", 1, 30),
	record("gone-1", "db-1", "tcp/22", 1, 30),
}

func make1(t testing.TB, before, after string, flows []model.RecordedFlow) *plan.Plan {
	t.Helper()
	p, err := plan.Make(world(t, before), world(t, after), flows, plan.Options{BaseRevision: 7})
	if err != nil {
		t.Fatal(err)
	}
	return p
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

func TestGolden(t *testing.T) {
	broken := strings.Replace(strings.Replace(after, `"app=payments,env=prod,role=api", to: "app=payments,env=prod,role=db"`,
		`"app=payments", to: "app=payments,env=prod,role=db"`, 1), "mode: enforce", "mode: selective, services: [postgres]", 1)
	broken = strings.Replace(broken, "expect: deny", "expect: allow", 1)
	for _, c := range []struct{ name, before, after string }{
		{"enforce", before, after},
		{"broken", before, broken},
		{"back", after, before},
		{"nothing", after, after},
	} {
		p := make1(t, c.before, c.after, flows)
		golden(t, c.name+".txt", []byte(p.Text()))
		data, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, c.name+".json", append(data, '\n'))
	}
}

// TestBudget: what hosts cannot hold refuses the plan if it is new and certain.
func TestBudget(t *testing.T) {
	domain := after + `
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: conditional}
spec:
  rules:
    - name: by-name
      allow: {from: "app=portal,env=prod", to: {domain: "*.example.org"}, on: [tcp/9000-9100]}
`
	said := ""
	nameless := budget.EBPF()
	nameless.Domains = false
	small := nameless
	small.Max[budget.Addresses] = 3
	for _, c := range []struct {
		name, before, after string
		target              budget.Target
		known, ok           bool
	}{
		{"budget", before, domain, small, true, false},
		{"budget-known", before, domain, nameless, true, false},
		{"budget-assumed", before, domain, nameless, false, true},
		{"budget-before", domain, strings.Replace(domain, "9100", "9200", 1), nameless, true, true},
	} {
		p, err := plan.Make(world(t, c.before), world(t, c.after), nil, plan.Options{
			Targets: func(string) (budget.Target, bool) { return c.target, c.known },
		})
		if err != nil {
			t.Fatal(err)
		}
		if p.OK != c.ok {
			t.Errorf("%s: ok %t", c.name, p.OK)
		}
		text := p.Text()
		if strings.Contains(text, "cannot hold it.") == c.ok {
			t.Errorf("%s: the summary does not tell:\n%s", c.name, text)
		}
		_, section, _ := strings.Cut(text, "\nWhat hosts")
		section, _, _ = strings.Cut(section, "\nWarnings")
		said += c.name + ": what hosts" + section
	}
	golden(t, "budget.txt", []byte(said))
}

func TestCounts(t *testing.T) {
	p := make1(t, before, after, flows)
	if p.Broken != 2 || p.Flows.Judged != 6 || p.Flows.Unknown != 1 || p.Flows.Cleared != 2 {
		t.Errorf("flows: %+v", p.Flows)
	}
	if !p.OK || p.BaseRevision != 7 || !p.Changes() {
		t.Errorf("ok %v, base revision %d, changes %v", p.OK, p.BaseRevision, p.Changes())
	}
	// Two records of one flow are one.
	f := p.Flows.Changed[1]
	if f.From != "dev-1" || f.Connections != 7 || !f.LastSeen.Equal(policytest.Now.Add(-600*time.Minute)) || f.DecidedBy != model.RuleDefaultDeny {
		t.Errorf("got %+v", f)
	}
	p, err := plan.Make(world(t, before), world(t, after), flows, plan.Options{MaxFlows: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Flows.Changed) != 1 || p.Flows.Omitted != 3 || p.Broken != 2 {
		t.Errorf("limited to one flow: %+v", p.Flows)
	}
}

func TestNothingChanges(t *testing.T) {
	for _, respelt := range []string{after, "# a comment\n" + strings.ReplaceAll(after, "{any: true}", "{ any: true }")} {
		p := make1(t, after, respelt, flows)
		if p.Changes() || p.Broken != 0 || !strings.HasPrefix(p.Text(), "No change.") {
			t.Errorf("got\n%s", p.Text())
		}
	}
	// A rule of another name changes a document and no verdict.
	p := make1(t, after, strings.ReplaceAll(after, "portal-calls-api", "web-calls-api"), flows)
	if len(p.Documents.Changed) != 1 || len(p.Opened)+len(p.Closed)+len(p.Flows.Changed) != 0 || !strings.Contains(p.Text(), "only spelling") {
		t.Errorf("got\n%s", p.Text())
	}
}

// TestProcessesAndDomains: what a change does for some processes, and to what is found by some names, is told like the rest.
func TestProcessesAndDomains(t *testing.T) {
	with := func(unit string) string {
		return after + `
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: more}
spec:
  rules:
    - name: by-process
      allow: {from: {workloads: "role=api,env=prod", process: {unit: ` + unit + `}}, to: {domain: "*.example.org"}, on: [tcp/9443]}
`
	}
	for _, c := range []struct{ before, after, want string }{
		{with("a.service"), with("b.service"), "on tcp/9443, for unit b.service; 2 pairs"},
		{with("a.service"), with("b.service"), "on tcp/9443, for unit a.service; 2 pairs"},
		{with("a.service"), with("b.service"), " -> domain *.example.org\n"},
		{with("a.service"), with("b.service"), " -> any.example.org tcp/9443: deny"},
		{after, with("a.service"), "on tcp/9443, for unit a.service; 2 pairs"},
		{with("a.service"), strings.Replace(with("a.service"), ", process: {unit: a.service}", "", 1), "on tcp/9443, for every process but unit a.service; 2 pairs"},
		{strings.Replace(with("a.service"), ", process: {unit: a.service}", "", 1), with("a.service"), "on tcp/9443, now only for unit a.service; 2 pairs"},
	} {
		p := make1(t, c.before, c.after, nil)
		if !strings.Contains(p.Text(), c.want) {
			t.Errorf("want %q, got\n%s", c.want, p.Text())
		}
	}
	if p := make1(t, with("a.service"), with("a.service"), nil); p.Changes() {
		t.Errorf("nothing changes, but\n%s", p.Text())
	}
}

func TestMakeNeedsWorlds(t *testing.T) {
	if _, err := plan.Make(nil, world(t, after), nil, plan.Options{}); err == nil {
		t.Error("a plan without a world before")
	}
}

// TestFlowsAgree holds what a plan says about flows to the evaluators, over random worlds.
func TestFlowsAgree(t *testing.T) {
	changed := 0
	for seed := range uint64(80) {
		docs, inv, random := policytest.Generate(seed, policytest.Small)
		fewer := *docs
		fewer.Policies = fewer.Policies[:len(fewer.Policies)/2]
		var worlds [2]*compile.World
		for i, d := range []*model.Documents{docs, &fewer} {
			w, err := compile.Compile(d, inv, compile.Options{Now: policytest.Now})
			if err != nil {
				t.Fatal(err)
			}
			worlds[i] = w
		}
		recorded := make([]model.RecordedFlow, len(random))
		for i := range random {
			recorded[i] = model.RecordedFlow{Flow: random[i], Connections: 1}
		}
		p, err := plan.Make(worlds[0], worlds[1], recorded, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		again, err := plan.Make(worlds[0], worlds[1], recorded, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		first, _ := json.Marshal(p)
		second, _ := json.Marshal(again)
		if string(first) != string(second) {
			t.Fatalf("seed %d: two plans of one change differ", seed)
		}
		was, is := verdict.New(worlds[0]), verdict.New(worlds[1])
		differ, unknown := map[string]bool{}, 0
		for i := range random {
			a, err1 := was.Judge(&random[i])
			b, err2 := is.Judge(&random[i])
			switch {
			case err1 != nil || err2 != nil:
				unknown++
			case a.Verdict != b.Verdict:
				line, err := json.Marshal(random[i]) // processes by what they are, not by where they are
				if err != nil {
					t.Fatal(err)
				}
				differ[string(line)] = true
			}
		}
		if len(p.Flows.Changed) != len(differ) || p.Flows.Unknown != unknown || p.Flows.Judged+unknown != len(random) {
			t.Fatalf("seed %d: %d flows change, want %d; %d unknown, want %d", seed, len(p.Flows.Changed), len(differ), p.Flows.Unknown, unknown)
		}
		changed += len(differ)
	}
	if changed < 50 {
		t.Fatalf("only %d flows changed", changed)
	}
}
