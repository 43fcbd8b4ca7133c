package prove

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/reach"
)

// A guardrail over many hops forbids ways, not flows: from one end to a workload, on from there, and so on to the other end,
// where each hop is allowed on some port and the last one on a port of the guardrail. Ways lead through workloads, managed
// or not; what an address that nobody owns might pass on is not known. Such guardrails are decided over the workloads
// of today, and over everything that could exist as far as that is small enough: see imagined.

// Hop is one flow of a way.
type Hop struct {
	From        string       `json:"from"`
	FromIs      string       `json:"from_is"`
	To          string       `json:"to"`
	ToIs        string       `json:"to_is"`
	Port        string       `json:"port"`
	EgressRule  model.RuleID `json:"egress_rule"`
	IngressRule model.RuleID `json:"ingress_rule"`
	EgressAt    string       `json:"egress_at,omitempty"`
	IngressAt   string       `json:"ingress_at,omitempty"`
	// Hypothetical says that no such flow exists today. What the ends are tells them apart then, and not their names.
	Hypothetical bool           `json:"hypothetical,omitempty"`
	FromProcess  *model.Process `json:"from_process,omitempty"`
	ToProcess    *model.Process `json:"to_process,omitempty"`
}

func (h *Hop) String() string {
	w := Witness{
		From: h.From, FromIs: h.FromIs, To: h.To, ToIs: h.ToIs,
		EgressRule: h.EgressRule, IngressRule: h.IngressRule, EgressAt: h.EgressAt, IngressAt: h.IngressAt, Port: h.Port,
	}
	source, destination := h.From+running(h.FromProcess), h.To+running(h.ToProcess)
	if h.Hypothetical { // what they are says it all
		source, destination = from(&w), to(&w)
	}
	if who := w.deciders(); who != "" {
		return fmt.Sprintf("%s -> %s on %s (%s)", source, destination, h.Port, who)
	}
	return fmt.Sprintf("%s -> %s on %s", source, destination, h.Port)
}

// running says in brackets which process it is; nothing if any is.
func running(p *model.Process) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf(" (process %s)", p)
}

// ways finds the shortest way over classes.
type ways struct {
	p        *proof
	aim      aim
	anywhere reach.FuncID
	next     map[int32][]int32 // class to the classes of workloads that one hop leads to
	siblings map[int32][]int32 // class to the classes of other addresses of its workloads
	passes   map[reach.FuncID]bool
}

func (p *proof) newWays(a aim) *ways {
	w := &ways{
		p: p, aim: a, anywhere: p.u.Within([]model.PortRange{model.AnyPort}),
		next: map[int32][]int32{}, siblings: map[int32][]int32{}, passes: map[reach.FuncID]bool{},
	}
	classes := map[string][]int32{}
	for i := range p.u.Actors {
		if a := &p.u.Actors[i]; a.Owned() {
			if c := p.u.ClassOf(int32(i)); !slices.Contains(classes[a.Workload], c) {
				classes[a.Workload] = append(classes[a.Workload], c)
			}
		}
	}
	for _, list := range classes {
		for _, c := range list {
			for _, other := range list {
				if other != c && !slices.Contains(w.siblings[c], other) {
					w.siblings[c] = append(w.siblings[c], other)
				}
			}
		}
	}
	for _, list := range w.siblings {
		slices.Sort(list)
	}
	return w
}

// ports returns on which ports of within a function passes for some of the processes, and at which level.
func (w *ways) ports(joint, within reach.FuncID, who reach.Who) (reach.Ports, reach.Level) {
	out := w.p.u.Where(joint, within, reach.Allow, who)
	if w.aim == passing && out.Empty() {
		return w.p.u.Where(joint, within, reach.WouldDeny, who), reach.WouldDeny
	}
	return out, reach.Allow
}

func (w *ways) passesAnywhere(joint reach.FuncID) bool {
	out, known := w.passes[joint]
	if !known {
		ports, _ := w.ports(joint, w.anywhere, reach.Everybody)
		out = !ports.Empty()
		w.passes[joint] = out
	}
	return out
}

