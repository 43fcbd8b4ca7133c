package reach

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// A set of actors is described by as few selectors and networks as mean exactly its members. Where labels cannot tell
// members from others, workloads are named.
const (
	describedKeys  = 3   // a selector names at most so many keys, unless only the whole label set will do
	describedNames = 3   // of more workloads that labels cannot tell apart, so many are named as examples
	rareValues     = 256 // a key with more values names single workloads and is no use for sets of them
	manyLabelSets  = 1000
	otherKeys      = 5 // selectors use so many keys beside the customary ones
)

// customary are the keys that people think in. A description names them where it may.
var customary = []string{"app", "env", "role"}

// describer knows the label sets and networks of the actors of a universe that have addresses of some families. What changes
// between two IPv4 addresses is told by the labels of the workloads there, whatever other addresses they have.
type describer struct {
	u          *Universe
	setOf      []int32 // by actor: its label set in sets; -1 for addresses
	sets       []labelSet
	candidates []candidate
	workloads  int // actors that are workloads
	networks   map[string][]int32
	same       map[string]int // by onlyIn: how many actors there are
	addresses  int
	named      int              // of addresses, those that are found by a name
	gain       []int32          // space for cover, zero between calls: by candidate, the sets that it would add
	inside     []bool           // by label set
	counts     []int32          // space for Describe: by label set, the actors that are meant
	exact      map[int32]string // what exactly returned, by label set
}

type labelSet struct {
	labels     model.Labels
	actors     []int32
	candidates []int32
}

// candidate is a selector that may be used in a description.
type candidate struct {
	text      string
	customary int
	keys      int
	rank      int32   // among candidates that add as much: the smaller the better
	sets      []int32 // label sets that it selects
}

func newDescriber(u *Universe, of families, as role) *describer {
	d := &describer{u: u, setOf: make([]int32, len(u.Actors)), networks: map[string][]int32{}, same: map[string]int{}, exact: map[int32]string{}}
	index := make([]int32, len(u.LabelSets)) // 1 + label set in sets
	for i := range u.Actors {
		a := &u.Actors[i]
		if of&a.families() == 0 || as == source && a.Domain != "" {
			continue
		}
		if !a.Owned() {
			d.setOf[i] = -1
			d.addresses++
			if a.Domain != "" {
				d.named++
			}
			for _, n := range a.Networks {
				d.networks[n] = append(d.networks[n], int32(i))
			}
			d.same[d.onlyIn(int32(i))]++
			continue
		}
		d.workloads++
		if index[a.LabelSet] == 0 {
			d.sets = append(d.sets, labelSet{labels: u.LabelSets[a.LabelSet]})
			index[a.LabelSet] = int32(len(d.sets))
		}
		n := index[a.LabelSet] - 1
		d.sets[n].actors = append(d.sets[n].actors, int32(i))
		d.setOf[i] = n
	}
	values := map[string]map[string]bool{}
	for n := range d.sets {
		for k, v := range d.sets[n].labels {
			if values[k] == nil {
				values[k] = map[string]bool{}
			}
			values[k][v] = true
		}
	}
	d.addCandidates(values)
	return d
}

// addCandidates finds the selectors of up to describedKeys keys that select some label set.
func (d *describer) addCandidates(values map[string]map[string]bool) {
	useful := d.usefulKeys(values)
	byText := map[string]int32{}
	for n := range d.sets {
		set := &d.sets[n]
		var keys []string
		for _, k := range set.labels.Keys() {
			if useful[k] {
				keys = append(keys, k)
			}
		}
		subsets(keys, describedKeys, func(chosen []string) {
			part := model.Labels{}
			known := 0
			for _, k := range chosen {
				part[k] = set.labels[k]
				if slices.Contains(customary, k) {
					known++
				}
			}
			text := part.String()
			c, ok := byText[text]
			if !ok {
				c = int32(len(d.candidates))
				byText[text] = c
				d.candidates = append(d.candidates, candidate{text: text, customary: known, keys: len(chosen)})
			}
			d.candidates[c].sets = append(d.candidates[c].sets, int32(n))
			set.candidates = append(set.candidates, c)
		})
	}
	d.rankCandidates()
}

// rankCandidates puts those first that name more of the customary keys, and fewer others.
func (d *describer) rankCandidates() {
	order := make([]int32, len(d.candidates))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		x, y := &d.candidates[a], &d.candidates[b]
		return cmp.Or(cmp.Compare(y.customary, x.customary), cmp.Compare(x.keys, y.keys), strings.Compare(x.text, y.text))
	})
	for rank, c := range order {
		d.candidates[c].rank = int32(rank)
	}
}

