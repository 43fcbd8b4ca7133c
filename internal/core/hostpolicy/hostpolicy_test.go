package hostpolicy

import (
	"net/netip"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
)

func cell(proto model.Proto, lo, hi uint16, v model.Verdict, rule model.RuleID) Cell {
	return Cell{Ports: model.PortRange{Proto: proto, Lo: lo, Hi: hi}, Verdict: v, Rule: rule}
}

func web() Func {
	return Func{
		cell(model.ProtoAny, 0, 65535, model.Deny, model.RuleDefaultDeny),
		cell(model.ProtoTCP, 0, 442, model.Deny, model.RuleDefaultDeny),
		cell(model.ProtoTCP, 443, 443, model.Allow, "web/https"),
		cell(model.ProtoTCP, 444, 65535, model.Deny, model.RuleDefaultDeny),
	}
}

func closed() Func { return Func{cell(model.ProtoAny, 0, 65535, model.Deny, model.RuleDefaultDeny)} }

func TestFuncIsTotal(t *testing.T) {
	f := web()
	for _, c := range []struct {
		proto model.Proto
		port  uint16
		want  model.Verdict
	}{
		{model.ProtoTCP, 443, model.Allow}, {model.ProtoTCP, 442, model.Deny}, {model.ProtoTCP, 444, model.Deny},
		{model.ProtoTCP, 0, model.Deny}, {model.ProtoTCP, 65535, model.Deny}, {model.ProtoUDP, 443, model.Deny},
		{model.ProtoICMP, 0, model.Deny}, {model.ProtoSCTP, 443, model.Deny}, {model.ProtoAny, 0, model.Deny},
	} {
		if got := f.Cell(c.proto, c.port).Verdict; got != c.want {
			t.Errorf("%s/%d: %s, want %s", c.proto, c.port, got, c.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { f.Cell(model.ProtoTCP, 443) }); n != 0 {
		t.Errorf("a lookup allocates %v times", n)
	}
}

func testPolicy() *Policy {
	set := PolicySet{
		Ingress: Table{Funcs: []Func{closed(), web()}, Peers: []PeerFunc{{Peer: 5, Func: 1}, {Peer: 9, Func: 1}}},
		Egress:  Table{Funcs: []Func{closed()}},
	}
	set.ID = set.ContentID()
	return &Policy{
		Revision:  3,
		Host:      "web-1",
		Subjects:  []Subject{{Workload: "web-1", Identity: 7, Set: set.ID, Isolation: set.ID}},
		Sets:      []PolicySet{set},
		Addresses: []Address{{Prefix: netip.MustParsePrefix("10.0.0.5/32"), Identity: 5}},
	}
}

func TestJudgeByPeer(t *testing.T) {
	table := testPolicy().Sets[0].Ingress
	for peer, want := range map[model.IdentityID]model.Verdict{5: model.Allow, 9: model.Allow, 0: model.Deny, 6: model.Deny} {
		if got := table.Judge(peer, model.ProtoTCP, 443).Verdict; got != want {
			t.Errorf("peer %s: %s, want %s", peer, got, want)
		}
	}
}

func TestHash(t *testing.T) {
	p := testPolicy()
	want := p.Hash()
	p.Revision++
	if p.Hash() != want {
		t.Error("the revision is part of the hash")
	}
	changes := map[string]func(*Policy){
		"host":        func(p *Policy) { p.Host = "web-2" },
		"subject":     func(p *Policy) { p.Subjects[0].Quarantine = model.QuarantineIsolate },
		"address":     func(p *Policy) { p.Addresses[0].Shared = true },
		"port":        func(p *Policy) { p.Ports = append(p.Ports, PortOwner{Addr: netip.MustParseAddr("10.0.0.5")}) },
		"controllers": func(p *Policy) { p.Controllers = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:7443")} },
		"set": func(p *Policy) {
			p.Sets[0].Ingress.Funcs[1][2].Rule = "web/other"
			p.Sets[0].ID = p.Sets[0].ContentID()
		},
	}
	for name, change := range changes {
		p := testPolicy()
		change(p)
		if p.Hash() == want {
			t.Errorf("a change of the %s does not change the hash", name)
		}
	}
}

func TestCheckFindsDamage(t *testing.T) {
	if err := testPolicy().Check(); err != nil {
		t.Fatalf("a good policy is refused: %v", err)
	}
	for want, damage := range map[string]func(*Policy){
		"names no host":       func(p *Policy) { p.Host = "" },
		"content has hash":    func(p *Policy) { p.Sets[0].Egress.Funcs[0][0].Verdict = model.Allow },
		"which is missing":    func(p *Policy) { p.Sets = nil },
		"canonical prefix":    func(p *Policy) { p.Addresses[0].Prefix = netip.MustParsePrefix("10.0.0.5/8") },
		"no default function": func(p *Policy) { reseal(p, func(s *PolicySet) { s.Egress.Funcs = nil }) },
		"of 2":                func(p *Policy) { reseal(p, func(s *PolicySet) { s.Ingress.Peers[1].Func = 2 }) },
		"peers are not sorted": func(p *Policy) {
			reseal(p, func(s *PolicySet) { s.Ingress.Peers[0].Peer = 10 })
		},
		"does not follow": func(p *Policy) {
			reseal(p, func(s *PolicySet) { s.Ingress.Funcs[1][2].Ports.Lo = 444; s.Ingress.Funcs[1][2].Ports.Hi = 444 })
		},
		"covered up to":  func(p *Policy) { reseal(p, func(s *PolicySet) { s.Ingress.Funcs[1] = s.Ingress.Funcs[1][:3] }) },
		"the first cell": func(p *Policy) { reseal(p, func(s *PolicySet) { s.Ingress.Funcs[1] = s.Ingress.Funcs[1][1:] }) },
	} {
		p := testPolicy()
		damage(p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("damage %q: error %v", want, err)
		}
	}
}

// reseal damages the set and gives it the ID that its content asks for, so that only the damage can be found.
func reseal(p *Policy, damage func(*PolicySet)) {
	damage(&p.Sets[0])
	id := p.Sets[0].ContentID()
	p.Sets[0].ID, p.Subjects[0].Set, p.Subjects[0].Isolation = id, id, id
}
