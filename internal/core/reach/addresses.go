package reach

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// addressSpace cuts all addresses into intervals that no network or CIDR of the documents divides.
type addressSpace struct {
	starts []netip.Addr // first address of each interval, sorted; IPv4 before IPv6
	sets   [][]string   // by interval: the sets that hold it, sorted
	kind   []int32      // by interval: number of its sets in kinds
	kinds  [][]string   // distinct lists of sets; the first is empty
	names  []nameClass  // sorted by pattern
}

// addressSet is a set of addresses as documents name it.
type addressSet struct {
	name       string
	in, except []netip.Prefix
	domains    []string // sorted
}

func newAddressSpace(worlds []*compile.World) *addressSpace {
	sets := addressSets(worlds)
	s := &addressSpace{starts: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}}
	cut := func(p netip.Prefix) {
		s.starts = append(s.starts, p.Addr())
		if next := lastOf(p).Next(); next.IsValid() {
			s.starts = append(s.starts, next)
		}
	}
	for i := range sets {
		for _, p := range sets[i].in {
			cut(p)
		}
		for _, p := range sets[i].except {
			cut(p)
		}
	}
	for _, w := range worlds {
		for _, c := range w.Options().Controllers {
			cut(netip.PrefixFrom(c.Addr(), c.Addr().BitLen()))
		}
	}
	slices.SortFunc(s.starts, netip.Addr.Compare)
	s.starts = slices.Compact(s.starts)
	s.sets = make([][]string, len(s.starts))
	for i := range sets {
		s.add(&sets[i])
	}
	s.number()
	s.names = nameClasses(sets)
	return s
}

// number gives intervals in the same sets the same number.
func (s *addressSpace) number() {
	s.kind, s.kinds = make([]int32, len(s.starts)), [][]string{nil}
	byText := map[string]int32{"": 0}
	for i, in := range s.sets {
		text := strings.Join(in, "\x00")
		n, ok := byText[text]
		if !ok {
			n = int32(len(s.kinds))
			byText[text] = n
			s.kinds = append(s.kinds, in)
		}
		s.kind[i] = n
	}
}

// addressSets lists the networks and the literal CIDRs of all documents, sorted by name. Networks of one name that
// differ between worlds are told apart by the number of the world.
func addressSets(worlds []*compile.World) []addressSet {
	byName := map[string]addressSet{}
	for i, w := range worlds {
		docs := w.Documents()
		for k := range docs.Networks {
			n := &docs.Networks[k]
			set := addressSet{n.Name, plainPrefixes(n.CIDRs), plainPrefixes(n.Except), slices.Clone(n.Domains)}
			slices.Sort(set.domains)
			if before, ok := byName[n.Name]; ok && !before.equal(&set) {
				set.name = fmt.Sprintf("%s (%s)", n.Name, []string{"before", "after"}[min(i, 1)])
			}
			byName[set.name] = set
		}
		literal := func(name string) {
			if _, known := byName[name]; known {
				return
			}
			if set, ok := literalSet(name); ok {
				byName[name] = set
			}
		}
		for _, d := range model.Directions {
			rules := w.Rules(d)
			for k := range rules {
				for _, m := range []*compile.Match{&rules[k].Subject, &rules[k].Peer} {
					for _, t := range m.Terms {
						if t.Selector == nil {
							literal(t.Network)
						}
					}
				}
			}
		}
		for k := range docs.Guardrails {
			for _, list := range [][]model.Peer{docs.Guardrails[k].From, docs.Guardrails[k].To} {
				for j := range list {
					switch list[j].Kind {
					case model.PeerCIDR:
						literal(CIDRName(list[j].CIDR))
					case model.PeerDomain:
						literal(model.DomainNetwork(list[j].Domain))
					}
				}
			}
		}
	}
	out := make([]addressSet, 0, len(byName))
	for _, s := range byName {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b addressSet) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return out
}

// literalSet reads the name of a literal CIDR or domain, as model.CIDRName and model.DomainNetwork write it. ok is false for
// the name of a network.
func literalSet(name string) (set addressSet, ok bool) {
	if pattern, ok := strings.CutPrefix(name, model.DomainNetwork("")); ok {
		return addressSet{name: name, domains: []string{pattern}}, true
	}
	parts := strings.Split(name, "!")
	list := make([]netip.Prefix, len(parts))
	for i, part := range parts {
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return addressSet{}, false
		}
		list[i] = p
	}
	return addressSet{name: name, in: plainPrefixes(list[:1]), except: plainPrefixes(list[1:])}, true
}

