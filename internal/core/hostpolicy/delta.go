package hostpolicy

import (
	"cmp"
	"fmt"
	"slices"

	"bulkhead/internal/core/model"
)

// Delta turns one policy of a host into the next. Hosts that get the same change share its parts: nothing in it may be
// written to.
type Delta struct {
	Host         string
	Base, Result Hash      // of the policy that it starts from, and of the one that it leads to
	Subjects     []Subject // new ones, and those that differ
	GoneSubjects []string
	Sets         []*SetDelta // new ones, in the order of IDs
	GoneSets     []PolicySetID
	Addresses    *AddressDelta // nil: as they were
	// Domains are all of them, if DomainsChanged.
	Domains        []Domain
	DomainsChanged bool
}

// SetDelta is a policy set that is new to the host, as what differs from one that the host has.
type SetDelta struct {
	ID     PolicySetID
	From   PolicySetID   // zero: from tables without rows, whose functions are in Tables
	Tables [2]TableDelta // by direction
}

// TableDelta turns one table into the next.
type TableDelta struct {
	Others Func // what judges peers without a row; nil: as it was
	Funcs  []Func
	Rows   []PeerFunc         // of which the functions are among Funcs
	Gone   []model.IdentityID // peers that have no row any more
}

// Patch returns what the delta makes of p, and leaves p as it is. It does not compare hashes: see Delta.Base and
// Delta.Result. The error says what the delta takes for granted and p does not have.
func (p *Policy) Patch(d *Delta) (*Policy, error) {
	out := *p
	out.Subjects = replace(p.Subjects, d.Subjects, CompareSubjects, func(s *Subject) bool {
		return slices.Contains(d.GoneSubjects, s.Workload) ||
			slices.ContainsFunc(d.Subjects, func(x Subject) bool { return x.Workload == s.Workload })
	})
	var sets []PolicySet
	for _, s := range d.Sets {
		set, err := p.patchSet(s)
		if err != nil {
			return nil, err
		}
		sets = append(sets, set)
	}
	out.Sets = replace(p.Sets, sets, CompareSets, func(s *PolicySet) bool { return slices.Contains(d.GoneSets, s.ID) })
	if a := d.Addresses; a != nil {
		upsert, remove := joinBlocks(a.Upsert), joinBlocks(a.Remove)
		out.Addresses = replaceKeys(p.Addresses, upsert.Addresses, remove.Addresses, CompareAddresses)
		out.Ports = replaceKeys(p.Ports, upsert.Ports, remove.Ports, ComparePorts)
	}
	if d.DomainsChanged {
		out.Domains = d.Domains
	}
	return &out, nil
}

func (p *Policy) patchSet(d *SetDelta) (PolicySet, error) {
	from := &PolicySet{}
	if d.From != 0 {
		if from = p.Set(d.From); from == nil {
			return PolicySet{}, fmt.Errorf("policy set %016x starts from %016x, which is missing", uint64(d.ID), uint64(d.From))
		}
	}
	out := PolicySet{ID: d.ID}
	for _, dir := range model.Directions {
		*out.Table(dir) = from.Table(dir).patch(&d.Tables[dir])
	}
	return out, nil
}

// patch returns the table with functions numbered as the compiler does: the default first, then as rows name them.
func (t *Table) patch(d *TableDelta) Table {
	if d.Others == nil && len(d.Rows) == 0 && len(d.Gone) == 0 {
		return *t
	}
	type numbered struct {
		peer model.IdentityID
		fn   int
	}
	var (
		out   Table
		funcs []Func
		byKey = map[string]int{}
	)
	number := func(f Func) int {
		var e encoder
		e.cells(f)
		n, ok := byKey[string(e.buf)]
		if !ok {
			n = len(funcs)
			byKey[string(e.buf)] = n
			funcs = append(funcs, f)
		}
		return n
	}
	others := d.Others
	if others == nil && len(t.Funcs) > 0 {
		others = t.Funcs[0]
	}
	number(others)
	known := make([]int, len(t.Funcs))
	for i, f := range t.Funcs {
		known[i] = number(f)
	}
	drop := make(map[model.IdentityID]bool, len(d.Rows)+len(d.Gone))
	for _, g := range d.Gone {
		drop[g] = true
	}
	for i := range d.Rows {
		drop[d.Rows[i].Peer] = true
	}
	rows := make([]numbered, 0, len(t.Peers)+len(d.Rows))
	for _, p := range t.Peers {
		if !drop[p.Peer] {
			rows = append(rows, numbered{p.Peer, known[p.Func]})
		}
	}
	named := make([]int, len(d.Funcs))
	for i, f := range d.Funcs {
		named[i] = number(f)
	}
	for _, r := range d.Rows {
		rows = append(rows, numbered{r.Peer, named[r.Func]})
	}
	slices.SortFunc(rows, func(a, b numbered) int { return cmp.Compare(a.peer, b.peer) })
	local := make([]int, len(funcs))
	out.Funcs = []Func{funcs[0]}
	for _, r := range rows {
		if r.fn != 0 && local[r.fn] == 0 {
			local[r.fn] = len(out.Funcs)
			out.Funcs = append(out.Funcs, funcs[r.fn])
		}
		out.Peers = append(out.Peers, PeerFunc{Peer: r.peer, Func: uint32(local[r.fn])})
	}
	return out
}

// replace returns the list without what drop names, with the others, in order.
func replace[T any](list, with []T, order func(a, b *T) int, drop func(*T) bool) []T {
	out := make([]T, 0, len(list)+len(with))
	for i := range list {
		if !drop(&list[i]) {
			out = append(out, list[i])
		}
	}
	if out = append(out, with...); len(out) == 0 {
		return nil
	}
	slices.SortFunc(out, func(a, b T) int { return order(&a, &b) })
	return out
}

func replaceKeys[T any](list, upsert, remove []T, order func(a, b *T) int) []T {
	if len(upsert)+len(remove) == 0 {
		return list
	}
	in := func(sorted []T, x *T) bool {
		_, found := slices.BinarySearchFunc(sorted, *x, func(a, b T) int { return order(&a, &b) })
		return found
	}
	return replace(list, upsert, order, func(x *T) bool { return in(upsert, x) || in(remove, x) })
}
