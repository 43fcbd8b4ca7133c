package prove

import (
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// TestBeyondLabels asks about what is more than labels and addresses: domains, processes, named ports and tiers.
func TestBeyondLabels(t *testing.T) {
	sel := model.MustParseSelector
	workloads := func(s string) []model.Peer { return []model.Peer{{Kind: model.PeerWorkloads, Workloads: sel(s)}} }
	running := func(s, unit string) []model.Peer {
		return []model.Peer{{Kind: model.PeerWorkloads, Workloads: sel(s), Process: &model.Process{Unit: unit}}}
	}
	anyPort := []model.PortRef{{Range: model.AnyPort}}
	tcp := func(n uint16) model.PortRange { return model.PortRange{Proto: model.ProtoTCP, Lo: n, Hi: n} }
	all := model.Segment{Meta: model.Meta{Name: "all"}, Directions: []model.Direction{model.Ingress, model.Egress}}
	rule := func(a model.Action, from, to []model.Peer) model.Policy {
		return model.Policy{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{{Name: "r", Action: a, From: from, To: to, On: anyPort}}}
	}
	stripe := []model.Peer{{Kind: model.PeerDomain, Domain: "*.stripe.com"}}
	one := func(name string, tier model.Tier, priority int, isolates bool, rules ...model.OneSidedRule) model.OneSided {
		return model.OneSided{Meta: model.Meta{Name: name}, Tier: tier, Priority: priority, Subject: sel("app=db"), Isolates: [2]bool{isolates}, Rules: rules}
	}
	ingress := func(a model.Action, peers []model.Peer, named ...model.NamedPort) model.OneSidedRule {
		r := model.OneSidedRule{Name: "in", Direction: model.Ingress, Action: a, Peers: peers, Named: named}
		if len(named) == 0 {
			r.Ports = []model.PortRange{model.AnyPort}
		}
		return r
	}
	web := model.NamedPort{Proto: model.ProtoTCP, Name: "web"}
	for _, c := range []struct {
		name     string
		docs     model.Documents
		from, to []model.Peer
		on       model.PortRange
		want     answer
	}{
		{"a domain", model.Documents{Segments: []model.Segment{all}, Policies: []model.Policy{rule(model.ActionAllow, workloads("app=a"), stripe)}},
			workloads("app=a"), []model.Peer{{Kind: model.PeerDomain, Domain: "api.stripe.com"}}, model.AnyPort, found},
		{"another domain", model.Documents{Segments: []model.Segment{all}, Policies: []model.Policy{rule(model.ActionAllow, workloads("app=a"), stripe)}},
			workloads("app=a"), []model.Peer{{Kind: model.PeerDomain, Domain: "example.org"}}, model.AnyPort, nothing},
		{"a domain is some address", model.Documents{Segments: []model.Segment{all}, Policies: []model.Policy{rule(model.ActionAllow, workloads("app=a"), stripe)}},
			workloads("app=a"), []model.Peer{{Kind: model.PeerAny}}, model.AnyPort, found},
		{"some process may", model.Documents{Segments: []model.Segment{all}, Policies: []model.Policy{rule(model.ActionAllow, running("app=a", "x"), workloads("app=db"))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, found},
		{"another process may not", model.Documents{Segments: []model.Segment{all}, Policies: []model.Policy{rule(model.ActionAllow, running("app=a", "x"), workloads("app=db"))}},
			running("app=a", "y"), workloads("app=db"), model.AnyPort, nothing},
		{"a denied process leaves others", model.Documents{Policies: []model.Policy{rule(model.ActionDeny, running("app=a", "x"), workloads("app=db"))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, found},
		{"open without isolation", model.Documents{}, workloads("app=a"), workloads("app=db"), model.AnyPort, found},
		{"isolated", model.Documents{OneSided: []model.OneSided{one("np", model.TierNamespace, 0, true)}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, nothing},
		{"a named port may be any number", model.Documents{OneSided: []model.OneSided{one("np", model.TierNamespace, 0, true, ingress(model.ActionAllow, workloads("app=a"), web))}},
			workloads("app=a"), workloads("app=db"), tcp(9999), found},
		{"a named port of another protocol", model.Documents{OneSided: []model.OneSided{one("np", model.TierNamespace, 0, true, ingress(model.ActionAllow, workloads("app=a"), web))}},
			workloads("app=a"), workloads("app=db"), model.PortRange{Proto: model.ProtoSCTP, Lo: 9999, Hi: 9999}, nothing},
		{"the admin tier denies first", model.Documents{OneSided: []model.OneSided{
			one("admin", model.TierAdmin, 1, false, ingress(model.ActionDeny, workloads("app=a"))), one("np", model.TierNamespace, 0, true, ingress(model.ActionAllow, workloads("app=a")))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, nothing},
		{"passing leaves the denial out", model.Documents{OneSided: []model.OneSided{
			one("pass", model.TierAdmin, 0, false, ingress(model.ActionPass, workloads("app=a,vip"))), one("admin", model.TierAdmin, 1, false, ingress(model.ActionDeny, workloads("app=a"))),
			one("np", model.TierNamespace, 0, true, ingress(model.ActionAllow, workloads("app=a")))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, found},
		{"passing does not allow", model.Documents{OneSided: []model.OneSided{
			one("pass", model.TierAdmin, 0, false, ingress(model.ActionPass, workloads("app=a,vip"))), one("admin", model.TierAdmin, 1, false, ingress(model.ActionDeny, workloads("app=a"))),
			one("np", model.TierNamespace, 0, true)}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, nothing},
		{"passing in two tiers", model.Documents{OneSided: []model.OneSided{
			one("pass", model.TierAdmin, 0, false, ingress(model.ActionPass, workloads("app=a,vip"))), one("admin", model.TierAdmin, 1, false, ingress(model.ActionDeny, workloads("app=a"))),
			one("over", model.TierBaseline, 0, false, ingress(model.ActionPass, workloads("app=a,top"))), one("base", model.TierBaseline, 1, false, ingress(model.ActionDeny, workloads("app=a")))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, found},
		{"the baseline comes last", model.Documents{OneSided: []model.OneSided{one("base", model.TierBaseline, 0, false, ingress(model.ActionDeny, workloads("app=a")))}},
			workloads("app=a"), workloads("app=db"), model.AnyPort, nothing},
	} {
		docs := c.docs
		docs.Guardrails = []model.Guardrail{{Meta: model.Meta{Name: "g"}, From: c.from, To: c.to, On: []model.PortRef{{Range: c.on}}}}
		w, err := compile.Compile(&docs, &model.Inventory{}, compile.Options{})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		s := newSpace(w)
		got, sc := s.could(&docs.Guardrails[0], allowed)
		if got != c.want || (got == found) != (sc != nil) {
			t.Errorf("%s: got %d, want %d; %+v", c.name, got, c.want, sc)
		}
	}
}
