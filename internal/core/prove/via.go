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
// of today.

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
}

func (h *Hop) String() string {
	w := Witness{EgressRule: h.EgressRule, IngressRule: h.IngressRule, EgressAt: h.EgressAt, IngressAt: h.IngressAt, Port: h.Port}
	if who := w.deciders(); who != "" {
		return fmt.Sprintf("%s -> %s on %s (%s)", h.From, h.To, h.Port, who)
	}
	return fmt.Sprintf("%s -> %s on %s", h.From, h.To, h.Port)
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

// ports returns on which ports of within a function passes.
func (w *ways) ports(joint, within reach.FuncID) reach.Ports {
	out := w.p.u.Where(joint, within, reach.Allow)
	if w.aim == passing && out.Empty() {
		out = w.p.u.Where(joint, within, reach.WouldDeny)
	}
	return out
}

func (w *ways) passesAnywhere(joint reach.FuncID) bool {
	out, known := w.passes[joint]
	if !known {
		ports := w.ports(joint, w.anywhere)
		out = !ports.Empty()
		w.passes[joint] = out
	}
	return out
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
		if !u.Actors[u.Classes[to].Members[0]].Owned() {
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

// step is how a class was come to.
type step struct {
	from int32 // class that the hop, or the change of address, is from; unset at the start
	hop  bool
}

// find looks for the shortest way that the guardrail forbids, and gives it as the flows of its hops. ok is false if a way
// over classes was found that no workloads could be found for.
func (w *ways) find(g int) (way []flowOf, ok bool) {
	var starts []int32
	for c := range w.p.u.Classes {
		if len(w.p.members(0, g, int32(c))) > 0 {
			starts = append(starts, int32(c))
		}
	}
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
func (w *ways) findFrom(starts []int32, g int) (way []flowOf, ok bool) {
	u := w.p.u
	come := map[int32]step{}
	queue := slices.Clone(starts)
	for _, c := range starts {
		come[c] = step{from: unset}
	}
	var targets []int32
	for c := range u.Classes {
		if len(w.p.members(1, g, int32(c))) > 0 {
			targets = append(targets, int32(c))
		}
	}
	ok = true
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, to := range targets {
			if !w.lasts(at, to, g) || len(starts) == 1 && w.circle(starts[0], to, g) {
				continue
			}
			if way := w.follow(come, at, to, g); way != nil {
				return way, ok
			}
			ok = false
		}
		reached := func(c int32, s step) {
			if _, known := come[c]; !known {
				come[c] = s
				queue = append(queue, c)
			}
		}
		for _, to := range w.hops(at) {
			reached(to, step{at, true})
			for _, other := range w.siblings[to] {
				reached(other, step{to, false})
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

// lasts reports whether a hop between the classes passes on the ports of the guardrail.
func (w *ways) lasts(from, to int32, g int) bool {
	pass := false
	w.p.u.From(from).Each(to, func(pair *reach.Pair, _ reach.Where) {
		if !pass {
			ports := w.ports(w.p.u.Joint(pair.Egress[0], pair.Ingress[0]), w.p.ports[g])
			pass = !ports.Empty()
		}
	})
	return pass
}

// flowOf is a flow between two actors.
type flowOf struct {
	from, to *reach.Actor
	ports    reach.Ports
}

// followTries bounds the search for the workloads of a way.
const followTries = 20_000

// follow finds workloads for a way over classes; nil if it finds none.
func (w *ways) follow(come map[int32]step, last, target int32, g int) []flowOf {
	type edge struct{ from, to int32 }
	edges := []edge{{last, target}}
	for at := last; come[at].from != unset; {
		s := come[at]
		if !s.hop { // the workload goes on from another address
			at = s.from
			s = come[at]
			if s.from == unset {
				break
			}
		}
		edges = append(edges, edge{s.from, at})
		at = s.from
	}
	slices.Reverse(edges)
	u := w.p.u
	tries := 0
	var walk func(i int, start int32, sources []int32) []flowOf
	walk = func(i int, start int32, sources []int32) []flowOf {
		within, dests := w.anywhere, u.Classes[edges[i].to].Members
		if i == len(edges)-1 {
			within, dests = w.p.ports[g], w.p.members(1, g, edges[i].to)
		}
		type place struct {
			where reach.Where
			ports reach.Ports
		}
		var places []place
		u.From(edges[i].from).Each(edges[i].to, func(pair *reach.Pair, where reach.Where) {
			if ports := w.ports(u.Joint(pair.Egress[0], pair.Ingress[0]), within); !ports.Empty() {
				places = append(places, place{where, ports})
			}
		})
		for _, x := range sources {
			for _, y := range dests {
				if tries++; tries > followTries {
					return nil
				}
				first := start
				if i == 0 {
					first = x
				}
				if i == len(edges)-1 && w.same(first, y) {
					continue // back where it began
				}
				for _, p := range places {
					ends := u.Example([]int32{x}, []int32{y}, p.where)
					if ends == nil {
						continue
					}
					hop := flowOf{ends[0], ends[1], p.ports}
					if i == len(edges)-1 {
						return []flowOf{hop}
					}
					if rest := walk(i+1, first, w.members(edges[i+1].from, u.Actors[y].Workload)); rest != nil {
						return append([]flowOf{hop}, rest...)
					}
				}
			}
		}
		return nil
	}
	return walk(0, unset, w.p.members(0, g, edges[0].from))
}

// members returns the actors of a class that are the workload.
func (w *ways) members(class int32, workload string) []int32 {
	var out []int32
	for _, i := range w.p.u.Classes[class].Members {
		if w.p.u.Actors[i].Workload == workload {
			out = append(out, i)
		}
	}
	return out
}

// overHops decides a guardrail over many hops.
func (p *proof) overHops(g int) Guardrail {
	doc := &p.world.Documents().Guardrails[g]
	out := Guardrail{Name: doc.Name, At: doc.Pos.String(), TodayOnly: true}
	const lost = "a way over units of one host could not be followed: ask about single hops with via: direct"
	if p.over[allowed] == nil {
		p.over[allowed], p.over[passing] = p.newWays(allowed), p.newWays(passing)
	}
	way, ok := p.over[allowed].find(g)
	switch {
	case way != nil:
		out.Counterexample = p.wayWitness(way, model.Allow)
		return out
	case !ok:
		out.Undecided = lost
		return out
	}
	out.Holds = true
	switch way, ok = p.over[passing].find(g); {
	case way != nil:
		out.NotEnforced = p.wayWitness(way, model.WouldDeny)
	case !ok:
		out.Undecided = "whether it is enforced: " + lost
	default:
		out.Enforced = true
	}
	return out
}

// wayWitness describes a way. Of a way of one hop it is what the witness of a direct guardrail is.
func (p *proof) wayWitness(way []flowOf, want model.Verdict) *Witness {
	last := len(way) - 1
	if last == 0 {
		return p.witness(&finding{way[0].from, way[0].to, way[0].ports}, want)
	}
	out := p.witness(&finding{way[last].from, way[last].to, way[last].ports}, want)
	out.From, out.FromIs = way[0].from.End().String(), way[0].from.Is()
	for i := range way {
		w := p.witness(&finding{way[i].from, way[i].to, way[i].ports}, model.Allow)
		if w.EgressRule == "" { // a hop that is only recorded
			w = p.witness(&finding{way[i].from, way[i].to, way[i].ports}, model.WouldDeny)
		}
		out.Hops = append(out.Hops, Hop{
			From: w.From, FromIs: w.FromIs, To: w.To, ToIs: w.ToIs, Port: w.Port,
			EgressRule: w.EgressRule, IngressRule: w.IngressRule, EgressAt: w.EgressAt, IngressAt: w.IngressAt,
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
