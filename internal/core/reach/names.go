package reach

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// nameClass are the host names that no document tells apart: those of which pattern is the most specific that covers them.
type nameClass struct {
	pattern string
	in      []string // the sets that an address is in by such a name, sorted
}

// nameClasses makes the classes of the patterns that the sets list.
func nameClasses(sets []addressSet) []nameClass {
	holds := map[string][]string{}
	var patterns []string
	for i := range sets {
		for _, p := range sets[i].domains {
			if holds[p] == nil {
				patterns = append(patterns, p)
			}
			holds[p] = append(holds[p], sets[i].name)
		}
	}
	slices.Sort(patterns)
	out := make([]nameClass, len(patterns))
	for i, p := range patterns {
		out[i].pattern = p
		for _, wider := range patterns {
			if suffix, wild := strings.CutPrefix(wider, "*"); wider == p || wild && strings.HasSuffix(p, suffix) {
				out[i].in = append(out[i].in, holds[wider]...)
			}
		}
		slices.Sort(out[i].in)
		out[i].in = slices.Compact(out[i].in)
	}
	return out
}

// with returns the sets that an address of those is in if it was found by such a name.
func (n *nameClass) with(sets []string) []string {
	out := slices.Concat(sets, n.in)
	slices.Sort(out)
	return slices.Compact(out)
}

// example returns a name of the class. A wildcard covers every name with a label more, and only patterns that begin with
// that label are more specific about it.
func (s *addressSpace) example(pattern string) string {
	suffix, wild := strings.CutPrefix(pattern, "*")
	if !wild {
		return pattern
	}
	for label := "any"; ; label += "x" {
		name := label + suffix
		if !slices.ContainsFunc(s.names, func(n nameClass) bool { return n.pattern == name }) {
			return name
		}
	}
}

// unownedKey is what tells addresses apart that no workload owns.
type unownedKey struct {
	networks   string
	is4        bool
	controller netip.Addr
}

func (u *Universe) unownedKey(a *Actor) unownedKey {
	k := unownedKey{networks: strings.Join(a.Networks, "\x00"), is4: a.Addr.Is4()}
	if u.controllerAt(a.Addr) {
		k.controller = a.Addr
	}
	return k
}

// addNamed makes an actor of each set of addresses together with each class of names by which a source may have found them,
// where that makes a difference in some world or a guardrail names it. Such an actor is a destination only. What a name
// says and an address alone says too needs no actor of its own.
func (u *Universe) addNamed() {
	plain := len(u.Actors)
	asked := guarded(u.worlds)
	seen := map[unownedKey]bool{}
	for i := range u.Actors {
		if a := &u.Actors[i]; !a.Owned() && len(u.address.names) > 0 {
			seen[u.unownedKey(a)] = true
		}
	}
	sets := map[string]int32{}
	for i := range u.address.names {
		n := &u.address.names[i]
		name := u.address.example(n.pattern)
		differs := slices.ContainsFunc(n.in, func(set string) bool { return asked[set] })
		for at := range u.Actors[:plain] {
			if u.Actors[at].Owned() {
				continue
			}
			a, ok := u.named(&u.Actors[at], n, name)
			k := u.unownedKey(&a)
			if seen[k] || !ok && !differs {
				continue
			}
			seen[k] = true
			set, known := sets[k.networks]
			if !known {
				set = int32(len(u.NetworkSets))
				sets[k.networks] = set
				u.NetworkSets = append(u.NetworkSets, a.Networks)
			}
			a.NetworkSet = set
			u.Actors, u.byName = append(u.Actors, a), true
		}
	}
}

// named returns what addresses are by a name; differs says that some world tells that from what they are without.
func (u *Universe) named(base *Actor, n *nameClass, name string) (a Actor, differs bool) {
	a = Actor{
		Addr: base.Addr, Networks: n.with(base.Networks), LabelSet: -1, Domain: n.pattern, Name: name,
		views: make([]view, len(u.worlds)), alone: true,
	}
	for i, w := range u.worlds {
		v := &a.views[i]
		v.identity = w.IdentityID(w.UnownedByName(base.Addr, name))
		v.seen = v.identity
		differs = differs || v.identity != base.views[i].identity
	}
	return a, differs
}

// controllerAt reports whether a controller answers at the address in some world.
func (u *Universe) controllerAt(a netip.Addr) bool {
	return slices.ContainsFunc(u.worlds, func(w *compile.World) bool {
		return slices.ContainsFunc(w.Options().Controllers, func(c netip.AddrPort) bool { return c.Addr() == a })
	})
}

// guarded returns the networks and domains that guardrails name.
func guarded(worlds []*compile.World) map[string]bool {
	out := map[string]bool{}
	for _, w := range worlds {
		docs := w.Documents()
		for i := range docs.Guardrails {
			for k := range docs.Guardrails[i].To {
				switch p := &docs.Guardrails[i].To[k]; p.Kind {
				case model.PeerNetwork:
					out[p.Network] = true
				case model.PeerDomain:
					out[model.DomainNetwork(p.Domain)] = true
				}
			}
		}
	}
	return out
}
