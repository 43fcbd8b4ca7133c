package compile

import (
	"fmt"
	"slices"

	"bulkhead/internal/core/model"
)

// An identity that comes or goes may concern the tables of nearly everybody, so Apply does not judge it there: it takes
// note of the turn, and a table catches up with the turns that it missed when somebody asks what it says. What a row says
// follows from the rules of the table and from the identity, so it may be judged at any time before either is gone:
//
//   - a table whose rules change catches up first, by the rules of before, and is then judged at once;
//   - the slot of an identity that is gone is not used again before every table has caught up with its end;
//   - identities of addresses that no workload owns are judged at once everywhere, so what hosts are told of such
//     addresses is always known;
//   - so is everybody by a table whose rules could make too many ranges of ports: no error can come late.

// turnLog is which identities came or went, in order. Positions in it count from the first that ever was.
type turnLog struct {
	slots []int32
	from  uint64 // the position of slots[0]
}

func (t *turnLog) end() uint64 { return t.from + uint64(len(t.slots)) }

// since returns the identities that turned at the position or later, sorted; false if that is not known any more.
func (t *turnLog) since(position uint64) ([]int32, bool) {
	if position < t.from {
		return nil, false
	}
	list := t.slots[position-t.from:]
	if len(list) < 2 {
		return list, true
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list), true
}

// turn notes that an identity came or went with this batch.
func (b *batch) turn(p int32) {
	l := b.Live
	l.turns.slots = append(l.turns.slots, p)
	if !l.ids.all[p].Owned {
		l.mayTell(p, b.queue)
		return
	}
	for _, t := range l.risky {
		b.queue(t)
	}
}

// were reports whether the identity was there before the batch, and are whether it is there now.
func (b *batch) were(p int32) bool { return b.Live.bornIn[p] < b.number && b.Live.ids.ids[p] != 0 }
func (b *batch) are(p int32) bool  { return b.Live.refs[p] > 0 }

// catchUp brings a table to where it was before the batch. If its rules have changed, it must have been there already.
func (b *batch) catchUp(t *liveTable) {
	l := b.Live
	if t.fixed || t.now == nil || l.judged[t.at] >= b.turnsBefore {
		return
	}
	t.now = b.judgeTurns(t, t.now, l.judged[t.at], b.were)
	l.judged[t.at] = b.turnsBefore
}

// settleTable finds what a table said before the batch, and what it says now if it judges anybody still.
func (b *batch) settleTable(t *liveTable) {
	if t.fixed || t.settled == b.number {
		return
	}
	l := b.Live
	b.catchUp(t)
	t.base, t.settled = t.now, b.number
	if end := l.turns.end(); l.judged[t.at] < end && len(t.judges) > 0 {
		t.now = b.judgeTurns(t, t.now, l.judged[t.at], b.are)
		l.judged[t.at] = end
	}
}

// judgeTurns returns the content with the rows of the identities that turned since a position, of which there says which
// are there.
func (b *batch) judgeTurns(t *liveTable, c *content, position uint64, there func(int32) bool) *content {
	l := b.Live
	turned, known := b.turned, true
	if position != b.turnsBefore {
		turned, known = l.turns.since(position)
	}
	if known && len(turned) == 0 {
		return c
	}
	if !known || len(turned)*4 > len(l.ids.all) {
		built, err := l.builder.rowsOf(&t.subject, t.dir, there)
		if err != nil {
			panic(fmt.Sprintf("compile: a table that was judged before is not judged again: %v", err))
		}
		return contentOf(built, &l.builder.digests, l.functions.functions, l.unownedNetset)
	}
	peers := b.peers[:0]
	for _, p := range turned {
		if there(p) {
			peers = append(peers, p)
		}
	}
	var rows []row
	if len(peers) > 0 {
		peers = b.closure(peers)
		def, judged, err := l.builder.patch(&t.subject, t.dir, peers)
		if err != nil || def != c.def {
			panic(fmt.Sprintf("compile: a table that was judged before is judged otherwise: %v", err))
		}
		for i := range judged {
			if !there(int32(judged[i].peer)) {
				judged[i].fn = none
			}
		}
		rows = judged
	}
	n := len(rows)
	for _, p := range turned {
		if !there(p) {
			if _, told := c.find(p); told {
				rows = append(rows, row{uint32(p), none})
			}
		}
	}
	if n > 0 && n < len(rows) {
		slices.SortFunc(rows, func(x, y row) int { return int(x.peer) - int(y.peer) })
		rows = slices.CompactFunc(rows, func(x, y row) bool { return x.peer == y.peer })
	}
	b.peers = peers[:0]
	return c.with(rows, &l.builder.digests, l.functions.functions, l.unownedNetset)
}

// sweepAtOnce is how many tables a batch lets catch up.
const sweepAtOnce = 2

// sweepTables lets a few tables catch up, so that slots can be used again and turns forgotten: all of them in so many
// batches.
func (b *batch) sweepTables() {
	l := b.Live
	if len(l.buried)+len(l.turns.slots) == 0 {
		return
	}
	for range sweepAtOnce {
		if l.swept--; l.swept < 0 || l.swept >= len(l.tables) {
			l.recycle()
			l.swept = len(l.tables)
			return
		}
		t := l.tables[l.swept]
		b.catchUp(t)
		if t.settled != b.number {
			t.base = nil
		}
	}
}

// recycle frees what no table has to catch up with any more.
func (l *Live) recycle() {
	least := l.turns.end()
	for _, at := range l.judged {
		least = min(least, at)
	}
	n := 0
	for n < len(l.buried) && l.buried[n].end <= least {
		l.identitySlots.free = append(l.identitySlots.free, l.buried[n].slot)
		n++
	}
	l.buried = slices.Delete(l.buried, 0, n)
	l.turns.slots = slices.Delete(l.turns.slots, 0, int(least-l.turns.from))
	l.turns.from = least
}

// buriedSlot is that of an identity that is gone: its last turn is before the end.
type buriedSlot struct {
	slot int32
	end  uint64
}

// hurries reports whether the rules of a table may make too many ranges of ports, so that rows must be judged at once. Each
// range that is painted cuts what is left open at its two ends at most, and a rule for a process counts again what it
// leaves open below it.
func (l *Live) hurries(t *liveTable) bool {
	if t.subject.level == model.QuarantineIsolate {
		return false
	}
	ranges, layers := 8, 1 // essentials, and the last steps
	for _, m := range t.subject.matched[t.dir] {
		for _, at := range l.builder.groups[t.dir][m] {
			r := l.rules[t.dir][at]
			ranges += len(r.Ports)
			if r.SubjectProcess != nil {
				layers += len(r.Ports)
			}
		}
	}
	ranges += len(t.subject.profile.defaults[t.dir].selective)
	return 3*ranges*layers > l.builder.maxCells
}