// usefulKeys are the customary ones and a few more: those with the fewest values, which say the most about sets.
func (d *describer) usefulKeys(values map[string]map[string]bool) map[string]bool {
	out := map[string]bool{}
	var others []string
	for k, v := range values {
		switch {
		case slices.Contains(customary, k):
			out[k] = true
		case len(v) <= rareValues && len(d.sets) <= manyLabelSets:
			others = append(others, k)
		}
	}
	slices.SortFunc(others, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(values[a]), len(values[b])), strings.Compare(a, b))
	})
	for _, k := range others[:min(otherKeys, len(others))] {
		out[k] = true
	}
	return out
}

// subsets calls fn for every non-empty subset of at most n of the keys. The slice is reused.
func subsets(keys []string, n int, fn func([]string)) {
	chosen := make([]string, 0, n)
	var next func(from int)
	next = func(from int) {
		for i := from; i < len(keys); i++ {
			chosen = append(chosen, keys[i])
			fn(chosen)
			if len(chosen) < n {
				next(i + 1)
			}
			chosen = chosen[:len(chosen)-1]
		}
	}
	next(0)
}

// exactly is a selector of one label set and no other.
func (d *describer) exactly(n int32) string {
	text, known := d.exact[n]
	if !known {
		text = d.selectorOf(n)
		d.exact[n] = text
	}
	return text
}

func (d *describer) selectorOf(n int32) string {
	set := &d.sets[n]
	if len(set.labels) == 0 {
		return "workloads without labels"
	}
	text := set.labels.String()
	without := map[string]bool{}
	for i := range d.sets {
		if int32(i) == n || len(d.sets[i].labels) <= len(set.labels) || !contains(d.sets[i].labels, set.labels) {
			continue
		}
		for k := range d.sets[i].labels {
			if _, ok := set.labels[k]; !ok {
				without[k] = true
			}
		}
	}
	keys := make([]string, 0, len(without))
	for k := range without {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		text += ",!" + k
	}
	return text
}

