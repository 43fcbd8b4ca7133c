package prove

import (
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// keyDomain are the values of a label key, or of a field of a process, that some document tells apart: those that it
// mentions, one that stands for all others, and none at all.
type keyDomain struct {
	name          string
	values        []string // sorted
	other, absent int32    // numbers after those of values; unset if it cannot be
	size          int32
}

const unset = int32(-1)

// levels are the values that the system gives the label of quarantine.
var levels = []string{model.QuarantineIsolate.String(), model.QuarantineRestrict.String(), model.QuarantineWatch.String()}

// findKeys collects what is mentioned anywhere.
func (s *space) findKeys() {
	values := map[string]map[string]bool{model.QuarantineLabel: {}}
	selector := func(sel *model.Selector) {
		for i := range sel.Requirements {
			r := &sel.Requirements[i]
			if values[r.Key] == nil {
				values[r.Key] = map[string]bool{}
			}
			for _, v := range r.Values {
				values[r.Key][v] = true
			}
		}
	}
	for _, m := range s.matches {
		for _, t := range m.Terms {
			if t.Selector != nil {
				selector(t.Selector)
			}
		}
	}
	for i := range s.docs.Segments {
		selector(&s.docs.Segments[i].Selector)
	}
	var process [3]map[string]bool
	for i := range process {
		process[i] = map[string]bool{}
	}
	mention := func(p *model.Process) {
		for i, v := range fields(p) {
			if v != "" {
				process[i][v] = true
			}
		}
	}
	for i := range s.docs.Guardrails {
		for _, list := range [][]model.Peer{s.docs.Guardrails[i].From, s.docs.Guardrails[i].To} {
			for k := range list {
				selector(&list[k].Workloads)
				if list[k].Process != nil {
					mention(list[k].Process)
				}
			}
		}
	}
	for d := range s.rules {
		for i := range s.rules[d] {
			if p := s.rules[d][i].SubjectProcess; p != nil {
				mention(p)
			}
		}
	}
	for name, set := range values {
		k := keyDomain{name: name}
		for v := range set {
			k.values = append(k.values, v)
		}
		k.close(name)
		s.keys = append(s.keys, k)
	}
	slices.SortFunc(s.keys, func(a, b keyDomain) int { return strings.Compare(a.name, b.name) })
	s.labels = len(s.keys)
	for i, name := range [...]string{"unit", "path", "user"} {
		k := keyDomain{name: name}
		for v := range process[i] {
			k.values = append(k.values, v)
		}
		slices.Sort(k.values)
		k.other, k.absent, k.size = int32(len(k.values)), unset, int32(len(k.values))+1
		s.keys = append(s.keys, k)
	}
	for i := range s.keys[:s.labels] {
		s.keyIndex[s.keys[i].name] = int32(i)
	}
	s.level = s.keyIndex[model.QuarantineLabel]
}

// close numbers the values that are not mentioned. Labels that the system sets have the values it gives them.
func (k *keyDomain) close(name string) {
	k.other = unset
	switch name {
	case model.QuarantineLabel:
		k.values = slices.Clone(levels)
	case model.PodLabel:
		k.values = []string{model.HostPodValue, model.PodValue}
	default:
		k.other = int32(len(k.values))
	}
	slices.Sort(k.values)
	k.absent = int32(len(k.values))
	if k.other != unset {
		k.absent++
	}
	k.size = k.absent + 1
}

func fields(p *model.Process) [3]string { return [...]string{p.Unit, p.Path, p.User} }
