package compile

import "bulkhead/internal/core/model"

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
	both := [2][]stroke{b.functions.of(x), b.functions.of(y)}
	b.paint.start()
	for _, of := range both {
		for _, s := range of[1:] {
			b.paint.proto(s.ports.Proto)
		}
	}
	protos := make([]model.Proto, b.paint.used)
	for i := range protos {
		protos[i] = b.paint.protos[i].proto
	}
	for _, v := range [...]model.Verdict{model.Allow, model.WouldDeny, model.Deny} {
		for _, of := range both {
			for _, proto := range protos {
				for _, s := range section(of, proto) {
					if c, ok := clip(s, proto, 0, 65535); ok && c.verdict == v {
						b.paint.paint(c)
					}
				}
			}
		}
	}
	base := both[0][0]
	if both[1][0].verdict > base.verdict {
		base = both[1][0]
	}
	b.paint.paint(base)
	return b.functions.intern(b.paint.finish())
}

// maxEntry remembers the pointwise greater of two functions.
type maxEntry struct {
	key [2]int32
	max int32
}
