package ebpf

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"

	"github.com/cilium/ebpf"

	"bulkhead/internal/core/budget"
)

// inspected is a map of the kernel of which this process knows what it must hold.
type inspected interface {
	// look goes on looking through it, at about n entries. It returns how many it has seen, whether that was the last part, and
	// whether something may be wrong.
	look(n int) (seen int, done, odd bool, err error)
	// mend compares all of it and puts right what is wrong, which it returns in words; empty: nothing was.
	mend() (found string, err error)
}

// inspectedMaps are the maps that programs only read and verdicts, or their names, depend on.
func (d *Dataplane) inspectedMaps() []inspected {
	h := d.held
	return []inspected{
		&subjectsMirror{d},
		mirrorOf(d, &h.addresses), mirrorOf(d, &h.prefixes), mirrorOf(d, &h.ports), mirrorOf(d, &h.controllers),
		mirrorOf(d, &h.localSets), mirrorOf(d, &h.localIDs), mirrorOf(d, &h.cgroups), mirrorOf(d, &h.units),
		mirrorOf(d, &h.domains), mirrorOf(d, &h.resolvers),
		&mirror[patternKey, uint32]{
			d: d, name: "patterns of host names", m: d.maps.Patterns, size: func() int { return len(h.numbers) },
			want: func(k patternKey) (uint32, bool) {
				n, ok := h.numbers[k]
				return n, ok
			},
			keys: func() iter.Seq[patternKey] { return maps.Keys(h.numbers) },
			same: func(have, want uint32) bool { return have == want },
		},
		&mirror[uint32, guarded]{
			d: d, name: "guarded interfaces", m: d.maps.Guards, size: func() int { return len(d.guarding.entries) },
			want: func(k uint32) (guarded, bool) { v, ok := d.guarding.entries[k]; return v, ok },
			keys: func() iter.Seq[uint32] { return maps.Keys(d.guarding.entries) },
			same: func(have, want guarded) bool { return have == want },
		},
		&mirror[address, uint32]{
			d: d, name: "addresses behind interfaces", m: d.maps.Behind, size: func() int { return len(d.guarding.behind) },
			want: func(k address) (uint32, bool) { v, ok := d.guarding.behind[k]; return v, ok },
			keys: func() iter.Seq[address] { return maps.Keys(d.guarding.behind) },
			same: func(have, want uint32) bool { return have == want },
		},
		&rowMirror[rowKey, row]{
			d: d, name: "policy rows", m: d.maps.Rows, of: budget.Rows, number: func(k rowKey) uint32 { return k.Pset },
			entries: func(l *lowered, _ uint32) ([]rowKey, []row) { return keysOf(l.rows), valuesOf(l.rows) },
		},
		&rowMirror[rangeKey, row]{
			d: d, name: "policy rows for ranges", m: d.maps.Ranges, of: budget.Ranges, number: func(k rangeKey) uint32 { return k.Pset },
			entries: func(l *lowered, _ uint32) ([]rangeKey, []row) { return keysOf(l.ranges), valuesOf(l.ranges) },
		},
		&rowMirror[alternativeKey, alternative]{
			d: d, name: "policy rows for processes", m: d.maps.Alternatives, of: budget.Alternatives,
			number: func(k alternativeKey) uint32 { return k.Pset },
			entries: func(l *lowered, number uint32) ([]alternativeKey, []alternative) {
				return l.alternatives(number), d.alternatives(&l.lists, h.users)
			},
		},
		&mirror[uint64, ruleName]{
			d: d, name: "names of rules", m: d.maps.Rules, size: func() int { return len(h.rules) },
			want: func(k uint64) (name ruleName, ok bool) {
				r, ok := h.rules[k]
				setText(name[:], string(r))
				return name, ok
			},
			keys: func() iter.Seq[uint64] { return maps.Keys(h.rules) },
			same: func(have, want ruleName) bool { return have == want },
		},
	}
}

// scan reads a map part by part. Entries that are there all the while are read once.
type scan[K, V any] struct {
	cursor *ebpf.MapBatchCursor
	keys   []K
	values []V
}

// scanBatch is how many entries are read at once. A bucket of a hash, which cannot be read in parts, is far smaller.
const scanBatch = 512

// next reads the next part of m, which is valid until the call after, and reports whether it was the last.
func (s *scan[K, V]) next(m *ebpf.Map) (keys []K, values []V, done bool, err error) {
	if s.cursor == nil {
		s.cursor = new(ebpf.MapBatchCursor)
	}
	if s.keys == nil {
		n := min(scanBatch, int(m.MaxEntries()))
		s.keys, s.values = make([]K, n), make([]V, n)
	}
	n, err := m.BatchLookup(s.cursor, s.keys, s.values, nil)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		s.cursor, err, done = nil, nil, true
	case err != nil:
		s.cursor = nil
	}
	return s.keys[:n], s.values[:n], done, err
}

