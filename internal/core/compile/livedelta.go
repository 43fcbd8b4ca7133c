package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Changes are what one Apply changed for the hosts. They do not change and share memory with each other.
type Changes struct {
	Joined, Left []string // hosts that are new, and that are gone; sorted
	groups       []*groupChange
	moves        []*hostChange
	live         *Live
}

// groupChange is what changed for all hosts of a group alike.
type groupChange struct {
	hosts         []member
	before, after *groupState
	sets          []*hostpolicy.SetDelta
	gone          []hostpolicy.PolicySetID
	addresses     *hostpolicy.AddressDelta
	domains       bool // they differ
	loud          bool // some subject differs
}

// hostChange is what changed for one host that is not what it was.
type hostChange struct {
	groupChange
	shapeBefore []hostSubject
}

// Len returns how many hosts have a delta.
func (c *Changes) Len() int {
	n := len(c.moves)
	for _, g := range c.groups {
		n += len(g.hosts)
	}
	return n
}

// Each yields the delta of every host that was there before, is there now and is told something else. The parts that hosts
// have in common are made already and shared; what is made here is the list of the host's own subjects, and two hashes.
func (c *Changes) Each(yield func(*hostpolicy.Delta) bool) {
	for _, g := range c.groups {
		for i := range g.hosts {
			if h := &g.hosts[i]; !yield(c.live.delta(h.host, h.shape, h.shape, g)) {
				return
			}
		}
	}
	for _, m := range c.moves {
		if !yield(c.live.delta(m.hosts[0].host, m.shapeBefore, m.hosts[0].shape, &m.groupChange)) {
			return
		}
	}
}

func (l *Live) delta(host string, before, after []hostSubject, g *groupChange) *hostpolicy.Delta {
	d := &hostpolicy.Delta{Host: host, Sets: g.sets, GoneSets: g.gone, Addresses: g.addresses}
	if g.domains {
		d.Domains, d.DomainsChanged = g.after.domains, true
	}
	old, now := subjectsOf(before, g.before), subjectsOf(after, g.after)
	d.Base, d.Result = l.hashOf(host, old, g.before), l.hashOf(host, now, g.after)
	if !g.loud {
		return d
	}
	for i := range now {
		same := func(s hostpolicy.Subject) bool { return equalSubjects(&s, &now[i]) }
		if !slices.ContainsFunc(old, same) {
			d.Subjects = append(d.Subjects, now[i])
		}
	}
	for i := range old {
		same := func(s hostpolicy.Subject) bool { return s.Workload == old[i].Workload }
		if !slices.ContainsFunc(now, same) {
			d.GoneSubjects = append(d.GoneSubjects, old[i].Workload)
		}
	}
	return d
}

func equalSubjects(a, b *hostpolicy.Subject) bool {
	return a.Workload == b.Workload && a.Unit == b.Unit && a.Identity == b.Identity && a.Set == b.Set &&
		slices.Equal(a.Local, b.Local) && a.Isolation == b.Isolation && a.Quarantine == b.Quarantine &&
		a.OnAgentLoss == b.OnAgentLoss
}

// tableDiff is what differs between two contents.
type tableDiff struct {
	delta    hostpolicy.TableDelta
	presence []int32 // peers that have a row in one of them only
}

type contentPair struct{ old, now *content }

type statePair struct{ old, now *judgeState }

// diff returns the difference of two contents; old nil stands for a table without rows.
func (b *batch) diff(old, now *content) *tableDiff {
	pair := contentPair{old, now}
	if d, ok := b.diffs[pair]; ok {
		return d
	}
	d := &tableDiff{}
	if old == nil {
		old = &content{def: none}
	}
	funcs := b.functions.funcs
	if old.def != now.def {
		d.delta.Others = funcs[now.def]
	}
	difference(old, now, func(peer, before, after int32) {
		if before == none || after == none {
			d.presence = append(d.presence, peer)
		}
		if after == none {
			d.delta.Gone = append(d.delta.Gone, b.ids.ids[peer])
		} else {
			d.delta.Rows = append(d.delta.Rows, hostpolicy.PeerRow{Peer: b.ids.ids[peer], Func: funcs[after]})
		}
	})
	if len(d.delta.Gone) > 0 && len(d.delta.Rows) > 0 {
		// An identity that has got another slot is gone in one and new in the other.
		named := make(map[model.IdentityID]bool, len(d.delta.Rows))
		for i := range d.delta.Rows {
			named[d.delta.Rows[i].Peer] = true
		}
		d.delta.Gone = slices.DeleteFunc(d.delta.Gone, func(id model.IdentityID) bool { return named[id] })
	}
	b.diffs[pair] = d
	return d
}

