package prove

import (
	"cmp"
	"encoding/binary"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// portCuts cut the protocols and ports into pieces that no rule tells apart.
type portCuts struct {
	pieces []model.PortRange // sorted; the last one has ProtoAny: all protocols that the others do not name
	sets   [][]uint64
	index  map[string]int32
}

func (c *portCuts) build(w *compile.World, docs *model.Documents, rules [2][]rule) {
	starts := map[model.Proto]map[uint32]bool{}
	cut := func(list []model.PortRange) {
		for _, p := range list {
			if p.Proto == model.ProtoAny {
				continue
			}
			if starts[p.Proto] == nil {
				starts[p.Proto] = map[uint32]bool{0: true}
			}
			starts[p.Proto][uint32(p.Lo)] = true
			starts[p.Proto][uint32(p.Hi)+1] = true
		}
	}
	for d := range rules {
		for i := range rules[d] {
			cut(rules[d][i].Ports)
		}
	}
	for i := range docs.Services {
		cut(docs.Services[i].Ports)
	}
	refs := func(list []model.PortRef) {
		for _, r := range list {
			if r.Service == "" {
				cut([]model.PortRange{r.Range})
			}
		}
	}
	for i := range docs.Segments {
		refs(docs.Segments[i].Services)
	}
	for i := range docs.Guardrails {
		refs(docs.Guardrails[i].On)
	}
	for _, e := range essential.Fixed {
		cut([]model.PortRange{e.Ports})
	}
	cut(dnsPorts)
	cut(timePorts)
	for _, a := range w.Options().Controllers {
		cut([]model.PortRange{{Proto: model.ProtoTCP, Lo: a.Port(), Hi: a.Port()}})
	}
	for proto, set := range starts {
		var list []uint32
		for lo := range set {
			if lo <= 65535 {
				list = append(list, lo)
			}
		}
		slices.Sort(list)
		for i, lo := range list {
			hi := uint32(65535)
			if i+1 < len(list) {
				hi = list[i+1] - 1
			}
			c.pieces = append(c.pieces, model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(hi)})
		}
	}
	slices.SortFunc(c.pieces, func(a, b model.PortRange) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Lo, b.Lo))
	})
	c.pieces = append(c.pieces, model.AnyPort)
	c.index = map[string]int32{}
}

var (
	dnsPorts  = []model.PortRange{{Proto: model.ProtoTCP, Lo: 53, Hi: 53}, {Proto: model.ProtoUDP, Lo: 53, Hi: 53}}
	timePorts = []model.PortRange{{Proto: model.ProtoUDP, Lo: 123, Hi: 123}}
)

// number interns a set of ports.
func (c *portCuts) number(ports []model.PortRange) int32 {
	set := c.set(ports)
	key := make([]byte, 0, 8*len(set))
	for _, w := range set {
		key = binary.LittleEndian.AppendUint64(key, w)
	}
	n, ok := c.index[string(key)]
	if !ok {
		n = int32(len(c.sets))
		c.index[string(key)] = n
		c.sets = append(c.sets, set)
	}
	return n
}

func (c *portCuts) set(ports []model.PortRange) []uint64 {
	set := make([]uint64, (len(c.pieces)+63)/64)
	for _, p := range ports {
		from, to := 0, len(c.pieces)
		if p.Proto != model.ProtoAny {
			from, _ = slices.BinarySearchFunc(c.pieces[:len(c.pieces)-1], p, func(x, p model.PortRange) int {
				return cmp.Or(cmp.Compare(x.Proto, p.Proto), cmp.Compare(x.Lo, p.Lo))
			})
			to = from
			for to < len(c.pieces)-1 && c.pieces[to].Proto == p.Proto && c.pieces[to].Lo <= p.Hi {
				to++
			}
		}
		for i := from; i < to; i++ {
			set[i/64] |= 1 << (i % 64)
		}
	}
	return set
}

// portsOf returns what references to ports mean.
func portsOf(docs *model.Documents, refs []model.PortRef) []model.PortRange {
	var out []model.PortRange
	for _, r := range refs {
		if r.Service == "" {
			out = append(out, r.Range)
			continue
		}
		for i := range docs.Services {
			if docs.Services[i].Name == r.Service {
				out = append(out, docs.Services[i].Ports...)
			}
		}
	}
	return out
}
