package prove

import (
	"slices"

	"bulkhead/internal/core/reach"
)

// followTries bounds the search for the workloads of a way.
const followTries = 20_000

// follow finds workloads for a way over classes; nil if it finds none.
func (w *ways) follow(come map[stop]step, last stop, target int32, g int) []finding {
	f := &follower{ways: w, g: g, edges: []edge{{last.class, target}}}
	for at := last; !at.start; {
		s := come[at]
		if !s.hop { // the workload goes on from another address
			at = s.from
			s = come[at]
		}
		f.edges = append(f.edges, edge{s.from.class, at.class})
		at = s.from
	}
	slices.Reverse(f.edges)
	return f.walk(0, unset, w.p.members(0, g, f.edges[0].from))
}

// edge is a hop between classes.
type edge struct{ from, to int32 }

// follower looks for workloads that go a way.
type follower struct {
	*ways
	g     int
	edges []edge
	tries int
}

// walk goes on from one of the sources, by the edge of that number. start is the actor that the way began at.
func (f *follower) walk(i int, start int32, sources []int32) []finding {
	u, last := f.p.u, i == len(f.edges)-1
	within, dests := f.anywhere, u.Classes[f.edges[i].to].Members
	if last {
		within, dests = f.p.ports[f.g], f.p.members(1, f.g, f.edges[i].to)
	}
	type place struct {
		where reach.Where
		joint reach.FuncID
	}
	var places []place
	u.From(f.edges[i].from).Each(f.edges[i].to, func(pair *reach.Pair, where reach.Where) {
		joint := u.Joint(pair.Egress[0], pair.Ingress[0])
		if ports, _ := f.ports(joint, within, reach.Everybody); !ports.Empty() {
			places = append(places, place{where, joint})
		}
	})
	for _, x := range sources {
		for _, y := range dests {
			if f.tries++; f.tries > followTries {
				return nil
			}
			first := start
			if i == 0 {
				first = x
			}
			if last && f.same(first, y) {
				continue // back where it began
			}
			who := reach.Everybody
			if i == 0 && f.p.choosy[f.g] {
				who = f.p.processes(0, f.g, &u.Actors[x])
			}
			if last && f.p.choosy[f.g] {
				who = u.And(who, f.p.processes(1, f.g, &u.Actors[y]))
			}
			for _, p := range places {
				ends := u.Example([]int32{x}, []int32{y}, p.where)
				if ends == nil {
					continue
				}
				ports, level := f.ports(p.joint, within, who)
				if ports.Empty() {
					continue
				}
				hop := finding{from: ends[0], to: ends[1], ports: ports, joint: p.joint, level: level, who: who}
				if last {
					return []finding{hop}
				}
				if rest := f.walk(i+1, first, f.members(f.edges[i+1].from, u.Actors[y].Workload)); rest != nil {
					return append([]finding{hop}, rest...)
				}
			}
		}
	}
	return nil
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
