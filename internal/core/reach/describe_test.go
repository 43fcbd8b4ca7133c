package reach_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/core/reach"
)

var controller = netip.MustParseAddrPort("203.0.113.200:443")

// TestDescriptionsAreExact reads descriptions back: they mean the actors that were described and no others.
func TestDescriptionsAreExact(t *testing.T) {
	counted := 0
	for seed := range uint64(200) {
		docs, inv, _ := policytest.Generate(seed, policytest.Small)
		u := reach.New(world(t, docs, inv, controller))
		rng := rand.New(rand.NewPCG(seed, 3))
		for range 20 {
			var some []int32
			share := rng.Float64()
			switch rng.IntN(3) {
			case 0: // whole classes
				for i := range u.Classes {
					if rng.Float64() < share {
						some = append(some, u.Classes[i].Members...)
					}
				}
			case 1: // whole label sets
				in := map[string]bool{}
				for i := range u.Actors {
					text := u.Actors[i].Labels.String()
					if _, ok := in[text]; !ok {
						in[text] = rng.Float64() < share
					}
					if in[text] {
						some = append(some, int32(i))
					}
				}
			case 2: // anything, but no part of a workload
				in := map[string]bool{}
				for i := range u.Actors {
					a := &u.Actors[i]
					name := a.Workload
					if !a.Owned() { // nothing but the networks tells addresses and names apart
						name = fmt.Sprint(a.Networks, a.Addr.Is4(), a.Addr == controller.Addr())
					}
					if _, ok := in[name]; !ok {
						in[name] = rng.Float64() < share
					}
					if in[name] {
						some = append(some, int32(i))
					}
				}
			}
			slices.Sort(some)
			text := u.Describe(some)
			got, ok := read(t, u, text)
			if !ok {
				counted++
				continue
			}
			if slices.ContainsFunc(text, func(s string) bool { return strings.HasPrefix(s, "workload ") }) {
				// A workload of which one address of several is meant is named whole.
				some = wholeWorkloads(u, some)
			}
			if !slices.Equal(got, some) {
				t.Fatalf("seed %d: %q means %s, not %s", seed, text, names(u, got), names(u, some))
			}
		}
	}
	if counted > 400 {
		t.Fatalf("%d descriptions of 4000 only count", counted)
	}
}

// TestPairsAreExactInTheirFamily describes flows over one family: what the description means there is what was asked.
func TestPairsAreExactInTheirFamily(t *testing.T) {
	exact := 0
	for seed := range uint64(60) {
		docs, inv, _ := policytest.Generate(seed, policytest.Small)
		w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now})
		if err != nil {
			t.Fatal(err)
		}
		u := reach.New(w)
		for _, is4 := range []bool{true, false} {
			in := func(a *reach.Actor) bool { return !a.Addr.IsValid() || a.Addr.Is4() == is4 }
			var all, some []int32
			chosen := map[string]bool{}
			rng := rand.New(rand.NewPCG(seed, 5))
			for i := range u.Actors {
				a := &u.Actors[i]
				if !in(a) {
					continue
				}
				all = append(all, int32(i))
				if a.Domain != "" {
					continue // no source
				}
				key := a.Is()
				if _, ok := chosen[key]; !ok {
					chosen[key] = rng.IntN(2) == 0
				}
				if chosen[key] {
					some = append(some, int32(i))
				}
			}
			if len(some) == 0 || len(all) == len(u.Actors) {
				continue
			}
			text, other, _ := u.Pair(some, all)
			for k, c := range []struct {
				text []string
				want []int32
			}{{text, some}, {other, all}} {
				got, ok := read(t, u, c.text)
				if !ok {
					continue
				}
				exact++
				got = slices.DeleteFunc(got, func(i int32) bool { return !in(&u.Actors[i]) || k == 0 && u.Actors[i].Domain != "" })
				if !slices.Equal(got, c.want) {
					t.Fatalf("seed %d: %q means %s, not %s", seed, c.text, names(u, got), names(u, c.want))
				}
			}
		}
	}
	if exact < 100 {
		t.Fatalf("only %d descriptions were exact", exact)
	}
}

func wholeWorkloads(u *reach.Universe, some []int32) []int32 {
	in := map[string]bool{}
	for _, i := range some {
		in[u.Actors[i].Workload] = true
	}
	var out []int32
	for i := range u.Actors {
		if a := &u.Actors[i]; a.Owned() && in[a.Workload] || slices.Contains(some, int32(i)) {
			out = append(out, int32(i))
		}
	}
	return out
}

func names(u *reach.Universe, list []int32) string {
	var out []string
	for _, i := range list {
		out = append(out, u.Actors[i].End().String()+u.Actors[i].Addr.String()+"{"+u.Actors[i].Labels.String()+strings.Join(u.Actors[i].Networks, "+")+"}")
	}
	return strings.Join(out, "; ")
}

