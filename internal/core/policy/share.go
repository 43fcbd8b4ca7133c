package policy

import (
	"reflect"

	"bulkhead/internal/core/model"
)

// Share returns the documents now, with every list, and every list within a document, that equals that of the documents before
// in all but positions taken from those: so that who keeps documents apart by their place in memory sees what changed and
// nothing else (compile.Live). What is taken over has the positions of before. Neither argument changes.
func Share(before, now *model.Documents) *model.Documents {
	out := *now
	out.Services = share(before.Services, now.Services, serviceName, nil)
	out.Networks = share(before.Networks, now.Networks, networkName, nil)
	out.Workloads = share(before.Workloads, now.Workloads, workloadName, nil)
	out.Segments = share(before.Segments, now.Segments, segmentName, nil)
	out.Policies = share(before.Policies, now.Policies, policyName, func(old, p *model.Policy) {
		if unmoved(old.Rules, p.Rules) {
			p.Rules = old.Rules
		}
	})
	out.Guardrails = share(before.Guardrails, now.Guardrails, guardrailName, nil)
	out.Expectations = share(before.Expectations, now.Expectations, expectationName, nil)
	out.OneSided = share(before.OneSided, now.OneSided, oneSidedName, nil)
	return &out
}

// share returns the list of before if it says the same; else a copy of now with those elements of before that do, and with
// parts, if given, called for those that do not.
func share[T any](before, now []T, name func(*T) string, parts func(old, now *T)) []T {
	if len(before) == len(now) && (len(now) == 0 || &before[0] == &now[0]) {
		return before
	}
	out := make([]T, len(now))
	same := len(before) == len(now)
	old := 0
	for i := range now {
		out[i] = now[i]
		for old < len(before) && name(&before[old]) < name(&now[i]) {
			old++
		}
		switch {
		case old == len(before) || name(&before[old]) != name(&now[i]):
			same = false
		case unmoved(before[old], now[i]):
			out[i] = before[old]
			same = same && old == i
		default:
			same = false
			if parts != nil {
				parts(&before[old], &out[i])
			}
		}
	}
	if same {
		return before
	}
	return out
}

// unmoved reports whether two values are the same but for positions. What it cannot tell it takes for different.
func unmoved[T any](a, b T) bool { return equalValues(reflect.ValueOf(a), reflect.ValueOf(b)) }

var positionType = reflect.TypeFor[model.Position]()

func equalValues(a, b reflect.Value) bool {
	if a.Type() == positionType {
		return true
	}
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if !equalValues(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if a.IsNil() != b.IsNil() || a.Len() != b.Len() {
			return false
		}
		if a.Len() == 0 || a.UnsafePointer() == b.UnsafePointer() {
			return true
		}
		for i := range a.Len() {
			if !equalValues(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.IsNil() != b.IsNil() || a.Len() != b.Len() {
			return false
		}
		for it := a.MapRange(); it.Next(); {
			if v := b.MapIndex(it.Key()); !v.IsValid() || !equalValues(it.Value(), v) {
				return false
			}
		}
		return true
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() || a.UnsafePointer() == b.UnsafePointer() {
			return a.IsNil() == b.IsNil()
		}
		return equalValues(a.Elem(), b.Elem())
	case reflect.String:
		return a.String() == b.String()
	case reflect.Bool:
		return a.Bool() == b.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return a.Int() == b.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return a.Uint() == b.Uint()
	}
	return false
}
