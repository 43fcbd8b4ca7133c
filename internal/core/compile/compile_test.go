package compile_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

func hashes(t *testing.T, w *compile.World) []string {
	t.Helper()
	var out []string
	for _, h := range w.Hosts() {
		p, ok := w.HostPolicy(h)
		if !ok {
			t.Fatalf("no policy for host %q", h)
		}
		out = append(out, h+" "+p.Hash().String())
	}
	return out
}

func shuffled[T any](r *rand.Rand, list []T) []T {
	list = slices.Clone(list)
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// TestOrderDoesNotCount compiles documents in other orders to the same bytes. The rules of a policy are an order that
// counts, and the inventory is sorted by its contract.
func TestOrderDoesNotCount(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for seed := uint64(0); seed < 100; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		o := compile.Options{Now: policytest.Now, Controllers: []netip.AddrPort{
			netip.MustParseAddrPort("10.0.0.1:443"), netip.MustParseAddrPort("[::ffff:10.0.0.2]:443"), netip.MustParseAddrPort("10.0.0.1:443"),
		}}
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatal(err)
		}
		want := hashes(t, w)
		for range 3 {
			other := &model.Documents{
				Services: shuffled(r, docs.Services), Networks: shuffled(r, docs.Networks), Workloads: shuffled(r, docs.Workloads),
				Segments: shuffled(r, docs.Segments), Policies: shuffled(r, docs.Policies), OneSided: shuffled(r, docs.OneSided),
			}
			for i := range other.Networks {
				other.Networks[i].CIDRs = shuffled(r, other.Networks[i].CIDRs)
				other.Networks[i].Domains = shuffled(r, other.Networks[i].Domains)
			}
			again, err := compile.Compile(other, inv, compile.Options{Now: o.Now, Controllers: shuffled(r, o.Controllers)})
			if err != nil {
				t.Fatal(err)
			}
			if got := hashes(t, again); !slices.Equal(got, want) {
				t.Fatalf("seed %d: another order gives other hashes\n%v\n%v", seed, got, want)
			}
		}
	}
}

// TestHostPolicyIsWellFormedAndLean checks what every host is given: Check accepts it, nothing is in it twice or
// without need.
func TestHostPolicyIsWellFormedAndLean(t *testing.T) {
	carved := 0
	for seed := uint64(0); seed < 200; seed++ {
		docs, inv, _ := policytest.Generate(seed, policytest.Alternate(seed))
		w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range w.Hosts() {
			p, _ := w.HostPolicy(h)
			if err := p.Check(); err != nil {
				t.Fatalf("seed %d host %s: %v", seed, h, err)
			}
			carved += checkLean(t, seed, p)
		}
	}
	if carved < 100 {
		t.Errorf("only %d addresses are listed to keep a prefix off them", carved)
	}
}

func checkLean(t *testing.T, seed uint64, p *hostpolicy.Policy) (carved int) {
	t.Helper()
	used := map[hostpolicy.PolicySetID]bool{}
	for _, s := range p.Subjects {
		used[s.Set], used[s.Isolation] = true, true
		for _, l := range s.Local {
			used[l.Set] = true
		}
	}
	told := map[model.IdentityID]bool{}
	for i := range p.Sets {
		if !used[p.Sets[i].ID] {
			t.Fatalf("seed %d host %s: no subject names set %x", seed, p.Host, p.Sets[i].ID)
		}
		for _, d := range model.Directions {
			tab := p.Sets[i].Table(d)
			for k, f := range tab.Funcs {
				if why := notLean(f); why != "" {
					t.Fatalf("seed %d host %s: function %d: %s\n%v", seed, p.Host, k, why, f)
				}
				for m := k + 1; m < len(tab.Funcs); m++ {
					if reflect.DeepEqual(f, tab.Funcs[m]) {
						t.Fatalf("seed %d host %s: functions %d and %d are equal", seed, p.Host, k, m)
					}
				}
			}
			for _, row := range tab.Peers {
				told[row.Peer] = true
				if row.Func == 0 {
					t.Fatalf("seed %d host %s: peer %s has a row for the default", seed, p.Host, row.Peer)
				}
			}
		}
	}
	owners := map[model.IdentityID]bool{}
	for _, o := range p.Ports {
		owners[o.Identity] = true
	}
	needed := map[model.IdentityID]bool{} // a name makes something of them that a set tells apart
	for _, d := range p.Domains {
		if told[d.Identity] || told[d.Base] {
			needed[d.Base] = true
		}
	}
	for _, d := range p.Domains {
		if !needed[d.Base] {
			t.Fatalf("seed %d host %s: nothing tells %s (%s) apart", seed, p.Host, d.Pattern, d.Base)
		}
	}
	for id := range needed {
		told[id] = true
	}
	for _, a := range p.Addresses {
		if told[a.Identity] || a.Shared {
			continue
		}
		// Some listed prefix that is told apart covers it, or a name would make something of it.
		above := needed[0]
		for _, b := range p.Addresses {
			if b.Prefix.Bits() < a.Prefix.Bits() && b.Prefix.Contains(a.Prefix.Addr()) && told[b.Identity] {
				above = true
			}
		}
		if !above {
			t.Fatalf("seed %d host %s: nothing tells %s (%s) apart", seed, p.Host, a.Prefix, a.Identity)
		}
		carved++
	}
	return carved
}

