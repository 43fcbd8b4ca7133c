package budget

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/portmap"
)

// Check returns what hosts cannot hold of the world after a change, and of the moment at which it comes into force; nil
// if everything fits. Without targets every host is assumed to have eBPF. before may be nil. What did not fit before
// either is marked so. The problems of most hosts come first.
//
// Most hosts are found to have room enough by bounds that cost next to nothing; what a host really takes is counted only
// where those do not say so.
func Check(before, after *compile.World, targets Targets) []Problem {
	if targets == nil {
		targets = func(string) (Target, bool) { return OfKind("") }
	}
	c := checker{after: newView(after), seen: map[alike][]Problem{}}
	if before != nil {
		c.before = newView(before)
	}
	var out []Problem
	index := map[alikeProblem]int{}
	for _, host := range after.Hosts() {
		target, known := targets(host)
		for _, p := range c.host(host, &target, known) {
			same := alikeProblem{p.String(), p.Before, p.Assumed}
			at, ok := index[same]
			if !ok {
				at = len(out)
				index[same] = at
				out = append(out, p)
			}
			out[at].Hosts = append(out[at].Hosts, host)
		}
	}
	slices.SortStableFunc(out, func(a, b Problem) int { return len(b.Hosts) - len(a.Hosts) })
	return out
}

// alikeProblem is what problems of several hosts have in common if they are one.
type alikeProblem struct {
	text            string
	before, assumed bool
}

// view is a world with what is known of its policy sets.
type view struct {
	w     *compile.World
	uses  func(set int32, d model.Direction) []compile.Use
	count *counter
	sets  map[int32]*set
	funcs map[*hostpolicy.Cell]set
	most  compile.Told
	told  map[string]compile.Told // by load.key
}

// set is what a policy set, or a function, takes and needs.
type set struct {
	cost      Cost // of Rules at most
	processes int  // the most alternatives of one cell
	longest   int  // name of a rule
}

func newView(w *compile.World) *view {
	return &view{
		w: w, uses: w.Uses(), count: newCounter(), sets: map[int32]*set{}, funcs: map[*hostpolicy.Cell]set{},
		most: w.ToldAtMost(), told: map[string]compile.Told{},
	}
}

func (v *view) set(number int32) *set {
	s := v.sets[number]
	if s == nil {
		s = &set{cost: Cost{Sets: 1}}
		var lists portmap.Lists
		for _, d := range model.Directions {
			for _, u := range v.uses(number, d) {
				f := v.function(u.Func)
				s.cost.Add(f.cost)
				s.cost[Rows] += u.Rows
				s.processes, s.longest = max(s.processes, f.processes), max(s.longest, f.longest)
				lists.Of(u.Func)
			}
			s.cost[Rows]++ // for whoever has no row
		}
		s.cost[Alternatives] = lists.Size()
		v.sets[number] = s
	}
	return s
}

func (v *view) function(f hostpolicy.Func) set {
	s, ok := v.funcs[&f[0]]
	if !ok {
		s.cost = v.count.function(f)
		names := named(f)
		for id := range names {
			s.longest = max(s.longest, len(id))
		}
		s.cost[Rules] = len(names)
		s.processes = mostAlternatives(f)
		v.funcs[&f[0]] = s
	}
	return s
}

// load is what a host takes at most.
type load struct {
	given     compile.Given
	key       string // hosts of equal keys are given the same sets
	cost      Cost
	processes int // the most alternatives of one cell
	domains   bool
	longest   int // name
}

// load bounds what a host takes; false if there is no such host.
func (v *view) load(host string, controllers int) (load, bool) {
	given, ok := v.w.Given(host)
	if !ok {
		return load{}, false
	}
	l := load{given: given}
	var key []byte
	for _, number := range given.Sets {
		key = binary.LittleEndian.AppendUint32(key, uint32(number))
		s := v.set(number)
		l.cost.Add(s.cost)
		l.processes, l.longest = max(l.processes, s.processes), max(l.longest, s.longest)
	}
	for _, name := range given.Subjects {
		l.longest = max(l.longest, len(name))
	}
	l.key = string(key)
	told := v.most
	if told.Domains > 0 {
		told = v.toldOf(&l)
	}
	l.cost[Subjects], l.cost[LocalSets], l.cost[Controllers] = len(given.Subjects), given.Local, controllers
	l.address(told)
	return l, true
}

func (v *view) toldOf(l *load) compile.Told {
	told, ok := v.told[l.key]
	if !ok {
		told = v.w.Told(l.given.Sets)
		v.told[l.key] = told
	}
	return told
}

func (l *load) address(t compile.Told) {
	l.cost[Addresses], l.cost[Prefixes], l.cost[Ports], l.domains = t.Addresses, t.Prefixes+1, t.Ports, t.Domains > 0
	l.cost[Patterns], l.cost[Named] = t.Domains, t.Domains // of patterns there are no more than that
}

type checker struct {
	before, after *view // before may be nil
	seen          map[alike][]Problem
}

// alike is what the problems of a host depend on.
type alike struct {
	target          Target
	known           bool
	was, is         string // load.key
	gone, new, stay int    // of subjects
	host            string // where names or addresses of its own count
}

// host returns what a host cannot hold, without its name.
func (c *checker) host(host string, target *Target, known bool) []Problem {
	is, ok := c.after.load(host, len(c.after.w.Options().Controllers))
	if !ok {
		return nil
	}
	var was load
	if c.before != nil {
		was, _ = c.before.load(host, len(c.before.w.Options().Controllers))
	}
	if target.surely(&was, &is) {
		return nil
	}
	// A closer look at what the host is told of addresses, and then an exact one.
	is.address(c.after.toldOf(&is))
	if was.key != "" {
		was.address(c.before.toldOf(&was))
	}
	if target.surely(&was, &is) {
		return nil
	}
	key := alike{target: *target, known: known, was: was.key, is: is.key}
	for _, name := range is.given.Subjects {
		if slices.Contains(was.given.Subjects, name) {
			key.stay++
		}
	}
	key.gone, key.new = len(was.given.Subjects)-key.stay, len(is.given.Subjects)-key.stay
	if is.longest > target.MaxName || was.given.Local+is.given.Local > target.Max[LocalSets] {
		key.host = host
	}
	found, ok := c.seen[key]
	if !ok {
		found = c.look(host, target, !known)
		c.seen[key] = found
	}
	return slices.Clone(found)
}

// surely reports whether the target holds what the host was given and what it is to be given at once.
func (t *Target) surely(was, is *load) bool {
	both := was.cost
	both.Add(is.cost)
	_, much := t.Exceeded(both)
	return !much && is.processes <= t.MaxAlternatives && (t.Domains || !is.domains) && is.longest <= t.MaxName
}

// look makes the policies of the host and counts.
func (c *checker) look(host string, t *Target, assumed bool) []Problem {
	policy, ok := c.after.w.HostPolicy(host)
	if !ok {
		return nil
	}
	old := &hostpolicy.Policy{}
	if c.before != nil {
		if p, ok := c.before.w.HostPolicy(host); ok {
			old = p
		}
	}
	out := t.check(old, policy, c.after.w)
	for i := range out {
		out[i].Target, out[i].Assumed = t.Kind, assumed
	}
	return out
}
