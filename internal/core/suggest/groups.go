package suggest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// groupKeys are the labels by which workloads are grouped and selected, in the order in which names are made.
var groupKeys = []string{keyApp, keyRole, keyEnv}

// sideID is an index into grouping.sides.
type sideID int32

const noSide sideID = -1

// side is a set of parties that rules treat alike: the workloads of one app, role and env, or addresses that do the
// same and that no workload owns.
type side struct {
	name     string    // for people: "payments-api"
	app, env string    // "" if unknown
	members  []partyID // in the order of compareParties
	labels   model.Labels
	network  string // addresses: the Network document that holds them
	alone    bool   // one workload that labels do not describe; only its scope label selects it
	end      *end   // that of wholeSide, once it was asked for
}

// grouping sorts the parties of learnt edges into sides.
type grouping struct {
	r        *records
	labels   *labelling
	sides    []side
	of       []sideID // by party; noSide for addresses, whose side depends on what they do
	networks []model.Network

	byHabit   map[habitOf]int32 // class of an address in a habit
	classSide []sideID

	envUsed  bool
	keys     map[string]bool // groups there are, as presence and values of groupKeys
	scopeKey string
	scopes   map[partyID]string // workloads that rules mean alone, and the value of their scope label
	taken    map[string]bool    // scope values in use
	units    map[string][]partyID
	ends     map[string]*end
}

// groupParties settles what existing rules decide, under the labels that workloads will have, and groups the rest.
func groupParties(r *records, labels *labelling) *grouping {
	applyExisting(r, labels.effective)
	g := &grouping{
		r: r, labels: labels, of: make([]sideID, len(r.parties)), keys: map[string]bool{},
		scopes: map[partyID]string{}, taken: map[string]bool{}, units: map[string][]partyID{}, ends: map[string]*end{}, byHabit: map[habitOf]int32{},
	}
	for i := range g.of {
		g.of[i] = noSide
	}
	g.chooseScopeKey()
	g.groupWorkloads()
	g.groupAddresses()
	return g
}

// chooseScopeKey picks the label key that names one workload alone: one that nobody uses for anything else.
func (g *grouping) chooseScopeKey() {
	for _, key := range []string{"workload", "name", "workload-name", "learned-name"} {
		free := true
		for id := range g.r.parties {
			if in := g.r.parties[id].instance; in != nil {
				if v, ok := in.Labels[key]; ok && v != in.Name && v != slug(in.Name) && v != in.Host && v != slug(in.Host) {
					free = false
					break
				}
			}
		}
		if g.scopeKey = key; free {
			return
		}
	}
}

func (g *grouping) groupWorkloads() {
	bySide := map[string]sideID{}
	for _, id := range g.sortedWorkloads() {
		p := &g.r.parties[id]
		if p.instance.IsUnit() {
			g.units[p.instance.Host] = append(g.units[p.instance.Host], id)
		}
		if model.CheckLabelValue(p.name) == nil {
			g.taken[p.name] = true
		}
		labels := g.labels.effective[id]
		if _, ok := labels[keyEnv]; ok {
			g.envUsed = true
		}
		key := groupKey(labels)
		g.keys[key] = true
		_, hasApp := labels[keyApp]
		_, hasRole := labels[keyRole]
		alone := !hasApp && !hasRole
		if alone {
			key = "alone\x00" + p.name
		}
		n, ok := bySide[key]
		if !ok {
			n = sideID(len(g.sides))
			bySide[key] = n
			s := side{app: labels[keyApp], env: labels[keyEnv], labels: model.Labels{}, alone: alone}
			for _, k := range groupKeys {
				if v, ok := labels[k]; ok {
					s.labels[k] = v
				}
			}
			if s.name = groupName(s.app, labels[keyRole]); s.name == "" {
				s.name = slug(p.name)
			}
			g.sides = append(g.sides, s)
		}
		g.sides[n].members = append(g.sides[n].members, id)
		g.of[id] = n
	}
}

func (g *grouping) sortedWorkloads() []partyID {
	var ids []partyID
	for id := range g.r.parties {
		if g.r.parties[id].owned() {
			ids = append(ids, partyID(id))
		}
	}
	slices.SortFunc(ids, g.r.compareParties)
	return ids
}

// sidesOf returns the sides that an edge joins.
func (g *grouping) sidesOf(e *edge) (src, dst sideID) {
	src, dst = g.of[e.src], g.of[e.dst]
	if !g.r.parties[e.src].owned() {
		src = g.classSide[g.byHabit[habitOf{e.src, habit{true, g.of[e.dst]}}]]
	}
	if !g.r.parties[e.dst].owned() {
		dst = g.classSide[g.byHabit[habitOf{e.dst, habit{false, g.of[e.src]}}]]
	}
	return src, dst
}

func groupKey(l model.Labels) string {
	var b strings.Builder
	for _, k := range groupKeys {
		if v, ok := l[k]; ok {
			b.WriteString("=" + v)
		}
		b.WriteByte(0)
	}
	return b.String()
}

// groupName makes payments-api of app payments and role api, and db of app db and role db.
func groupName(app, role string) string {
	a, r := slug(app), slug(role)
	switch {
	case a == "":
		return r
	case r == "" || a == r || strings.HasSuffix(a, "-"+r):
		return a
	}
	return slug(a + "-" + r)
}

// end is one end of a rule.
type end struct {
	key      string
	name     string
	app, env string
	peer     model.Peer
	text     string // the peer as a person reads it
	members  []partyID
	whole    sideID // noSide unless it is all of one group of workloads
}

// wholeSide is the end that means every member of a side, now and later.
func (g *grouping) wholeSide(n sideID) *end {
	s := &g.sides[n]
	if s.end == nil {
		s.end = g.endOfSide(n)
	}
	return s.end
}

