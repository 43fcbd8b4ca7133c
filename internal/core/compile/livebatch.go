package compile

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/hostpolicy"
)

// batch is a change at work.
type batch struct {
	*Live
	number      uint64 // the version of the world that it makes
	turnsBefore uint64 // the end of the log of turns when it began
	turned      []int32

	born, dying   []int32
	lostUnowned   []int32
	touched       []*liveAddr
	was           map[*liveAddr]*addrRecord // touched address to its record before
	dirty         []*liveAddr               // addresses whose record differs
	placesChanged []*place
	recover       map[int32]bool  // unowned identities: who tells them apart must look at prefixes again
	hosts         map[string]bool // to look at again
	moves         []move

	dirtyPeers   [2]map[int32]*dirtyPeers // by direction and subject
	stale        []*judge
	assigned     []*judge // that got other tables
	tablesQueued []*liveTable
	orphans      []*liveTable
	idle         []*judge
	empty        []*group

	unruled []int32  // matches of rules that are gone
	recut   bool     // the address space is cut anew
	altered []*group // that are told more than other addresses

	// Of drawing deltas.
	spread        bool     // toLook is known
	toLook        []*group // altered ones, and those that may be told of dirty addresses
	diffs         map[contentPair]*tableDiff
	setDiffs      map[statePair]*hostpolicy.SetDelta
	addressDeltas map[string]*addressDelta
	hasher        hostpolicy.Hasher
	subjects      []hostpolicy.Subject
	key           []byte

	// Scratch.
	peers    []int32
	contents []*content
}

func (l *Live) apply(c *Change) (*Changes, error) {
	opts, docs := l.opts, l.docs
	if !c.Now.IsZero() {
		opts.Now = c.Now
	}
	if c.Documents != nil {
		docs = c.Documents
	}
	var x *lowered
	if c.Documents != nil || opts.Now.Before(l.opts.Now) || !l.nextExpiry.IsZero() && !opts.Now.Before(l.nextExpiry) {
		var err error
		if x, err = l.lower(docs, opts); err != nil {
			return nil, err
		}
	}
	if l.latest != nil {
		l.latest.finish()
	}
	b := &batch{
		Live: l, number: l.log.version + 1, turnsBefore: l.turns.end(), was: map[*liveAddr]*addrRecord{}, recover: map[int32]bool{}, hosts: map[string]bool{},
		dirtyPeers: [2]map[int32]*dirtyPeers{{}, {}},
		diffs:      map[contentPair]*tableDiff{}, setDiffs: map[statePair]*hostpolicy.SetDelta{}, addressDeltas: map[string]*addressDelta{},
	}
	l.latest = b
	out, err := b.run(c, x, opts)
	if err != nil {
		return nil, &refusedError{err}
	}
	return out, nil
}

func (b *batch) run(c *Change, x *lowered, opts Options) (*Changes, error) {
	l := b.Live
	b.sweepTables()
	l.opts = opts
	for _, name := range c.Gone {
		if w := l.workloads[name]; w != nil {
			b.leave(w)
		}
	}
	for i := range c.Set {
		if w := l.workloads[c.Set[i].Name]; w != nil {
			b.leave(w)
		}
		b.join(&c.Set[i])
	}
	if docs := l.docs; x == nil && len(docs.OneSided) > 0 || x != nil && len(x.values) > 0 {
		// Workloads may have given ports other numbers.
		if x != nil {
			docs = x.docs
		}
		if values := l.portValuesOf(docs); x == nil && !values.equal(l.portValues) || x != nil && !values.equal(x.values) {
			var err error
			if x, err = l.lower(docs, opts); err != nil {
				return nil, err
			}
		}
	}
	if x != nil {
		p := l.plan(x)
		l.docs, l.portValues = x.docs, x.values
		l.nextExpiry = x.nextExpiry
		if p.segments {
			b.resegment(p)
		}
		if p.nets != nil {
			b.cut(p.nets)
		}
		b.adopt(p)
	}
	if err := b.settleIdentities(); err != nil {
		return nil, err
	}
	for _, at := range b.born {
		if l.refs[at] > 0 {
			b.turn(at)
		}
	}
	for _, at := range b.dying {
		if l.refs[at] == 0 {
			b.turn(at)
		}
	}
	b.turned, _ = l.turns.since(b.turnsBefore)
	for _, j := range b.takeStale() {
		b.assign(j)
	}
	for name := range b.hosts {
		b.host(name)
	}
	for _, j := range b.takeStale() {
		b.assign(j)
	}
	if err := b.evaluateAll(); err != nil {
		return nil, err
	}
	changes := make([]addressChange, len(b.dirty))
	for i, e := range b.dirty {
		changes[i] = addressChange{b.was[e], e.rec}
	}
	l.log.next(changes)
	b.restate()
	return b.changes(), nil
}