// setDelta returns what makes one policy set of another; old nil stands for none.
func (b *batch) setDelta(old, now *judgeState) *hostpolicy.SetDelta {
	pair := statePair{old, now}
	if d, ok := b.setDiffs[pair]; ok {
		return d
	}
	d := &hostpolicy.SetDelta{ID: now.id}
	for _, dir := range model.Directions {
		var from *content
		if old != nil {
			d.From, from = old.id, old.contents[dir]
		}
		d.Tables[dir] = b.diff(from, now.contents[dir]).delta
	}
	b.setDiffs[pair] = d
	return d
}

// sets notes which policy sets the hosts of a group, or one that was in another, need and need no more.
func (b *batch) sets(c *groupChange, sameGroup bool) {
	old, now := distinctSets(c.before), distinctSets(c.after)
	in := func(list []*judgeState, id hostpolicy.PolicySetID) bool {
		_, found := slices.BinarySearchFunc(list, id, func(s *judgeState, id hostpolicy.PolicySetID) int { return cmp.Compare(s.id, id) })
		return found
	}
	for _, s := range now {
		if in(old, s.id) {
			continue
		}
		var from *judgeState
		if k := slices.IndexFunc(c.after.judges, func(j *judgeState) bool { return j.id == s.id }); sameGroup {
			from, s = c.before.judges[k], c.after.judges[k]
		}
		c.sets = append(c.sets, b.setDelta(from, s))
	}
	for _, s := range old {
		if !in(now, s.id) {
			c.gone = append(c.gone, s.id)
		}
	}
}

func sameSubjects(a, b *groupState) bool {
	return slices.EqualFunc(a.subjects, b.subjects, func(x, y subjectState) bool {
		return x.set.id == y.set.id && x.isolation.id == y.isolation.id && x.loss == y.loss &&
			slices.EqualFunc(x.locals, y.locals, func(p, q *judgeState) bool { return p.id == q.id })
	})
}

// restate gives a group its state after the batch, and returns what that changes for its hosts; nil if nothing.
func (b *batch) restate(g *group) *groupChange {
	l := b.Live
	if g.before = g.state; g.state == nil {
		g.state = b.fresh(g)
		return nil
	}
	if !g.altered && !b.recut[g] {
		s := *g.state
		c := &groupChange{before: g.before, after: &s}
		if c.addresses = b.addressDelta(g.before, &s, nil, g.moot); c.addresses.Empty() {
			return nil
		}
		g.state = &s
		return c
	}
	s := l.describe(g)
	var doubt []int32 // peers that may be told apart now and were not, or the reverse
	prefixes := b.recut[g]
	for k, j := range g.judges {
		old, now := g.before.judges[k], j.state
		for d := range now.contents {
			if old.contents[d] != now.contents[d] {
				presence := b.diff(old.contents[d], now.contents[d]).presence
				doubt = append(doubt, presence...)
				prefixes = prefixes || !slices.Equal(old.contents[d].unowned, now.contents[d].unowned)
			}
		}
	}
	if prefixes {
		l.cover(s)
	} else {
		s.prefixes, s.covered, s.domains = g.before.prefixes, g.before.covered, g.before.domains
	}
	c := &groupChange{before: g.before, after: s}
	moot := g.moot
	if len(doubt) > 0 || prefixes {
		moot = b.dirty
	}
	c.addresses = b.addressDelta(g.before, s, doubt, moot)
	g.state = s
	b.sets(c, true)
	c.loud = !sameSubjects(g.before, s)
	if c.quiet() {
		return nil
	}
	return c
}

// fresh returns the state of a group that was not there before.
func (b *batch) fresh(g *group) *groupState {
	s := b.describe(g)
	b.cover(s)
	for i := range s.prefixes {
		s.addresses.Add(s.prefixes[i].Digest())
	}
	b.listed(s, func(r *addrRecord) {
		s.addresses.Add(r.digest)
		s.ports.N += r.portSum.N
		s.ports.Sum.Add(r.portSum.Sum)
	})
	return s
}

