package prove_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/prove"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

func world(t testing.TB, docs *model.Documents, inv *model.Inventory) *compile.World {
	t.Helper()
	w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestBruteForceAgrees asks the evaluator about every pair of ends at the borders of every guardrail's ports: a
// guardrail that the proof says holds is never seen violated, and a counterexample is one.
func TestBruteForceAgrees(t *testing.T) {
	size := policytest.Small
	size.Guardrails = 6
	held, violated, unkept, questions := 0, 0, 0, 0
	for seed := range uint64(250) {
		docs, inv, _ := policytest.Generate(seed, size)
		w := world(t, docs, inv)
		proofs := prove.Guardrails(w)
		if len(proofs) != len(docs.Guardrails) {
			t.Fatalf("seed %d: %d proofs of %d guardrails", seed, len(proofs), len(docs.Guardrails))
		}
		u := reach.New(w)
		for g := range proofs {
			p := &proofs[g]
			allow, would, asked := bruteForce(t, w, u, &docs.Guardrails[g])
			questions += asked
			switch {
			case p.Holds && allow != "":
				t.Fatalf("seed %d: guardrail %s is said to hold, but %s is allowed", seed, p.Name, allow)
			case p.Counterexample != nil && p.Counterexample.Hypothetical && allow != "":
				t.Fatalf("seed %d: guardrail %s is broken by %s, not only by %s", seed, p.Name, allow, p.Counterexample)
			case p.Holds && p.Enforced && would != "":
				t.Fatalf("seed %d: guardrail %s is said to be enforced, but %s is would-deny", seed, p.Name, would)
			}
			switch {
			case !p.Holds:
				violated++
				checkWitness(t, seed, w, docs, &docs.Guardrails[g], p.Counterexample, model.Allow)
			case !p.Enforced:
				unkept++
				checkWitness(t, seed, w, docs, &docs.Guardrails[g], p.NotEnforced, model.WouldDeny)
			default:
				held++
			}
		}
	}
	if held < 50 || violated < 200 || unkept < 10 || questions < 50_000 {
		t.Fatalf("%d held, %d violated, %d not enforced, %d questions: too few of something", held, violated, unkept, questions)
	}
}

// bruteForce returns a flow that the guardrail forbids and that is allowed, and one that is would-deny; "" if none is
// found.
func bruteForce(t *testing.T, w *compile.World, u *reach.Universe, g *model.Guardrail) (allow, would string, asked int) {
	t.Helper()
	e := verdict.New(w)
	ports := borders(w.Documents(), g)
	processes := atoms(w.Documents())
	for i := range u.Actors {
		a := &u.Actors[i]
		from := meant(w.Documents(), g.From, a, processes)
		if len(from) == 0 || a.Domain != "" {
			continue
		}
		for j := range u.Actors {
			b := &u.Actors[j]
			to := meant(w.Documents(), g.To, b, processes)
			if len(to) == 0 || a.Owned() && a.Workload == b.Workload || !a.Owned() && !b.Owned() {
				continue
			}
			if a.Addr.IsValid() && b.Addr.IsValid() && a.Addr.Is4() != b.Addr.Is4() || !exact(a) || !exact(b) {
				continue
			}
			for _, p := range ports {
				if _, always := essential.Match(p.Proto, p.Lo); always { // also where neither end judges
					continue
				}
				for k := range max(len(from), len(to)) { // what one end says depends on its own process only
					f := model.Flow{
						From: a.Exactly(), To: b.Exactly(), Proto: p.Proto, Port: p.Lo, ToDomain: b.Name,
						FromProcess: from[k%len(from)], ToProcess: to[k%len(to)],
					}
					v, err := e.Judge(&f)
					if err != nil {
						t.Fatal(err)
					}
					asked++
					if strings.HasPrefix(string(v.Egress.Rule), "essential/") || strings.HasPrefix(string(v.Ingress.Rule), "essential/") {
						continue
					}
					flow := fmt.Sprint(f.From, f.FromProcess, " to ", f.To, f.ToProcess, f.ToDomain, " on ", p)
					switch v.Verdict {
					case model.Allow:
						allow = flow
					case model.WouldDeny:
						would = flow
					}
				}
			}
		}
	}
	return allow, would, asked
}

// atoms lists what processes may be, as far as constraints of the documents tell them apart.
func atoms(docs *model.Documents) []*model.Process {
	fields := [3][]string{{""}, {""}, {""}}
	add := func(peers []model.Peer) {
		for i := range peers {
			if p := peers[i].Process; p != nil {
				for f, v := range [3]string{p.Unit, p.Path, p.User} {
					if !slices.Contains(fields[f], v) {
						fields[f] = append(fields[f], v)
					}
				}
			}
		}
	}
	for i := range docs.Policies {
		for k := range docs.Policies[i].Rules {
			add(docs.Policies[i].Rules[k].From)
			add(docs.Policies[i].Rules[k].To)
		}
	}
	for i := range docs.Guardrails {
		add(docs.Guardrails[i].From)
		add(docs.Guardrails[i].To)
	}
	out := []*model.Process{nil}
	for _, unit := range fields[0] {
		for _, path := range fields[1] {
			for _, user := range fields[2] {
				out = append(out, &model.Process{Unit: unit, Path: path, User: user})
			}
		}
	}
	return out
}

// meant returns the processes that peers mean at the actor.
func meant(docs *model.Documents, peers []model.Peer, a *reach.Actor, all []*model.Process) []*model.Process {
	var out []*model.Process
	for _, process := range all {
		if slices.ContainsFunc(peers, func(p model.Peer) bool {
			return means(docs, []model.Peer{p}, a) && (p.Process == nil || !a.Managed() || p.Process.Admits(process))
		}) {
			out = append(out, process)
		}
	}
	return out
}

func exact(a *reach.Actor) bool { return a.Exactly().Addr.IsValid() || !a.Addr.IsValid() }

// means is the obvious reading of peers.
func means(docs *model.Documents, peers []model.Peer, a *reach.Actor) bool {
	for _, p := range peers {
		switch p.Kind {
		case model.PeerAny:
			return true
		case model.PeerWorkloads:
			if a.Owned() && p.Workloads.Matches(a.Labels) {
				return true
			}
		case model.PeerCIDR:
			if a.Addr.IsValid() && p.CIDR.Contains(a.Addr) {
				return true
			}
		case model.PeerNetwork:
			for i := range docs.Networks {
				if n := &docs.Networks[i]; n.Name == p.Network && (a.Addr.IsValid() && n.Contains(a.Addr) || slices.ContainsFunc(n.Domains, func(d string) bool { return covers(d, a.Name) })) {
					return true
				}
			}
		case model.PeerDomain:
			if covers(p.Domain, a.Name) {
				return true
			}
		}
	}
	return false
}

// covers: the pattern is the host name, or "*." and a suffix of it.
func covers(pattern, name string) bool {
	suffix, wild := strings.CutPrefix(pattern, "*")
	return name != "" && (pattern == name || wild && strings.HasSuffix(name, suffix))
}

// borders are the first, middle and last port of each range of a guardrail; of any, ports of several protocols.
func borders(docs *model.Documents, g *model.Guardrail) []model.PortRange {
	var out []model.PortRange
	add := func(r model.PortRange) {
		protos := []model.Proto{r.Proto}
		if r.Proto == model.ProtoAny {
			protos = []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoICMP, 47}
		}
		for _, proto := range protos {
			for _, port := range []uint16{r.Lo, r.Lo + (r.Hi-r.Lo)/2, r.Hi} {
				out = append(out, model.PortRange{Proto: proto, Lo: port, Hi: port})
			}
		}
	}
	for _, ref := range g.On {
		if ref.Service == "" {
			add(ref.Range)
			continue
		}
		for i := range docs.Services {
			if docs.Services[i].Name == ref.Service {
				for _, r := range docs.Services[i].Ports {
					add(r)
				}
			}
		}
	}
	return out
}