// whole reads all of m.
func (s *scan[K, V]) whole(m *ebpf.Map, each func(K, V)) error {
	for done := false; !done; {
		keys, values, last, err := s.next(m)
		if err != nil {
			return err
		}
		for i := range keys {
			each(keys[i], values[i])
		}
		done = last
	}
	return nil
}

// difference is what somebody else has done to a map.
type difference struct{ changed, missing, foreign int }

// in says it in words; nothing if there is none.
func (x difference) in(name string) string {
	if x == (difference{}) {
		return ""
	}
	return fmt.Sprintf("%s: %d entries had been changed, %d taken away and %d added", name, x.changed, x.missing, x.foreign)
}

// mirror is a map of which every entry is held in memory.
type mirror[K comparable, V any] struct {
	d    *Dataplane
	name string
	m    *ebpf.Map
	want func(K) (V, bool)
	keys func() iter.Seq[K]
	size func() int
	same func(have, want V) bool

	scan    scan[K, V]
	began   uint32 // generation in which this turn of looking through it began
	matched int
}

// mirrorOf is a table's. What an entry says of the generation before does not matter.
func mirrorOf[K comparable](d *Dataplane, t *table[K]) inspected {
	return &mirror[K, versioned]{
		d: d, name: t.name, m: t.m, size: func() int { return len(t.held) },
		want: func(k K) (versioned, bool) {
			v, ok := t.held[k]
			return version(v, v, d.gen), ok
		},
		keys: func() iter.Seq[K] { return maps.Keys(t.held) },
		same: func(have, want versioned) bool { return have.at(d.gen) == want.at(d.gen) },
	}
}

func (m *mirror[K, V]) look(n int) (seen int, done, odd bool, err error) {
	if m.scan.cursor == nil {
		m.began, m.matched = m.d.gen, 0
	}
	for seen < n && !done {
		keys, values, last, err := m.scan.next(m.m)
		if err != nil {
			return seen, true, false, fmt.Errorf("read %s: %w", m.name, err)
		}
		for i, k := range keys {
			want, ok := m.want(k)
			if ok && m.same(values[i], want) {
				m.matched++
			} else {
				odd = true
			}
		}
		seen, done = seen+len(keys), last
	}
	if done && m.began == m.d.gen && m.matched != m.size() {
		odd = true
	}
	return seen, done, odd, nil
}

func (m *mirror[K, V]) mend() (string, error) {
	m.scan.cursor = nil
	var found difference
	var foreign, put []K
	good := make(map[K]bool, m.size())
	err := m.scan.whole(m.m, func(k K, have V) {
		switch want, ok := m.want(k); {
		case !ok:
			foreign = append(foreign, k)
		case m.same(have, want):
			good[k] = true
		default:
			found.changed++
		}
	})
	if err != nil {
		return "", fmt.Errorf("read %s: %w", m.name, err)
	}
	var values []V
	for k := range m.keys() {
		if !good[k] {
			want, _ := m.want(k)
			put, values = append(put, k), append(values, want)
		}
	}
	found.foreign, found.missing = len(foreign), len(put)-found.changed
	if err := errors.Join(deleteAll(m.m, foreign), putAll(m.m, put, values)); err != nil {
		return "", fmt.Errorf("%s: %w", found.in(m.name), err)
	}
	return found.in(m.name), nil
}

// rowMirror is a map of what policy sets consist of. Their entries are not held in memory, but a sum of hashes for each
// set.
type rowMirror[K, V comparable] struct {
	d       *Dataplane
	name    string
	m       *ebpf.Map
	of      budget.Resource
	number  func(K) uint32
	entries func(l *lowered, number uint32) ([]K, []V) // of a policy set

	scan  scan[K, V]
	began map[uint32]*heldSet // by number
	sums  map[uint32]uint64
}

var hashSeed = maphash.MakeSeed()

// entrySum is what an entry adds to the sum of its set.
func entrySum[K, V comparable](k K, v V) uint64 {
	return maphash.Comparable(hashSeed, struct {
		k K
		v V
	}{k, v})
}

