package compile

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/hostpolicy"
)

// Changes are what one Apply changed for the hosts. What a host is told is decided; its delta is drawn when somebody asks
// for it, from what the Live holds: so Changes must be read before the next Apply, and not by several goroutines at once.
// The deltas share memory with each other, do not change and may be kept.
type Changes struct {
	Joined, Left []string // hosts that are new, and that are gone; sorted
	batch        *batch
	version      uint64
}

// groupChange is what changed for all hosts of a group alike.
type groupChange struct {
	group         *group // that the hosts are in now
	sameGroup     bool   // they were in it before
	before, after *groupState
	addresses     *addressDelta
	domains       bool // they differ
	loud          bool // some subject differs

	// What only Delta asks for.
	whole    bool // it is known
	old, now hostpolicy.Common
	sets     []*hostpolicy.SetDelta
	gone     []hostpolicy.PolicySetID
}

// changes notes which hosts are new and which are gone.
func (b *batch) changes() *Changes {
	out := &Changes{batch: b, version: b.log.version}
	for i := range b.moves {
		switch m := &b.moves[i]; {
		case m.from == nil && m.to == nil:
		case m.from == nil:
			out.Joined = append(out.Joined, m.host.name)
		case m.to == nil:
			out.Left = append(out.Left, m.host.name)
		}
	}
	slices.SortFunc(out.Joined, strings.Compare)
	slices.SortFunc(out.Left, strings.Compare)
	return out
}

// open returns the batch, which must be the latest.
func (c *Changes) open() *batch {
	if c.version != c.batch.log.version {
		panic("compile: Changes read after the next Apply")
	}
	return c.batch
}

// Len returns how many deltas Each yields. It draws what hosts have in common, and takes most of the time of Each.
func (c *Changes) Len() int {
	n := 0
	c.open().each(func(g *group, m *move) bool {
		switch {
		case m != nil:
			n++
		case len(g.hosts) > 0:
			for _, h := range g.hosts {
				if !h.moved {
					n++
				}
			}
		}
		return true
	})
	return n
}

// Each yields the delta of every host that was there before, is there now and is told something else.
func (c *Changes) Each(yield func(*hostpolicy.Delta) bool) {
	b := c.open()
	b.each(func(g *group, m *move) bool {
		if m != nil {
			return yield(b.delta(m.host.name, m.shape, m.host.shape, m.change))
		}
		for _, h := range g.hosts {
			if !h.moved && !yield(b.delta(h.name, h.shape, h.shape, g.change)) {
				return false
			}
		}
		return true
	})
}

// Delta returns the delta of one host as Each yields it; nil if the host is told nothing else, joined, left or is not
// there.
func (c *Changes) Delta(host string) *hostpolicy.Delta {
	b := c.open()
	h := b.Live.hosts[host]
	if h == nil {
		return nil
	}
	if h.moved {
		at := slices.IndexFunc(b.moves, func(m move) bool { return m.host == h })
		if m := &b.moves[at]; m.from != nil {
			if x := b.drawMove(m); x != nil {
				return b.delta(host, m.shape, h.shape, x)
			}
		}
		return nil
	}
	if x := b.draw(h.group); x != nil {
		return b.delta(host, h.shape, h.shape, x)
	}
	return nil
}

// each calls visit for every group of hosts, and for every moved host, that is told something else, until it returns false.
func (b *batch) each(visit func(*group, *move) bool) {
	for _, g := range b.concerned() {
		if b.draw(g) != nil && !visit(g, nil) {
			return
		}
	}
	for i := range b.moves {
		m := &b.moves[i]
		if m.from != nil && m.to != nil && b.drawMove(m) != nil && !visit(nil, m) {
			return
		}
	}
}

// concerned returns the groups of which the hosts may be told something else.
func (b *batch) concerned() []*group {
	if b.spread {
		return b.toLook
	}
	b.spread = true
	l := b.Live
	b.spreadTables()
	b.toLook = slices.Clone(b.altered)
	told := map[int32][]*group{} // identity to the groups that tell it from others
	for _, e := range b.dirty {
		add := func(p int32) {
			groups, ok := told[p]
			if !ok {
				b.tellers(p, func(g *group) { groups = append(groups, g) })
				told[p] = groups
			}
			for _, g := range groups {
				if g.queued != b.number {
					g.queued, g.moot = b.number, nil
					b.toLook = append(b.toLook, g)
				}
				if n := len(g.moot); n == 0 || g.moot[n-1] != e {
					g.moot = append(g.moot, e)
				}
			}
		}
		for _, r := range [2]*addrRecord{b.was[e], e.rec} {
			if r != nil {
				add(r.seen)
				for _, m := range r.members {
					add(m)
				}
			}
		}
		l.around(l.nets, l.slotOf, netip.PrefixFrom(e.addr, e.addr.BitLen()), add)
	}
	return b.toLook
}