func contains(all, part model.Labels) bool {
	for k, v := range part {
		if got, ok := all[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// families is a set of address families.
type families uint8

const (
	withIPv4 families = 1 << iota
	withIPv6
	bothFamilies = withIPv4 | withIPv6
)

// families returns the families that the actor talks in.
func (a *Actor) families() families {
	switch familyOf(a.Addr) {
	case ipv4:
		return withIPv4
	case ipv6:
		return withIPv6
	}
	return bothFamilies
}

// Pair describes the flows from any of one list of actors, which are sorted, to any of another: by the alternatives that
// together mean exactly the one and the other, which are selectors, networks, "every workload", "any address", or "any" for
// everybody; of workloads that labels do not tell from others it gives the number and some names. Labels are told whatever
// the family of the addresses. family is "IPv4" or "IPv6" if the flows are of one only, although both ends have addresses
// of the other too.
func (u *Universe) Pair(from, to []int32) (sources, destinations []string, family string) {
	in := u.familiesOf(from) & u.familiesOf(to)
	switch in {
	case withIPv4:
		family = "IPv4"
	case withIPv6:
		family = "IPv6"
	default:
		in = bothFamilies
	}
	if family != "" && !(u.otherwise(from, in) && u.otherwise(to, in)) {
		family = ""
	}
	return u.describe(from, in, source), u.describe(to, in, destination), family
}

// familiesOf returns the families of actors that have an address, or both if none has.
func (u *Universe) familiesOf(actors []int32) families {
	var out families
	for _, i := range actors {
		if f := u.Actors[i].families(); f != bothFamilies {
			out |= f
		}
	}
	if out == 0 {
		return bothFamilies
	}
	return out
}

// otherwise reports whether one of the actors is an end that has addresses of another family too.
func (u *Universe) otherwise(actors []int32, than families) bool {
	if u.dual == nil {
		u.dual = map[dualKey]families{}
		for i := range u.Actors {
			u.dual[u.Actors[i].dualKey()] |= u.Actors[i].families()
		}
	}
	for _, i := range actors {
		if u.dual[u.Actors[i].dualKey()]&^than != 0 {
			return true
		}
	}
	return false
}

// dualKey is what is one end whatever its address: a workload, or the addresses in the same networks.
type dualKey struct {
	workload string
	networks int32
}

func (a *Actor) dualKey() dualKey {
	if a.Owned() {
		return dualKey{workload: a.Workload}
	}
	return dualKey{networks: a.NetworkSet}
}

// role is the end at which actors stand.
type role uint8

const (
	source role = iota
	destination
)

// Describe returns the alternatives that together mean exactly the actors, which are sorted, as Pair does for destinations.
func (u *Universe) Describe(actors []int32) []string {
	return u.describe(actors, bothFamilies, destination)
}

func (u *Universe) describe(actors []int32, of families, as role) []string {
	if as == source && !u.byName {
		as = destination // nothing tells them apart
	}
	if u.names[as][of] == nil {
		u.names[as][of] = newDescriber(u, of, as)
	}
	d := u.names[as][of]
	if d.counts == nil {
		d.counts = make([]int32, len(d.sets))
	}
	clear(d.counts)
	workloads := make([]int32, 0, len(actors))
	var addresses []int32
	for _, a := range actors {
		if of&u.Actors[a].families() == 0 {
			continue // meets nobody at the other end
		}
		if n := d.setOf[a]; n >= 0 {
			d.counts[n]++
			workloads = append(workloads, a)
		} else {
			addresses = append(addresses, a)
		}
	}
	if len(workloads) == d.workloads && len(addresses) == d.addresses && d.workloads > 0 {
		return []string{"any"}
	}
	// "every workload but …" stands last, where nothing can be taken for a part of it.
	named := d.describeWorkloads(workloads)
	if len(named) == 1 && strings.Contains(named[0], " but ") {
		return append(d.describeAddresses(addresses), named...)
	}
	return append(named, d.describeAddresses(addresses)...)
}

func (d *describer) describeWorkloads(workloads []int32) []string {
	if len(workloads) == 0 {
		return nil
	}
	if len(workloads) == d.workloads {
		return []string{"every workload"}
	}
	var whole, outside []int32
	partial := map[int32]bool{}
	for n := range d.sets {
		switch int(d.counts[n]) {
		case 0:
			outside = append(outside, int32(n))
		case len(d.sets[n].actors):
			whole = append(whole, int32(n))
		default:
			partial[int32(n)] = true
		}
	}
	cover := d.cover(whole)
	if len(partial) > 0 {
		return append(cover, d.name(workloads, partial)...)
	}
	if len(cover) > 1 && len(outside) <= max(len(whole), 16) { // else the complement is not shorter
		if rest := d.cover(outside); len(rest)+1 < len(cover) || len(rest) == 1 {
			return []string{"every workload but " + strings.Join(rest, " and ")}
		}
	}
	return cover
}

// cover returns few selectors that select the label sets and no other. It takes the best one again and again; what a
// selector adds can only shrink, so one that is still as good as when it was last looked at is the best.
func (d *describer) cover(sets []int32) []string {
	if len(sets) == 0 {
		return nil
	}
	if d.gain == nil {
		d.gain, d.inside = make([]int32, len(d.candidates)), make([]bool, len(d.sets))
	}
	q := &queue{d: d}
	for _, n := range sets {
		d.inside[n] = true
		for _, c := range d.sets[n].candidates {
			if d.gain[c]++; int(d.gain[c]) == len(d.candidates[c].sets) { // selects nothing else
				q.list = append(q.list, queued{c, d.gain[c]})
			}
		}
	}
	heap.Init(q)
	var out []string
	left := len(sets)
	for left > 0 && len(q.list) > 0 {
		best := heap.Pop(q).(queued)
		if now := d.gain[best.candidate]; now != best.gain {
			if now > 0 {
				heap.Push(q, queued{best.candidate, now})
			}
			continue
		}
		out = append(out, d.candidates[best.candidate].text)
		for _, n := range d.candidates[best.candidate].sets {
			if !d.inside[n] {
				continue
			}
			d.inside[n] = false
			left--
			for _, c := range d.sets[n].candidates {
				d.gain[c]--
			}
		}
	}
	for _, n := range sets {
		if d.inside[n] {
			out = append(out, d.exactly(n))
			d.inside[n] = false
			for _, c := range d.sets[n].candidates {
				d.gain[c]--
			}
		}
	}
	slices.Sort(out)
	return out
}

// queue is a heap of candidates, the best first: the one that selects more of what is left, then by rank.
type queue struct {
	d    *describer
	list []queued
}

type queued struct{ candidate, gain int32 }

func (q *queue) Len() int      { return len(q.list) }
func (q *queue) Swap(i, j int) { q.list[i], q.list[j] = q.list[j], q.list[i] }
func (q *queue) Push(x any)    { q.list = append(q.list, x.(queued)) }

func (q *queue) Pop() any {
	last := q.list[len(q.list)-1]
	q.list = q.list[:len(q.list)-1]
	return last
}

func (q *queue) Less(i, j int) bool {
	a, b := q.list[i], q.list[j]
	if a.gain != b.gain {
		return a.gain > b.gain
	}
	return q.d.candidates[a.candidate].rank < q.d.candidates[b.candidate].rank
}

// name tells of the workloads of label sets of which only a part is meant: their names if they are few, else how many they
// are, with some names.
func (d *describer) name(workloads []int32, partial map[int32]bool) []string {
	var names []string
	for _, a := range workloads {
		if partial[d.setOf[a]] {
			names = append(names, d.u.Actors[a].Workload)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > describedNames {
		some := names[:describedNames]
		return []string{fmt.Sprintf("%d workloads such as %s and %s", len(names), strings.Join(some[:len(some)-1], ", "), some[len(some)-1])}
	}
	for i := range names {
		names[i] = "workload " + names[i]
	}
	return names
}
