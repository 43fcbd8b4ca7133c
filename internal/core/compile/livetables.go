package compile

import (
	"cmp"
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// chunkBits says how many identities a chunk of a table is for. A changed row costs a copy of its chunk and of the list
// of chunks.
const chunkBits = 8

// content is what a table says. It does not change: the next one shares all chunks that are equal.
type content struct {
	chunks [][]row // by the upper bits of the peer; rows sorted by peer
	def    int32
	funcs  []funcBag // sorted by function: those that rows name
	sum    hostpolicy.Sum
	hash   hostpolicy.Hash
	// unowned lists the netsets whose unowned addresses have a row, sorted.
	unowned []int32
}

// funcBag is a function with the peers that it judges.
type funcBag struct {
	fn     int32
	peers  hostpolicy.Bag
	digest hostpolicy.Sum
}

// find returns the function of a peer; ok is false if it has no row.
func (c *content) find(peer int32) (fn int32, ok bool) {
	at := int(peer) >> chunkBits
	if at >= len(c.chunks) {
		return c.def, false
	}
	rows := c.chunks[at]
	lo, hi := 0, len(rows)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if rows[mid].peer < uint32(peer) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(rows) && rows[lo].peer == uint32(peer) {
		return rows[lo].fn, true
	}
	return c.def, false
}

// none is the function of a row that is to go.
const none = int32(-1)

// with returns the content with other rows: sorted by peer, with none for those that go.
func (c *content) with(rows []row, g *digester, f *functions, netsetOf func(peer int32) int32) *content {
	out := &content{chunks: slices.Clone(c.chunks), def: c.def, funcs: slices.Clone(c.funcs), sum: c.sum, hash: c.hash, unowned: c.unowned}
	var touched []int32
	bag := func(fn int32) *funcBag {
		at, ok := slices.BinarySearchFunc(out.funcs, fn, func(b funcBag, fn int32) int { return cmp.Compare(b.fn, fn) })
		if !ok {
			out.funcs = slices.Insert(out.funcs, at, funcBag{fn: fn})
		}
		if !slices.Contains(touched, fn) {
			touched = append(touched, fn)
		}
		return &out.funcs[at]
	}
	changed := false
	for len(rows) > 0 {
		at := int(rows[0].peer) >> chunkBits
		n := 1
		for n < len(rows) && int(rows[n].peer)>>chunkBits == at {
			n++
		}
		for at >= len(out.chunks) {
			out.chunks = append(out.chunks, nil)
		}
		merged, ok := mergeRows(out.chunks[at], rows[:n], func(peer uint32, before, after int32) {
			digest := g.peers[peer]
			if before != none {
				bag(before).peers.Remove(digest)
			}
			if after != none {
				bag(after).peers.Add(digest)
			}
			if before != none && after != none {
				return
			}
			if s := netsetOf(int32(peer)); s >= 0 {
				if after == none {
					out.unowned = remove(slices.Clone(out.unowned), s)
				} else {
					out.unowned = insert(slices.Clone(out.unowned), s)
				}
			}
		})
		if ok {
			out.chunks[at], changed = merged, true
		}
		rows = rows[n:]
	}
	if !changed {
		return c
	}
	for _, fn := range touched {
		b := bag(fn)
		out.sum.Remove(b.digest)
		b.digest = hostpolicy.Sum{}
		if b.peers.N > 0 {
			b.digest = hostpolicy.FuncDigest(g.function(f, fn), &b.peers)
			out.sum.Add(b.digest)
		}
	}
	out.funcs = slices.DeleteFunc(out.funcs, func(b funcBag) bool { return b.peers.N == 0 })
	out.hash = hostpolicy.TableHash(g.function(f, out.def), out.sum)
	return out
}

// mergeRows returns the chunk with other rows, and whether anything differs; change is called for each difference.
func mergeRows(chunk, rows []row, change func(peer uint32, before, after int32)) ([]row, bool) {
	out := make([]row, 0, len(chunk)+len(rows))
	changed := false
	for len(rows) > 0 {
		r := rows[0]
		rows = rows[1:]
		for len(chunk) > 0 && chunk[0].peer < r.peer {
			out = append(out, chunk[0])
			chunk = chunk[1:]
		}
		before := none
		if len(chunk) > 0 && chunk[0].peer == r.peer {
			before = chunk[0].fn
			chunk = chunk[1:]
		}
		if r.fn != none {
			out = append(out, r)
		}
		if before != r.fn {
			changed = true
			change(r.peer, before, r.fn)
		}
	}
	return append(out, chunk...), changed
}

// contentOf returns the content of a table that was built whole.
func contentOf(t table, g *digester, f *functions, netsetOf func(peer int32) int32) *content {
	c := &content{def: t.def}
	c.hash = hostpolicy.TableHash(g.function(f, t.def), hostpolicy.Sum{})
	bags := map[int32]*funcBag{}
	for i := 0; i < len(t.rows); {
		at, j := int(t.rows[i].peer)>>chunkBits, i+1
		for j < len(t.rows) && int(t.rows[j].peer)>>chunkBits == at {
			j++
		}
		for at >= len(c.chunks) {
			c.chunks = append(c.chunks, nil)
		}
		c.chunks[at] = t.rows[i:j:j]
		i = j
	}
	for _, r := range t.rows {
		b := bags[r.fn]
		if b == nil {
			b = &funcBag{fn: r.fn}
			bags[r.fn] = b
		}
		b.peers.Add(g.peers[r.peer])
		if s := netsetOf(int32(r.peer)); s >= 0 {
			c.unowned = append(c.unowned, s)
		}
	}
	slices.Sort(c.unowned)
	for _, b := range bags {
		b.digest = hostpolicy.FuncDigest(g.function(f, b.fn), &b.peers)
		c.sum.Add(b.digest)
		c.funcs = append(c.funcs, *b)
	}
	slices.SortFunc(c.funcs, func(x, y funcBag) int { return cmp.Compare(x.fn, y.fn) })
	c.hash = hostpolicy.TableHash(g.function(f, t.def), c.sum)
	return c
}

// each calls visit for every row.
func (c *content) each(visit func(peer, fn int32)) {
	for _, chunk := range c.chunks {
		for _, r := range chunk {
			visit(int32(r.peer), r.fn)
		}
	}
}

// difference calls change for every peer whose row differs, with none where there is no row. It skips what the two
// share.
func difference(old, now *content, change func(peer, before, after int32)) {
	chunk := func(c *content, at int) []row {
		if at < len(c.chunks) {
			return c.chunks[at]
		}
		return nil
	}
	for at := range max(len(old.chunks), len(now.chunks)) {
		x, y := chunk(old, at), chunk(now, at)
		if len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0]) {
			continue
		}
		for len(x) > 0 || len(y) > 0 {
			switch {
			case len(y) == 0 || len(x) > 0 && x[0].peer < y[0].peer:
				change(int32(x[0].peer), x[0].fn, none)
				x = x[1:]
			case len(x) == 0 || y[0].peer < x[0].peer:
				change(int32(y[0].peer), none, y[0].fn)
				y = y[1:]
			default:
				if x[0].fn != y[0].fn {
					change(int32(x[0].peer), x[0].fn, y[0].fn)
				}
				x, y = x[1:], y[1:]
			}
		}
	}
}