func (s *addressSet) equal(o *addressSet) bool {
	return slices.Equal(s.in, o.in) && slices.Equal(s.except, o.except) && slices.Equal(s.domains, o.domains)
}

// plainPrefix returns the prefix masked, IPv4-mapped IPv6 as IPv4.
func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func plainPrefixes(list []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = plainPrefix(p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// add notes the set at every interval that it holds.
func (s *addressSpace) add(set *addressSet) {
	held := map[int]bool{}
	mark := func(list []netip.Prefix, in bool) {
		for _, p := range list {
			last := lastOf(p)
			for i := s.interval(p.Addr()); i < len(s.starts) && s.starts[i].Compare(last) <= 0; i++ {
				if in {
					held[i] = true
				} else {
					delete(held, i)
				}
			}
		}
	}
	mark(set.in, true)
	mark(set.except, false)
	for i := range held {
		s.sets[i] = append(s.sets[i], set.name)
	}
}

// interval returns the interval that holds the address.
func (s *addressSpace) interval(a netip.Addr) int {
	i, ok := slices.BinarySearchFunc(s.starts, a, netip.Addr.Compare)
	if ok {
		return i
	}
	return i - 1
}

// kindOf returns the number of the sets that hold the address.
func (s *addressSpace) kindOf(a netip.Addr) int32 { return s.kind[s.interval(a)] }

// sample is one address that stands for all that are in the same sets.
type sample struct {
	addr netip.Addr
	kind int32
}

// unowned returns a sample of each combination of sets, family and controller that some address has which no workload
// owns.
func (s *addressSpace) unowned(worlds []*compile.World) []sample {
	controllers := map[netip.Addr]bool{}
	for _, w := range worlds {
		for _, c := range w.Options().Controllers {
			controllers[c.Addr()] = true
		}
	}
	type key struct {
		kind       int32
		is4        bool
		controller netip.Addr
	}
	seen := map[key]bool{}
	var out []sample
	for i, a := range s.starts {
		k := key{kind: s.kind[i], is4: a.Is4()}
		if controllers[a] {
			k.controller = a
		}
		if seen[k] {
			continue
		}
		for ; a.IsValid() && (i+1 == len(s.starts) || a.Less(s.starts[i+1])); a = a.Next() {
			if !ownedAnywhere(worlds, a) {
				seen[k] = true
				out = append(out, sample{a, s.kind[i]})
				break
			}
		}
	}
	return out
}

func ownedAnywhere(worlds []*compile.World, a netip.Addr) bool {
	for _, w := range worlds {
		if len(w.Owners(a)) > 0 {
			return true
		}
	}
	return false
}

// CIDRName returns the name under which Actor.Networks lists a literal CIDR.
func CIDRName(p netip.Prefix) string { return plainPrefix(p).String() }

// Cell is a set of addresses that no document tells apart, whoever owns them.
type Cell struct {
	Addr        netip.Addr // one of them
	Networks    []string   // the networks and literal CIDRs that hold them, sorted
	Controllers []uint16   // the ports at which a controller answers there
	// Domain is the pattern of host names that the addresses were found by; Networks then holds what that makes them be in
	// too, and Base what they are in without. Only addresses that no workload owns are in such a cell. "" for others.
	Domain string
	Base   []string
}

// Cells cuts all addresses there are into cells; cells of one family in the same networks are one. IPv4 comes first.
func Cells(w *compile.World) []Cell {
	s := newAddressSpace([]*compile.World{w})
	type key struct {
		kind       int32
		is4        bool
		controller netip.Addr
	}
	seen := map[key]bool{}
	var out []Cell
	for i, a := range s.starts {
		k := key{kind: s.kind[i], is4: a.Is4()}
		cell := Cell{Addr: a, Networks: s.sets[i]}
		for _, c := range w.Options().Controllers {
			if c.Addr() == a {
				k.controller = a
				cell.Controllers = append(cell.Controllers, c.Port())
			}
		}
		if !seen[k] {
			seen[k] = true
			out = append(out, cell)
		}
	}
	cells := out
	for i := range s.names {
		n := &s.names[i]
		for _, c := range cells {
			c.Base, c.Domain, c.Networks = c.Networks, n.pattern, n.with(c.Networks)
			out = append(out, c)
		}
	}
	return out
}
