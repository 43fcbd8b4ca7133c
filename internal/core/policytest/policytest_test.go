package policytest_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

var comparable = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestSameSeedSameWorld(t *testing.T) {
	for seed := range uint64(20) {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		docs2, inv2, flows2 := policytest.Generate(seed, policytest.Small)
		if diff := cmp.Diff(docs, docs2, comparable) + cmp.Diff(inv, inv2, comparable) + cmp.Diff(flows, flows2, comparable); diff != "" {
			t.Fatalf("seed %d:\n%s", seed, diff)
		}
		other, _, _ := policytest.Generate(seed+1, policytest.Small)
		if cmp.Equal(docs, other, comparable) {
			t.Fatalf("seeds %d and %d make one world", seed, seed+1)
		}
	}
}

func TestNothing(t *testing.T) {
	docs, inv, flows := policytest.Generate(1, policytest.Size{})
	if diff := cmp.Diff(&model.Documents{}, docs); diff != "" || len(inv.Instances)+len(flows) > 0 {
		t.Errorf("something out of nothing: %s", diff)
	}
}

// TestVariety shows that some hundred small worlds have everything in them that a property should be tested against.
func TestVariety(t *testing.T) {
	seen := map[string]int{}
	note := func(condition bool, what string) {
		if condition {
			seen[what]++
		}
	}
	for seed := range uint64(300) {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
		noteDocuments(docs, note)
		owners := noteInventory(inv, note)
		for _, f := range flows {
			note(true, "flow "+f.Proto.String())
			for _, e := range []model.End{f.From, f.To} {
				i := slices.IndexFunc(inv.Instances, func(x model.Instance) bool { return x.Name == e.Workload })
				note(e.Workload != "" && i >= 0, "end by name")
				note(e.Workload == "nobody", "end by unknown name")
				note(e.Workload == "" && e.Addr.IsValid(), "end by address")
				note(e.Workload != "" && e.Addr.IsValid(), "end by text and address")
				note(e.Addr.Is4In6(), "end by mapped address")
				note(e.Addr.IsValid() && owners[e.Addr.Unmap()] == 0, "end by address that nobody owns")
				note(e.Addr.IsValid() && owners[e.Addr.Unmap()] == 1, "end by address of one")
				note(e.Addr.IsValid() && owners[e.Addr.Unmap()] > 1, "end by shared address")
			}
			note(f.From.Workload != "" && f.From == f.To, "flow within one workload")
		}
	}
	for _, what := range []string{
		"mode enforce", "mode selective", "mode observe", "ingress only", "egress only", "both directions", "members open",
		"selector of =", "selector of in", "selector of notin", "selector of exists", "selector of !", "empty selector", "system label in selector",
		"purpose resolvers", "purpose time", "purpose forensic", "purpose ", "except",
		"networks overlap", "deny", "allow", "expired", "expires now", "expires later", "never expires",
		"peer workloads", "peer network", "peer cidr", "peer any", "several peers", "service", "any port", "port range",
		"managed host", "device", "no agent yet", "declared unit", "found unit", "no address", "two families", "own address of a unit",
		"quarantine watch", "quarantine restrict", "quarantine isolate", "in use", "quarantined unit", "listener",
		"flow tcp", "flow udp", "flow sctp", "flow icmp", "flow icmpv6", "flow 47", "flow within one workload",
		"end by name", "end by unknown name", "end by address", "end by text and address", "end by mapped address",
		"end by address that nobody owns", "end by address of one", "end by shared address",
	} {
		if seen[what] < 5 {
			t.Errorf("%s: %d times in 300 worlds", what, seen[what])
		}
	}
}