// liveTable is the table of one direction that all subjects share which differ in nothing that counts for it.
type liveTable struct {
	key     string
	subject subject
	dir     model.Direction
	judges  []*judge
	now     *content
	fixed   bool // nothing changes it
	at      int  // index in Live.tables
	inMatch []int
	met     uint32 // mark of the last walk that met it

	// Of the batch that settled it: what it said before.
	settled uint64
	base    *content
	spread  uint64 // the batch that found the groups whom that concerns

	// Of the batch at work.
	inherit *content // what a new table is made from
	pending []int32  // peers to judge anew
	rebuild bool
	queued  bool
}

// liveTable returns the table of a subject, new if there is none; from is a table to begin with, or nil.
func (b *batch) table(s *subject, d model.Direction, from *liveTable) *liveTable {
	l := b.Live
	key := l.tableKey(s, d)
	if t, ok := l.tableByKey[key]; ok {
		return t
	}
	t := &liveTable{key: key, subject: *s, dir: d, rebuild: true}
	l.tableByKey[key] = t
	t.at = len(l.tables)
	l.tables, l.judged = append(l.tables, t), append(l.judged, b.turnsBefore)
	if s.level != model.QuarantineIsolate {
		for _, m := range s.matched[d] {
			list := &l.matchInfo[m].tables[d]
			t.inMatch = append(t.inMatch, len(*list))
			*list = append(*list, t)
		}
	}
	if s.level == model.QuarantineRestrict {
		l.restricted = append(l.restricted, t)
	}
	if base := b.usable(from, s); base != nil && s.level == model.QuarantineNone {
		t.inherit, t.rebuild = base, false
		t.pending = slices.Clone(from.pending)
		for _, m := range s.matched[d] {
			if dirty := b.dirtyPeers[d][m]; dirty != nil {
				if dirty.all {
					t.rebuild = true
				}
				t.pending = append(t.pending, dirty.peers...)
			}
		}
	}
	b.queue(t)
	return t
}

// judgesHosts reports whether the table judges a host that is there.
func (t *liveTable) judgesHosts() bool {
	return slices.ContainsFunc(t.judges, func(j *judge) bool {
		return slices.ContainsFunc(j.groups, func(g *group) bool { return len(g.hosts) > 0 })
	})
}

// usable returns what a table of the subject may begin with; nil if it shares too little with this one.
func (b *batch) usable(t *liveTable, s *subject) *content {
	if t == nil || t.rebuild || t.fixed || t.subject.profile != s.profile || t.subject.own != s.own || t.subject.level != s.level {
		return nil
	}
	if t.inherit != nil {
		return t.inherit
	}
	b.catchUp(t)
	return t.now
}

func (b *batch) queue(t *liveTable) {
	if !t.queued {
		t.queued = true
		b.tablesQueued = append(b.tablesQueued, t)
	}
}

