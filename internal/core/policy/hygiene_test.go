package policy_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

func TestFindingJSON(t *testing.T) {
	want := policy.Finding{
		Pos: model.Position{File: "a", Line: 1, Column: 2}, Severity: policy.Warning, Code: policy.CodeExpired, Msg: "m", Fix: "f",
		Also: []model.Position{{File: "b", Line: 3, Column: 4}}, Edit: &policy.Edit{Replace: "x", Remove: true},
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); !strings.Contains(s, `"severity":"warning"`) || !strings.Contains(s, `"code":"expired"`) {
		t.Errorf("written as %s", s)
	}
	var got policy.Finding
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read as %+v (%v)", got, err)
	}
	if err := json.Unmarshal([]byte(`{"severity":"fatal"}`), &got); err == nil {
		t.Error("an unknown severity is accepted")
	}
}

// TestHygieneIsTrue checks "pointless" findings against a slow truth: without the rule that a finding calls shadowed,
// duplicate or redundant, no flow among all sources, destinations and ports that the world names is judged otherwise
// by the rules. It also shows that the findings are the same every time.
func TestHygieneIsTrue(t *testing.T) {
	found := map[policy.Code]int{}
	for seed := range uint64(400) {
		size := policytest.Small
		size.Policies, size.Rules = 5, 8
		docs, inv, flows := policytest.Generate(seed, size)
		findings := policy.Hygiene(docs, inv, policytest.Now)
		if again := policy.Hygiene(docs, inv, policytest.Now); !reflect.DeepEqual(findings, again) {
			t.Fatalf("seed %d: different findings the second time", seed)
		}
		for _, f := range findings {
			var id string
			if !strings.HasPrefix(f.Msg, "the rule ") {
				continue
			}
			if id, _, _ = strings.Cut(strings.TrimPrefix(f.Msg, "the rule "), " "); f.Code != policy.CodeShadowed &&
				f.Code != policy.CodeDuplicate && f.Code != policy.CodeRedundant {
				continue
			}
			found[f.Code]++
			for i := range flows {
				with, without := decide(docs, inv, &flows[i], ""), decide(docs, inv, &flows[i], id)
				if with != without {
					t.Fatalf("seed %d: %s\nbut flow %+v is %q with it and %q without", seed, f, flows[i], with, without)
				}
			}
		}
	}
	for _, c := range []policy.Code{policy.CodeShadowed, policy.CodeRedundant} {
		if found[c] == 0 {
			t.Errorf("no finding %s in all worlds: the test shows nothing", c)
		}
	}
	t.Logf("%v", found)
}

// decide returns what the rules, but the one named, and members: allow say to a flow: deny, allow or nothing.
func decide(docs *model.Documents, inv *model.Inventory, f *model.Flow, but string) string {
	allowed := false
	for i := range docs.Policies {
		p := &docs.Policies[i]
		for j := range p.Rules {
			r := &p.Rules[j]
			if string(model.NamedRule(p.Name, r.Name)) == but || !r.Expires.IsZero() && !policytest.Now.Before(r.Expires) ||
				!on(docs, r.On, f) || !holds(docs, inv, r.From, f.From) || !holds(docs, inv, r.To, f.To) {
				continue
			}
			if r.Action == model.ActionDeny {
				return "deny"
			}
			allowed = true
		}
	}
	for i := range docs.Segments {
		s := &docs.Segments[i]
		members := []model.Peer{{Workloads: s.Selector}}
		allowed = allowed || s.MembersOpen && holds(docs, inv, members, f.From) && holds(docs, inv, members, f.To)
	}
	if allowed {
		return "allow"
	}
	return ""
}

func on(docs *model.Documents, refs []model.PortRef, f *model.Flow) bool {
	for _, ref := range refs {
		ranges := []model.PortRange{ref.Range}
		for _, s := range docs.Services {
			if s.Name == ref.Service {
				ranges = s.Ports
			}
		}
		if slices.ContainsFunc(ranges, func(r model.PortRange) bool { return r.Contains(f.Proto, f.Port) }) {
			return true
		}
	}
	return false
}

func holds(docs *model.Documents, inv *model.Inventory, peers []model.Peer, e model.End) bool {
	i := slices.IndexFunc(inv.Instances, func(x model.Instance) bool {
		return x.Name == e.Workload || e.Addr.IsValid() && slices.Contains(x.Addresses, e.Addr.Unmap())
	})
	addr := e.Addr
	if i >= 0 && len(inv.Instances[i].Addresses) > 0 && !addr.IsValid() {
		addr = inv.Instances[i].Addresses[0]
	}
	for _, p := range peers {
		switch p.Kind {
		case model.PeerAny:
			return true
		case model.PeerWorkloads:
			if i >= 0 && p.Workloads.Matches(inv.Instances[i].Labels) {
				return true
			}
		case model.PeerCIDR:
			if addr.IsValid() && p.CIDR.Contains(addr.Unmap()) {
				return true
			}
		case model.PeerNetwork:
			for _, n := range docs.Networks {
				if n.Name == p.Network && addr.IsValid() && n.Contains(addr) {
					return true
				}
			}
		}
	}
	return false
}

// BenchmarkHygiene takes large documents: it must stay usable on them.
func BenchmarkHygiene(b *testing.B) {
	size := policytest.Large
	size.Policies, size.Rules, size.Flows = 1000, 19, 0
	docs, inv, _ := policytest.Generate(1, size)
	rules := 0
	for i := range docs.Policies {
		rules += len(docs.Policies[i].Rules)
	}
	findings := 0
	for b.Loop() {
		findings = len(policy.Hygiene(docs, inv, policytest.Now))
	}
	b.ReportMetric(float64(rules), "rules")
	b.ReportMetric(float64(len(inv.Instances)), "workloads")
	b.ReportMetric(float64(findings), "findings")
}
