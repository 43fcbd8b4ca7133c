package hostpolicy

import (
	"net/netip"
	"slices"
	"testing"

	"bulkhead/internal/core/model"
)

// judgePolicy is a host with a unit. Peers 5 and 6 share 10.0.0.9; port tcp/443 there is 6's. The unit has another
// identity, and another set, at 10.7.0.1.
func judgePolicy(t *testing.T) *Policy {
	t.Helper()
	seal := func(s PolicySet) PolicySet {
		s.ID = s.ContentID()
		return s
	}
	isolate := seal(PolicySet{
		Ingress: Table{Funcs: []Func{{cell(model.ProtoAny, 0, 65535, model.Deny, model.RuleIsolate)}}},
		Egress:  Table{Funcs: []Func{{cell(model.ProtoAny, 0, 65535, model.Deny, model.RuleIsolate)}}},
	})
	named := func(rule model.RuleID) Func { return Func{cell(model.ProtoAny, 0, 65535, model.Allow, rule)} }
	main := seal(PolicySet{
		Ingress: Table{Funcs: []Func{closed(), named("in/56"), named("in/unit")}, Peers: []PeerFunc{{21, 2}, {56, 1}}},
		Egress:  Table{Funcs: []Func{closed(), named("out/6"), named("out/56"), named("out/unit"), named("out/net"), named("out/unit-7")}, Peers: []PeerFunc{{6, 1}, {21, 3}, {30, 4}, {56, 2}, {71, 5}}},
	})
	local := seal(PolicySet{
		Ingress: Table{Funcs: []Func{named("at-7/in")}},
		Egress:  Table{Funcs: []Func{named("at-7/out")}},
	})
	p := &Policy{
		Host: "node",
		Subjects: []Subject{
			{Workload: "node", Identity: 20, Set: main.ID, Isolation: isolate.ID},
			{Workload: "unit", Unit: "u.service", Identity: 21, Set: main.ID, Isolation: isolate.ID, Local: []LocalSet{{netip.MustParseAddr("10.7.0.1"), 71, local.ID}}},
		},
		Sets: []PolicySet{isolate, main, local},
		Addresses: []Address{
			{Prefix: netip.MustParsePrefix("10.0.0.9/32"), Identity: 56, Shared: true},
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Identity: 30},
			{Prefix: netip.MustParsePrefix("192.0.2.128/25"), Identity: 0},
		},
		Ports:       []PortOwner{{netip.MustParseAddr("10.0.0.9"), model.ProtoTCP, 443, 6}},
		Controllers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:8443"), netip.MustParseAddrPort("203.0.113.9:8443")},
	}
	slices.SortFunc(p.Sets, func(a, b PolicySet) int { return CompareSets(&a, &b) })
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestJudge(t *testing.T) {
	j := NewJudge(judgePolicy(t))
	for _, c := range []struct {
		name          string
		workload      string
		dir           model.Direction
		local, remote string
		other         string
		proto         model.Proto
		port          uint16
		verdict       model.Verdict
		rule          model.RuleID
		peer          model.IdentityID
	}{
		{"shared address, no owner of the port", "node", model.Egress, "10.0.0.1", "10.0.0.9", "", model.ProtoTCP, 80, model.Allow, "out/56", 56},
		{"shared address, the port's owner", "node", model.Egress, "10.0.0.1", "10.0.0.9", "", model.ProtoTCP, 443, model.Allow, "out/6", 6},
		{"an owner in another protocol", "node", model.Egress, "10.0.0.1", "10.0.0.9", "", model.ProtoUDP, 443, model.Allow, "out/56", 56},
		{"the port of an inbound flow is not the peer's", "node", model.Ingress, "10.0.0.1", "10.0.0.9", "", model.ProtoTCP, 443, model.Allow, "in/56", 56},
		{"mapped addresses", "node", model.Egress, "::ffff:10.0.0.1", "::ffff:10.0.0.9", "", model.ProtoTCP, 443, model.Allow, "out/6", 6},
		{"a prefix", "node", model.Egress, "10.0.0.1", "192.0.2.1", "", model.ProtoTCP, 1, model.Allow, "out/net", 30},
		{"a hole in the prefix", "node", model.Egress, "10.0.0.1", "192.0.2.129", "", model.ProtoTCP, 1, model.Deny, model.RuleDefaultDeny, 0},
		{"nobody", "node", model.Egress, "10.0.0.1", "203.0.113.1", "", model.ProtoTCP, 1, model.Deny, model.RuleDefaultDeny, 0},
		{"a socket of this host", "node", model.Egress, "10.0.0.1", "10.0.0.1", "unit", model.ProtoTCP, 1, model.Allow, "out/unit", 21},
		{"a socket of this host at its other address", "node", model.Egress, "10.0.0.1", "10.7.0.1", "unit", model.ProtoTCP, 1, model.Allow, "out/unit-7", 71},
		{"loopback", "node", model.Ingress, "127.0.0.1", "127.0.0.1", "unit", model.ProtoTCP, 1, model.Allow, "in/unit", 21},
		{"the set of the local address", "unit", model.Egress, "10.7.0.1", "203.0.113.1", "", model.ProtoTCP, 1, model.Allow, "at-7/out", 0},
		{"the set of another local address", "unit", model.Egress, "10.0.0.1", "203.0.113.1", "", model.ProtoTCP, 1, model.Deny, model.RuleDefaultDeny, 0},
		{"one workload", "unit", model.Egress, "10.0.0.1", "10.0.0.1", "unit", model.ProtoTCP, 1, model.Allow, model.RuleSameWorkload, 21},
		{"a fixed essential comes first", "unit", model.Egress, "10.0.0.1", "10.0.0.1", "unit", model.ProtoUDP, 67, model.Allow, model.RuleDHCP, 21},
		{"the host reaches its controller", "node", model.Egress, "10.0.0.1", "203.0.113.9", "", model.ProtoTCP, 8443, model.Allow, model.RuleController, 0},
		{"on its port", "node", model.Egress, "10.0.0.1", "203.0.113.9", "", model.ProtoTCP, 8444, model.Deny, model.RuleDefaultDeny, 0},
		{"in TCP", "node", model.Egress, "10.0.0.1", "203.0.113.9", "", model.ProtoUDP, 8443, model.Deny, model.RuleDefaultDeny, 0},
		{"a unit does not", "unit", model.Egress, "10.0.0.1", "203.0.113.9", "", model.ProtoTCP, 8443, model.Deny, model.RuleDefaultDeny, 0},
		{"whoever answers as the controller is reached", "unit", model.Ingress, "10.0.0.1", "203.0.113.1", "", model.ProtoTCP, 8443, model.Allow, model.RuleController, 0},
		{"a workload of another host", "stranger", model.Egress, "10.0.0.1", "203.0.113.9", "", model.ProtoTCP, 8443, model.Deny, "", 0},
	} {
		got, peer := j.Judge(&Packet{
			Workload: c.workload, Dir: c.dir, Local: netip.MustParseAddr(c.local), Remote: netip.MustParseAddr(c.remote),
			RemoteWorkload: c.other, Proto: c.proto, Port: c.port,
		})
		if got.Verdict != c.verdict || got.Rule != c.rule || peer != c.peer {
			t.Errorf("%s: %s by %q of %d, want %s by %q of %d", c.name, got.Verdict, got.Rule, uint64(peer), c.verdict, c.rule, uint64(c.peer))
		}
	}
}

func TestIsolated(t *testing.T) {
	p := judgePolicy(t)
	before := p.Hash()
	isolated := p.Isolated("unit", "nobody")
	if err := isolated.Check(); err != nil {
		t.Fatal(err)
	}
	if p.Hash() != before {
		t.Error("the policy itself changed")
	}
	j := NewJudge(isolated)
	pkt := Packet{Dir: model.Egress, Local: netip.MustParseAddr("10.7.0.1"), Remote: netip.MustParseAddr("10.0.0.9"), Proto: model.ProtoTCP, Port: 80}
	pkt.Workload = "unit"
	if v, _ := j.Judge(&pkt); v.Rule != model.RuleIsolate || v.Verdict != model.Deny {
		t.Errorf("an isolated unit: %v", v)
	}
	pkt.Workload = "node"
	if v, _ := j.Judge(&pkt); v.Rule != "out/56" {
		t.Errorf("its host: %v", v)
	}
}
