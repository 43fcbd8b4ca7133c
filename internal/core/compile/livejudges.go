package compile

import (
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/model"
)

// judge is what judges workloads that nothing tells apart: by identity, or a hold that a quarantine has on them.
type judge struct {
	key      string
	number   uint32 // never used again
	identity int32  // None if it does not depend on one
	level    model.QuarantineLevel
	own      purposes
	inUse    [2][]restriction
	tables   [2]*liveTable
	groups   []*group
	made     uint64 // batch

	// Of the batch that settled it: see settleJudge.
	settled       uint64
	before, state *judgeState
	// Of the batch that gave it other tables.
	moved uint64
	was   [2]*liveTable

	// Of the batch at work.
	stale bool // its tables may not be those that it should have
}

// judgeOfPoint returns what judges a workload at one of its points.
func (b *batch) judgeOfPoint(w *liveWorkload, p *livePoint) *judge {
	j := judge{identity: None}
	switch level := w.Quarantine.Level; {
	case !w.Managed:
		j.key = "unmanaged"
	case level == model.QuarantineIsolate:
		return b.isolation(b.netsets[p.netset].purposes)
	default:
		j.identity, j.own = p.exact, b.netsets[p.netset].purposes
		key := binary.LittleEndian.AppendUint32([]byte{'i'}, uint32(p.exact))
		if level == model.QuarantineRestrict {
			j.level, j.inUse = level, b.inUse(w)
			key[0] = 'r'
			key = appendInUse(key, &j.inUse)
		}
		j.key = string(key)
	}
	return b.judge(&j)
}

func (b *batch) isolation(own purposes) *judge {
	return b.judge(&judge{key: string([]byte{'q', byte(own)}), identity: None, level: model.QuarantineIsolate, own: own})
}

func (b *batch) judge(want *judge) *judge {
	l := b.Live
	if j, ok := l.judges[want.key]; ok {
		return j
	}
	j := *want
	l.judgeNumber++
	j.number, j.made = l.judgeNumber, b.number
	l.judges[j.key] = &j
	if j.identity >= 0 {
		l.judgeOf[j.identity] = append(l.judgeOf[j.identity], &j)
	}
	b.doubtJudge(&j)
	return &j
}

func (b *batch) doubtJudge(j *judge) {
	if !j.stale {
		j.stale = true
		b.stale = append(b.stale, j)
	}
}

func appendInUse(key []byte, inUse *[2][]restriction) []byte {
	for d := range inUse {
		key = append(key, 0xff, byte(d))
		for _, r := range inUse[d] {
			key = binary.LittleEndian.AppendUint32(key, uint32(r.peer))
			key = binary.LittleEndian.AppendUint32(key, uint32(len(r.ports)))
			for _, p := range r.ports {
				key = append(key, byte(p.Proto), byte(p.Lo), byte(p.Lo>>8), byte(p.Hi), byte(p.Hi>>8))
			}
		}
	}
	return key
}

// inUse finds the peers that a restricted workload may still talk to, and notes that they concern it.
func (b *batch) inUse(w *liveWorkload) [2][]restriction {
	for _, edge := range w.Quarantine.InUse {
		if b.namedBy[edge.Peer] == nil {
			b.namedBy[edge.Peer] = map[string]bool{}
		}
		b.namedBy[edge.Peer][w.Name] = true
	}
	return restrictions(&w.Quarantine, func(name string, each func(identity int32)) {
		if peer := b.workloads[name]; peer != nil {
			for i := range peer.points {
				each(peer.points[i].exact)
			}
		}
	})
}

// assign gives a judge the tables that it should have.
func (b *batch) assign(j *judge) {
	l := b.Live
	s := subject{own: j.own, level: j.level, inUse: j.inUse}
	if j.identity >= 0 {
		s.profile = l.labelSets[l.ids.all[j.identity].labels].profile
		for d := range s.matched {
			s.matched[d] = l.matched(j.identity, d)
		}
	}
	for _, d := range model.Directions {
		old, now := j.tables[d], l.unmanaged
		if j.identity >= 0 || j.level == model.QuarantineIsolate {
			now = b.table(&s, d, old)
		}
		if old == now {
			continue
		}
		if j.moved != b.number {
			j.moved, j.was = b.number, j.tables
		}
		b.detach(j, d)
		j.tables[d] = now
		now.judges = append(now.judges, j)
	}
	b.assigned = append(b.assigned, j)
}

func (b *batch) detach(j *judge, d model.Direction) {
	if t := j.tables[d]; t != nil {
		t.judges = slices.DeleteFunc(t.judges, func(x *judge) bool { return x == j })
		if len(t.judges) == 0 && !t.fixed {
			b.orphans = append(b.orphans, t)
		}
	}
}

// matched returns the subjects of rules that mean the identity.
func (l *Live) matched(identity int32, d int) []int32 {
	var out []int32
	for _, m := range l.meant[identity] {
		if l.matchInfo[m].subject[d] {
			out = append(out, m)
		}
	}
	if at, ok := l.matches.byKey["any"]; ok && l.matchInfo[at].subject[d] {
		out = insert(out, at)
	}
	return out
}
