package budget

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// generated returns two worlds of the same documents: hosts that are in both have other policies in the second one.
func generated(t *testing.T, seed uint64) (before, after *compile.World) {
	t.Helper()
	size := policytest.Alternate(seed)
	docs, inv, _ := policytest.Generate(seed, size)
	_, later, _ := policytest.Generate(seed+1, size)
	worlds := [2]*compile.World{}
	for i, inv := range []*model.Inventory{inv, later} {
		w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		worlds[i] = w
	}
	return worlds[0], worlds[1]
}

// TestBoundsHold: what Check believes without looking is never less than what hosts take, and exact where it can be.
func TestBoundsHold(t *testing.T) {
	processes, domains := 0, 0
	for seed := range uint64(40) {
		w, _ := generated(t, seed)
		v := newView(w)
		for _, host := range w.Hosts() {
			p, _ := w.HostPolicy(host)
			far, ok := v.load(host, len(p.Controllers))
			if !ok {
				t.Fatalf("seed %d: no host %s", seed, host)
			}
			near := far
			near.address(v.toldOf(&near))
			want := Of(p)
			for r := range All() {
				if far.cost[r] < want[r] || near.cost[r] < want[r] {
					t.Fatalf("seed %d host %s: %s bounded by %d and %d, are %d", seed, host, r, far.cost[r], near.cost[r], want[r])
				}
				if !slices.Contains([]Resource{Rules, Addresses, Prefixes, Ports, Patterns}, r) && far.cost[r] != want[r] {
					t.Fatalf("seed %d host %s: %s are %d, not %d", seed, host, r, want[r], far.cost[r])
				}
			}
			if near.domains != (len(p.Domains) > 0) || near.processes != mostOf(p) {
				t.Fatalf("seed %d host %s: domains %t, processes %d", seed, host, near.domains, near.processes)
			}
			if near.domains {
				domains++
			}
			if near.processes > 0 {
				processes++
			}
		}
	}
	if processes < 20 || domains < 20 {
		t.Errorf("%d hosts with processes, %d with domains: the worlds test little", processes, domains)
	}
}

// TestCheckFindsWhatDoesNotFit compares Check with a look at every host, for targets that are too small for some.
func TestCheckFindsWhatDoesNotFit(t *testing.T) {
	found := map[string]int{}
	seeds := uint64(80)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		before, after := generated(t, seed)
		r := rand.New(rand.NewPCG(seed, 3))
		target := EBPF()
		target.MaxName = 6 + r.IntN(20)
		target.MaxAlternatives, target.Domains = r.IntN(3), r.IntN(2) == 0
		for i := range target.Max {
			target.Max[i] = []int{2, 20, 200, 1 << 20}[r.IntN(4)]
		}
		if r.IntN(4) == 0 {
			before = nil
		}
		want := map[string]int{} // host and problem
		for _, host := range after.Hosts() {
			p, _ := after.HostPolicy(host)
			old := &hostpolicy.Policy{}
			if before != nil {
				if q, ok := before.HostPolicy(host); ok {
					old = q
				}
			}
			for _, x := range target.check(old, p, after) {
				want[host+" "+short(&x)]++
				found[fmt.Sprintf("%s change=%t before=%t", x.Kind, x.Change, x.Before)]++
			}
		}
		got := map[string]int{}
		for _, x := range Check(before, after, func(string) (Target, bool) { return target, true }) {
			if x.Assumed || !slices.IsSorted(x.Hosts) {
				t.Fatalf("seed %d: %+v", seed, x)
			}
			for _, host := range x.Hosts {
				got[host+" "+short(&x)]++
			}
		}
		for k, n := range want {
			if got[k] != n {
				t.Fatalf("seed %d: %s: found %d times, not %d", seed, k, got[k], n)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("seed %d: %d problems, want %d", seed, len(got), len(want))
		}
	}
	for _, kind := range []string{
		"size change=false before=false", "size change=false before=true", "size change=true before=false",
		"processes change=false before=false", "processes change=false before=true",
		"domains change=false before=false", "domains change=false before=true", "name change=false before=false", "name change=false before=true",
	} {
		if found[kind] < 3 {
			t.Errorf("%s: %d", kind, found[kind])
		}
	}
}

// short says of a problem what must be the same for every host that has it.
func short(p *Problem) string {
	text := fmt.Sprintf("%s %s %d %d %t %t", p.Kind, p.What, p.Have, p.May, p.Change, p.Before)
	for _, s := range p.Sets {
		text += fmt.Sprintf(" %s=%d", s.Set, s.Takes)
	}
	return text + fmt.Sprint(p.Rules)
}