// notLean says what could be left out of a function without changing what it says; "" is nothing.
func notLean(f hostpolicy.Func) string {
	says := func(a, b *hostpolicy.Cell) bool {
		return a.Verdict == b.Verdict && a.Rule == b.Rule && slices.Equal(a.When, b.When)
	}
	for i := range f {
		c := f[i]
		if i > 1 && f[i-1].Ports.Proto == c.Ports.Proto && says(&f[i-1], &c) {
			return fmt.Sprintf("cells %d and %d are one", i-1, i)
		}
		if i > 0 && c.Ports.Lo == 0 && c.Ports.Hi == 65535 && says(&f[0], &c) {
			return fmt.Sprintf("cell %d says what the first one does", i)
		}
		c.Ports = model.AnyPort
		for k := range c.When {
			without := c
			without.When = slices.Delete(slices.Clone(c.When), k, k+1)
			if (hostpolicy.Func{c}).Differs(hostpolicy.Func{without}) == nil {
				return fmt.Sprintf("alternative %d of cell %d decides nothing", k, i)
			}
		}
	}
	return ""
}

func TestCompileRefuses(t *testing.T) {
	pos := model.Position{File: "p.yaml", Line: 7, Column: 3}
	anyone := []model.Peer{{Kind: model.PeerAny}}
	onAny := []model.PortRef{{Range: model.AnyPort}}
	rule := func(r model.Rule) *model.Documents {
		r.Name, r.Pos = "r", pos
		return &model.Documents{Policies: []model.Policy{{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{r}}}}
	}
	var odd []model.PortRef
	for i := range uint16(40) {
		odd = append(odd, model.PortRef{Range: model.PortRange{Proto: model.ProtoTCP, Lo: 2 * i, Hi: 2 * i}})
	}
	some := &model.Inventory{Instances: []model.Instance{{Name: "a", Managed: true, Host: "a"}}}
	for name, c := range map[string]struct {
		docs *model.Documents
		inv  *model.Inventory
		want string
	}{
		"service":   {rule(model.Rule{From: anyone, To: anyone, On: []model.PortRef{{Service: "x", Pos: pos}}}), some, `p.yaml:7:3: rule p/r: there is no service "x"`},
		"network":   {rule(model.Rule{From: []model.Peer{{Kind: model.PeerNetwork, Network: "n", Pos: pos}}, To: anyone, On: onAny}), some, `p.yaml:7:3: rule p/r: there is no network "n"`},
		"cells":     {rule(model.Rule{Action: model.ActionAllow, From: anyone, To: anyone, On: odd}), some, "p.yaml:7:3: rule p/r: its ports, with those of other rules between the same workloads, make more than 32 ranges"},
		"slash":     {&model.Documents{Networks: []model.Network{{Meta: model.Meta{Name: "10.0.0.0/8", Pos: pos}}}}, some, `p.yaml:7:3: network "10.0.0.0/8": a name has no '/' and no ':'`},
		"selective": {&model.Documents{Segments: []model.Segment{{Meta: model.Meta{Name: "s"}, Mode: model.ModeSelective, Services: []model.PortRef{{Service: "x", Pos: pos}}}}}, some, `p.yaml:7:3: there is no service "x"`},
		"selective cells": {
			&model.Documents{Segments: []model.Segment{{Meta: model.Meta{Name: "s"}, Mode: model.ModeSelective, Services: odd, Directions: model.Directions[:]}}},
			some, "the services of the selective segments make more than 32 ranges",
		},
		"unsorted": {&model.Documents{}, &model.Inventory{Instances: []model.Instance{{Name: "b"}, {Name: "a"}}}, "the inventory is not sorted at a"},
		"twice":    {&model.Documents{}, &model.Inventory{Instances: []model.Instance{{Name: "a"}, {Name: "a"}}}, "the inventory is not sorted at a, or has it twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := compile.Compile(c.docs, c.inv, compile.Options{MaxCells: 32})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			var all compile.Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Errorf("%T is not compile.Errors", err)
			}
		})
	}
}

