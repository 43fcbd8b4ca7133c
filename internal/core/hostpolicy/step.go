package hostpolicy

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// Step turns the policy that an agent has into the one that it should have: a Delta as it goes over the wire, over any
// number of changes in between, with policy sets whole. Nothing in it may be written to.
type Step struct {
	Revision     uint64
	Base, Result Hash      // of the policy that it starts from, and of the one that it leads to
	Subjects     []Subject // new ones, and those that differ
	GoneSubjects []string
	Sets         []PolicySet // new ones, in the order of IDs
	GoneSets     []PolicySetID
	AddressDelta
	// Controllers and Domains are all of them, if they changed.
	Controllers        []netip.AddrPort
	ControllersChanged bool
	Domains            []Domain
	DomainsChanged     bool
}

// Between returns the step from one policy to another of the same host, but for its hashes: those are the caller's to say.
func Between(old, now *Policy) *Step {
	d := &Step{Revision: now.Revision}
	compare(old.Subjects, now.Subjects, CompareSubjects, equalSubjects,
		func(s *Subject) { d.Subjects = append(d.Subjects, *s) },
		func(s *Subject) { d.GoneSubjects = append(d.GoneSubjects, s.Workload) })
	// A workload that was the host and is now a unit (or the reverse) has another place in the order but the same
	// key: it is replaced, not removed.
	d.GoneSubjects = slices.DeleteFunc(d.GoneSubjects, func(w string) bool {
		return slices.ContainsFunc(d.Subjects, func(s Subject) bool { return s.Workload == w })
	})
	// The ID of a set is the hash of its content: equal IDs are equal sets.
	compare(old.Sets, now.Sets, CompareSets, func(a, b *PolicySet) bool { return true },
		func(s *PolicySet) { d.Sets = append(d.Sets, *s) },
		func(s *PolicySet) { d.GoneSets = append(d.GoneSets, s.ID) })
	compare(old.Addresses, now.Addresses, CompareAddresses, equal[Address],
		func(a *Address) { d.Upsert = append(d.Upsert, *a) },
		func(a *Address) { d.Remove = append(d.Remove, *a) })
	compare(old.Ports, now.Ports, ComparePorts, equal[PortOwner],
		func(o *PortOwner) { d.UpsertPorts = append(d.UpsertPorts, *o) },
		func(o *PortOwner) { d.RemovePorts = append(d.RemovePorts, *o) })
	if !slices.Equal(old.Controllers, now.Controllers) {
		d.Controllers, d.ControllersChanged = now.Controllers, true
	}
	if !slices.Equal(old.Domains, now.Domains) {
		d.Domains, d.DomainsChanged = now.Domains, true
	}
	return d
}

func equal[T comparable](a, b *T) bool { return *a == *b }

func equalSubjects(a, b *Subject) bool {
	return a.Workload == b.Workload && a.Unit == b.Unit && a.Identity == b.Identity && a.Set == b.Set &&
		slices.Equal(a.Local, b.Local) && a.Isolation == b.Isolation && a.Quarantine == b.Quarantine &&
		a.OnAgentLoss == b.OnAgentLoss
}

// compare walks two sorted lists: upsert is called for what is new or differs, remove for what is gone.
func compare[T any](old, now []T, order func(a, b *T) int, same func(a, b *T) bool, upsert, remove func(*T)) {
	i, j := 0, 0
	for i < len(old) || j < len(now) {
		c := -1
		switch {
		case i == len(old):
			c = 1
		case j < len(now):
			c = order(&old[i], &now[j])
		}
		switch {
		case c < 0:
			remove(&old[i])
			i++
		case c > 0:
			upsert(&now[j])
			j++
		default:
			if !same(&old[i], &now[j]) {
				upsert(&now[j])
			}
			i, j = i+1, j+1
		}
	}
}

// Len returns how many entries change.
func (d *AddressDelta) Len() int {
	if d == nil {
		return 0
	}
	return len(d.Upsert) + len(d.Remove) + len(d.UpsertPorts) + len(d.RemovePorts)
}

// JoinAddresses returns one delta that does what the deltas do one after the other. It may remove an entry that was not there
// at the beginning, which came and went in between: to remove it does no harm. The deltas stay as they are; the result may
// share memory with them.
func JoinAddresses(deltas []*AddressDelta) *AddressDelta {
	switch len(deltas) {
	case 0:
		return &AddressDelta{}
	case 1:
		return deltas[0]
	}
	type port struct {
		addr  netip.Addr
		proto model.Proto
		port  uint16
	}
	addresses := joined[netip.Prefix, Address]{}
	ports := joined[port, PortOwner]{}
	prefix := func(a *Address) netip.Prefix { return a.Prefix }
	key := func(o *PortOwner) port { return port{o.Addr, o.Proto, o.Port} }
	for _, d := range deltas {
		addresses.add(d.Remove, prefix, true)
		addresses.add(d.Upsert, prefix, false)
		ports.add(d.RemovePorts, key, true)
		ports.add(d.UpsertPorts, key, false)
	}
	out := &AddressDelta{}
	out.Upsert, out.Remove = addresses.lists(CompareAddresses)
	out.UpsertPorts, out.RemovePorts = ports.lists(ComparePorts)
	return out
}

// joined is what became of each key in the end.
type joined[K comparable, T any] map[K]fate[T]

type fate[T any] struct {
	entry T
	gone  bool
}

func (j joined[K, T]) add(list []T, key func(*T) K, gone bool) {
	for i := range list {
		j[key(&list[i])] = fate[T]{list[i], gone}
	}
}

func (j joined[K, T]) lists(order func(a, b *T) int) (upsert, remove []T) {
	for _, f := range j {
		if f.gone {
			remove = append(remove, f.entry)
		} else {
			upsert = append(upsert, f.entry)
		}
	}
	by := func(a, b T) int { return order(&a, &b) }
	slices.SortFunc(upsert, by)
	slices.SortFunc(remove, by)
	return upsert, remove
}
