package compile

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/model"
)

// profile is how the segments of a label set keep its members: what a denial does, and what the default is.
type profile struct {
	segments []int32 // indexes into docs.Segments, sorted by name
	// denyDrops: a deny rule drops, because one of the segments is selective or enforce.
	denyDrops bool
	defaults  [2]defaults // by direction
	onLoss    model.OnAgentLoss
}

// defaults is what applies in one direction where no rule does.
type defaults struct {
	closed    bool              // some segment denies by default
	drops     bool              // a closing segment is enforce: every default denial drops
	selective []model.PortRange // else: the ports on which a selective closing segment drops
}

// profiles finds the profile of every label set. Label sets in the same segments share one.
func profiles(docs *model.Documents, l *lowering, index *labelIndex) []*profile {
	segments := make([]int32, len(docs.Segments))
	for i := range segments {
		segments[i] = int32(i)
	}
	slices.SortStableFunc(segments, func(a, b int32) int {
		return compareNames(docs.Segments[a].Name, docs.Segments[b].Name)
	})
	in := make([][]int32, len(index.sets))
	services := make(map[int32][]model.PortRange)
	for _, s := range segments {
		seg := &docs.Segments[s]
		if seg.Mode == model.ModeSelective {
			services[s] = l.ports("", seg.Services)
		}
		for _, set := range index.find(&seg.Selector) {
			in[set] = append(in[set], s)
		}
	}
	out := make([]*profile, len(in))
	byKey := map[string]*profile{}
	var key []byte
	for set, of := range in {
		key = key[:0]
		for _, s := range of {
			key = binary.LittleEndian.AppendUint32(key, uint32(s))
		}
		p := byKey[string(key)]
		if p == nil {
			p = newProfile(docs, of, services)
			byKey[string(key)] = p
		}
		out[set] = p
	}
	return out
}

func newProfile(docs *model.Documents, segments []int32, services map[int32][]model.PortRange) *profile {
	p := &profile{segments: segments}
	loss := map[model.OnAgentLoss]bool{}
	for _, s := range segments {
		seg := &docs.Segments[s]
		loss[seg.OnAgentLoss] = true
		if seg.Mode != model.ModeObserve {
			p.denyDrops = true
		}
		for _, d := range model.Directions {
			if !seg.Closes(d) {
				continue
			}
			def := &p.defaults[d]
			def.closed = true
			switch seg.Mode {
			case model.ModeEnforce:
				def.drops = true
			case model.ModeSelective:
				def.selective = append(def.selective, services[s]...)
			}
		}
	}
	switch { // the strictest wish counts
	case loss[model.LossClosed]:
		p.onLoss = model.LossClosed
	case loss[model.LossOpen] && !loss[model.LossKeep]:
		p.onLoss = model.LossOpen
	}
	return p
}

// steps returns what the default says, for every peer.
func (d *defaults) steps(f *functionBuilder) []step {
	if !d.closed {
		return []step{everyPort(model.Allow, f.name(model.RuleOpen))}
	}
	denied := f.name(model.RuleDefaultDeny)
	if d.drops {
		return []step{everyPort(model.Deny, denied)}
	}
	var out []step
	if len(d.selective) > 0 {
		out = append(out, step{ports: d.selective, verdict: model.Deny, rule: denied, process: everyProcess})
	}
	return append(out, everyPort(model.WouldDeny, denied))
}