// TestEveryProblemIsReported: one error does not hide the next.
func TestEveryProblemIsReported(t *testing.T) {
	docs := &model.Documents{Policies: []model.Policy{{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{
		{Name: "a", From: []model.Peer{{Kind: model.PeerNetwork, Network: "n"}}, On: []model.PortRef{{Service: "s"}}},
		{Name: "b", To: []model.Peer{{Kind: model.PeerNetwork, Network: "m"}}},
	}}}}
	_, err := compile.Compile(docs, &model.Inventory{}, compile.Options{})
	if got := strings.Count(fmt.Sprint(err), "\n") + 1; got != 3 {
		t.Errorf("%d errors, want 3:\n%v", got, err)
	}
}

func TestNextExpiry(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	rule := func(name string, in time.Duration) model.Rule { return model.Rule{Name: name, Expires: now.Add(in)} }
	docs := &model.Documents{Policies: []model.Policy{{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{
		rule("past", -time.Hour), rule("now", 0), rule("soon", time.Hour), rule("later", 2*time.Hour), {Name: "never"},
	}}}}
	w, err := compile.Compile(docs, &model.Inventory{}, compile.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := w.NextExpiry(); !ok || !at.Equal(now.Add(time.Hour)) {
		t.Errorf("next expiry %v %t", at, ok)
	}
	w, err = compile.Compile(docs, &model.Inventory{}, compile.Options{Now: now.Add(2 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := w.NextExpiry(); ok {
		t.Errorf("a rule expires at %v, though every one has", at)
	}
}

// TestMappedAddresses: documents and inventories made by programs may hold IPv4 written as IPv6.
func TestMappedAddresses(t *testing.T) {
	docs := &model.Documents{
		Networks: []model.Network{{Meta: model.Meta{Name: "n"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.1.0.0/112")}, Except: []netip.Prefix{netip.MustParsePrefix("::ffff:10.1.2.0/120")}}},
		Policies: []model.Policy{{Meta: model.Meta{Name: "p"}, Rules: []model.Rule{{
			Name: "r", Action: model.ActionAllow, On: []model.PortRef{{Range: model.AnyPort}},
			From: []model.Peer{{Kind: model.PeerNetwork, Network: "n"}, {Kind: model.PeerCIDR, CIDR: netip.MustParsePrefix("::ffff:10.9.0.0/112")}},
			To:   []model.Peer{{Kind: model.PeerAny}},
		}}}},
	}
	inv := &model.Inventory{Instances: []model.Instance{{Name: "a", Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.1.1.1")}, Managed: true, Host: "a"}}}
	w, err := compile.Compile(docs, inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Identity(w.Workload("a").Points[0].Identity)[0].Networks; !slices.Equal(got, []string{"n"}) {
		t.Errorf("a is in %v", got)
	}
	if owners := w.Owners(netip.MustParseAddr("10.1.1.1")); len(owners) != 1 || owners[0].Name != "a" {
		t.Errorf("10.1.1.1 belongs to %v", owners)
	}
	for addr, want := range map[string][]string{"10.1.3.4": {"n"}, "10.1.2.4": nil, "10.9.0.1": {"10.9.0.0/16"}, "10.2.0.1": nil} {
		if got := w.Identity(w.Unowned(netip.MustParseAddr(addr)))[0].Networks; !slices.Equal(got, want) {
			t.Errorf("%s is in %v, want %v", addr, got, want)
		}
	}
}

func TestUnreferencedNetworksMakeNoIdentities(t *testing.T) {
	docs := &model.Documents{Networks: []model.Network{{Meta: model.Meta{Name: "n"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}
	w, err := compile.Compile(docs, &model.Inventory{}, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if id := w.Unowned(netip.MustParseAddr("10.0.0.1")); id != 0 {
		t.Errorf("identity %s", id)
	}
}
