// Package diff says which communications a change opens and closes: what differs between two worlds in what they allow,
// not in how it is written. Renaming, reordering or splitting rules is no change.
//
// The difference is exact over every workload of both inventories and every set of addresses that the documents tell
// apart. It is reported for people: pairs with the same change are gathered into few selectors and ports.
package diff

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
	"bulkhead/internal/core/verdict"
)

// Diff is the difference between two worlds. In each list, what policy allows on one side of the
// change comes before what is would-deny there, and then the largest first.
type Diff struct {
	// Opened was denied and passes now.
	Opened []Communication `json:"opened"`
	// Closed passed and is denied now.
	Closed []Communication `json:"closed"`
	// WouldClose was allowed and passes still, but is recorded as would-deny: it closes once the segment enforces.
	WouldClose []Communication `json:"would_close"`
	// WouldOpen was recorded as would-deny and is allowed now: it stays open once the segment enforces.
	WouldOpen []Communication `json:"would_open"`
}

// Empty reports whether the worlds agree about everything.
func (d *Diff) Empty() bool {
	return len(d.Opened)+len(d.Closed)+len(d.WouldClose)+len(d.WouldOpen) == 0
}

// Communication is traffic whose verdict changes: from any of From to any of To on any of On.
type Communication struct {
	From []string `json:"from"` // selectors, "network NAME", "every workload", "any address", "any"
	To   []string `json:"to"`
	On   []string `json:"on"` // names of services and ports; "any"; "any but …"
	// Family is "IPv4" or "IPv6" if it changes over that family only, although the ends have addresses of both; else "".
	Family string `json:"family,omitempty"`
	// Before and After are the verdicts over both ends.
	Before string `json:"before"`
	After  string `json:"after"`
	// Pairs counts the (source, destination) pairs of the inventory that are meant. Addresses in the same networks
	// count as one.
	Pairs int `json:"pairs"`
	// ByDefault says that no rule wanted it: where it passed before, or passes now, that is because nothing closes
	// it.
	ByDefault bool `json:"by_default"`
	// Example is one flow of it, judged in both worlds.
	Example Example `json:"example"`
}

// Example is a flow, and who decided about it in either world.
type Example struct {
	From   string  `json:"from"`
	To     string  `json:"to"`
	On     string  `json:"on"`
	Before Verdict `json:"before"`
	After  Verdict `json:"after"`
}

// Verdict is a verdict with what decided it at each end. The zero value is that of an example which names alone cannot
// show: a workload's name stands for its first address, and another one is meant.
type Verdict struct {
	Verdict     string       `json:"verdict"`
	EgressRule  model.RuleID `json:"egress_rule"`
	IngressRule model.RuleID `json:"ingress_rule"`
}

// NewVerdict returns v as reports show it.
func NewVerdict(v model.FlowVerdict) Verdict {
	return Verdict{Verdict: v.Verdict.String(), EgressRule: v.Egress.Rule, IngressRule: v.Ingress.Rule}
}

// Between returns the difference from before to after.
func Between(before, after *compile.World) *Diff {
	c := newComparison(before, after)
	c.scan()
	return c.report()
}

func newComparison(before, after *compile.World) *comparison {
	return &comparison{
		u:        reach.New(before, after),
		before:   verdict.New(before),
		after:    verdict.New(after),
		services: serviceNames(before.Documents(), after.Documents()),
		changes:  map[[2]reach.FuncID][]int32{},
		ofPair:   map[[4]reach.FuncID][]int32{},
		byKey:    map[string]int32{},
	}
}

// serviceNames says which single ports a service of both documents, or of the new ones, is exactly.
func serviceNames(before, after *model.Documents) map[model.PortRange]string {
	names := map[model.PortRange]string{}
	for _, docs := range []*model.Documents{after, before} {
		for i := range docs.Services {
			s := &docs.Services[i]
			if len(s.Ports) == 1 && names[s.Ports[0]] == "" {
				names[s.Ports[0]] = s.Name
			}
		}
	}
	return names
}

// change is one way in which a pair may change: from one verdict to another, on a set of ports.
type change struct {
	before, after model.Verdict
	ports         reach.Ports
}

