package compile

import (
	"math/bits"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// What judges and groups say follows from their tables, and is found when somebody asks: as it was before the batch, and as
// it is now.

// judgeState is a policy set. It does not change.
type judgeState struct {
	id       hostpolicy.PolicySetID
	contents [2]*content
}

// groupState is what the hosts of a group are told, but for the addresses that workloads own: those follow from it. It
// does not change.
type groupState struct {
	*groupTold
	subjects []subjectState
	judges   []*judgeState
	contents []*content // distinct
}

// groupTold is the part of a groupState that is always known. It does not change.
type groupTold struct {
	cover *cover
	loss  []model.OnAgentLoss // by subject
}

type subjectState struct {
	set, isolation *judgeState
	locals         []*judgeState
	loss           model.OnAgentLoss
}

// view is a state of which somebody asks whom it tells from others.
type view struct {
	*groupState
	told bitset // the answers, also for shared identities; nil: they are looked for row by row
}

// tells reports whether the state tells the peer from others, or one of those that it stands for.
func (v *view) tells(peer int32, members []int32) bool {
	if v.told != nil {
		return v.told.has(peer)
	}
	return v.finds(peer) || slices.ContainsFunc(members, v.finds)
}

func (s *groupState) finds(peer int32) bool {
	for _, c := range s.contents {
		if _, ok := c.find(peer); ok {
			return true
		}
	}
	return false
}

// lists reports whether the hosts are told of an address.
func (v *view) lists(r *addrRecord) bool {
	return r != nil && (v.cover.holds(r.cell) || v.tells(r.seen, r.members))
}

// view returns the state with whom it tells from others; there are places for two of them, which are used again.
func (l *Live) view(s *groupState, place int) *view {
	told := l.told[place]
	told.clear()
	for n := (len(l.ids.all) + 63) / 64; len(told) < n; {
		told = append(told, 0)
	}
	for _, c := range s.contents {
		for _, chunk := range c.chunks {
			for _, r := range chunk {
				told[r.peer/64] |= 1 << (r.peer % 64)
			}
		}
	}
	for at, word := range l.members {
		for word &= told[at]; word != 0; word &= word - 1 {
			for _, shared := range l.ids.sharedIn[at*64+bits.TrailingZeros64(word)] {
				told.add(shared)
			}
		}
	}
	l.told[place] = told
	return &view{s, told}
}

func newJudgeState(contents [2]*content) *judgeState {
	return &judgeState{
		id:       hostpolicy.SetID(contents[model.Ingress].hash, contents[model.Egress].hash),
		contents: contents,
	}
}

// settleJudge finds the states of a judge before the batch, nil if it is new, and now.
func (b *batch) settleJudge(j *judge) {
	if j.settled == b.number {
		return
	}
	j.settled = b.number
	old := j.tables
	if j.moved == b.number {
		old = j.was
	}
	var before, now [2]*content
	for d := range now {
		b.settleTable(j.tables[d])
		now[d] = j.tables[d].now
		if j.made < b.number {
			b.settleTable(old[d])
			if before[d] = old[d].base; old[d].fixed {
				before[d] = old[d].now
			}
		}
	}
	known := j.state
	j.before = nil
	if j.made < b.number {
		if known == nil || known.contents != before {
			known = newJudgeState(before)
		}
		j.before = known
	}
	if known == nil || known.contents != now {
		known = newJudgeState(now)
	}
	j.state = known
}

// settleGroup finds the states of a group before the batch, nil if it is new, and now.
func (b *batch) settleGroup(g *group) {
	if g.settled == b.number {
		return
	}
	g.settled = b.number
	before, now := make([]*judgeState, len(g.judges)), make([]*judgeState, len(g.judges))
	for k, j := range g.judges {
		b.settleJudge(j)
		before[k], now[k] = j.before, j.state
	}
	known := g.state
	g.before = nil
	if g.made < b.number {
		told := g.told
		if g.retold == b.number {
			told = g.toldBefore
		}
		if known == nil || !known.is(told, before) {
			known = g.describe(told, before)
		}
		g.before = known
	}
	if known == nil || !known.is(g.told, now) {
		known = g.describe(g.told, now)
	}
	g.state = known
}

func (s *groupState) is(told *groupTold, judges []*judgeState) bool {
	return s.groupTold == told && slices.Equal(s.judges, judges)
}

// describe makes the state of a group of which the judges have these states.
func (g *group) describe(told *groupTold, judges []*judgeState) *groupState {
	s := &groupState{groupTold: told, judges: judges, subjects: make([]subjectState, len(g.subjects))}
	for _, j := range judges {
		for _, c := range j.contents {
			if !slices.Contains(s.contents, c) {
				s.contents = append(s.contents, c)
			}
		}
	}
	of := func(j *judge) *judgeState { return judges[slices.Index(g.judges, j)] }
	for k := range g.subjects {
		from, to := &g.subjects[k], &s.subjects[k]
		to.set, to.isolation, to.loss = of(from.set), of(from.isolation), told.loss[k]
		for _, j := range from.locals {
			to.locals = append(to.locals, of(j))
		}
	}
	return s
}

// retell finds what a group is told of unowned addresses and of the loss of its agent.
func (b *batch) retell(g *group) {
	l := b.Live
	told := &groupTold{loss: make([]model.OnAgentLoss, len(g.subjects))}
	for k := range g.subjects {
		told.loss[k] = l.labelSets[g.subjects[k].labels].profile.onLoss
	}
	contents := b.contents[:0]
	for _, j := range g.judges {
		for _, t := range j.tables {
			if !slices.Contains(contents, t.now) {
				contents = append(contents, t.now)
			}
		}
	}
	told.cover = l.cover(contents)
	b.contents = contents
	if g.told != nil && g.told.cover == told.cover && slices.Equal(g.told.loss, told.loss) {
		return
	}
	if g.retold != b.number {
		g.retold, g.toldBefore = b.number, g.told
	}
	g.told = told
}