// mayPass reports whether a hop to the class may pass. It is quick, and of most pairs that do not pass it says so.
func (w *ways) mayPass(src *reach.Source, to int32) bool {
	if src.HostCounts(to) {
		return true
	}
	egress, ingress := src.At(to, 0)
	return w.p.saysAbout(egress)&w.p.saysAbout(ingress)&w.wants() != 0
}

// wants returns what passes.
func (w *ways) wants() says {
	if w.aim == passing {
		return mayPass
	}
	return mayAllow
}

// hops returns the classes of workloads that one hop from a member of the class leads to.
func (w *ways) hops(from int32) []int32 {
	out, known := w.next[from]
	if known {
		return out
	}
	u := w.p.u
	src := u.From(from)
	for to := range u.Classes {
		if !u.Actors[u.Classes[to].Members[0]].Owned() || !w.mayPass(src, int32(to)) {
			continue
		}
		pass := false
		src.Each(int32(to), func(pair *reach.Pair, _ reach.Where) {
			pass = pass || w.passesAnywhere(u.Joint(pair.Egress[0], pair.Ingress[0]))
		})
		if pass {
			out = append(out, int32(to))
		}
	}
	w.next[from] = out
	return out
}

// firstHops is hops of what a guardrail means as a source: of the processes that it names there.
func (w *ways) firstHops(from int32, g int) []int32 {
	if !w.p.choosy[g] {
		return w.hops(from)
	}
	parties, hops := w.p.parties(0, g, from), w.hops(from)
	src := w.p.u.From(from)
	var out []int32
	for _, to := range hops {
		pass := false
		src.Each(to, func(pair *reach.Pair, _ reach.Where) {
			for _, x := range parties {
				ports, _ := w.ports(w.p.u.Joint(pair.Egress[0], pair.Ingress[0]), w.anywhere, x.who)
				pass = pass || !ports.Empty()
			}
		})
		if pass {
			out = append(out, to)
		}
	}
	return out
}

// stop is where a way has come to: members of a class, at its start as the guardrail means them.
type stop struct {
	class int32
	start bool
}

// step is how a stop was come to: by a hop, or by a change of address, from another one.
type step struct {
	from stop
	hop  bool
}

// find looks for the shortest way that the guardrail forbids, and gives it as the flows of its hops. ok is false if a way
// over classes was found that no workloads could be found for.
func (w *ways) find(g int) (way []finding, ok bool) {
	starts := w.p.classesOf(0, g)
	if way, ok = w.findFrom(starts, g); ok {
		return way, ok
	}
	// Some way ends where it began, or leads over one host. From each start by itself, that can be told apart.
	ok = true
	for _, c := range starts {
		one, fine := w.findFrom([]int32{c}, g)
		if one != nil && (way == nil || len(one) < len(way)) {
			way = one
		}
		ok = ok && (fine || one != nil)
	}
	return way, ok
}

// findFrom is find for ways from members of the classes. It gives a way that is the shortest only with ok.
func (w *ways) findFrom(starts []int32, g int) (way []finding, ok bool) {
	come := map[stop]step{}
	var queue []stop
	for _, c := range starts {
		queue = append(queue, stop{c, true})
	}
	targets := w.p.classesOf(1, g)
	ok = true
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, to := range w.lasts(at, targets, g) {
			if len(starts) == 1 && w.circle(starts[0], to, g) {
				continue
			}
			if way := w.follow(come, at, to, g); way != nil {
				return way, ok
			}
			ok = false
		}
		reached := func(c int32, s step) {
			to := stop{class: c}
			if _, known := come[to]; !known {
				come[to] = s
				queue = append(queue, to)
			}
		}
		hops := w.hops(at.class)
		if at.start {
			hops = w.firstHops(at.class, g)
		}
		for _, to := range hops {
			reached(to, step{at, true})
			for _, other := range w.siblings[to] {
				reached(other, step{stop{class: to}, false})
			}
		}
	}
	return nil, ok
}

// circle reports whether a way between the two classes can only end where it began.
func (w *ways) circle(start, target int32, g int) bool {
	first := w.p.members(0, g, start)[0]
	other := func(i int32) bool { return !w.same(i, first) }
	return !slices.ContainsFunc(w.p.members(0, g, start), other) && !slices.ContainsFunc(w.p.members(1, g, target), other)
}