// forgetTable drops a table that judges nobody.
func (l *Live) forgetTable(t *liveTable) {
	delete(l.tableByKey, t.key)
	last := l.tables[len(l.tables)-1]
	l.tables[t.at], l.judged[t.at], last.at = last, l.judged[last.at], t.at
	l.tables, l.judged = l.tables[:len(l.tables)-1], l.judged[:len(l.tables)-1]
	if t.inMatch != nil {
		for k, m := range t.subject.matched[t.dir] {
			list := l.matchInfo[m].tables[t.dir]
			at, end := t.inMatch[k], len(list)-1
			moved := list[end]
			list[at] = moved
			n, _ := slices.BinarySearch(moved.subject.matched[t.dir], m)
			moved.inMatch[n] = at
			l.matchInfo[m].tables[t.dir] = list[:end]
		}
	}
	if t.subject.level == model.QuarantineRestrict {
		l.restricted = slices.DeleteFunc(l.restricted, func(r *liveTable) bool { return r == t })
	}
	l.risky = slices.DeleteFunc(l.risky, func(r *liveTable) bool { return r == t })
}

// mayTell calls visit for every table that may have a row for the peer, some of them more than once.
func (l *Live) mayTell(p int32, visit func(*liveTable)) {
	x := &l.ids.all[p]
	if l.netsets[x.netset].purposes != 0 {
		for _, t := range l.tables {
			visit(t)
		}
		return
	}
	if x.Owned {
		for _, t := range l.restricted {
			visit(t)
		}
	}
	if x.members != nil {
		for _, m := range x.members {
			l.meantBy(m, visit)
		}
		return
	}
	l.meantBy(p, visit)
}

func (l *Live) meantBy(p int32, visit func(*liveTable)) {
	for _, m := range l.meant[p] {
		for d := range l.matchInfo[m].subjects {
			for _, s := range l.matchInfo[m].subjects[d] {
				for _, t := range l.matchInfo[s].tables[d] {
					visit(t)
				}
			}
		}
	}
}

// evaluate makes the new content of a queued table.
func (b *batch) evaluate(t *liveTable) error {
	l := b.Live
	b.catchUp(t)
	base := t.inherit
	if base == nil {
		base = t.now
	}
	t.base, t.settled, t.inherit = base, b.number, nil
	l.judged[t.at] = l.turns.end()
	l.risky = slices.DeleteFunc(l.risky, func(r *liveTable) bool { return r == t })
	if l.hurries(t) {
		l.risky = append(l.risky, t)
	}
	pending := append(t.pending, b.turned...)
	if t.rebuild || base == nil || len(pending)*4 > len(l.ids.all) {
		return b.evaluateWhole(t)
	}
	peers := b.closure(pending)
	var gone []row
	peers = slices.DeleteFunc(peers, func(p int32) bool {
		if b.are(p) {
			return false
		}
		gone = append(gone, row{uint32(p), none})
		return true
	})
	def, rows, err := l.builder.patch(&t.subject, t.dir, peers)
	if err != nil {
		return err
	}
	if def != base.def {
		return b.evaluateWhole(t)
	}
	if len(gone) > 0 {
		rows = append(rows, gone...)
		slices.SortFunc(rows, func(x, y row) int { return int(x.peer) - int(y.peer) })
	}
	t.now = base.with(rows, &l.builder.digests, l.functions.functions, l.unownedNetset)
	return nil
}

func (b *batch) evaluateWhole(t *liveTable) error {
	l := b.Live
	built, err := l.builder.rowsOf(&t.subject, t.dir, b.are)
	if err != nil {
		return err
	}
	t.now = contentOf(built, &l.builder.digests, l.functions.functions, l.unownedNetset)
	return nil
}

// unownedNetset returns the netset of an identity of addresses that no workload owns, else None.
func (l *Live) unownedNetset(p int32) int32 {
	if x := &l.ids.all[p]; !x.Owned {
		return x.netset
	}
	return None
}

// closure returns the peers, sorted, with the shared identities that they are members of and the other members of those.
func (b *batch) closure(peers []int32) []int32 {
	l := b.Live
	out := slices.Clone(peers)
	slices.Sort(out)
	out = slices.Compact(out)
	if len(l.ids.sharedAll) == 0 {
		return out
	}
	for _, p := range out[:len(out):len(out)] {
		out = append(out, l.ids.sharedIn[p]...)
	}
	for _, p := range out[:len(out):len(out)] {
		out = append(out, l.ids.all[p].members...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// tableKey returns what a table of the subject depends on.
func (l *Live) tableKey(s *subject, d model.Direction) string {
	key := []byte{byte(d), byte(s.own), byte(s.level)}
	if s.level != model.QuarantineIsolate {
		key = binary.LittleEndian.AppendUint32(key, l.profileNumber[s.profile])
		key = binary.LittleEndian.AppendUint32(key, uint32(len(s.matched[d])))
		for _, m := range s.matched[d] {
			key = binary.LittleEndian.AppendUint32(key, uint32(m))
		}
	}
	if s.level == model.QuarantineRestrict {
		one := [2][]restriction{}
		one[d] = s.inUse[d]
		key = appendInUse(key, &one)
	}
	return string(key)
}