// comparison is the work of one Between.
type comparison struct {
	u             *reach.Universe
	before, after *verdict.Evaluator
	services      map[model.PortRange]string

	changes map[[2]reach.FuncID][]int32 // functions before and after to the changes between them
	ofPair  map[[4]reach.FuncID][]int32 // the same, by the functions at both ends
	all     []change
	byKey   map[string]int32
	// relations hold, by where, the pairs of classes of each change.
	relations [3][]relation
	marked    []uint64 // space for members, zero between calls: a bit for each actor
}

// scan finds every pair of classes that changes.
func (c *comparison) scan() {
	var touched [][2]int32 // relations that the present source is in
	for from := range c.u.Classes {
		touched = touched[:0]
		src := c.u.From(int32(from))
		for to := range c.u.Classes {
			egress, ingress := src.At(int32(to), 0)
			if e, i := src.At(int32(to), 1); e == egress && i == ingress && !src.HostCounts(int32(to)) {
				continue
			}
			src.Each(int32(to), func(p *reach.Pair, where reach.Where) {
				if p.Egress[0] == p.Egress[1] && p.Ingress[0] == p.Ingress[1] {
					return
				}
				for _, n := range c.changesOfPair(p) {
					r := &c.relations[where][n]
					if len(r.open) == 0 {
						touched = append(touched, [2]int32{int32(where), n})
					}
					r.add(int32(to))
				}
			})
		}
		for _, t := range touched {
			c.relations[t[0]][t[1]].seal(int32(from))
		}
	}
}

// changesOfPair returns the changes between what the ends of a pair say before and after.
func (c *comparison) changesOfPair(p *reach.Pair) []int32 {
	key := [4]reach.FuncID{p.Egress[0], p.Ingress[0], p.Egress[1], p.Ingress[1]}
	out, known := c.ofPair[key]
	if !known {
		before, after := c.u.Joint(key[0], key[1]), c.u.Joint(key[2], key[3])
		if before != after {
			out = c.changesOf([2]reach.FuncID{before, after})
		}
		c.ofPair[key] = out
	}
	return out
}

// changesOf returns the changes between two functions: one for each pair of verdicts.
func (c *comparison) changesOf(joint [2]reach.FuncID) []int32 {
	if known, ok := c.changes[joint]; ok {
		return known
	}
	out := []int32{}
	for before := model.Deny; before <= model.Allow; before++ {
		for after := model.Deny; after <= model.Allow; after++ {
			if before == after {
				continue
			}
			ports := c.u.Compare(joint[0], joint[1], func(b, a reach.Level) bool { return b.Verdict() == before && a.Verdict() == after })
			if ports.Empty() {
				continue
			}
			key := before.String() + " " + after.String() + " " + ports.Key()
			n, ok := c.byKey[key]
			if !ok {
				n = int32(len(c.all))
				c.byKey[key] = n
				c.all = append(c.all, change{before, after, ports})
				for where := range c.relations {
					c.relations[where] = append(c.relations[where], relation{})
				}
			}
			out = append(out, n)
		}
	}
	c.changes[joint] = out
	return out
}

func (c *comparison) report() *Diff {
	d := &Diff{Opened: []Communication{}, Closed: []Communication{}, WouldClose: []Communication{}, WouldOpen: []Communication{}}
	for n := range c.all {
		ch := &c.all[n]
		list := &d.Opened
		switch {
		case ch.after == model.Deny:
			list = &d.Closed
		case ch.before == model.Deny:
		case ch.after == model.WouldDeny:
			list = &d.WouldClose
		default:
			list = &d.WouldOpen
		}
		for where := range c.relations {
			for _, b := range c.relations[where][n].gather() {
				*list = append(*list, c.communication(ch, &b, reach.Where(where)))
			}
		}
	}
	for _, list := range []*[]Communication{&d.Opened, &d.Closed, &d.WouldClose, &d.WouldOpen} {
		*list = distinct(*list)
		slices.SortFunc(*list, compare)
	}
	return d
}

func compare(a, b Communication) int {
	return cmp.Or(
		-cmp.Compare(weight(&a), weight(&b)),
		cmp.Compare(b.Pairs, a.Pairs),
		slices.Compare(a.From, b.From), slices.Compare(a.To, b.To), slices.Compare(a.On, b.On),
		strings.Compare(a.Before, b.Before), strings.Compare(a.After, b.After),
		strings.Compare(a.Example.From, b.Example.From), strings.Compare(a.Example.To, b.Example.To),
	)
}

