// Package budget says what a host's policy costs the target that is to hold it, and refuses in time what no target of its
// kind can hold: when a change is planned, not when a kernel has no room left.
//
// Cost is exact: the dataplane counts its entries with this package, and takes its limits from the Target here.
package budget

import (
	"fmt"
	"iter"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

// Resource is a kind of entry of which a target holds so many and no more.
type Resource uint8

// The resources.
const (
	Rows         Resource = iota // rows of policy: one for each peer, and those for single ports and whole protocols
	Ranges                       // rows of policy for ranges of ports, cut into aligned blocks
	Alternatives                 // rows of policy for some processes
	Sets                         // policy sets
	Rules                        // names of rules
	Subjects                     // the host and its units
	LocalSets                    // addresses of subjects with a policy set of their own
	Addresses                    // single addresses
	Prefixes                     // longer stretches of addresses
	Ports                        // owners of ports behind shared addresses
	Controllers                  // addresses of controllers
	Patterns                     // of host names
	Named                        // what patterns make of addresses, one for each set of networks that those are in
	Resources    int      = iota // how many there are
)

var resourceNames = [Resources]struct{ one, many string }{
	Rows:         {"policy row", "policy rows"},
	Ranges:       {"policy row for a port range", "policy rows for port ranges"},
	Alternatives: {"policy row for processes", "policy rows for processes"},
	Sets:         {"policy set", "policy sets"},
	Rules:        {"rule", "rules"},
	Subjects:     {"workload", "workloads"},
	LocalSets:    {"address with a policy of its own", "addresses with a policy of their own"},
	Addresses:    {"address", "addresses"},
	Prefixes:     {"prefix", "prefixes"},
	Ports:        {"port behind a shared address", "ports behind shared addresses"},
	Controllers:  {"controller address", "controller addresses"},
	Patterns:     {"pattern of host names", "patterns of host names"},
	Named:        {"identity by a host name", "identities by host names"},
}

// String returns the resource as text names many of it.
func (r Resource) String() string { return resourceNames[r].many }

// All returns every resource in order.
func All() iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		for r := range Resource(Resources) {
			if !yield(r) {
				return
			}
		}
	}
}

// Cost is how many entries of each resource something takes.
type Cost [Resources]int

// Add adds what something else takes.
func (c *Cost) Add(o Cost) {
	for r := range c {
		c[r] += o[r]
	}
}

// Take takes away what something takes.
func (c *Cost) Take(o Cost) {
	for r := range c {
		c[r] -= o[r]
	}
}

// counter counts rows. Functions that policy sets of one world share are lowered once.
type counter struct{ functions map[*hostpolicy.Cell]Cost }

func newCounter() *counter { return &counter{functions: map[*hostpolicy.Cell]Cost{}} }

// function returns what a function takes beside the rows of the peers that it judges.
func (n *counter) function(f hostpolicy.Func) Cost {
	c, ok := n.functions[&f[0]]
	if !ok {
		for _, e := range portmap.Lower(f) {
			if e.IsRange() {
				c[Ranges]++
			} else {
				c[Rows]++
			}
		}
		n.functions[&f[0]] = c
	}
	return c
}

func (n *counter) set(s *hostpolicy.PolicySet) Cost {
	c := Cost{Sets: 1}
	var lists portmap.Lists
	for _, d := range model.Directions {
		t := s.Table(d)
		c[Rows]++ // for whoever has no row
		for _, f := range t.Funcs {
			c.Add(n.function(f))
			lists.Of(f)
		}
		for _, p := range t.Peers {
			if p.Func != 0 { // the default serves it
				c[Rows]++
			}
		}
	}
	c[Alternatives] = lists.Size()
	return c
}

// OfSet returns what a policy set takes: Rows, Ranges, Alternatives and itself. Names of rules belong to the whole policy.
func OfSet(s *hostpolicy.PolicySet) Cost { return newCounter().set(s) }

// Of returns what the policy takes when nothing else is there. The policy is one that Check accepts.
func Of(p *hostpolicy.Policy) Cost { return Between(&hostpolicy.Policy{}, p) }

// Between returns what is held at the moment at which one policy takes the place of another: what both have once, and
// what either has. It is at least what after takes by itself.
func Between(before, after *hostpolicy.Policy) Cost {
	var c Cost
	n := newCounter()
	sets := map[hostpolicy.PolicySetID]bool{}
	rules, subjects, local := map[model.RuleID]bool{}, map[string]bool{}, map[localKey]bool{}
	addresses, ports, controllers := map[any]bool{}, map[any]bool{}, map[any]bool{}
	for _, p := range []*hostpolicy.Policy{before, after} {
		for i := range p.Sets {
			if s := &p.Sets[i]; !sets[s.ID] {
				sets[s.ID] = true
				c.Add(n.set(s))
				eachRule(s, func(id model.RuleID) { rules[id] = true })
			}
		}
		for i := range p.Subjects {
			s := &p.Subjects[i]
			subjects[s.Workload] = true
			for _, l := range s.Local {
				local[localKey{s.Workload, l.Addr.String()}] = true
			}
		}
		for i := range p.Addresses {
			addresses[p.Addresses[i].Prefix] = p.Addresses[i].Prefix.IsSingleIP()
		}
		for i := range p.Ports {
			o := p.Ports[i]
			o.Identity = 0
			ports[o] = true
		}
		for _, a := range p.Controllers {
			controllers[a] = true
		}
	}
	was, is := patternsOf(before), patternsOf(after)
	c[Patterns], c[Named] = len(is), len(after.Domains)
	if slices.Equal(was, is) {
		for _, d := range before.Domains {
			if !slices.ContainsFunc(after.Domains, func(x hostpolicy.Domain) bool { return x.Pattern == d.Pattern && x.Base == d.Base }) {
				c[Named]++
			}
		}
	} else { // names are matched with both lists for a moment, each by itself
		c[Patterns] += len(was)
		c[Named] += len(before.Domains)
	}
	delete(rules, model.RuleOpen) // which needs no name
	addresses[everyIPv4] = false  // which is always there
	for _, single := range addresses {
		if single {
			c[Addresses]++
		} else {
			c[Prefixes]++
		}
	}
	c[Rules], c[Subjects], c[LocalSets], c[Ports], c[Controllers] = len(rules), len(subjects), len(local), len(ports), len(controllers)
	return c
}

// patternsOf returns the patterns of host names that the policy knows, sorted.
func patternsOf(p *hostpolicy.Policy) []string {
	var out []string
	for i := range p.Domains { // which are sorted by pattern
		if n := len(out); n == 0 || out[n-1] != p.Domains[i].Pattern {
			out = append(out, p.Domains[i].Pattern)
		}
	}
	return out
}

type localKey struct{ workload, addr string }

// eachRule calls fn for the rule of every cell of the set, alternatives included.
func eachRule(s *hostpolicy.PolicySet, fn func(model.RuleID)) {
	for _, d := range model.Directions {
		for _, f := range s.Table(d).Funcs {
			for k := range f {
				fn(f[k].Rule)
				for _, a := range f[k].When {
					fn(a.Rule)
				}
			}
		}
	}
}

// Text returns so many of a resource in words: "1 policy row".
func (r Resource) Text(n int) string {
	if n == 1 {
		return "1 " + resourceNames[r].one
	}
	return fmt.Sprintf("%s %s", thousands(n), resourceNames[r].many)
}
