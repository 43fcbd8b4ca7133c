package suggest

import (
	"cmp"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// When a rule speaks for a whole group and not only for the workloads that were seen: so many of them were, or this
// share of the group.
const (
	groupMembers = 2
	groupShare   = 0.5
)

const (
	dynamicPorts = 5 // so many short-lived ports between two groups are one range
	coarseGroups = 3 // so many groups that do the same, and all there are, are one selector
)

// draft is a rule before it has a name.
type draft struct {
	from, to *end
	ports    []model.PortRange // sorted, disjoint
	edges    []int32           // the evidence, sorted
	dynamic  bool
}

// portUse is everything seen on one port, or one range of short-lived ports, between two sides.
type portUse struct {
	ports   model.PortRange
	dynamic bool
	edges   []int32
}

// generalise turns the learnt edges into as few rules as the evidence justifies.
func generalise(r *records, g *grouping) []draft {
	type pair struct {
		src, dst sideID
		proto    model.Proto
	}
	buckets := map[pair][]int32{}
	for i := range r.edges {
		if e := &r.edges[i]; e.fate == FateLearned {
			src, dst := g.sidesOf(e)
			k := pair{src, dst, e.proto}
			buckets[k] = append(buckets[k], int32(i))
		}
	}
	pairs := make([]pair, 0, len(buckets))
	for k := range buckets {
		pairs = append(pairs, k)
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		if c := cmp.Compare(a.src, b.src); c != 0 {
			return c
		}
		if c := cmp.Compare(a.dst, b.dst); c != 0 {
			return c
		}
		return cmp.Compare(a.proto, b.proto)
	})
	m := merger{byEnds: map[mergeKey]int{}}
	for _, k := range pairs {
		for _, use := range collapse(r, buckets[k]) {
			from := g.endOf(k.src, r, use.edges, func(e *edge) partyID { return e.src })
			to := g.endOf(k.dst, r, use.edges, func(e *edge) partyID { return e.dst })
			m.add(from, to, use)
		}
	}
	drafts := m.drafts
	for i := range drafts {
		slices.Sort(drafts[i].edges)
		drafts[i].ports = joinPorts(drafts[i].ports)
	}
	drafts = coarsen(g, drafts, false)
	return coarsen(g, drafts, true)
}

type mergeKey struct {
	from, to *end
	dynamic  bool
}

// merger collects port uses between the same ends into one draft.
type merger struct {
	drafts []draft
	byEnds map[mergeKey]int
}

func (m *merger) add(from, to *end, use portUse) {
	k := mergeKey{from, to, use.dynamic}
	n, ok := m.byEnds[k]
	if !ok {
		n = len(m.drafts)
		m.byEnds[k] = n
		m.drafts = append(m.drafts, draft{from: from, to: to, dynamic: use.dynamic})
	}
	d := &m.drafts[n]
	d.ports = append(d.ports, use.ports)
	d.edges = append(d.edges, use.edges...)
}

// collapse sorts the edges between two sides by port and makes one range of many short-lived ports.
func collapse(r *records, edges []int32) []portUse {
	byPort := map[uint16]*portUse{}
	connections := map[uint16]uint64{}
	for _, i := range edges {
		e := &r.edges[i]
		if byPort[e.port] == nil {
			byPort[e.port] = &portUse{ports: e.ports()}
		}
		byPort[e.port].edges = append(byPort[e.port].edges, i)
		connections[e.port] += e.connections
	}
	ports := make([]uint16, 0, len(byPort))
	var short []uint16
	for p := range byPort {
		ports = append(ports, p)
		if p >= dynamicLow && connections[p] <= thinEdge && !r.edges[byPort[p].edges[0]].proto.IsICMP() {
			short = append(short, p)
		}
	}
	slices.Sort(ports)
	slices.Sort(short)
	var out []portUse
	if len(short) >= dynamicPorts {
		use := portUse{ports: dynamicRange(r.edges[edges[0]].proto, short), dynamic: true}
		for _, p := range short {
			use.edges = append(use.edges, byPort[p].edges...)
			delete(byPort, p)
		}
		out = append(out, use)
	}
	for _, p := range ports {
		if use := byPort[p]; use != nil {
			out = append(out, *use)
		}
	}
	return out
}

// dynamicRange is the narrowest customary range of short-lived ports that holds them all: IANA's, Linux's, or both.
func dynamicRange(proto model.Proto, ports []uint16) model.PortRange {
	lo, hi := ports[0], ports[len(ports)-1]
	switch {
	case lo >= 49152:
		return model.PortRange{Proto: proto, Lo: 49152, Hi: 65535}
	case hi <= 60999:
		return model.PortRange{Proto: proto, Lo: dynamicLow, Hi: 60999}
	}
	return model.PortRange{Proto: proto, Lo: dynamicLow, Hi: 65535}
}

