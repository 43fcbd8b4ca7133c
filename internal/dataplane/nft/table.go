package nft

import (
	"bytes"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// tableName is the one table that is ours.
const tableName = "bulkhead"

// table is what the table in the kernel holds, or is to hold.
type table struct {
	chains   map[string]*chain
	sets     map[string]*set
	counters []string
}

// chain is a list of rules. Where hook is set, packets enter there.
type chain struct {
	hook  *uint32
	rules []rule
}

// rule is a list of steps; data is for us, the kernel only keeps it.
type rule struct {
	steps []expression
	data  []byte
}

// set is a set, or a map if it has values.
type set struct {
	fields   []field // the parts of a key, of which each takes whole registers
	value    field   // what values are; verdicts, or none
	ranges   bool    // keys are ranges, of every part
	timeouts bool    // elements may end by themselves
	members  map[string]element
}

// field is a part of a key, or a value. The kernel only knows its length; the type is for nft, which must know it to list the
// table, and some versions of which do not survive another one.
type field struct {
	length int
	typ    uint32 // as nft numbers types (include/datatype.h of nftables)
}

var (
	none         = field{}
	verdicts     = field{-1, unix.NFT_DATA_VERDICT}
	typeIdentity = field{8, 4}  // "integer", of any length
	typeAddress4 = field{4, 7}  // "ipv4_addr"
	typeAddress6 = field{16, 8} // "ipv6_addr"
	typeProtocol = field{1, 12} // "inet_proto"
	typePort     = field{2, 13} // "inet_service"
	typeICMP     = field{1, 14} // "icmp_type"
	typeNumber   = field{4, 19} // "mark"
	typeFound    = field{4, 4}  // the same, as a value
	typeCgroup   = field{8, 46} // "cgroupsv2"
)

// keyType is the type of keys, as nft puts types together.
func (s *set) keyType() (typ uint32) {
	const bits = 6
	for _, f := range s.fields {
		typ = typ<<bits | f.typ
	}
	return typ
}

func addressOf(length int) field {
	if length == typeAddress4.length {
		return typeAddress4
	}
	return typeAddress6
}

// element is a member of a set. Without a key it stands for every key that is in no other.
type element struct {
	key, last string // last is the end of a range, of which it is the last
	value     string
	verdict   verdict
	timeout   uint64 // milliseconds
}

func newTable() *table { return &table{chains: map[string]*chain{}, sets: map[string]*set{}} }

func (s *set) put(e element) { s.members[e.key+e.last] = e }

func (s *set) keyLength() (n int) {
	for _, f := range s.fields {
		n += (f.length + 3) &^ 3
	}
	return n
}

func (c *chain) add(steps ...expression) { c.rules = append(c.rules, rule{steps: steps}) }

// always adds a rule that only says what becomes of every packet.
func (c *chain) always(v verdict) { c.add(v.expression()) }

func (c *chain) same(o *chain) bool {
	return slices.EqualFunc(c.rules, o.rules, func(a, b rule) bool {
		return bytes.Equal(a.data, b.data) && slices.EqualFunc(a.steps, b.steps, func(x, y expression) bool { return bytes.Equal(x, y) })
	})
}

// chain returns the chain of that name, which it makes.
func (t *table) chain(name string) *chain {
	c := t.chains[name]
	if c == nil {
		c = &chain{}
		t.chains[name] = c
	}
	return c
}

// change adds to the batch what makes next of t, but for what is to be removed: packets may still be under way there.
func (t *table) change(next *table, b *batch) {
	for _, name := range next.counters {
		if !slices.Contains(t.counters, name) {
			b.counter(name, 0)
		}
	}
	for _, name := range sorted(next.chains) {
		if t.chains[name] == nil {
			b.newChain(name, next.chains[name])
		}
	}
	for _, name := range sorted(next.sets) {
		if t.sets[name] == nil {
			b.newSet(name, next.sets[name])
		}
	}
	for _, name := range sorted(next.sets) {
		before, after := t.sets[name], next.sets[name]
		if before == after {
			continue
		}
		var gone, come []element
		for _, k := range sorted(after.members) {
			e := after.members[k]
			if before == nil {
				come = append(come, e)
			} else if old, ok := before.members[k]; !ok {
				come = append(come, e)
			} else if old != e {
				gone, come = append(gone, old), append(come, e)
			}
		}
		if before != nil {
			for _, k := range sorted(before.members) {
				if _, ok := after.members[k]; !ok {
					gone = append(gone, before.members[k])
				}
			}
		}
		b.elements(unix.NFT_MSG_DELSETELEM, name, after, gone)
		b.elements(unix.NFT_MSG_NEWSETELEM, name, after, come)
	}
	for _, name := range sorted(next.chains) {
		before, after := t.chains[name], next.chains[name]
		if before != nil {
			if before.same(after) {
				continue
			}
			b.flush(name)
		}
		for i := range after.rules {
			b.rule(name, &after.rules[i])
		}
	}
}

// remove adds to the batch what takes away what next does not have.
func (t *table) remove(next *table, b *batch) {
	var gone []string
	for _, name := range sorted(t.chains) {
		if next.chains[name] == nil {
			b.flush(name)
			gone = append(gone, name)
		}
	}
	for _, name := range sorted(t.sets) {
		if next.sets[name] == nil {
			b.named(unix.NFT_MSG_DELSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, name)
		}
	}
	for _, name := range gone {
		b.named(unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, name)
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
