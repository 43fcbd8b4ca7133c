package cli

import (
	"strings"

	"bulkhead/internal/core/model"
)

// kindNames are the names under which users may ask for a kind, beside its own in any case.
var kindNames = map[model.Kind][]string{
	model.KindWorkload:    {"workloads", "wl"},
	model.KindService:     {"services", "svc"},
	model.KindNetwork:     {"networks", "net"},
	model.KindSegment:     {"segments", "seg"},
	model.KindPolicy:      {"policies", "pol"},
	model.KindGuardrail:   {"guardrails"},
	model.KindExpectation: {"expectations"},
}

// parseKind returns the kind that a user names.
func parseKind(name string) (model.Kind, error) {
	lower := strings.ToLower(name)
	var known []string
	for _, k := range model.Kinds {
		if lower == strings.ToLower(string(k)) {
			return k, nil
		}
		for _, n := range kindNames[k] {
			if lower == n {
				return k, nil
			}
		}
		known = append(known, kindNames[k][0])
	}
	hint := didYouMean(similar(lower, known))
	if hint == "" {
		hint = ": use " + strings.Join(known, ", ")
	}
	return "", usagef("there is no kind %q%s", name, hint)
}

// kindArgs are the kinds for shell completion.
func kindArgs(more ...string) []string {
	var names []string
	for _, k := range model.Kinds {
		names = append(names, kindNames[k][0])
	}
	return append(names, more...)
}
