package suggest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// Addresses that no workload owns are grouped by what they do: who calls one group, who is called by one. Such a class
// becomes one Network: of single addresses, of prefixes where enough of a prefix was seen, or of the whole Internet
// where clients come from all over it.
const (
	prefixAddresses = 4  // a prefix stands for at least so many seen addresses
	prefixShare     = 4  // and at least one in so many of its addresses was seen
	widestIPv4      = 16 // no prefix is shorter
	linkIPv6        = 64 // one IPv6 link; its hosts choose addresses freely, so a share of it means nothing
	internetSeen    = 64 // so many public clients
	internetSpread  = 16 // from so many /8s are the Internet
)

// reach says how far away an address is.
type reach string

const (
	reachLoopback  reach = "loopback"
	reachMulticast reach = "multicast"
	reachLocal     reach = "private"
	reachPublic    reach = "public"
)

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

func reachOf(a netip.Addr) reach {
	switch {
	case a.IsLoopback():
		return reachLoopback
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return reachMulticast
	case a.IsPrivate() || !a.IsGlobalUnicast() || carrierNAT.Contains(a):
		return reachLocal
	}
	return reachPublic
}

// How networks are named after the one group that they call, or that calls them.
const (
	callersOf = "callers-of-"
	calledBy  = "called-by-"
)

// habit is one thing that an address does: it calls a group, or is called by one.
type habit struct {
	calls bool
	group sideID
}

// class is a set of addresses that have a habit, or several.
type class struct {
	reach   reach
	habits  []habit
	inside  string // a Network in force that holds them all, "" if none
	members []partyID
	ports   map[model.PortRange]bool // on which they are called
	flows   int
}

// habitOf is one address in one of its habits.
type habitOf struct {
	address partyID
	habit
}

// groupAddresses makes a side of the addresses that share a habit. An address that calls two groups is in the networks
// of both, unless the same addresses call both: then one network is enough.
func (g *grouping) groupAddresses() {
	classes := g.classify(g.habits())
	known := g.knownAddresses()
	names := map[string]int{}
	for i := range g.r.options.Documents.Networks {
		names[g.r.options.Documents.Networks[i].Name] = 1
	}
	for i := range classes {
		g.addClass(&classes[i], known, names)
	}
}

// habits lists the addresses of each habit, in order.
func (g *grouping) habits() map[habit][]partyID {
	seen := map[habitOf]bool{}
	out := map[habit][]partyID{}
	g.eachHabit(func(h habitOf, _ *edge) {
		if !seen[h] {
			seen[h] = true
			out[h.habit] = append(out[h.habit], h.address)
		}
	})
	for h := range out {
		slices.SortFunc(out[h], g.r.compareParties)
	}
	return out
}

// eachHabit calls fn for the ends of learnt edges that are addresses.
func (g *grouping) eachHabit(fn func(habitOf, *edge)) {
	for i := range g.r.edges {
		e := &g.r.edges[i]
		if e.fate != FateLearned {
			continue
		}
		if !g.r.parties[e.src].owned() {
			fn(habitOf{e.src, habit{true, g.of[e.dst]}}, e)
		}
		if !g.r.parties[e.dst].owned() {
			fn(habitOf{e.dst, habit{false, g.of[e.src]}}, e)
		}
	}
}

// classify splits the addresses of each habit by reach and by the Network in force that holds them, and joins habits of
// the same addresses. A Network in force is used as it is where two of its addresses were seen: one address alone does
// not speak for the others.
func (g *grouping) classify(habits map[habit][]partyID) []class {
	inForce := g.addressOnly()
	inside := map[partyID]string{}
	for _, ids := range habits {
		for _, id := range ids {
			if _, known := inside[id]; !known {
				inside[id] = narrowest(inForce, g.r.parties[id].addr)
			}
		}
	}
	var classes []class
	byKey := map[string]int{}
	for _, h := range sortedHabits(habits) {
		for _, part := range g.split(habits[h], inside) {
			key := part.inside
			if key == "" {
				var b strings.Builder
				for _, id := range part.members {
					b.WriteString(g.r.parties[id].addr.String())
					b.WriteByte(',')
				}
				key = b.String()
			}
			n, ok := byKey[key]
			if !ok {
				n = len(classes)
				byKey[key] = n
				part.ports = map[model.PortRange]bool{}
				classes = append(classes, part)
			}
			c := &classes[n]
			c.habits = append(c.habits, h)
			c.members = union(c.members, part.members, g.r.compareParties)
			for _, id := range part.members {
				g.byHabit[habitOf{id, h}] = int32(n)
			}
		}
	}
	g.eachHabit(func(h habitOf, e *edge) {
		c := &classes[g.byHabit[h]]
		c.flows++
		if !h.calls {
			c.ports[e.ports()] = true
		}
	})
	return classes
}

