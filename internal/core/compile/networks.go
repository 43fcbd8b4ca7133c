package compile

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"bulkhead/internal/core/model"
)

// partition cuts the address space into the prefixes at which policy can change, and says which networks hold the
// addresses of each. Networks that no rule names and that serve no purpose are left out: telling them apart would
// only multiply identities.
type partition struct {
	names    []string          // of the networks, sorted; a netset lists indexes into it
	purposes []model.Purpose   // parallel to names
	cells    []cell            // sorted: a prefix comes after those that contain it
	lookup   bart.Table[int32] // index into cells
	netsets  []netset          // netsets[0] is the empty one
	keys     map[string]int32  // canonical bytes of a netset to its index
	domains  map[string]*domainClass
	classes  []*domainClass // sorted by pattern
}

// cell holds the addresses whose longest matching prefix is Prefix.
type cell struct {
	prefix netip.Prefix
	parent int32 // the cell that contains it; -1 for none
	netset int32
}

// netset is a set of networks that some address is in, all at once.
type netset struct {
	networks []int32 // sorted
	names    []string
	purposes purposes
	cells    bool // some cell has it
	domain   bool // an address may have it by a name
	// unowned is the identity of its addresses that no workload owns: zero of the empty netset.
	unowned      model.IdentityID
	unownedIndex int32 // -1 of the empty netset
}

// purposes is a set of what the networks of an address are for.
type purposes uint8

const (
	resolver purposes = 1 << iota
	timeServer
	forensic
)

func purposeBit(p model.Purpose) purposes {
	switch p {
	case model.PurposeResolvers:
		return resolver
	case model.PurposeTime:
		return timeServer
	case model.PurposeForensic:
		return forensic
	}
	return 0
}

// newPartition makes the partition of the networks that the rules name or that have a purpose.
func newPartition(docs *model.Documents, rules *[2][]*Rule) *partition {
	named := map[string]bool{}
	for d := range rules {
		for _, r := range rules[d] {
			r.eachNetwork(func(name string) { named[name] = true })
		}
	}
	networks := map[string]*model.Network{}
	for i := range docs.Networks {
		n := &docs.Networks[i]
		networks[n.Name] = n
		if n.Purpose != model.PurposeNone {
			named[n.Name] = true
		}
	}
	p := &partition{keys: map[string]int32{}}
	for name := range named {
		p.names = append(p.names, name)
	}
	slices.Sort(p.names)
	p.purposes = make([]model.Purpose, len(p.names))

	in, out := map[netip.Prefix][]int32{}, map[netip.Prefix][]int32{}
	for i, name := range p.names {
		n := networks[name]
		if n == nil { // a literal is named by itself
			for k, part := range strings.Split(name, "!") {
				prefix, err := netip.ParsePrefix(part)
				switch {
				case err != nil: // a domain: see addDomains
				case k == 0:
					in[prefix] = append(in[prefix], int32(i))
				default:
					out[prefix] = append(out[prefix], int32(i))
				}
			}
			continue
		}
		p.purposes[i] = n.Purpose
		for _, c := range n.CIDRs {
			c = unmapPrefix(c)
			in[c] = append(in[c], int32(i))
		}
		for _, c := range n.Except {
			c = unmapPrefix(c)
			out[c] = append(out[c], int32(i))
		}
	}
	p.build(in, out)
	p.addDomains(networks)
	return p
}

// build makes the cells from the prefixes that networks begin to hold (in) and cease to hold (out).
func (p *partition) build(in, out map[netip.Prefix][]int32) {
	var prefixes []netip.Prefix
	for prefix := range in {
		prefixes = append(prefixes, prefix)
	}
	for prefix := range out {
		if in[prefix] == nil {
			prefixes = append(prefixes, prefix)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	p.intern(nil)

	// held and except of a cell are those of the cells above it and its own.
	held := make([][]int32, len(prefixes))
	except := make([][]int32, len(prefixes))
	p.cells = make([]cell, len(prefixes))
	var above []int32
	for i, prefix := range prefixes {
		for len(above) > 0 && !contains(prefixes[above[len(above)-1]], prefix) {
			above = above[:len(above)-1]
		}
		parent := int32(-1)
		if len(above) > 0 {
			parent = above[len(above)-1]
			held[i], except[i] = held[parent], except[parent]
		}
		held[i] = union(held[i], in[prefix])
		except[i] = union(except[i], out[prefix])
		p.cells[i] = cell{prefix: prefix, parent: parent, netset: p.intern(subtract(held[i], except[i]))}
		p.netsets[p.cells[i].netset].cells = true
		p.lookup.Insert(prefix, int32(i))
		above = append(above, int32(i))
	}
}

// cellOf returns the cell of a plain address, or -1 if no network holds it.
func (p *partition) cellOf(a netip.Addr) int32 {
	if i, ok := p.lookup.Lookup(a); ok {
		return i
	}
	return -1
}

// netsetOf returns the netset of a cell.
func (p *partition) netsetOf(cell int32) int32 {
	if cell < 0 {
		return 0
	}
	return p.cells[cell].netset
}

func (p *partition) intern(networks []int32) int32 {
	key := make([]byte, 0, 4*len(networks))
	for _, n := range networks {
		key = binary.LittleEndian.AppendUint32(key, uint32(n))
	}
	if i, ok := p.keys[string(key)]; ok {
		return i
	}
	s := netset{networks: networks}
	for _, n := range networks {
		s.names = append(s.names, p.names[n])
		s.purposes |= purposeBit(p.purposes[n])
	}
	i := int32(len(p.netsets))
	p.netsets = append(p.netsets, s)
	p.keys[string(key)] = i
	return i
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// union returns the sorted union of two lists, of which a is sorted. It does not change them.
func union(a, b []int32) []int32 {
	if len(b) == 0 {
		return a
	}
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

// subtract returns what of sorted a is not in sorted b.
func subtract(a, b []int32) []int32 {
	if len(b) == 0 {
		return a
	}
	var out []int32
	for _, x := range a {
		if _, found := slices.BinarySearch(b, x); !found {
			out = append(out, x)
		}
	}
	return out
}

// eachNetwork calls visit for the networks that the rule names.
func (r *Rule) eachNetwork(visit func(name string)) {
	for _, m := range [2]*Match{&r.Subject, &r.Peer} {
		for _, t := range m.Terms {
			if t.Selector == nil {
				visit(t.Network)
			}
		}
	}
}