// settleIdentities settles addresses, and finds which identities are gone for good.
func (b *batch) settleIdentities() error {
	l := b.Live
	b.settle()
	dead := map[int32]bool{}
	for i := 0; i < len(b.dying); i++ {
		at := b.dying[i]
		if l.refs[at] > 0 || dead[at] {
			continue
		}
		dead[at] = true
		for _, m := range l.ids.all[at].members {
			b.release(m)
		}
	}
	b.dying = slices.DeleteFunc(b.dying, func(at int32) bool {
		first := dead[at]
		delete(dead, at)
		return !first
	})
	for _, at := range b.born {
		if l.refs[at] == 0 {
			continue
		}
		id := l.ids.ids[at]
		if other, taken := l.byID[id]; taken && other != at && l.refs[other] > 0 {
			return Errors{{Msg: fmt.Sprintf("two identities have the number %s: change a label of %q or of %q",
				id, l.ids.all[other].Labels, l.ids.all[at].Labels)}}
		}
		l.byID[id] = at
	}
	return nil
}

func (b *batch) takeStale() []*judge {
	list := b.stale
	b.stale = nil
	for _, j := range list {
		j.stale = false
	}
	return list
}

// evaluateAll makes the tables that must not wait, and finds the groups that are told other unowned addresses.
func (b *batch) evaluateAll() error {
	alter := func(j *judge) {
		for _, g := range j.groups {
			b.alter(g)
		}
	}
	for _, t := range b.tablesQueued {
		if len(t.judges) == 0 {
			continue
		}
		if err := b.evaluate(t); err != nil {
			if t.judgesHosts() {
				return err
			}
			// What it judged is gone with this batch, and so will it be: nobody is told what it says now.
			if t.now = t.base; t.now == nil {
				t.now = b.unmanaged.now
			}
		}
		if t.base == nil || !slices.Equal(t.base.unowned, t.now.unowned) {
			for _, j := range t.judges {
				alter(j)
			}
		}
	}
	for _, j := range b.assigned {
		alter(j)
	}
	return nil
}

// spreadTables finds the groups that are told something else because a table says something else.
func (b *batch) spreadTables() {
	l := b.Live
	alter := func(t *liveTable) {
		if t.fixed || t.spread == b.number || len(t.judges) == 0 {
			return
		}
		b.settleTable(t)
		if t.spread = b.number; t.base == t.now {
			return
		}
		for _, j := range t.judges {
			for _, g := range j.groups {
				b.alter(g)
			}
		}
	}
	for _, t := range b.tablesQueued {
		alter(t)
	}
	for _, p := range b.turned {
		l.mayTell(p, alter)
	}
	// The turns of this batch are nothing to all others.
	end := l.turns.end()
	for k, at := range l.judged {
		if at == b.turnsBefore {
			l.judged[k] = end
		}
	}
}

// tellers calls visit for every group that tells the peer from others. Groups of which a table changed, that may have told
// it before the batch, are altered.
func (b *batch) tellers(p int32, visit func(*group)) {
	l := b.Live
	l.mark++
	mark := l.mark
	l.mayTell(p, func(t *liveTable) {
		if t.met == mark || t.now == nil || len(t.judges) == 0 {
			return
		}
		t.met = mark
		if l.judged[t.at] < l.turns.end() {
			b.settleTable(t)
		}
		if _, ok := t.now.find(p); !ok {
			return
		}
		for _, j := range t.judges {
			for _, g := range j.groups {
				if g.met != mark {
					g.met = mark
					visit(g)
				}
			}
		}
	})
}

// finish frees what is not needed any more, and leaves no trace of the batch.
func (b *batch) finish() {
	l := b.Live
	b.sweep()
	for _, at := range b.lostUnowned {
		l.netsets[at].unowned = None
	}
	for _, at := range b.dying {
		if id := l.ids.ids[at]; l.byID[id] == at {
			delete(l.byID, id)
		}
		b.bury(at)
	}
	for _, m := range b.unruled {
		if l.matchInfo[m].key != "" && l.matchInfo[m].refs == 0 {
			l.dropMatch(m)
		}
	}
	if len(b.lostUnowned) > 0 {
		l.dropNetsets()
	}
	for _, t := range b.tablesQueued {
		t.inherit, t.pending, t.rebuild, t.queued = nil, nil, false, false
	}
	for i := range b.moves {
		b.moves[i].host.moved = false
	}
	for _, e := range b.dirty {
		e.dirty = false
	}
	for _, p := range b.placesChanged {
		p.changed = false
	}
}
