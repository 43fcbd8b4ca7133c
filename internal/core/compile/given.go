package compile

import (
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Given is what a host is given, named rather than made: enough to find out who is given how much, for many hosts.
type Given struct {
	Subjects []string // names of workloads, the host's first
	Local    int      // addresses of subjects that have a policy set of their own
	Sets     []int32  // numbers of policy sets in this world, sorted
}

// Given returns what HostPolicy would be about; false if there is no such host.
func (w *World) Given(host string) (Given, bool) {
	own := w.hostOf(host)
	if own == nil {
		return Given{}, false
	}
	var g Given
	sets := map[int32]bool{}
	add := func(wl *Workload) {
		s := w.hostSubject(wl, sets)
		g.Subjects = append(g.Subjects, s.Workload)
		g.Local += len(s.Local)
	}
	add(own)
	for _, u := range w.units[host] {
		add(&w.workloads[u])
	}
	for s := range sets {
		g.Sets = append(g.Sets, s)
	}
	slices.Sort(g.Sets)
	return g, true
}

// hostOf returns the workload that is judged as the host of that name, or nil.
func (w *World) hostOf(host string) *Workload {
	own := w.Workload(host)
	if own == nil || own.IsUnit() || own.Host != "" && own.Host != host {
		return nil
	}
	return own
}

// Use is a function of a table, and how many peers it judges by a row of theirs.
type Use struct {
	Func hostpolicy.Func
	Rows int
}

// Uses returns a function that reads the tables of the policy sets that Given numbers, without making them: the function
// of peers without a row first, and each other once. What it returns is valid until the next call.
func (w *World) Uses() func(set int32, d model.Direction) []Use {
	at := make([]int32, len(w.functions.funcs)) // function to its place in uses, and one
	var uses []Use
	var named []int32
	return func(set int32, d model.Direction) []Use {
		for _, fn := range named {
			at[fn] = 0
		}
		t := &w.tables[w.sets[set].tables[d]]
		uses, named = append(uses[:0], Use{Func: w.functions.funcs[t.def]}), append(named[:0], t.def)
		at[t.def] = 1
		for i := range t.rows {
			fn := t.rows[i].fn
			if at[fn] == 0 {
				uses, named = append(uses, Use{Func: w.functions.funcs[fn]}), append(named, fn)
				at[fn] = int32(len(uses))
			}
			uses[at[fn]-1].Rows++
		}
		return uses
	}
}

// Told bounds what a host is told of addresses, from above.
type Told struct {
	Addresses int // single ones
	Prefixes  int // exact
	Ports     int
	Domains   int // exact
}

// Told returns how much of addresses a host is told that is given the sets.
func (w *World) Told(sets []int32) Told {
	given := make(map[int32]bool, len(sets))
	for _, s := range sets {
		given[s] = true
	}
	told := w.toldApart(given)
	var t Told
	domains, everywhere := w.domainsOf(told)
	t.Domains = len(domains)
	var p hostpolicy.Policy
	covered := w.prefixes(&p, told)
	for i := range p.Addresses {
		if p.Addresses[i].Prefix.IsSingleIP() {
			t.Addresses++
		} else {
			t.Prefixes++
		}
	}
	list := func(addrs []int32) {
		t.Addresses += len(addrs)
		for _, a := range addrs {
			if shared := w.placed.addrs[a].shared; shared >= 0 {
				t.Ports += len(w.shared[shared].ports)
			}
		}
	}
	if everywhere {
		t.Addresses += len(w.placed.addrs)
		for i := range w.shared {
			t.Ports += len(w.shared[i].ports)
		}
		return t
	}
	for id, yes := range told {
		if yes {
			list(w.placed.byIdentity[id])
		}
	}
	for cell, under := range covered {
		if under {
			list(w.placed.byCell[cell])
		}
	}
	return t
}

// ToldAtMost bounds Told of any sets.
func (w *World) ToldAtMost() Told {
	t := Told{Addresses: len(w.placed.addrs) + len(w.nets.cells), Prefixes: len(w.nets.cells)}
	for i := range w.shared {
		t.Ports += len(w.shared[i].ports)
	}
	t.Domains = len(w.nets.classes) * len(w.nets.netsets)
	return t
}

// Identities returns how many identities there are: IdentityID takes the indexes below it.
func (w *World) Identities() int { return len(w.ids.ids) }
