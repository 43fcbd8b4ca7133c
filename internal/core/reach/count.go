package reach

import "strconv"

// ends numbers the different ends that actors are: a workload is one end whatever its addresses, and so are all addresses
// in the same networks, and all that are found by the same names.
type ends struct {
	of     []int32 // by actor
	owned  []bool  // by end
	seenIn []int32 // by end: number of the last list that it was seen in
	lists  int32
}

func newEnds(u *Universe) *ends {
	e := &ends{of: make([]int32, len(u.Actors))}
	byName := map[string]int32{}
	for i := range u.Actors {
		a := &u.Actors[i]
		name := a.Workload
		switch {
		case a.Domain != "":
			name = "\x01" + a.Domain
		case !a.Owned():
			name = "\x00" + strconv.Itoa(int(a.NetworkSet))
		}
		n, ok := byName[name]
		if !ok {
			n = int32(len(e.owned))
			byName[name] = n
			e.owned = append(e.owned, a.Owned())
		}
		e.of[i] = n
	}
	e.seenIn = make([]int32, len(e.owned))
	return e
}

// CountPairs counts the pairs of different ends that two lists of actors are, at least one of them a workload.
func (u *Universe) CountPairs(from, to []int32) int {
	if u.counted == nil {
		u.counted = newEnds(u)
	}
	e := u.counted
	sources, sourceWorkloads, _ := e.count(from)
	dests, destWorkloads, both := e.count(to)
	return sources*destWorkloads + sourceWorkloads*dests - sourceWorkloads*destWorkloads - both
}

// count returns how many ends the actors are, how many of those are workloads, and how many of these were in the list
// before.
func (e *ends) count(actors []int32) (all, workloads, both int) {
	e.lists++
	for _, i := range actors {
		n := e.of[i]
		if e.seenIn[n] == e.lists {
			continue
		}
		if e.owned[n] {
			workloads++
			if e.seenIn[n] == e.lists-1 {
				both++
			}
		}
		all++
		e.seenIn[n] = e.lists
	}
	return all, workloads, both
}