const documents = `
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: all}
spec: {selector: "", mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: p, owner: o}
spec:
  rules:
    - {name: many, allow: {from: app=client, to: app=db, on: [tcp/1001-1022, tcp/5432]}}
    - {name: few, allow: {from: app=web, to: app=db, on: [tcp/5432]}}
    - {name: by-process, allow: {from: {workloads: app=web, process: {unit: web.service}}, to: app=db, on: [tcp/1]}}
    - {name: by-name, allow: {from: app=web, to: {domain: example.com}, on: [tcp/443]}}
`

// TestProblems is one world in which everything is too much, in words.
func TestProblems(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "p.yaml", Data: []byte(documents)}})
	if err != nil {
		t.Fatal(err)
	}
	var reports []inventory.Report
	add := func(host string, labels model.Labels) {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(len(reports) + 1)})
		reports = append(reports, inventory.Report{Host: host, Labels: labels, Addresses: []netip.Addr{addr}})
	}
	for i := range 10 {
		add(fmt.Sprintf("client-%d", i), model.Labels{"app": "client", "n": fmt.Sprint(i)})
	}
	for i := range 5 {
		add(fmt.Sprintf("db-%d", i), model.Labels{"app": "db"})
	}
	add("web-1", model.Labels{"app": "web"})
	inv, err := inventory.Build(docs, reports, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := compile.Compile(docs, inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	target := EBPF()
	target.MaxAlternatives, target.Domains = 0, false
	target.Max[Rows], target.Max[Ranges], target.Max[Addresses] = 14, 1, 8
	targets := func(host string) (Target, bool) { return target, host != "db-4" }
	var lines []string
	for _, p := range Check(nil, w, targets) {
		lines = append(lines, fmt.Sprintf("blocks=%t %s", p.Blocks(), p.String()))
		var again Problem
		if text, err := json.Marshal(p); err != nil || json.Unmarshal(text, &again) != nil || again.String() != p.String() {
			t.Errorf("%s: as JSON %s, %v", p.String(), text, err)
		}
	}
	want := `
blocks=true client-0, client-1, client-2 and 7 more (ebpf) cannot hold it: 2 policy rows for port ranges, and 1 fit; policy set of client-0 (app=client,n=0): 2; rules that take most: p/many (1); use fewer ranges, or ranges that begin at a multiple of their length
blocks=true db-0, db-1, db-2 and 1 more (ebpf) cannot hold it: 20 policy rows, and 14 fit; policy set of db-0 (app=db): 18; policy set of db-0 (app=db, while isolated): 2; rules that take most: p/many (11), p/by-process (2), p/few (2); name networks instead of many label sets, or the same ports for all of them
blocks=true db-0, db-1, db-2 and 1 more (ebpf) cannot hold it: 2 policy rows for port ranges, and 1 fit; policy set of db-0 (app=db): 2; rules that take most: p/many (1); use fewer ranges, or ranges that begin at a multiple of their length
blocks=true db-0, db-1, db-2 and 1 more (ebpf) cannot hold it: 11 addresses, and 8 fit; rules that take most: p/many (10), p/by-process (1), p/few (1); let rules name networks instead of the labels of very many workloads
blocks=true db-4 (ebpf assumed) cannot hold it: 20 policy rows, and 14 fit; policy set of db-4 (app=db): 18; policy set of db-4 (app=db, while isolated): 2; rules that take most: p/many (11), p/by-process (2), p/few (2); name networks instead of many label sets, or the same ports for all of them
blocks=true db-4 (ebpf assumed) cannot hold it: 2 policy rows for port ranges, and 1 fit; policy set of db-4 (app=db): 2; rules that take most: p/many (1); use fewer ranges, or ranges that begin at a multiple of their length
blocks=true db-4 (ebpf assumed) cannot hold it: 11 addresses, and 8 fit; rules that take most: p/many (10), p/by-process (1), p/few (1); let rules name networks instead of the labels of very many workloads
blocks=true web-1 (ebpf) cannot hold it: 16 addresses, and 8 fit; rules that take most: p/by-process (5), p/few (5); let rules name networks instead of the labels of very many workloads
blocks=true web-1 (ebpf) cannot hold it: 1 rule for some processes only, which the ebpf dataplane cannot tell apart yet; rules: p/by-process; leave process out, or declare the unit as a workload
blocks=true web-1 (ebpf) cannot hold it: 1 rule naming hosts, which the ebpf dataplane cannot follow yet; rules: p/by-name; name the addresses by cidr or network
`
	if got := strings.Join(lines, "\n"); got != strings.TrimSpace(want) {
		t.Errorf("got\n%s", got)
	}
	// The world as it was has the same problems: nothing is new.
	for _, p := range Check(w, w, targets) {
		if !p.Before || p.Blocks() {
			t.Errorf("not as before: %s", p.String())
		}
	}
}
