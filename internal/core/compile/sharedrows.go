package compile

import (
	"slices"

	"bulkhead/internal/core/model"
)

// share gives rows to the shared identities of which a member has one, where the most permissive of their members'
// functions is not the default.
func (b *tableBuilder) share(def int32) {
	if len(b.ids.sharedAll) == 0 {
		return
	}
	b.candidates.clear()
	for p := range b.rows.all() {
		for _, s := range b.ids.sharedIn[p] {
			b.candidates.add(s)
		}
	}
	for s := range b.candidates.all() {
		if b.absent(s) {
			continue
		}
		of := b.ids.membersOf[s]
		members := b.ids.members[of.from:of.to]
		best := b.nodes[b.class[members[0]]].fn
		for _, m := range members[1:] {
			if fn := b.nodes[b.class[m]].fn; fn != best {
				best = b.mostPermissive(best, fn)
			}
		}
		if best != def {
			b.fn[s] = best
			b.rows.add(s)
		}
	}
}

// mostPermissive returns the pointwise greater of two functions; where they are equal, the rule of x stands. Folding
// a list of functions with it gives the first greatest of them at every point. x must differ from y.
func (b *tableBuilder) mostPermissive(x, y int32) int32 {
	key := [2]int32{x, y}
	recent := &b.recent[(uint32(x)*0x9e3779b1+uint32(y)*0x85ebca6b)>>20] // 12 bits
	if recent.key == key {
		return recent.max
	}
	f, ok := b.maxOf[key]
	if !ok {
		f = b.pointwiseMax(x, y)
		b.maxOf[key] = f
	}
	*recent = maxEntry{key, f}
	return f
}

func (b *tableBuilder) pointwiseMax(x, y int32) int32 {
	// What interning adds must not move what is read here.
	f, g := slices.Clone(b.functions.of(x)), slices.Clone(b.functions.of(y))
	b.paint.start()
	for _, of := range [2][]stroke{f, g} {
		for _, s := range of[1:] {
			b.paint.proto(s.ports.Proto)
		}
	}
	protos := make([]model.Proto, b.paint.used)
	for i := range protos {
		protos[i] = b.paint.protos[i].proto
	}
	for _, proto := range protos {
		for _, s := range section(f, proto) {
			s, _ = clip(s, proto, 0, 65535)
			for _, t := range section(g, proto) {
				if t, ok := clip(t, proto, s.ports.Lo, s.ports.Hi); ok {
					c := b.greater(s, t)
					c.ports = t.ports
					b.paint.paint(c)
				}
			}
		}
	}
	b.paint.paint(b.greater(f[0], g[0]))
	return b.functions.intern(b.paint.finish())
}

// greater returns the greater of what two strokes of the same ports say; where they are equal, the rule of s stands. An
// alternative of both is for the processes that meet both constraints, and what is asked first of each is asked first.
func (b *tableBuilder) greater(s, t stroke) stroke {
	out := s
	if t.verdict > s.verdict {
		out.verdict, out.rule = t.verdict, t.rule
	}
	if s.when == noAlternative && t.when == noAlternative {
		return out
	}
	out.when = noAlternative
	first, second := b.functions.cases(&s), b.functions.cases(&t)
	for _, x := range first {
		for _, y := range second {
			both, possible := x.process.And(y.process)
			if !possible || both == (model.Process{}) {
				continue
			}
			best := x
			if y.verdict > x.verdict {
				best = y
			}
			out.when = b.functions.alternative(out.when, b.functions.process(both), best.verdict, best.rule)
		}
	}
	out.when = b.functions.trim(out.when, out.verdict, out.rule)
	return out
}

// cases returns everything that a stroke may come to: its alternatives as they are asked, and then itself.
func (f *functionBuilder) cases(s *stroke) []processCase {
	var out []processCase
	for _, a := range f.list(s.when) {
		out = append(out, processCase{f.processes[a.process], a.verdict, a.rule})
	}
	return append(out, processCase{verdict: s.verdict, rule: s.rule})
}

type processCase struct {
	process model.Process // the constraint; says nothing of the last case
	verdict model.Verdict
	rule    uint32
}

// maxEntry remembers the pointwise greater of two functions.
type maxEntry struct {
	key [2]int32
	max int32
}