// draw returns what changes for all hosts of a group that were in it before and are in it now; nil if nothing.
func (b *batch) draw(g *group) *groupChange {
	if g.drawn != b.number {
		g.drawn = b.number
		g.change = b.drawGroup(g)
	}
	return g.change
}

func (b *batch) drawGroup(g *group) *groupChange {
	if g.made == b.number || len(g.hosts) == 0 {
		return nil
	}
	l := b.Live
	b.settleGroup(g)
	old, now := g.before, g.state
	c := &groupChange{group: g, sameGroup: true, before: old, after: now}
	var doubt []int32 // peers that may be told apart now and were not, or the reverse
	if old != now {
		for k := range now.judges {
			for d, content := range now.judges[k].contents {
				if was := old.judges[k].contents[d]; was != content {
					doubt = append(doubt, b.diff(was, content).presence...)
				}
			}
		}
		c.loud = !sameSubjects(old, now)
	}
	moot := b.dirty
	if b.spread && len(doubt) == 0 && old.cover == now.cover {
		if moot = nil; g.queued == b.number {
			moot = g.moot
		}
	}
	was, is := &view{groupState: old}, &view{groupState: now}
	if len(doubt)*16 > len(l.ids.all) { // quicker than to look them up one by one
		was, is = l.view(old, 0), l.view(now, 1)
	}
	c.addresses = b.addressDelta(was, is, doubt, moot)
	if c.quiet() {
		return nil
	}
	if known := &g.known; known.state != now || known.version != l.log.version {
		if l.log.advance(known, old, l.log.version-1) {
			known.state, known.version = now, l.log.version
			c.addresses.to(&known.addressSums)
		}
	}
	return c
}

// drawMove returns what changes for a host that was looked at again; nil if nothing.
func (b *batch) drawMove(m *move) *groupChange {
	if m.drawn {
		return m.change
	}
	m.drawn = true
	l := b.Live
	b.settleGroup(m.from)
	b.settleGroup(m.to)
	c := &groupChange{group: m.to, sameGroup: m.from == m.to, before: m.from.before, after: m.to.state}
	old, now := &view{groupState: c.before}, &view{groupState: c.after}
	if c.before != c.after {
		old, now = l.view(c.before, 0), l.view(c.after, 1)
	}
	c.addresses = b.addressDelta(old, now, nil, b.dirty)
	if now.told != nil {
		l.sums(m.to, now)
	}
	c.loud = !slices.EqualFunc(subjectsOf(m.shape, c.before), subjectsOf(m.host.shape, c.after),
		func(x, y hostpolicy.Subject) bool { return equalSubjects(&x, &y) })
	if !c.quiet() {
		m.change = c
	}
	return m.change
}

// complete finds what only deltas ask for.
func (b *batch) complete(c *groupChange) {
	if c.whole {
		return
	}
	c.whole = true
	if c.before != c.after {
		b.sets(c)
	}
	l := b.Live
	after := l.sums(c.group, nil)
	before := *after
	c.addresses.undo(&before)
	c.old, c.now = l.common(c.before, &before), l.common(c.after, after)
}

// quiet reports whether nothing changes.
func (c *groupChange) quiet() bool {
	c.domains = c.before.cover != c.after.cover && !slices.Equal(c.before.cover.domains, c.after.cover.domains)
	return !c.loud && !c.domains && c.addresses.delta.Empty() && (c.before == c.after || sameSets(c.before, c.after))
}

// delta makes the delta of a host.
func (b *batch) delta(host string, before, after []hostSubject, g *groupChange) *hostpolicy.Delta {
	b.complete(g)
	d := &hostpolicy.Delta{Host: host, Sets: g.sets, GoneSets: g.gone, Addresses: g.addresses.delta}
	if g.domains {
		d.Domains, d.DomainsChanged = g.after.cover.domains, true
	}
	if !g.loud {
		// Nobody keeps the subjects: their place is used again.
		b.subjects = appendSubjects(b.subjects[:0], after, g.after)
		b.hasher.Host(host, b.subjects)
		d.Base, d.Result = b.hasher.Hash(g.old), b.hasher.Hash(g.now)
		return d
	}
	old, now := subjectsOf(before, g.before), subjectsOf(after, g.after)
	b.hasher.Host(host, old)
	d.Base = b.hasher.Hash(g.old)
	b.hasher.Host(host, now)
	d.Result = b.hasher.Hash(g.now)
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