// read returns the actors that a description means; false if it only counts them.
func read(t *testing.T, u *reach.Universe, text []string) ([]int32, bool) {
	t.Helper()
	in := map[int32]bool{}
	for _, s := range text {
		match, ok := reader(t, s)
		if !ok {
			return nil, false
		}
		for i := range u.Actors {
			if match(&u.Actors[i]) {
				in[int32(i)] = true
			}
		}
	}
	var out []int32
	for i := range u.Actors {
		if in[int32(i)] {
			out = append(out, int32(i))
		}
	}
	return out, true
}

func reader(t *testing.T, s string) (func(*reach.Actor) bool, bool) {
	t.Helper()
	cut := func(prefix string) (string, bool) { return strings.CutPrefix(s, prefix) }
	switch {
	case s == "any":
		return func(*reach.Actor) bool { return true }, true
	case s == "every workload":
		return (*reach.Actor).Owned, true
	case s == "any address":
		return func(a *reach.Actor) bool { return !a.Owned() }, true
	case s == "any other address":
		return func(a *reach.Actor) bool { return !a.Owned() && len(a.Networks) == 0 }, true
	case s == "workloads without labels":
		return func(a *reach.Actor) bool { return a.Owned() && len(a.Labels) == 0 }, true
	case strings.Contains(s, "workloads such as "):
		return nil, false
	}
	for _, all := range []struct {
		prefix string
		owned  bool
	}{{"every workload but ", true}, {"any address but ", false}} {
		rest, ok := cut(all.prefix)
		if !ok {
			continue
		}
		var not []func(*reach.Actor) bool
		for _, part := range strings.Split(rest, " and ") {
			m, ok := reader(t, part)
			if !ok {
				return nil, false
			}
			not = append(not, m)
		}
		return func(a *reach.Actor) bool {
			return a.Owned() == all.owned && !slices.ContainsFunc(not, func(m func(*reach.Actor) bool) bool { return m(a) })
		}, true
	}
	for _, family := range []string{" (IPv4)", " (IPv6)"} {
		if rest, ok := strings.CutSuffix(s, family); ok {
			m, ok := reader(t, rest)
			// Controllers are named by their address.
			return func(a *reach.Actor) bool {
				return m(a) && a.Addr.Is4() == (family == " (IPv4)") && a.Addr != controller.Addr()
			}, ok
		}
	}
	if text, ok := cut("address "); ok {
		addr, domain, _ := strings.Cut(text, " by the name ")
		return func(a *reach.Actor) bool { return !a.Owned() && a.Addr.String() == addr && a.Domain == domain }, true
	}
	if name, ok := cut("workload "); ok {
		return func(a *reach.Actor) bool { return a.Workload == name }, true
	}
	exactly := func(sets []string) (func(*reach.Actor) bool, bool) {
		return func(a *reach.Actor) bool { return !a.Owned() && slices.Equal(a.Networks, sets) }, true
	}
	if rest, ok := strings.CutSuffix(s, " at once"); ok {
		if rest, ok := strings.CutPrefix(rest, "networks "); ok {
			return exactly(strings.Split(rest, " and "))
		}
		var sets []string
		for _, part := range strings.Split(rest, " and ") {
			sets = append(sets, setName(part))
		}
		return exactly(sets)
	}
	if rest, ok := strings.CutSuffix(s, " alone"); ok {
		return exactly([]string{setName(rest)})
	}
	if name := setName(s); name != "" {
		return func(a *reach.Actor) bool { return !a.Owned() && slices.Contains(a.Networks, name) }, true
	}
	sel, err := model.ParseSelector(s)
	if err != nil {
		t.Fatalf("description %q cannot be read: %v", s, err)
	}
	return func(a *reach.Actor) bool { return a.Owned() && sel.Matches(a.Labels) }, true
}

// setName returns the set that "network NAME" and "domain PATTERN" mean; "" for other text.
func setName(s string) string {
	if name, ok := strings.CutPrefix(s, "network "); ok {
		return name
	}
	if pattern, ok := strings.CutPrefix(s, "domain "); ok {
		return model.DomainNetwork(pattern)
	}
	return ""
}

// TestDescriptionsAreShort: what people call one thing is described by one selector.
func TestDescriptionsAreShort(t *testing.T) {
	docs, inv := estate.Make(estate.Size{Workloads: 1000, LabelSets: 100, Rules: 100})
	u := reach.New(world(t, docs, inv))
	for _, c := range []struct{ selector, want string }{
		{"app=app-00003,role=api,env=prod", "app=app-00003,env=prod,role=api"},
		{"app=app-00003", "app=app-00003"},
		{"env=prod", "env=prod"},
		{"app=app-00003,env=dev", "app=app-00003,env=dev"},
		{"role in (api,db),env=dev", "env=dev,role=api|env=dev,role=db"},
		{"env!=prod", "env=dev"},
		{"role!=web", "every workload but role=web"},
	} {
		sel := model.MustParseSelector(c.selector)
		var some []int32
		for i := range u.Actors {
			if u.Actors[i].Owned() && sel.Matches(u.Actors[i].Labels) {
				some = append(some, int32(i))
			}
		}
		if got := strings.Join(u.Describe(some), "|"); got != c.want {
			t.Errorf("%s: got %s, want %s", c.selector, got, c.want)
		}
	}
}
