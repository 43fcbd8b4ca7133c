package policy

import (
	"slices"

	"bulkhead/internal/core/model"
)

// Merge lays documents over others: one of over replaces the one of its kind and name in base, or is added. The result
// is sorted by name, and shares nothing that a caller would write to: neither argument is changed. Nil stands for no
// documents.
func Merge(base, over *model.Documents) *model.Documents {
	b, o := sortedCopy(base), sortedCopy(over)
	return &model.Documents{
		Services:     mergeLists(b.Services, o.Services, serviceName),
		Networks:     mergeLists(b.Networks, o.Networks, networkName),
		Workloads:    mergeLists(b.Workloads, o.Workloads, workloadName),
		Segments:     mergeLists(b.Segments, o.Segments, segmentName),
		Policies:     mergeLists(b.Policies, o.Policies, policyName),
		Guardrails:   mergeLists(b.Guardrails, o.Guardrails, guardrailName),
		Expectations: mergeLists(b.Expectations, o.Expectations, expectationName),
		OneSided:     mergeLists(b.OneSided, o.OneSided, oneSidedName),
	}
}

func mergeLists[T any](base, over []T, name func(*T) string) []T {
	var out []T
	for len(base) > 0 || len(over) > 0 {
		switch {
		case len(over) == 0 || len(base) > 0 && name(&base[0]) < name(&over[0]):
			out = append(out, base[0])
			base = base[1:]
		case len(base) > 0 && name(&base[0]) == name(&over[0]):
			base = base[1:]
		default:
			out = append(out, over[0])
			over = over[1:]
		}
	}
	return out
}

// Remove returns the documents without the one of that kind and name, and whether there was one. It does not change
// its argument.
func Remove(base *model.Documents, kind model.Kind, name string) (*model.Documents, bool) {
	d := sortedCopy(base)
	var found bool
	switch kind {
	case model.KindService:
		d.Services, found = without(d.Services, name, serviceName)
	case model.KindNetwork:
		d.Networks, found = without(d.Networks, name, networkName)
	case model.KindWorkload:
		d.Workloads, found = without(d.Workloads, name, workloadName)
	case model.KindSegment:
		d.Segments, found = without(d.Segments, name, segmentName)
	case model.KindPolicy:
		d.Policies, found = without(d.Policies, name, policyName)
	case model.KindGuardrail:
		d.Guardrails, found = without(d.Guardrails, name, guardrailName)
	case model.KindExpectation:
		d.Expectations, found = without(d.Expectations, name, expectationName)
	}
	return d, found
}

func without[T any](list []T, name string, nameOf func(*T) string) ([]T, bool) {
	before := len(list)
	list = slices.DeleteFunc(list, func(d T) bool { return nameOf(&d) == name })
	if len(list) == 0 {
		return nil, before > 0
	}
	return list, len(list) < before
}

// sortedCopy returns documents whose lists are the caller's own, sorted by name.
func sortedCopy(docs *model.Documents) *model.Documents {
	if docs == nil {
		return &model.Documents{}
	}
	d := &model.Documents{
		Services:     slices.Clone(docs.Services),
		Networks:     slices.Clone(docs.Networks),
		Workloads:    slices.Clone(docs.Workloads),
		Segments:     slices.Clone(docs.Segments),
		Policies:     slices.Clone(docs.Policies),
		Guardrails:   slices.Clone(docs.Guardrails),
		Expectations: slices.Clone(docs.Expectations),
		OneSided:     slices.Clone(docs.OneSided),
	}
	sortDocuments(d)
	return d
}
