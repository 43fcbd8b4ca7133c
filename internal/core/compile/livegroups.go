package compile

import (
	"slices"

	"bulkhead/internal/core/model"
)

// group is all hosts whose subjects are judged by the same judges, one by one: they are told the same of everything but
// their own names.
type group struct {
	key      string
	subjects []groupSubject
	judges   []*judge // distinct
	hosts    []*liveHost
	state    *groupState
	known    knownSums
	met      uint32 // mark of the last walk that met it

	// Of the latest batch.
	before *groupState // nil: state
	fresh  bool        // it was not there before
	queued bool
	moot   []*liveAddr // addresses that changed and that it may be told of
	drawn  bool        // change is known
	change *groupChange
}

type groupSubject struct {
	labels         int32
	set, isolation *judge
	locals         []*judge
}

// groupState is what the hosts of a group are told, but for the addresses that workloads own: those follow from it. It
// does not change.
type groupState struct {
	subjects []subjectState
	judges   []*judgeState
	contents []*content // distinct
	cover    *cover
}

type subjectState struct {
	set, isolation *judgeState
	locals         []*judgeState
	loss           model.OnAgentLoss
}

func (s *groupState) tells(peer int32) bool {
	for _, c := range s.contents {
		if _, ok := c.find(peer); ok {
			return true
		}
	}
	return false
}

// lists reports whether the hosts are told of an address.
func (s *groupState) lists(r *addrRecord) bool {
	if r == nil {
		return false
	}
	if s.cover.holds(r.cell) || s.tells(r.seen) {
		return true
	}
	for _, m := range r.members {
		if s.tells(m) {
			return true
		}
	}
	return false
}

func (b *batch) group(key string, subjects []groupSubject) *group {
	if g, ok := b.groups[key]; ok {
		return g
	}
	g := &group{key: key, subjects: subjects, fresh: true}
	add := func(j *judge) {
		if !slices.Contains(g.judges, j) {
			g.judges = append(g.judges, j)
			j.groups = append(j.groups, g)
		}
	}
	for i := range subjects {
		add(subjects[i].set)
		add(subjects[i].isolation)
		for _, j := range subjects[i].locals {
			add(j)
		}
	}
	b.groups[key] = g
	b.alter(g)
	return g
}

// alter notes that hosts of the group may be told more than other addresses.
func (b *batch) alter(g *group) {
	if !g.queued {
		g.queued = true
		b.altered = append(b.altered, g)
	}
}

// restate gives the groups that are told more than other addresses their new states. That of a group which no host is in
// any more stays.
func (b *batch) restate() {
	l := b.Live
	if len(b.recover) > 0 || b.recut {
		clear(l.covers)
		for u := range b.recover {
			b.tellers(u, b.alter)
		}
	}
	for _, g := range b.altered {
		if len(g.hosts) > 0 {
			g.before, g.state = g.state, l.describe(g)
		}
	}
}

// describe makes the state of a group.
func (l *Live) describe(g *group) *groupState {
	s := &groupState{judges: make([]*judgeState, len(g.judges)), subjects: make([]subjectState, len(g.subjects))}
	for k, j := range g.judges {
		s.judges[k] = j.state
		for _, c := range j.state.contents {
			if !slices.Contains(s.contents, c) {
				s.contents = append(s.contents, c)
			}
		}
	}
	for k := range g.subjects {
		of := &g.subjects[k]
		st := &s.subjects[k]
		st.set, st.isolation, st.loss = of.set.state, of.isolation.state, l.labelSets[of.labels].profile.onLoss
		for _, j := range of.locals {
			st.locals = append(st.locals, j.state)
		}
	}
	s.cover = l.cover(s.contents)
	return s
}

// sweep frees what the batch left without use.
func (b *batch) sweep() {
	l := b.Live
	for _, g := range b.empty {
		if len(g.hosts) > 0 || l.groups[g.key] != g {
			continue
		}
		delete(l.groups, g.key)
		for _, j := range g.judges {
			j.groups = slices.DeleteFunc(j.groups, func(x *group) bool { return x == g })
			if len(j.groups) == 0 {
				b.idle = append(b.idle, j)
			}
		}
	}
	for _, j := range b.idle {
		if len(j.groups) > 0 || l.judges[j.key] != j {
			continue
		}
		delete(l.judges, j.key)
		if j.identity >= 0 {
			l.judgeOf[j.identity] = slices.DeleteFunc(l.judgeOf[j.identity], func(x *judge) bool { return x == j })
		}
		for _, d := range model.Directions {
			b.detach(j, d)
			j.tables[d] = nil
		}
	}
	for _, t := range b.orphans {
		if len(t.judges) == 0 && l.tableByKey[t.key] == t {
			l.forgetTable(t)
		}
	}
}