func noteDocuments(docs *model.Documents, note func(bool, string)) {
	for _, s := range docs.Segments {
		note(true, "mode "+s.Mode.String())
		note(len(s.Directions) == 2, "both directions")
		note(len(s.Directions) == 1, s.Directions[0].String()+" only")
		note(s.MembersOpen, "members open")
		noteSelector(&s.Selector, note)
	}
	for i, n := range docs.Networks {
		note(true, "purpose "+string(n.Purpose))
		note(len(n.Except) > 0, "except")
		for _, m := range docs.Networks[:i] {
			for _, c := range m.CIDRs {
				note(slices.ContainsFunc(n.CIDRs, c.Overlaps), "networks overlap")
			}
		}
	}
	for _, p := range docs.Policies {
		for _, r := range p.Rules {
			note(true, r.Action.String())
			note(r.Expires.IsZero(), "never expires")
			note(!r.Expires.IsZero() && r.Expires.Before(policytest.Now), "expired")
			note(r.Expires.Equal(policytest.Now), "expires now")
			note(r.Expires.After(policytest.Now), "expires later")
			for _, peers := range [][]model.Peer{r.From, r.To} {
				note(len(peers) > 1, "several peers")
				for _, x := range peers {
					note(true, "peer "+[...]string{"workloads", "network", "cidr", "domain", "any"}[x.Kind])
					noteSelector(&x.Workloads, note)
				}
			}
			for _, ref := range r.On {
				note(ref.Service != "", "service")
				note(ref.Service == "" && ref.Range == model.AnyPort, "any port")
				note(ref.Service == "" && ref.Range.Lo < ref.Range.Hi && !ref.Range.Proto.IsICMP(), "port range")
			}
		}
	}
}

func noteSelector(s *model.Selector, note func(bool, string)) {
	note(s.Empty(), "empty selector")
	for _, r := range s.Requirements {
		note(r.Op == model.OpIn && len(r.Values) == 1, "selector of =")
		note(r.Op == model.OpIn && len(r.Values) > 1, "selector of in")
		note(r.Op == model.OpNotIn, "selector of notin")
		note(r.Op == model.OpExists, "selector of exists")
		note(r.Op == model.OpNotExists, "selector of !")
		note(strings.HasPrefix(r.Key, model.SystemLabelPrefix), "system label in selector")
	}
}

// noteInventory also counts the workloads of every address.
func noteInventory(inv *model.Inventory, note func(bool, string)) map[netip.Addr]int {
	owners := map[netip.Addr]int{}
	for _, x := range inv.Instances {
		for _, a := range x.Addresses {
			owners[a]++
		}
	}
	for _, x := range inv.Instances {
		note(x.Managed && x.Host == x.Name, "managed host")
		note(!x.Managed, "device")
		note(x.Managed && x.Host == "", "no agent yet")
		note(x.IsUnit() && strings.Contains(x.Name, "/"), "found unit")
		note(x.IsUnit() && !strings.Contains(x.Name, "/"), "declared unit")
		note(len(x.Addresses) == 0, "no address")
		note(len(x.Addresses) > 1 && x.Addresses[0].Is4() != x.Addresses[1].Is4(), "two families")
		note(x.IsUnit() && slices.ContainsFunc(x.Addresses, func(a netip.Addr) bool { return owners[a] == 1 }), "own address of a unit")
		note(true, "quarantine "+x.Quarantine.Level.String())
		note(len(x.Quarantine.InUse) > 0, "in use")
		note(x.IsUnit() && x.Quarantine.Level != model.QuarantineNone, "quarantined unit")
		note(len(x.Listening) > 0, "listener")
	}
	return owners
}

// TestInventoryIsSorted shows what code that takes an inventory may rely on.
func TestInventoryIsSorted(t *testing.T) {
	for seed := range uint64(20) {
		_, inv, _ := policytest.Generate(seed, policytest.Small)
		if !slices.IsSortedFunc(inv.Instances, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("seed %d: not sorted", seed)
		}
		for i := 1; i < len(inv.Instances); i++ {
			if inv.Instances[i].Name == inv.Instances[i-1].Name {
				t.Errorf("seed %d: two workloads named %s", seed, inv.Instances[i].Name)
			}
		}
	}
}
