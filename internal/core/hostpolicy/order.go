package hostpolicy

import (
	"cmp"
	"strings"

	"bulkhead/internal/core/model"
)

// The lists of a policy have one order each, so that equal policies have equal bytes. Two entries that compare as
// equal have the same key, and a list holds a key once.

// CompareSubjects puts the host before its units and orders those by workload.
func CompareSubjects(a, b *Subject) int {
	if (a.Unit == "") != (b.Unit == "") {
		if a.Unit == "" {
			return -1
		}
		return 1
	}
	return strings.Compare(a.Workload, b.Workload)
}

// CompareSets orders policy sets by ID.
func CompareSets(a, b *PolicySet) int { return cmp.Compare(a.ID, b.ID) }

// CompareAddresses orders entries by prefix: IPv4 first, then by address, then shorter prefixes first.
func CompareAddresses(a, b *Address) int { return a.Prefix.Compare(b.Prefix) }

// ComparePorts orders entries by address, protocol and port.
func ComparePorts(a, b *PortOwner) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// CompareDomains orders entries by pattern, then by what the address is without the name.
func CompareDomains(a, b *Domain) int {
	return cmp.Or(strings.Compare(a.Pattern, b.Pattern), cmp.Compare(a.Base, b.Base))
}

// sorted returns the first index at which the list is not strictly in order, or -1.
func sorted[T any](list []T, compare func(a, b *T) int) int {
	for i := 1; i < len(list); i++ {
		if compare(&list[i-1], &list[i]) >= 0 {
			return i
		}
	}
	return -1
}

// checkOrder reports the first list that is out of order or names a key twice.
func (p *Policy) checkOrder() error {
	if i := sorted(p.Subjects, CompareSubjects); i >= 0 {
		return outOfOrder("subjects", p.Subjects[i].Workload)
	}
	if i := sorted(p.Addresses, CompareAddresses); i >= 0 {
		return outOfOrder("addresses", p.Addresses[i].Prefix.String())
	}
	if i := sorted(p.Ports, ComparePorts); i >= 0 {
		o := &p.Ports[i]
		return outOfOrder("ports", o.Addr.String()+" "+model.PortRange{Proto: o.Proto, Lo: o.Port, Hi: o.Port}.String())
	}
	if i := sorted(p.Domains, CompareDomains); i >= 0 {
		return outOfOrder("domains", p.Domains[i].Pattern)
	}
	return nil
}
