package ebpf

import (
	"errors"
	"fmt"
	"iter"

	"github.com/cilium/ebpf"
)

// value is what a map of struct versioned says in one generation. The zero value is "none".
type value struct {
	id     uint64
	shared bool
}

// table is a map of struct versioned, and what it says in the generation in force.
type table[K comparable] struct {
	name string
	m    *ebpf.Map
	held map[K]value
}

// change is one entry that must differ in the next generation.
type change[K comparable] struct {
	key           K
	before, after value
	isNew, isGone bool // the entry is not there yet; it must not stay
}

// diff returns what must change for the table to say desired, which yields each key once. Where one of the two has no
// entry, the functions say what holds for the key instead; nil is nothing.
func (t *table[K]) diff(desired iter.Seq2[K, value], without, withoutNext func(K) value) []change[K] {
	var changes []change[K]
	known := 0
	for k, after := range desired {
		before, ok := t.held[k]
		if ok {
			if known++; before == after {
				continue
			}
		} else if without != nil {
			before = without(k)
		}
		changes = append(changes, change[K]{key: k, before: before, after: after, isNew: !ok})
	}
	if known == len(t.held) {
		return changes // as most times: nothing goes
	}
	stays := make(map[K]bool, known)
	for k := range desired {
		stays[k] = true
	}
	for k, before := range t.held {
		if stays[k] {
			continue
		}
		var after value
		if withoutNext != nil {
			after = withoutNext(k)
		}
		changes = append(changes, change[K]{key: k, before: before, after: after, isGone: true})
	}
	return changes
}

// room returns an error if the entries do not fit. Entries that go leave only after those that come are there.
func (t *table[K]) room(changes []change[K]) error {
	n := len(t.held)
	for _, c := range changes {
		if c.isNew {
			n++
		}
	}
	if limit := int(t.m.MaxEntries()); n > limit {
		return fmt.Errorf("%s: %d entries do not fit into %d", t.name, n, limit)
	}
	return nil
}

// write puts the changes into the map, to hold from generation gen on.
func (t *table[K]) write(changes []change[K], gen uint32) error {
	keys := make([]K, len(changes))
	values := make([]versioned, len(changes))
	for i, c := range changes {
		keys[i] = c.key
		values[i] = version(c.before, c.after, gen)
	}
	if err := putAll(t.m, keys, values); err != nil {
		return fmt.Errorf("write %s: %w", t.name, err)
	}
	return nil
}

// undo takes back what write has put there, in generation gen, which is in force.
func (t *table[K]) undo(changes []change[K], gen uint32) error {
	var errs []error
	for _, c := range changes {
		if c.isNew {
			if err := t.m.Delete(c.key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("take back %s: %w", t.name, err))
			}
			continue
		}
		v := version(c.before, c.before, gen)
		if err := t.m.Put(c.key, &v); err != nil {
			errs = append(errs, fmt.Errorf("take back %s: %w", t.name, err))
		}
	}
	return errors.Join(errs...)
}

// finish deletes what no longer holds, once the generation of the changes is in force. What cannot be deleted is still
// held: the next change finds it.
func (t *table[K]) finish(changes []change[K]) error {
	var gone []K
	for _, c := range changes {
		t.held[c.key] = c.after
		if c.isGone {
			gone = append(gone, c.key)
		}
	}
	if err := deleteAll(t.m, gone); err != nil {
		return fmt.Errorf("clean %s: %w", t.name, err)
	}
	for _, k := range gone {
		delete(t.held, k)
	}
	return nil
}

// renew writes every entry as if it held since gen, which is in force.
func (t *table[K]) renew(gen uint32) error {
	keys := make([]K, 0, len(t.held))
	values := make([]versioned, 0, len(t.held))
	for k, v := range t.held {
		keys = append(keys, k)
		values = append(values, version(v, v, gen))
	}
	if err := putAll(t.m, keys, values); err != nil {
		return fmt.Errorf("renew %s: %w", t.name, err)
	}
	return nil
}

// read fills held from the kernel. An agent that died before storing the next generation has left entries that are meant
// for it: they are made to say what they say now.
func (t *table[K]) read(gen uint32) error {
	t.held = map[K]value{}
	stale := map[K]versioned{}
	var k K
	var v versioned
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		t.held[k] = v.at(gen)
		if int32(gen-v.Since) < 0 {
			stale[k] = version(t.held[k], t.held[k], gen)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read %s: %w", t.name, err)
	}
	for k, v := range stale {
		if err := t.m.Put(k, &v); err != nil {
			return fmt.Errorf("repair %s: %w", t.name, err)
		}
	}
	return nil
}

func version(before, after value, since uint32) versioned {
	return versioned{
		Cur: after.id, Prev: before.id, Since: since, CurShared: bit(after.shared), PrevShared: bit(before.shared),
	}
}

// at returns what v says in generation gen.
func (v versioned) at(gen uint32) value {
	if int32(gen-v.Since) >= 0 {
		return value{v.Cur, v.CurShared != 0}
	}
	return value{v.Prev, v.PrevShared != 0}
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// batch is how many entries one system call carries.
const batch = 4096

// putAll writes the entries, many at a time where the kernel can.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := m.BatchUpdate(keys[:n], values[:n], nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			return putEach(m, keys, values)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", done, err)
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

func putEach[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for i := range keys {
		if err := m.Put(&keys[i], &values[i]); err != nil {
			return err
		}
	}
	return nil
}

// deleteAll deletes the entries; those that are not there count as deleted.
func deleteAll[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := m.BatchDelete(keys[:n], nil)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			n = done + 1 // the one that was not there
		case errors.Is(err, ebpf.ErrNotSupported):
			return deleteEach(m, keys)
		case err != nil:
			return err
		}
		keys = keys[min(n, len(keys)):]
	}
	return nil
}

// clearMap deletes everything.
func clearMap[K, V any](m *ebpf.Map) error {
	var keys []K
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys = append(keys, k)
	}
	if err := it.Err(); err != nil {
		return err
	}
	return deleteAll(m, keys)
}

func deleteEach[K any](m *ebpf.Map, keys []K) error {
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}