// addressDelta returns what changes in the addresses and ports that hosts are told of, from one state to the next, and
// brings the sums of the latter up to date. Peers in doubt may be told apart in one of them only; moot are the addresses
// whose records changed and may be told of.
func (b *batch) addressDelta(old, now *groupState, doubt []int32, moot []*liveAddr) *hostpolicy.AddressDelta {
	l := b.Live
	now.addresses, now.ports = old.addresses, old.ports
	var key []byte
	if len(doubt) == 0 && len(moot) <= 8 && len(old.covered)+len(now.covered) == 0 {
		// Hosts of many groups are told the same of few addresses: they share it.
		for _, e := range moot {
			was, is := old.lists(b.was[e]), now.lists(e.rec)
			if was || is {
				key = append(key, e.addr.AsSlice()...)
				key = append(key, flagByte(was), flagByte(is))
			}
		}
		if len(key) == 0 {
			return nil
		}
		if known, ok := b.addressDeltas[string(key)]; ok {
			known.to(&now.addresses, &now.ports)
			return known.delta
		}
	}
	d := &addressSums{delta: &hostpolicy.AddressDelta{}}
	d.prefixes(old.prefixes, now.prefixes)
	l.mark++
	look := func(e *liveAddr) {
		if e.seen == l.mark {
			return
		}
		e.seen = l.mark
		was, is := e.rec, e.rec
		if e.dirty {
			was = b.was[e]
		}
		if !old.lists(was) {
			was = nil
		}
		if !now.lists(is) {
			is = nil
		}
		d.entry(was, is)
	}
	for _, p := range doubt {
		if old.tells(p) != now.tells(p) {
			for _, e := range l.addrs[p] {
				look(e)
			}
		}
	}
	for _, pair := range [2][2]map[netip.Prefix]bool{{old.covered, now.covered}, {now.covered, old.covered}} {
		for cell := range pair[0] {
			if !pair[1][cell] {
				for _, e := range l.owned.Subnets(cell) {
					look(e)
				}
			}
		}
	}
	for _, e := range moot {
		look(e)
	}
	d.finish()
	d.to(&now.addresses, &now.ports)
	if key != nil {
		b.addressDeltas[string(key)] = d
	}
	return d.delta
}

func flagByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// addressSums is an AddressDelta with what it does to the bags of a policy.
type addressSums struct {
	delta             *hostpolicy.AddressDelta
	gone, new         hostpolicy.Bag
	gonePort, newPort hostpolicy.Bag
}

func (d *addressSums) to(addresses, ports *hostpolicy.Bag) {
	for _, x := range []struct {
		bag       *hostpolicy.Bag
		gone, new *hostpolicy.Bag
	}{{addresses, &d.gone, &d.new}, {ports, &d.gonePort, &d.newPort}} {
		x.bag.N += x.new.N - x.gone.N
		x.bag.Sum.Add(x.new.Sum)
		x.bag.Sum.Remove(x.gone.Sum)
	}
}

func (d *addressSums) entry(was, is *addrRecord) {
	switch {
	case was != nil && is != nil && was.address == is.address:
	case was != nil && is != nil:
		d.delta.Upsert = append(d.delta.Upsert, is.address)
		d.gone.Add(was.digest)
		d.new.Add(is.digest)
	case was != nil:
		d.delta.Remove = append(d.delta.Remove, was.address)
		d.gone.Add(was.digest)
	case is != nil:
		d.delta.Upsert = append(d.delta.Upsert, is.address)
		d.new.Add(is.digest)
	}
	var old, now []hostpolicy.PortOwner
	if was != nil {
		old = was.ports
		d.gonePort.N += was.portSum.N
		d.gonePort.Sum.Add(was.portSum.Sum)
	}
	if is != nil {
		now = is.ports
		d.newPort.N += is.portSum.N
		d.newPort.Sum.Add(is.portSum.Sum)
	}
	for _, o := range now {
		if !slices.Contains(old, o) {
			d.delta.UpsertPorts = append(d.delta.UpsertPorts, o)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n hostpolicy.PortOwner) bool { return hostpolicy.ComparePorts(&n, &o) == 0 }) {
			d.delta.RemovePorts = append(d.delta.RemovePorts, o)
		}
	}
}

func (d *addressSums) prefixes(old, now []hostpolicy.Address) {
	if len(old)+len(now) == 0 || len(old) == len(now) && &old[0] == &now[0] {
		return
	}
	for len(old) > 0 || len(now) > 0 {
		c := -1
		switch {
		case len(old) == 0:
			c = 1
		case len(now) > 0:
			c = hostpolicy.CompareAddresses(&old[0], &now[0])
		}
		if c == 0 && old[0] != now[0] || c > 0 {
			d.delta.Upsert = append(d.delta.Upsert, now[0])
			d.new.Add(now[0].Digest())
		}
		if c == 0 && old[0] != now[0] || c < 0 {
			if c < 0 {
				d.delta.Remove = append(d.delta.Remove, old[0])
			}
			d.gone.Add(old[0].Digest())
		}
		if c <= 0 {
			old = old[1:]
		}
		if c >= 0 {
			now = now[1:]
		}
	}
}