// same reports whether two actors are one end: one workload, or the same addresses.
func (w *ways) same(a, b int32) bool {
	x, y := &w.p.u.Actors[a], &w.p.u.Actors[b]
	return a == b || x.Owned() && x.Workload == y.Workload
}

// lasts returns those of the classes to which a hop from a stop passes on the ports of the guardrail.
func (w *ways) lasts(from stop, targets []int32, g int) []int32 {
	sources := []party{{who: reach.Everybody}}
	if from.start {
		sources = w.p.parties(0, g, from.class)
	}
	src := w.p.u.From(from.class)
	var out []int32
	for _, to := range targets {
		if !w.mayPass(src, to) {
			continue
		}
		pass := false
		src.Each(to, func(pair *reach.Pair, _ reach.Where) {
			joint := w.p.u.Joint(pair.Egress[0], pair.Ingress[0])
			pass = pass || w.p.within(joint, g)&w.wants() != 0 && (!w.p.choosy[g] || w.passesFor(joint, sources, w.p.parties(1, g, to), g))
		})
		if pass {
			out = append(out, to)
		}
	}
	return out
}

// passesFor reports whether a function passes on the ports of the guardrail for processes that it means.
func (w *ways) passesFor(joint reach.FuncID, sources, dests []party, g int) bool {
	for _, x := range sources {
		for _, y := range dests {
			if ports, _ := w.ports(joint, w.p.ports[g], w.p.u.And(x.who, y.who)); !ports.Empty() {
				return true
			}
		}
	}
	return false
}

// overHops decides a guardrail over many hops: over the workloads of today, then over everything that could exist.
func (p *proof) overHops(g int) Guardrail {
	doc := &p.world.Documents().Guardrails[g]
	out := Guardrail{Name: doc.Name, At: doc.Pos.String()}
	proofs := []*proof{p}
	if all, why := p.everything(); all != nil {
		proofs = append(proofs, all)
	} else {
		out.TodayOnly, out.TodayWhy = true, why
	}
	for _, in := range proofs {
		switch way, ok := in.ways(allowed).find(g); {
		case way != nil:
			out.Counterexample = in.wayWitness(way)
			out.TodayOnly, out.TodayWhy = false, "" // one is enough
			return out
		case !ok:
			out.Undecided = lost
			return out
		}
	}
	out.Holds = true
	for _, in := range proofs {
		switch way, ok := in.ways(passing).find(g); {
		case way != nil:
			out.NotEnforced = in.wayWitness(way)
			return out
		case !ok:
			out.Undecided = "whether it is enforced: " + lost
			return out
		}
	}
	out.Enforced = true
	return out
}

const lost = "a way over units of one host could not be followed: ask about single hops with via: direct"

func (p *proof) ways(a aim) *ways {
	if p.over[a] == nil {
		p.over[a] = p.newWays(a)
	}
	return p.over[a]
}

// everything returns the proof over everything that could exist; nil with the reason if there is none.
func (p *proof) everything() (all *proof, why string) {
	if p.all == nil && p.allWhy == "" {
		var im *imagined
		if im, p.allWhy = p.space.imagine(p.u); im != nil {
			p.all = newProof(im.world)
			p.all.could = im
			p.all.match()
		}
	}
	return p.all, p.allWhy
}

// wayWitness describes a way. Of a way of one hop it is what the witness of a direct guardrail is.
func (p *proof) wayWitness(way []finding) *Witness {
	last := len(way) - 1
	out := p.witness(&way[last])
	if last == 0 {
		return out
	}
	for i := range way {
		w := p.witness(&way[i])
		if i == 0 {
			out.From, out.FromIs = w.From, w.FromIs
		}
		out.Hops = append(out.Hops, Hop{
			From: w.From, FromIs: w.FromIs, To: w.To, ToIs: w.ToIs, Port: w.Port,
			EgressRule: w.EgressRule, IngressRule: w.IngressRule, EgressAt: w.EgressAt, IngressAt: w.IngressAt,
			Hypothetical: w.Hypothetical, FromProcess: w.FromProcess, ToProcess: w.ToProcess,
		})
	}
	return out
}

func hopsText(hops []Hop) string {
	parts := make([]string, len(hops))
	for i := range hops {
		parts[i] = hops[i].String()
	}
	return strings.Join(parts, ", then ")
}
