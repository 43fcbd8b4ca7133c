package suggest

import (
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
)

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
