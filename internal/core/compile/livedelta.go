package compile

import (
	"cmp"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

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
	if old == nil {
		d := b.whole(now)
		b.diffs[pair] = d
		return d
	}
	d := &tableDiff{}
	n := &b.numbering
	n.reset(len(b.functions.funcs))
	if old.def != now.def {
		d.delta.Others = b.functions.funcs[now.def]
	}
	difference(old, now, func(peer, before, after int32) {
		if before == none || after == none {
			d.presence = append(d.presence, peer)
		}
		if after == none {
			d.delta.Gone = append(d.delta.Gone, b.ids.ids[peer])
		} else {
			d.delta.Rows = append(d.delta.Rows, hostpolicy.PeerFunc{Peer: b.ids.ids[peer], Func: n.add(after)})
		}
	})
	if len(d.delta.Rows) > 0 {
		d.delta.Funcs = n.funcs(b.functions.functions)
	}
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

// whole returns the difference of a table without rows and a content, without presence: nobody is in doubt about it.
func (b *batch) whole(now *content) *tableDiff {
	rows := 0
	for _, chunk := range now.chunks {
		rows += len(chunk)
	}
	d := &tableDiff{}
	d.delta.Others = b.functions.funcs[now.def]
	if rows == 0 {
		return d
	}
	n := &b.numbering
	n.reset(len(b.functions.funcs))
	d.delta.Rows = make([]hostpolicy.PeerFunc, 0, rows)
	for _, chunk := range now.chunks {
		for _, r := range chunk {
			d.delta.Rows = append(d.delta.Rows, hostpolicy.PeerFunc{Peer: b.ids.ids[r.peer], Func: n.add(r.fn)})
		}
	}
	d.delta.Funcs = n.funcs(b.functions.functions)
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
func (b *batch) sets(c *groupChange) {
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
		if k := slices.IndexFunc(c.after.judges, func(j *judgeState) bool { return j.id == s.id }); c.sameGroup {
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

// sameSets reports whether two states name the same policy sets.
func sameSets(a, b *groupState) bool {
	return slices.EqualFunc(distinctSets(a), distinctSets(b), func(x, y *judgeState) bool { return x.id == y.id })
}

func sameSubjects(a, b *groupState) bool {
	return slices.EqualFunc(a.subjects, b.subjects, func(x, y subjectState) bool {
		return x.set.id == y.set.id && x.isolation.id == y.isolation.id && x.loss == y.loss &&
			slices.EqualFunc(x.locals, y.locals, func(p, q *judgeState) bool { return p.id == q.id })
	})
}

func equalSubjects(a, b *hostpolicy.Subject) bool {
	return a.Workload == b.Workload && a.Unit == b.Unit && a.Identity == b.Identity && a.Set == b.Set &&
		slices.Equal(a.Local, b.Local) && a.Isolation == b.Isolation && a.Quarantine == b.Quarantine &&
		a.OnAgentLoss == b.OnAgentLoss
}