func (m *rowMirror[K, V]) look(n int) (seen int, done, odd bool, err error) {
	if m.scan.cursor == nil {
		m.began, m.sums = m.d.held.byNumber(), map[uint32]uint64{}
	}
	var now map[uint32]*heldSet
	for seen < n && !done {
		keys, values, last, err := m.scan.next(m.m)
		if err != nil {
			return seen, true, false, fmt.Errorf("read %s: %w", m.name, err)
		}
		for i, k := range keys {
			number := m.number(k)
			m.sums[number] += entrySum(k, values[i])
			if m.began[number] == nil && !m.d.held.spoiled[number] {
				if now == nil {
					now = m.d.held.byNumber()
				}
				odd = odd || now[number] == nil
			}
		}
		seen, done = seen+len(keys), last
	}
	return seen, done, odd || done && len(m.suspects()) > 0, nil
}

// suspects returns the policy sets whose entries are not what they were, as far as that can be known: those that have
// been there all the while, of a policy that this process has applied.
func (m *rowMirror[K, V]) suspects() map[uint32]*heldSet {
	suspects := map[uint32]*heldSet{}
	for _, s := range m.d.held.sets {
		if m.began[s.number] == s && s.from != nil && m.sums[s.number] != m.sum(s) {
			suspects[s.number] = s
		}
	}
	return suspects
}

// sum returns the sum of the entries that the set must have.
func (m *rowMirror[K, V]) sum(s *heldSet) uint64 {
	known := &s.sums[m.of]
	if !known.known {
		keys, values := m.entries(lower(s.from, s.number), s.number)
		known.known = true
		for i := range keys {
			known.sum += entrySum(keys[i], values[i])
		}
	}
	return known.sum
}

func (m *rowMirror[K, V]) mend() (string, error) {
	m.scan.cursor = nil
	m.began, m.sums = m.d.held.byNumber(), map[uint32]uint64{}
	var foreign []K
	err := m.scan.whole(m.m, func(k K, v V) {
		number := m.number(k)
		m.sums[number] += entrySum(k, v)
		if m.began[number] == nil && !m.d.held.spoiled[number] {
			foreign = append(foreign, k)
		}
	})
	if err != nil {
		return "", fmt.Errorf("read %s: %w", m.name, err)
	}
	suspects := m.suspects()
	want := map[K]V{}
	for number, s := range suspects {
		keys, values := m.entries(lower(s.from, s.number), number)
		for i := range keys {
			want[keys[i]] = values[i]
		}
	}
	var found difference
	if len(suspects) > 0 {
		err := m.scan.whole(m.m, func(k K, have V) {
			if suspects[m.number(k)] == nil {
				return
			}
			switch v, ok := want[k]; {
			case !ok:
				foreign = append(foreign, k)
			case v == have:
				delete(want, k)
			default:
				found.changed++
			}
		})
		if err != nil {
			return "", fmt.Errorf("read %s: %w", m.name, err)
		}
	}
	var put []K
	var values []V
	for k, v := range want {
		put, values = append(put, k), append(values, v)
	}
	found.foreign, found.missing = len(foreign), len(put)-found.changed
	if err := errors.Join(deleteAll(m.m, foreign), putAll(m.m, put, values)); err != nil {
		return "", fmt.Errorf("%s: %w", found.in(m.name), err)
	}
	return found.in(m.name), nil
}

// subjectsMirror is who the subjects are.
type subjectsMirror struct{ d *Dataplane }

func (m *subjectsMirror) look(int) (seen int, done, odd bool, err error) {
	seen, wrong, err := m.compare()
	return seen, true, len(wrong) > 0, err
}

func (m *subjectsMirror) mend() (string, error) {
	_, wrong, err := m.compare()
	for _, i := range wrong {
		s := &m.d.held.subjects[i]
		err = errors.Join(err, m.d.writeSubject(i, s.name, s.identity, s.identity, m.d.gen))
	}
	return difference{changed: len(wrong)}.in("workloads"), err
}

// compare returns how many subjects there are, and which are not described as they must be.
func (m *subjectsMirror) compare() (n int, wrong []int, err error) {
	for i := range m.d.held.subjects {
		s := &m.d.held.subjects[i]
		if !s.used {
			continue
		}
		n++
		var info subjectInfo
		if err := m.d.maps.SubjectInfo.Lookup(uint32(i), &info); err != nil {
			return n, nil, fmt.Errorf("read subject %d: %w", i, err)
		}
		if info.Identity.at(m.d.gen).id != s.identity || text(info.Name[:]) != s.name {
			wrong = append(wrong, i)
		}
	}
	return n, wrong, nil
}

// byNumber returns the policy sets by their numbers.
func (h *held) byNumber() map[uint32]*heldSet {
	sets := make(map[uint32]*heldSet, len(h.sets))
	for _, s := range h.sets {
		sets[s.number] = s
	}
	return sets
}