// split splits addresses of one habit, in order.
func (g *grouping) split(ids []partyID, inside map[partyID]string) []class {
	type key struct {
		reach  reach
		inside string
	}
	keyOf := func(id partyID) key { return key{reachOf(g.r.parties[id].addr), inside[id]} }
	seen := map[key]int{}
	for _, id := range ids {
		seen[keyOf(id)]++
	}
	var out []class
	at := map[key]int{}
	for _, id := range ids {
		k := keyOf(id)
		if seen[k] < 2 {
			k.inside = ""
		}
		n, ok := at[k]
		if !ok {
			n = len(out)
			at[k] = n
			out = append(out, class{reach: k.reach, inside: k.inside})
		}
		out[n].members = append(out[n].members, id)
	}
	return out
}

func union(a, b []partyID, compare func(a, b partyID) int) []partyID {
	if len(a) == 0 {
		return b
	}
	out := slices.Concat(a, b)
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

// sortedHabits orders habits: callers before the called, then by group.
func sortedHabits(habits map[habit][]partyID) []habit {
	out := make([]habit, 0, len(habits))
	for h := range habits {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b habit) int {
		if a.calls != b.calls {
			if a.calls {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.group, b.group)
	})
	return out
}

// narrowest returns the narrowest of the Networks that holds the address, leaving out what is next to everything.
func narrowest(inForce []*model.Network, a netip.Addr) string {
	best, bits := "", -1
	for _, n := range inForce {
		if !n.Contains(a) {
			continue
		}
		for _, c := range n.CIDRs {
			if c.Contains(a) && c.Bits() > bits && c.Bits() >= 8 {
				best, bits = n.Name, c.Bits()
			}
		}
	}
	return best
}

// addressOnly lists the Networks in force that hold no workload's address.
func (g *grouping) addressOnly() []*model.Network {
	var out []*model.Network
	for i := range g.r.options.Documents.Networks {
		if n := &g.r.options.Documents.Networks[i]; !g.holdsWorkload(n) {
			out = append(out, n)
		}
	}
	return out
}

func (g *grouping) holdsWorkload(n *model.Network) bool {
	for id := range g.r.parties {
		if in := g.r.parties[id].instance; in != nil && slices.ContainsFunc(in.Addresses, n.Contains) {
			return true
		}
	}
	return false
}

// knownAddresses lists every address seen or declared, sorted.
func (g *grouping) knownAddresses() []netip.Addr {
	var all []netip.Addr
	for id := range g.r.parties {
		if p := &g.r.parties[id]; p.owned() {
			for _, a := range p.instance.Addresses {
				all = append(all, a.Unmap())
			}
		} else {
			all = append(all, p.addr)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// addClass makes a side of the class, and a Network unless one in force holds it.
func (g *grouping) addClass(c *class, known []netip.Addr, names map[string]int) {
	s := side{members: c.members, network: c.inside, name: slug(c.inside)}
	if c.inside == "" {
		n := model.Network{Meta: model.Meta{Name: uniqueName(names, g.className(c))}}
		if c.reach == reachPublic && !g.called(c) && g.internet(c.members) {
			n.CIDRs, n.Except = g.internetCIDRs(c)
			n.Note = fmt.Sprintf("%s called from all over the Internet; %s.", count(len(c.members), "public address"), count(c.flows, "flow"))
		} else {
			n.CIDRs = prefixes(g.addresses(c.members), known)
			n.Note = fmt.Sprintf("%s that no workload owns, seen in %s.", count(len(c.members), "address"), count(c.flows, "flow"))
		}
		g.networks = append(g.networks, n)
		s.network, s.name = n.Name, n.Name
	}
	g.classSide = append(g.classSide, sideID(len(g.sides)))
	g.sides = append(g.sides, s)
}

func (g *grouping) addresses(ids []partyID) []netip.Addr {
	out := make([]netip.Addr, len(ids))
	for i, id := range ids {
		out[i] = g.r.parties[id].addr
	}
	return out
}

func (g *grouping) called(c *class) bool {
	return slices.ContainsFunc(c.habits, func(h habit) bool { return !h.calls })
}

// className names the class by the service it gives, else by whom it calls or is called by.
func (g *grouping) className(c *class) string {
	switch c.reach {
	case reachLoopback, reachMulticast:
		return string(c.reach)
	}
	if len(c.ports) == 1 && !slices.ContainsFunc(c.habits, func(h habit) bool { return h.calls }) {
		for p := range c.ports {
			if k := portTable[p]; k.service != "" {
				return k.service + "-servers"
			}
		}
	}
	peer := g.sides[c.habits[0].group].name
	if len(c.habits) > 1 {
		peer += "-and-others"
	}
	switch {
	case !g.called(c):
		return slug(callersOf + peer)
	case c.habits[0].calls:
		return slug("peers-of-" + peer)
	}
	return slug(calledBy + peer)
}

func uniqueName(taken map[string]int, name string) string {
	if name == "" {
		name = "unnamed"
	}
	for {
		taken[name]++
		if taken[name] == 1 {
			return name
		}
		next := fmt.Sprintf("%s-%d", name, taken[name])
		if taken[next] == 0 {
			taken[next] = 1
			return next
		}
	}
}

// internet reports whether the addresses are spread as clients from everywhere are.
func (g *grouping) internet(ids []partyID) bool {
	spread := map[byte]bool{}
	n := 0
	for _, id := range ids {
		if a := g.r.parties[id].addr; a.Is4() {
			n++
			spread[a.As4()[0]] = true
		}
	}
	return n >= internetSeen && len(spread) >= internetSpread
}

// internetCIDRs returns public IPv4, without the public addresses of workloads, and the IPv6 addresses seen.
func (g *grouping) internetCIDRs(c *class) (cidrs, except []netip.Prefix) {
	cidrs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	for _, s := range []string{"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.168.0.0/16", "224.0.0.0/3"} {
		except = append(except, netip.MustParsePrefix(s))
	}
	var six []netip.Addr
	for _, id := range c.members {
		if a := g.r.parties[id].addr; a.Is6() {
			six = append(six, a)
		}
	}
	known := g.knownAddresses()
	cidrs = append(cidrs, prefixes(six, known)...)
	var owned []netip.Addr
	for id := range g.r.parties {
		if in := g.r.parties[id].instance; in != nil {
			for _, a := range in.Addresses {
				if a = a.Unmap(); a.Is4() && reachOf(a) == reachPublic {
					owned = append(owned, a)
				}
			}
		}
	}
	slices.SortFunc(owned, netip.Addr.Compare)
	for _, a := range slices.Compact(owned) {
		except = append(except, netip.PrefixFrom(a, 32))
	}
	return cidrs, except
}

// prefixes covers the addresses, which are sorted, by as few prefixes as the evidence justifies. known are all
// addresses there are: a prefix holds none of them that is not covered.
func prefixes(addrs, known []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for lo := 0; lo < len(addrs); {
		top := linkIPv6
		if addrs[lo].Is4() {
			top = widestIPv4
		}
		block := netip.PrefixFrom(addrs[lo], top).Masked()
		hi := lo + 1
		for hi < len(addrs) && block.Contains(addrs[hi]) {
			hi++
		}
		out = split(out, block, addrs[lo:hi], known)
		lo = hi
	}
	return out
}

func split(out []netip.Prefix, block netip.Prefix, addrs, known []netip.Addr) []netip.Prefix {
	if len(addrs) == 0 {
		return out
	}
	bits := block.Bits()
	if bits == addrs[0].BitLen() || justified(block, addrs, known) {
		return append(out, block)
	}
	if len(addrs) < prefixAddresses { // no shorter prefix can be justified
		for _, a := range addrs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
		return out
	}
	low := netip.PrefixFrom(block.Addr(), bits+1)
	n, _ := slices.BinarySearchFunc(addrs, low, func(a netip.Addr, p netip.Prefix) int {
		if p.Contains(a) {
			return -1
		}
		return 1
	})
	out = split(out, low, addrs[:n], known)
	if n < len(addrs) {
		out = split(out, netip.PrefixFrom(addrs[n], bits+1).Masked(), addrs[n:], known)
	}
	return out
}

// justified reports whether the seen addresses speak for the whole block: there are enough, in both halves of it, and
// no other known address is inside.
func justified(block netip.Prefix, addrs, known []netip.Addr) bool {
	if len(addrs) < prefixAddresses {
		return false
	}
	first, _ := slices.BinarySearchFunc(known, addrs[0], netip.Addr.Compare)
	for first > 0 && block.Contains(known[first-1]) {
		first--
	}
	inside := 0
	for i := first; i < len(known) && block.Contains(known[i]); i++ {
		inside++
	}
	if inside != len(addrs) {
		return false
	}
	if block.Addr().Is6() {
		return block.Bits() == linkIPv6
	}
	size := 1 << (32 - block.Bits())
	low := netip.PrefixFrom(block.Addr(), block.Bits()+1)
	return len(addrs)*prefixShare >= size && low.Contains(addrs[0]) && !low.Contains(addrs[len(addrs)-1])
}