// checkWitness: the witness is a flow that the guardrail speaks about, and the evaluator says of it what is claimed.
func checkWitness(t *testing.T, seed uint64, w *compile.World, docs *model.Documents, g *model.Guardrail, x *prove.Witness, want model.Verdict) {
	t.Helper()
	if x == nil || x.Port == "" || len(x.On) == 0 || x.FromIs == "" || x.ToIs == "" || x.String() == "" {
		t.Fatalf("seed %d: guardrail %s has no proper witness: %+v", seed, g.Name, x)
	}
	if x.Hypothetical {
		return // checkScene does the same with workloads that could be
	}
	if x.EgressRule == "" {
		return // one address of several that a workload has; a name does not say which
	}
	port, err := model.ParsePortRange(x.Port)
	if err != nil {
		t.Fatal(err)
	}
	within := slices.ContainsFunc(g.On, func(r model.PortRef) bool {
		if r.Service == "" {
			return r.Range.Contains(port.Proto, port.Lo)
		}
		return slices.ContainsFunc(docs.Services, func(s model.Service) bool {
			return s.Name == r.Service && slices.ContainsFunc(s.Ports, func(r model.PortRange) bool { return r.Contains(port.Proto, port.Lo) })
		})
	})
	if _, always := essential.Match(port.Proto, port.Lo); !within || always {
		t.Fatalf("seed %d: guardrail %s does not speak about %s", seed, g.Name, x.Port)
	}
	named := func(s string) bool { wl := w.Workload(s); return wl == nil || len(wl.Points) == 1 }
	if !named(x.From) || !named(x.To) || x.To == "an address" {
		return
	}
	f := model.Flow{From: end(x.From), To: end(x.To), Proto: port.Proto, Port: port.Lo, FromProcess: x.FromProcess, ToProcess: x.ToProcess}
	v, err := verdict.New(w).Judge(&f)
	if err != nil {
		t.Fatal(err)
	}
	if v.Verdict != want || v.Egress.Rule != x.EgressRule || v.Ingress.Rule != x.IngressRule {
		t.Fatalf("seed %d: witness %s is %+v", seed, x, v)
	}
}

