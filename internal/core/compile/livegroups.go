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
	told     *groupTold
	known    knownSums
	met      uint32 // mark of the last walk that met it
	made     uint64 // batch

	// Of the batch that settled it: see settleGroup.
	settled       uint64
	before, state *groupState
	// Of the batch that retold it.
	retold     uint64
	toldBefore *groupTold

	// Of the batch that queued it.
	queued uint64
	moot   []*liveAddr // addresses that changed and that it may be told of
	// Of the batch that drew it.
	drawn  uint64
	change *groupChange
}

type groupSubject struct {
	labels         int32
	set, isolation *judge
	locals         []*judge
}

func (b *batch) group(key string, subjects []groupSubject) *group {
	if g, ok := b.groups[key]; ok {
		return g
	}
	g := &group{key: key, subjects: subjects, made: b.number}
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
	if g.queued != b.number {
		g.queued, g.moot = b.number, nil
		b.altered = append(b.altered, g)
	}
}

// restate finds what groups are told of what is always known, where that may differ.
func (b *batch) restate() {
	l := b.Live
	if len(b.recover) > 0 || b.recut {
		clear(l.covers)
		for u := range b.recover {
			b.tellers(u, b.alter)
		}
	}
	for _, g := range b.altered {
		b.retell(g)
	}
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