func (g *grouping) endOfSide(n sideID) *end {
	s := &g.sides[n]
	if s.alone {
		return g.single(s.members[0])
	}
	if s.network != "" {
		return g.intern(end{
			key: "network " + s.network, name: s.name, members: s.members, whole: noSide, text: "network " + s.network,
			peer: model.Peer{Kind: model.PeerNetwork, Network: s.network},
		})
	}
	sel := g.selector(s.labels)
	return g.intern(end{
		key: sel.String(), name: s.name, app: s.app, env: s.env, members: s.members, whole: n, text: sel.String(),
		peer: model.Peer{Kind: model.PeerWorkloads, Workloads: sel},
	})
}

// single is the end that means one party and nobody else.
func (g *grouping) single(id partyID) *end {
	p := &g.r.parties[id]
	if !p.owned() {
		prefix := netip.PrefixFrom(p.addr, p.addr.BitLen())
		return g.intern(end{
			key: prefix.String(), name: slug(p.addr.String()), members: []partyID{id}, whole: noSide, text: prefix.String(),
			peer: model.Peer{Kind: model.PeerCIDR, CIDR: prefix},
		})
	}
	s := &g.sides[g.of[id]]
	if len(s.members) == 1 && !s.alone {
		return g.wholeSide(g.of[id])
	}
	sel := g.selectorOfOne(id)
	return g.intern(end{
		key: sel.String(), name: slug(p.name), app: s.app, env: s.env, members: []partyID{id}, whole: noSide, text: sel.String(),
		peer: model.Peer{Kind: model.PeerWorkloads, Workloads: sel},
	})
}

// selectorOfOne selects the workload by its scope label. Units inherit that of their host, so a host that is meant
// alone must be told from them: by a label that all of them have and it has not, or by a scope label of theirs.
func (g *grouping) selectorOfOne(id partyID) model.Selector {
	p := &g.r.parties[id]
	sel := model.Selector{Requirements: []model.Requirement{{Key: g.scopeKey, Op: model.OpIn, Values: []string{g.scope(id)}}}}
	units := g.units[p.name]
	if p.instance.IsUnit() || len(units) == 0 {
		return sel
	}
	for _, key := range []string{keyApp, keyRole} {
		lacks := func(id partyID) bool { _, ok := g.labels.effective[id][key]; return !ok }
		if lacks(id) && !slices.ContainsFunc(units, lacks) {
			sel.Requirements = append(sel.Requirements, model.Requirement{Key: key, Op: model.OpNotExists})
			slices.SortFunc(sel.Requirements, func(a, b model.Requirement) int { return strings.Compare(a.Key, b.Key) })
			return sel
		}
	}
	for _, u := range units {
		g.scope(u)
	}
	return sel
}

// covering is the end that means every workload with the labels, of whatever group.
func (g *grouping) covering(labels model.Labels, members []partyID) *end {
	sel := g.selectorOf(labels, []string{keyEnv})
	name := slug(labels[keyApp])
	if name == "" {
		name = slug(labels[keyEnv])
	}
	return g.intern(end{
		key: sel.String(), name: name, app: labels[keyApp], env: labels[keyEnv], members: members, whole: noSide, text: sel.String(),
		peer: model.Peer{Kind: model.PeerWorkloads, Workloads: sel},
	})
}

func (g *grouping) intern(e end) *end {
	if known := g.ends[e.key]; known != nil {
		return known
	}
	g.ends[e.key] = &e
	return &e
}

// scope gives the workload a label that it alone carries, and returns the value.
func (g *grouping) scope(id partyID) string {
	if v, ok := g.scopes[id]; ok {
		return v
	}
	name := g.r.parties[id].name
	value := name
	if model.CheckLabelValue(name) != nil {
		value = slug(name)
		if value == "" {
			value = "workload"
		}
		if len(value) > 58 {
			value = strings.Trim(value[:58], "-")
		}
		for n, base := 2, value; g.taken[value]; n++ {
			value = fmt.Sprintf("%s-%d", base, n)
		}
		g.taken[value] = true
	}
	g.scopes[id] = value
	return value
}

// selector selects the workloads of one group and of no other group: a label that the group lacks is excluded where
// others of the same labels have it, and env wherever anybody has one.
func (g *grouping) selector(labels model.Labels) model.Selector {
	var exclude []string
	for _, k := range groupKeys {
		if _, ok := labels[k]; ok {
			continue
		}
		if k == keyEnv || g.refined(labels, k) {
			exclude = append(exclude, k)
		}
	}
	return g.selectorOf(labels, exclude)
}

// selectorOf selects workloads that have the labels and none of the excluded keys; env counts only if anybody has it.
func (g *grouping) selectorOf(labels model.Labels, exclude []string) model.Selector {
	var sel model.Selector
	for _, k := range []string{keyApp, keyEnv, keyRole} { // sorted, as canonical selectors are
		if v, ok := labels[k]; ok {
			sel.Requirements = append(sel.Requirements, model.Requirement{Key: k, Op: model.OpIn, Values: []string{v}})
		} else if slices.Contains(exclude, k) && (k != keyEnv || g.envUsed) {
			sel.Requirements = append(sel.Requirements, model.Requirement{Key: k, Op: model.OpNotExists})
		}
	}
	return sel
}

// refined reports whether some group has all of the labels and the key as well.
func (g *grouping) refined(labels model.Labels, key string) bool {
	for i := range g.sides {
		other := g.sides[i].labels
		if _, ok := other[key]; !ok || g.sides[i].network != "" {
			continue
		}
		all := true
		for k, v := range labels {
			if got, ok := other[k]; !ok || got != v {
				all = false
				break
			}
		}
		if all {
			return true
		}
	}
	return false
}
