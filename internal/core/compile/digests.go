package compile

import "bulkhead/internal/core/hostpolicy"

// digester hashes tables as hostpolicy.Table.Hash does, without making them.
type digester struct {
	peers []hostpolicy.Sum  // identity to its digest
	funcs []hostpolicy.Hash // function to its hash; as far as they have been asked for
	bags  []hostpolicy.Bag  // by function; empty between tables
	used  []int32           // functions that have something in their bag
}

// function returns the hash of a function.
func (g *digester) function(f *functions, fn int32) hostpolicy.Hash {
	for len(g.funcs) < len(f.funcs) {
		g.funcs = append(g.funcs, f.funcs[len(g.funcs)].Hash())
	}
	return g.funcs[fn]
}

func (g *digester) hash(t *table, f *functions) hostpolicy.Hash {
	for len(g.bags) < len(f.funcs) {
		g.bags = append(g.bags, hostpolicy.Bag{})
	}
	g.used = g.used[:0]
	for i := range t.rows {
		r := &t.rows[i]
		bag := &g.bags[r.fn]
		if bag.N == 0 {
			g.used = append(g.used, r.fn)
		}
		bag.Add(g.peers[r.peer])
	}
	var sum hostpolicy.Sum
	for _, fn := range g.used {
		sum.Add(hostpolicy.FuncDigest(g.function(f, fn), &g.bags[fn]))
		g.bags[fn] = hostpolicy.Bag{}
	}
	return hostpolicy.TableHash(g.function(f, t.def), sum)
}
