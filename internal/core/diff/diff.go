// Package diff says which communications a change opens and closes: what differs between two worlds in what they allow,
// not in how it is written. Renaming, reordering or splitting rules is no change.
//
// The difference is exact over every workload of both inventories and every set of addresses that the documents tell
// apart. It is reported for people: pairs with the same change are gathered into few selectors and ports.
package diff

import (
	"cmp"
	"fmt"
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
	// FromProcess and ToProcess are set if it changes for some processes only, at the source and at the destination:
	// alternatives such as "unit payapi.service and user pay", or "every process but path /usr/bin/curl". A process that is
	// not known is none that a constraint names.
	FromProcess []string `json:"from_process,omitempty"`
	ToProcess   []string `json:"to_process,omitempty"`
	// OnlyFrom and OnlyTo are set if it closes for all processes, the unknown among them, but these, at the source or at the
	// destination, and goes on passing for them.
	OnlyFrom []string `json:"only_from_process,omitempty"`
	OnlyTo   []string `json:"only_to_process,omitempty"`
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

// Whose says for which processes it changes: "for unit payapi.service", "now only for user pay at the destination"; "" if for
// all.
func (c *Communication) Whose() string {
	word, from, to := "for ", c.FromProcess, c.ToProcess
	if c.OnlyFrom != nil || c.OnlyTo != nil {
		word, from, to = "now only for ", c.OnlyFrom, c.OnlyTo
	}
	source, destination := strings.Join(from, " or "), strings.Join(to, " or ")
	switch {
	case from == nil && to == nil:
		return ""
	case to == nil:
		return word + source
	case from == nil:
		return word + destination + " at the destination"
	}
	return word + source + " at the source and " + destination + " at the destination"
}

// Example is a flow, and who decided about it in either world.
type Example struct {
	From   string  `json:"from"`
	To     string  `json:"to"`
	On     string  `json:"on"`
	Before Verdict `json:"before"`
	After  Verdict `json:"after"`
	// FromProcess and ToProcess are the processes that it is judged for, Domain the host name by which To was found, where
	// they make a difference.
	FromProcess *model.Process `json:"from_process,omitempty"`
	ToProcess   *model.Process `json:"to_process,omitempty"`
	Domain      string         `json:"domain,omitempty"`
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

// comparison is the work of one Between.
type comparison struct {
	u             *reach.Universe
	before, after *verdict.Evaluator
	services      map[model.PortRange]string

	changes map[[2]reach.FuncID][]int32 // functions before and after to the changes between them
	ofPair  map[[4]reach.FuncID][]int32 // the same, by the functions at both ends
	all     []reach.Difference
	byKey   map[string]int32
	// relations hold, by where, the pairs of classes of each change.
	relations [3][]relation
	marked    []uint64 // space for members, zero between calls: a bit for each actor
}

// scan finds every pair of classes that changes.
func (c *comparison) scan() {
	var touched [][2]int32 // relations that the present source is in
	for from := range c.u.Classes {
		if !c.u.Talks(int32(from)) {
			continue
		}
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

// changesOf returns the changes between two functions.
func (c *comparison) changesOf(joint [2]reach.FuncID) []int32 {
	if known, ok := c.changes[joint]; ok {
		return known
	}
	out := []int32{}
	for _, d := range c.u.Differences(joint[0], joint[1]) {
		key := fmt.Sprint(d.Before, d.After, d.Who, d.Only, d.Ports.Key())
		n, ok := c.byKey[key]
		if !ok {
			n = int32(len(c.all))
			c.byKey[key] = n
			c.all = append(c.all, d)
			for where := range c.relations {
				c.relations[where] = append(c.relations[where], relation{})
			}
		}
		out = append(out, n)
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
		case ch.After == model.Deny:
			list = &d.Closed
		case ch.Before == model.Deny:
		case ch.After == model.WouldDeny:
			list = &d.WouldClose
		default:
			list = &d.WouldOpen
		}
		whose := c.u.Processes(ch.Who)
		for where := range c.relations {
			for _, b := range c.relations[where][n].gather() {
				*list = append(*list, c.communications(ch, &b, reach.Where(where), whose)...)
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
		slices.Compare(a.FromProcess, b.FromProcess), slices.Compare(a.ToProcess, b.ToProcess),
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
		key := fmt.Sprintf("%q", []any{c.From, c.To, c.On, c.FromProcess, c.ToProcess, c.Before, c.After})
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

// communications describes one block of pairs: once for each part of the processes, if there is anything to say.
func (c *comparison) communications(ch *reach.Difference, b *block, where reach.Where, whose []reach.Processes) []Communication {
	from, to := c.members(b.from), c.members(b.to)
	if c.u.Example(from, to, where) == nil {
		return nil // nothing but pods and their own nodes, which may always talk
	}
	one := Communication{
		On: ch.Ports.Strings(c.services), Before: ch.Before.String(), After: ch.After.String(), Pairs: c.u.CountPairs(from, to),
	}
	one.From, one.To, one.Family = c.u.Pair(from, to)
	out := make([]Communication, len(whose))
	for i := range whose {
		one.FromProcess, one.ToProcess = whose[i].From, whose[i].To
		if ch.Only && len(whose) == 1 && c.u.Holds(ch.Who, nil, nil) {
			if rest := c.u.Processes(c.u.Others(ch.Who)); len(rest) == 1 {
				one.OnlyFrom, one.OnlyTo = rest[0].From, rest[0].To
			}
		}
		one.Example = c.example(ch, whose[i].Who, from, to, where)
		passed := &one.Example.Before
		if ch.After > ch.Before {
			passed = &one.Example.After
		}
		one.ByDefault = byDefault(passed.EgressRule) && byDefault(passed.IngressRule)
		out[i] = one
	}
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
func (c *comparison) example(ch *reach.Difference, who reach.Who, from, to []int32, where reach.Where) Example {
	port, ok := ch.Ports.First()
	if !ok {
		return Example{}
	}
	source, destination := c.u.Sample(who)
	var first *Example
	tries := 0
	for _, a := range from {
		for i := 0; i < len(to) && tries < exampleTries; i++ {
			tries++
			ends := c.u.Example([]int32{a}, to[i:i+1], where)
			if ends == nil {
				continue
			}
			f := model.Flow{
				From: ends[0].Exactly(), To: ends[1].Exactly(), Proto: port.Proto, Port: port.Lo,
				FromProcess: source, ToProcess: destination, ToDomain: ends[1].Name,
			}
			e := Example{
				From: ends[0].End().String(), To: ends[1].End().String(), On: port.String(),
				FromProcess: source, ToProcess: destination, Domain: ends[1].Name,
			}
			if first == nil {
				first = &e
			}
			judged := e
			judged.Before, judged.After = judge(c.before, &f), judge(c.after, &f)
			if judged.Before.Verdict == ch.Before.String() && judged.After.Verdict == ch.After.String() {
				return judged
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