func end(s string) model.End {
	e := model.End{Workload: s}
	if a, err := netip.ParseAddr(s); err == nil {
		e.Addr = a
	}
	return e
}

const bank = `
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: dev-1, labels: {app: pay, env: dev}}
spec: {addresses: [10.0.0.1]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: api-1, labels: {app: pay, env: prod, role: api}}
spec: {addresses: [10.0.0.2]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: db-1, labels: {app: pay, env: prod, role: db}}
spec: {addresses: [10.0.0.3]}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: plc-1, labels: {role: plc}}
spec: {addresses: [10.0.0.4], managed: false}
---
apiVersion: bulkhead/v1
kind: Network
metadata: {name: partner}
spec: {cidrs: [192.0.2.0/24]}
---
apiVersion: bulkhead/v1
kind: Network
metadata: {name: dns}
spec: {cidrs: [192.0.2.53/32], purpose: resolvers}
---
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: prod}
spec: {selector: env=prod, mode: enforce}
---
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: dev}
spec: {selector: env=dev, mode: observe}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: pay}
spec:
  rules:
    - name: api-reads-db
      allow: {from: "role=api", to: "role=db", on: [tcp/5432]}
    - name: support
      allow: {from: "env=dev", to: "role=db", on: [tcp/5432]}
    - name: partner
      allow: {from: {network: partner}, to: "role=api", on: [tcp/443]}
---
`