// endOf is the whole side where enough of its members were seen, else the one that was.
func (g *grouping) endOf(n sideID, r *records, edges []int32, party func(*edge) partyID) *end {
	first := party(&r.edges[edges[0]])
	seen := map[partyID]bool{}
	for _, i := range edges {
		seen[party(&r.edges[i])] = true
	}
	members := len(g.sides[n].members)
	if len(seen) >= groupMembers || float64(len(seen)) >= groupShare*float64(members) {
		return g.wholeSide(n)
	}
	return g.single(first)
}

// joinPorts sorts ports and joins neighbours: exactly the same ports, written shorter.
func joinPorts(ports []model.PortRange) []model.PortRange {
	slices.SortFunc(ports, comparePorts)
	out := ports[:0]
	for _, p := range ports {
		if n := len(out); n > 0 && out[n-1].Proto == p.Proto && !p.Proto.IsICMP() && int(p.Lo) <= int(out[n-1].Hi)+1 {
			out[n-1].Hi = max(out[n-1].Hi, p.Hi)
			continue
		}
		out = append(out, p)
	}
	return out
}

// coarsen replaces rules that differ in one end only by one rule, where their groups are all the workloads that an
// app or an environment has. It allows nothing that they do not allow.
func coarsen(g *grouping, drafts []draft, destinations bool) []draft {
	vary := func(d *draft) *end {
		if destinations {
			return d.to
		}
		return d.from
	}
	type bundle struct {
		fixed *end
		ports string
		dyn   bool
	}
	bundles := map[bundle][]int{}
	var order []bundle
	for i := range drafts {
		d := &drafts[i]
		if vary(d).whole == noSide {
			continue
		}
		fixed := d.from
		if !destinations {
			fixed = d.to
		}
		k := bundle{fixed, portsText(d.ports), d.dynamic}
		if bundles[k] == nil {
			order = append(order, k)
		}
		bundles[k] = append(bundles[k], i)
	}
	gone := make([]bool, len(drafts))
	for _, k := range order {
		for _, keys := range [][]string{{keyEnv}, {keyApp, keyEnv}} {
			left := slices.DeleteFunc(slices.Clone(bundles[k]), func(i int) bool { return gone[i] || vary(&drafts[i]).whole == noSide })
			for _, part := range g.partition(left, keys, func(i int) sideID { return vary(&drafts[i]).whole }) {
				g.tryCoarse(drafts, gone, part, keys, destinations)
			}
		}
	}
	out := drafts[:0]
	for i := range drafts {
		if !gone[i] {
			out = append(out, drafts[i])
		}
	}
	return out
}

func portsText(ports []model.PortRange) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = p.String()
	}
	return strings.Join(parts, ",")
}

// partition splits drafts by the labels that their varying groups have under the keys.
func (g *grouping) partition(drafts []int, keys []string, side func(int) sideID) [][]int {
	parts := map[string][]int{}
	for _, i := range drafts {
		k := wanted(g.sides[side(i)].labels, keys).String()
		parts[k] = append(parts[k], i)
	}
	var out [][]int
	for _, k := range sortedKeys(parts) {
		out = append(out, parts[k])
	}
	return out
}

func wanted(l model.Labels, keys []string) model.Labels {
	out := model.Labels{}
	for _, k := range keys {
		if v, ok := l[k]; ok {
			out[k] = v
		}
	}
	return out
}

// tryCoarse replaces the drafts of part by one if their groups are all there are under the labels of keys.
func (g *grouping) tryCoarse(drafts []draft, gone []bool, part []int, keys []string, destinations bool) {
	if len(part) < coarseGroups {
		return
	}
	vary := func(i int) **end {
		if destinations {
			return &drafts[i].to
		}
		return &drafts[i].from
	}
	labels := wanted(g.sides[(*vary(part[0])).whole].labels, keys)
	if len(labels) == 0 || keys[0] == keyApp && labels[keyApp] == "" {
		return
	}
	sides := map[sideID]bool{}
	for _, i := range part {
		sides[(*vary(i)).whole] = true
	}
	var members []partyID
	for n := range g.sides {
		s := &g.sides[n]
		if s.network != "" || !coveredBy(s.labels, labels) {
			continue
		}
		if !sides[sideID(n)] {
			return
		}
		members = append(members, s.members...)
	}
	slices.SortFunc(members, g.r.compareParties)
	keep := part[0]
	*vary(keep) = g.covering(labels, members)
	for _, i := range part[1:] {
		drafts[keep].edges = append(drafts[keep].edges, drafts[i].edges...)
		gone[i] = true
	}
	slices.Sort(drafts[keep].edges)
}

// coveredBy reports whether the selector that covering makes of labels selects a group: its labels agree, and it has an
// env only if labels has.
func coveredBy(group, labels model.Labels) bool {
	for k, v := range labels {
		if got, ok := group[k]; !ok || got != v {
			return false
		}
	}
	_, groupEnv := group[keyEnv]
	_, env := labels[keyEnv]
	return groupEnv == env
}
