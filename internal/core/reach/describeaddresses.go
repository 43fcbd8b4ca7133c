package reach

import (
	"cmp"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

func (d *describer) describeAddresses(addresses []int32) []string {
	if len(addresses) == 0 {
		return nil
	}
	if len(addresses) == d.addresses {
		return []string{"any address"}
	}
	out := d.coverAddresses(addresses)
	if excepted := d.otherNames(addresses); len(out) > 1 && excepted != nil {
		ambiguous := func(s string) bool { return strings.Contains(s, " and ") }
		if rest := d.coverAddresses(excepted); len(rest) < len(out) && !slices.ContainsFunc(rest, ambiguous) {
			return []string{"any address but " + strings.Join(rest, " and ")}
		}
	}
	return out
}

// otherNames returns the addresses that are not among those given, which are sorted, if all of them are found by a name.
func (d *describer) otherNames(addresses []int32) []int32 {
	if len(addresses)+d.named < d.addresses {
		return nil
	}
	var out []int32
	for i, n := range d.setOf {
		if n != -1 {
			continue
		}
		if _, in := slices.BinarySearch(addresses, int32(i)); in {
			continue
		}
		if d.u.Actors[i].Domain == "" {
			return nil
		}
		out = append(out, int32(i))
	}
	return out
}

func (d *describer) coverAddresses(addresses []int32) []string {
	inside := map[int32]bool{}
	hits := map[string]int{}
	var names []string
	for _, a := range addresses {
		inside[a] = true
		for _, n := range d.u.Actors[a].Networks {
			if hits[n] == 0 {
				names = append(names, n)
			}
			hits[n]++
		}
	}
	// The widest networks first: one that holds others says it all.
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(d.networks[b]), len(d.networks[a])), strings.Compare(a, b))
	})
	var out []string
	for _, n := range names {
		if hits[n] != len(d.networks[n]) || !slices.ContainsFunc(d.networks[n], func(a int32) bool { return inside[a] }) {
			continue
		}
		out = append(out, setText(n))
		for _, a := range d.networks[n] {
			delete(inside, a)
		}
	}
	left := map[string][]int32{} // networks to the addresses that are in just those
	for _, a := range addresses {
		if inside[a] {
			k := d.onlyIn(a)
			left[k] = append(left[k], a)
		}
	}
	for k, list := range left {
		if len(list) == d.same[k] {
			out = append(out, k)
			continue
		}
		for _, a := range list {
			out = append(out, d.address(&d.u.Actors[a], k))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// onlyIn describes the addresses that are in just the networks that the actor's are in.
func (d *describer) onlyIn(actor int32) string {
	switch in := d.u.Actors[actor].Networks; len(in) {
	case 0:
		return "any other address"
	case 1:
		return setText(in[0]) + " alone"
	default:
		parts, domains := make([]string, len(in)), false
		for i, n := range in {
			parts[i] = setText(n)
			domains = domains || strings.HasPrefix(n, model.DomainNetwork(""))
		}
		if domains {
			return strings.Join(parts, " and ") + " at once"
		}
		return "networks " + strings.Join(in, " and ") + " at once"
	}
}

// setText names a network, a literal CIDR or a domain.
func setText(name string) string {
	if pattern, ok := strings.CutPrefix(name, model.DomainNetwork("")); ok {
		return "domain " + pattern
	}
	return "network " + name
}

// address describes one actor of several that are in the same networks.
func (d *describer) address(a *Actor, onlyIn string) string {
	if d.u.controllerAt(a.Addr) {
		if a.Domain != "" {
			return "address " + a.Addr.String() + " by the name " + a.Domain
		}
		return "address " + a.Addr.String()
	}
	if a.Addr.Is4() {
		return onlyIn + " (IPv4)"
	}
	return onlyIn + " (IPv6)"
}
