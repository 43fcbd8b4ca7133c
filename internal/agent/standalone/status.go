package standalone

import (
	"fmt"

	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/compile"
)

// Status returns how the policy is doing, and the world in force, which may be nil.
func (k *Keeper) Status() (*status.Alone, *compile.World) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &status.Alone{Dir: k.cfg.Dir, Refused: k.refused, Notes: k.notes()}
	if v := k.now(); v != nil {
		s.Version, s.Since, s.Documents = v.number, v.since.UTC(), countDocuments(v.docs)
	}
	if k.trial != nil {
		s.Trial = &status.Trial{Until: k.trial.until.UTC(), Closes: k.trial.closes}
	}
	return s, k.world
}

// World returns the world in force; nil if there is none.
func (k *Keeper) World() *compile.World {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.world
}

// Describe fills in what documents say of a workload.
func Describe(w *compile.World, s *status.Subject) {
	if w == nil {
		return
	}
	found := w.Workload(s.Workload)
	if found == nil {
		return
	}
	s.Labels = found.Labels.String()
	for _, seg := range w.Segments(found) {
		s.Segments = append(s.Segments, fmt.Sprintf("%s (%s)", seg.Name, seg.Mode))
	}
}