// weight is greater for what policy allows on one side of the change than for what is recorded as would-deny there: the
// former is what somebody wanted.
func weight(c *Communication) int {
	if c.Before == model.Allow.String() || c.After == model.Allow.String() {
		return 1
	}
	return 0
}

// distinct drops what is said twice: pairs on one host and pairs on two hosts, or over IPv4 and over IPv6, may have the same
// description.
func distinct(list []Communication) []Communication {
	seen := map[string]int{}
	out := list[:0]
	for _, c := range list {
		// What changes alike over both families is one change.
		key := strings.Join(c.From, "\x00") + "\x01" + strings.Join(c.To, "\x00") + "\x01" + strings.Join(c.On, "\x00") + "\x01" + c.Before + c.After
		if at, ok := seen[key]; ok {
			one := &out[at]
			one.Pairs = max(one.Pairs, c.Pairs)
			one.ByDefault = one.ByDefault && c.ByDefault
			if c.Family != one.Family {
				one.Family = ""
			}
			if one.Example.Before.Verdict == "" && c.Example.Before.Verdict != "" {
				one.Example = c.Example
			}
			continue
		}
		seen[key] = len(out)
		out = append(out, c)
	}
	return out
}

// communication describes one block of pairs.
func (c *comparison) communication(ch *change, b *block, where reach.Where) Communication {
	from, to := c.members(b.from), c.members(b.to)
	out := Communication{
		On: ch.ports.Strings(c.services), Before: ch.before.String(), After: ch.after.String(), Pairs: c.u.CountPairs(from, to),
	}
	out.From, out.To, out.Family = c.u.Pair(from, to)
	out.Example = c.example(ch, from, to, where)
	passed := &out.Example.Before
	if ch.after > ch.before {
		passed = &out.Example.After
	}
	out.ByDefault = byDefault(passed.EgressRule) && byDefault(passed.IngressRule)
	return out
}

// byDefault reports whether no rule decided.
func byDefault(rule model.RuleID) bool {
	return rule == model.RuleOpen || rule == model.RuleDefaultDeny || rule == model.RuleUnmanaged
}

// members lists the actors of the classes, sorted. Blocks are large and many: marking is quicker than sorting.
func (c *comparison) members(classes []int32) []int32 {
	if c.marked == nil {
		c.marked = make([]uint64, (len(c.u.Actors)+63)/64)
	}
	total := 0
	for _, n := range classes {
		total += len(c.u.Classes[n].Members)
		for _, i := range c.u.Classes[n].Members {
			c.marked[i/64] |= 1 << (i % 64)
		}
	}
	out := make([]int32, 0, total)
	for w, word := range c.marked {
		for ; word != 0; word &= word - 1 {
			out = append(out, int32(w*64+bits.TrailingZeros64(word)))
		}
	}
	clear(c.marked)
	return out
}

// exampleTries bounds the search for an example that shows the change: a workload's name alone may stand for another
// of its addresses than the one that changes.
const exampleTries = 100

// example judges one flow of the block in both worlds.
func (c *comparison) example(ch *change, from, to []int32, where reach.Where) Example {
	port, ok := ch.ports.First()
	if !ok {
		return Example{}
	}
	var first *Example
	tries := 0
	for _, a := range from {
		for i := 0; i < len(to) && tries < exampleTries; i++ {
			tries++
			ends := c.u.Example([]int32{a}, to[i:i+1], where)
			if ends == nil {
				continue
			}
			f := model.Flow{From: ends[0].Exactly(), To: ends[1].Exactly(), Proto: port.Proto, Port: port.Lo}
			e := Example{
				From: ends[0].End().String(), To: ends[1].End().String(), On: port.String(),
				Before: judge(c.before, &f), After: judge(c.after, &f),
			}
			if e.Before.Verdict == ch.before.String() && e.After.Verdict == ch.after.String() {
				return e
			}
			if first == nil {
				first = &Example{From: e.From, To: e.To, On: e.On}
			}
		}
	}
	if first == nil {
		return Example{}
	}
	return *first
}

func judge(e *verdict.Evaluator, f *model.Flow) Verdict {
	v, err := e.Judge(f)
	if err != nil {
		return Verdict{}
	}
	return NewVerdict(v)
}
