package hostpolicy

import (
	"iter"
	"maps"
	"slices"

	"bulkhead/internal/core/model"
)

// Alternatives yields every alternative for some processes in the set.
func (s *PolicySet) Alternatives() iter.Seq[*Alternative] {
	return func(yield func(*Alternative) bool) {
		for _, d := range model.Directions {
			for _, f := range s.Table(d).Funcs {
				for i := range f {
					for k := range f[i].When {
						if !yield(&f[i].When[k]) {
							return
						}
					}
				}
			}
		}
	}
}

// Processes is what the rules of a policy say about processes at the host's end, each list sorted.
type Processes struct {
	Units, Paths, Users []string
}

// Any reports whether a rule is for some processes only.
func (c *Processes) Any() bool { return len(c.Units)+len(c.Paths)+len(c.Users) > 0 }

// Processes returns what the rules say about processes.
func (p *Policy) Processes() Processes {
	units, paths, users := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range p.Sets {
		for a := range p.Sets[i].Alternatives() {
			units[a.Process.Unit], paths[a.Process.Path], users[a.Process.User] = true, true, true
		}
	}
	sorted := func(m map[string]bool) []string {
		delete(m, "") // no constraint
		return slices.Sorted(maps.Keys(m))
	}
	return Processes{sorted(units), sorted(paths), sorted(users)}
}

// ProcessRule returns a rule that depends on the process at the host's end, "" if none does: a dataplane that cannot see
// processes must refuse the policy.
func (p *Policy) ProcessRule() model.RuleID {
	for i := range p.Sets {
		for a := range p.Sets[i].Alternatives() {
			return a.Rule
		}
	}
	return ""
}