func parse(t *testing.T, text string) *compile.World {
	t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Build(docs, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return world(t, docs, inv)
}

func TestGuardrails(t *testing.T) {
	for _, c := range []struct {
		name, never string
		want        string // "holds", "not enforced: …" or the counterexample
	}{
		{
			"a rule breaks it", `{from: "env=dev", to: "env=prod,role=db", on: [any]}`,
			"dev-1 (app=pay,env=dev) may reach db-1 (app=pay,env=prod,role=db) on tcp/5432; for tcp/5432, pay/support (test.yaml:49:7) decides at both ends",
		},
		{"another port", `{from: "env=dev", to: "env=prod,role=db", on: [tcp/22, udp]}`, "holds"},
		{"an address", `{from: {cidr: 192.0.2.128/25}, to: "env=prod", on: [tcp/1-1023]}`, "192.0.2.128 (an address in 192.0.2.128/25 and partner) may reach api-1 (app=pay,env=prod,role=api) on tcp/443; for tcp/443, unmanaged decides at the source and pay/partner (test.yaml:51:7) at the destination"},
		{"an address that no rule names", `{from: {cidr: 198.51.100.0/24}, to: "env=prod", on: [any]}`, "holds"},
		{"only recorded", `{from: "env=dev", to: {network: partner}, on: [tcp/25]}`, "not enforced: dev-1 to 192.0.2.0 on tcp/25"},
		{"nothing between devices", `{from: {any: true}, to: "role=plc", on: [tcp/502]}`, "0.0.0.0 (an address in no network) may reach plc-1 (role=plc) on tcp/502; for tcp/502, unmanaged decides at both ends"},
		{"essentials do not count", `{from: "env=prod", to: {cidr: 192.0.2.53/32}, on: [any]}`, "holds"},
		{"a workload and itself do not count", `{from: "role=web,env=prod", to: "role=web,env=prod", on: [any]}`, "holds"},
		{"addresses among themselves do not count", `{from: {network: partner}, to: {network: partner}, on: [any]}`, "holds"},
	} {
		w := parse(t, bank+"apiVersion: bulkhead/v1\nkind: Guardrail\nmetadata: {name: g}\nspec: {never: "+c.never+"}\n")
		g := prove.Guardrails(w)[0]
		got := "holds"
		switch {
		case !g.Holds:
			got = g.Counterexample.String()
		case !g.Enforced:
			got = "not enforced: " + g.NotEnforced.Ends()
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if !strings.HasPrefix(g.At, "test.yaml:") {
			t.Errorf("%s: at %q", c.name, g.At)
		}
	}
}

func TestNoGuardrails(t *testing.T) {
	if got := prove.Guardrails(parse(t, bank)); got != nil {
		t.Errorf("got %+v", got)
	}
}

func TestExpectations(t *testing.T) {
	w := parse(t, bank+`apiVersion: bulkhead/v1
kind: Expectation
metadata: {name: basics}
spec:
  cases:
    - {from: api-1, to: db-1, on: tcp/5432, expect: allow}
    - {from: api-1, to: db-1, on: tcp/22, expect: allow}
    - {from: 192.0.2.9, to: api-1, on: tcp/443, expect: allow}
    - {from: dev-1, to: 203.0.113.1, on: udp/9, expect: would-deny}
    - {from: api-1, to: db-1, on: icmp/8/0, expect: deny}
`)
	want := []string{
		"api-1 to db-1 on tcp/5432: expected allow",
		"api-1 to db-1 on tcp/22: expected allow, got deny (default-deny at the source, default-deny at the destination)",
		"192.0.2.9 to api-1 on tcp/443: expected allow",
		"dev-1 to 203.0.113.1 on udp/9: expected would-deny",
		"api-1 to db-1 on icmp/8/0: expected deny",
	}
	got := prove.Expectations(w)
	if len(got) != len(want) {
		t.Fatalf("%d cases, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].String() != want[i] || got[i].Pass != (i != 1) || got[i].Expectation != "basics" {
			t.Errorf("got %s (pass %v)\nwant %s", got[i].String(), got[i].Pass, want[i])
		}
	}
	docs := *w.Documents()
	docs.Expectations = []model.Expectation{{Meta: model.Meta{Name: "x"}, Cases: []model.ExpectationCase{{
		From: "nobody", To: "db-1", On: model.PortRange{Proto: model.ProtoTCP, Lo: 1, Hi: 1}, Expect: model.Deny,
	}}}}
	if c := prove.Expectations(world(t, &docs, w.Inventory()))[0]; c.Pass || c.Error == "" || !strings.Contains(c.String(), "nobody") {
		t.Errorf("a case about nobody: %+v", c)
	}
}