// finish puts the lists into order. An entry that takes the place of one of the same prefix is no removal.
func (d *addressSums) finish() {
	x := d.delta
	byPrefix := func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) }
	byPort := func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) }
	slices.SortFunc(x.Upsert, byPrefix)
	slices.SortFunc(x.Remove, byPrefix)
	slices.SortFunc(x.UpsertPorts, byPort)
	slices.SortFunc(x.RemovePorts, byPort)
	x.Remove = slices.DeleteFunc(x.Remove, func(a hostpolicy.Address) bool {
		_, found := slices.BinarySearchFunc(x.Upsert, a, byPrefix)
		return found
	})
}

// changes restates all groups that the batch concerns and gathers what that changes.
func (b *batch) changes() *Changes {
	l := b.Live
	out := &Changes{live: l}
	restated := make([]*groupChange, 0, len(b.groupQueue))
	owners := make([]*group, 0, len(b.groupQueue))
	for _, g := range b.groupQueue {
		if len(g.hosts) == 0 {
			continue
		}
		if c := b.restate(g); c != nil {
			restated, owners = append(restated, c), append(owners, g)
		}
	}
	moved := make(map[*liveHost]bool, len(b.moves))
	for i := range b.moves {
		m := &b.moves[i]
		moved[m.host] = true
		switch {
		case m.from == nil && m.to == nil:
		case m.from == nil:
			out.Joined = append(out.Joined, m.host.name)
		case m.to == nil:
			out.Left = append(out.Left, m.host.name)
		default:
			if c := b.moveChange(m); c != nil {
				out.moves = append(out.moves, c)
			}
		}
	}
	for i, c := range restated {
		if c.hosts = owners[i].members(moved); len(c.hosts) > 0 {
			out.groups = append(out.groups, c)
		}
	}
	slices.SortFunc(out.Joined, strings.Compare)
	slices.SortFunc(out.Left, strings.Compare)
	return out
}

// moveChange returns what changes for a host that was looked at again.
func (b *batch) moveChange(m *move) *hostChange {
	l := b.Live
	c := &hostChange{shapeBefore: m.shape}
	c.hosts = []member{{m.host.name, m.host.shape}}
	c.before, c.after = m.from.state, m.to.state
	if m.from.before != nil {
		c.before = m.from.before
	}
	if c.before == c.after {
		if slices.EqualFunc(m.shape, m.host.shape, equalShapes) {
			return nil
		}
		c.loud = true
		return c
	}
	after := *c.after // for its sums, which are known already
	l.mark += 2
	first, second := l.mark-1, l.mark
	var doubt []int32
	for _, x := range c.before.contents {
		x.each(func(p, _ int32) { l.identityMark[p] = first })
	}
	for _, x := range c.after.contents {
		x.each(func(p, _ int32) {
			if l.identityMark[p] != first && l.identityMark[p] != second {
				doubt = append(doubt, p)
			}
			l.identityMark[p] = second
		})
	}
	for _, x := range c.before.contents {
		x.each(func(p, _ int32) {
			if l.identityMark[p] == first {
				doubt = append(doubt, p)
				l.identityMark[p] = second
			}
		})
	}
	c.addresses = b.addressDelta(c.before, &after, doubt, b.dirty)
	b.sets(&c.groupChange, m.from == m.to)
	c.loud = !slices.EqualFunc(subjectsOf(m.shape, c.before), subjectsOf(m.host.shape, c.after),
		func(x, y hostpolicy.Subject) bool { return equalSubjects(&x, &y) })
	if c.quiet() {
		return nil
	}
	return c
}

// quiet reports whether nothing changes.
func (c *groupChange) quiet() bool {
	c.domains = !slices.Equal(c.before.domains, c.after.domains)
	return !c.loud && !c.domains && len(c.sets)+len(c.gone) == 0 && c.addresses.Empty()
}

func equalShapes(a, b hostSubject) bool {
	return a.workload == b.workload && a.unit == b.unit && a.identity == b.identity && a.quarantine == b.quarantine &&
		slices.Equal(a.locals, b.locals)
}
