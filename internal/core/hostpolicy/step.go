package hostpolicy

import (
	"net/netip"
	"slices"
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
	var upsert, remove Block
	compare(old.Addresses, now.Addresses, CompareAddresses, equal[Address],
		func(a *Address) { upsert.Addresses = append(upsert.Addresses, *a) },
		func(a *Address) { remove.Addresses = append(remove.Addresses, *a) })
	compare(old.Ports, now.Ports, ComparePorts, equal[PortOwner],
		func(o *PortOwner) { upsert.Ports = append(upsert.Ports, *o) },
		func(o *PortOwner) { remove.Ports = append(remove.Ports, *o) })
	d.AddressDelta = *deltaOf(&upsert, &remove)
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
