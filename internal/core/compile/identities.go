package compile

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// identities numbers everything that policy can tell apart. Indexes are dense and in the order of the identities'
// IDs, so a list of indexes in ascending order is a list of IDs in ascending order.
type identities struct {
	ids   []model.IdentityID
	all   []identity
	index map[model.IdentityID]int32

	labels    []model.Labels // distinct label sets
	byLabels  [][]int32      // label set to its (owned, unshared) identities
	byNetset  [][]int32      // netset to its (unshared) identities
	sharedIn  [][]int32      // identity to the shared identities that it is a member of
	sharedAll []int32        // every shared identity
	members   []int32        // the members of all shared identities, one after the other
	membersOf []span         // identity to its part of members
}

// identity is one row of identities: an owned one, an address that nobody owns, or several owned ones behind one
// address.
type identity struct {
	model.Identity
	key     string
	labels  int32   // index of the label set; -1 unless Owned
	netset  int32   //
	members []int32 // of a shared identity: its members, sorted by key; else nil
}

// span is a part of a slice.
type span struct{ from, to int32 }

// labelKey appends the canonical bytes of a label set: what model.Labels.String writes, without the garbage.
func labelKey(dst []byte, keys []string, l model.Labels) ([]byte, []string) {
	keys = keys[:0]
	for k := range l {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, k...)
		dst = append(dst, '=')
		dst = append(dst, l[k]...)
	}
	return dst, keys
}

// identityKey is what makes two identities the same.
type identityKey struct{ labels, netset int32 }

// collector gathers identities while their order is not known yet.
type collector struct {
	nets   *partition
	labels []model.Labels
	byText map[string]int32
	byKey  map[identityKey]int32
	byList map[string]int32 // members of a shared identity to its index
	nodes  map[string]int32
	all    []identity
	buf    []byte
	keys   []string
}

func newCollector(nets *partition) *collector {
	return &collector{nets: nets, byText: map[string]int32{}, byKey: map[identityKey]int32{}, byList: map[string]int32{}, nodes: map[string]int32{}}
}

// node numbers a node of Kubernetes.
func (c *collector) node(name string) int32 {
	n, ok := c.nodes[name]
	if !ok {
		n = int32(len(c.nodes))
		c.nodes[name] = n
	}
	return n
}

func (c *collector) labelSet(l model.Labels) int32 {
	c.buf, c.keys = labelKey(c.buf[:0], c.keys, l)
	if i, ok := c.byText[string(c.buf)]; ok {
		return i
	}
	i := int32(len(c.labels))
	c.byText[string(c.buf)] = i
	c.labels = append(c.labels, l)
	return i
}

// owned returns the identity of workloads of a label set in a netset.
func (c *collector) owned(labels, netset int32) int32 {
	return c.add(identityKey{labels, netset}, model.Identity{
		Owned:    true,
		Labels:   c.labels[labels],
		Networks: c.nets.netsets[netset].names,
	})
}

// unowned returns the identity of addresses of a netset that no workload owns.
func (c *collector) unowned(netset int32) int32 {
	return c.add(identityKey{-1, netset}, model.Identity{Networks: c.nets.netsets[netset].names})
}

func (c *collector) add(k identityKey, id model.Identity) int32 {
	if i, ok := c.byKey[k]; ok {
		return i
	}
	i := int32(len(c.all))
	c.byKey[k] = i
	c.all = append(c.all, identity{Identity: id, key: id.Key(), labels: k.labels, netset: k.netset})
	return i
}

// shared returns the identity that stands for an address which instances of these identities share: the identity
// itself if there is only one.
func (c *collector) shared(members []int32) int32 {
	slices.SortFunc(members, func(a, b int32) int { return strings.Compare(c.all[a].key, c.all[b].key) })
	members = slices.Compact(members)
	if len(members) == 1 {
		return members[0]
	}
	key := make([]byte, 0, 4*len(members))
	for _, m := range members {
		key = binary.LittleEndian.AppendUint32(key, uint32(m))
	}
	if i, ok := c.byList[string(key)]; ok {
		return i
	}
	i := int32(len(c.all))
	c.byList[string(key)] = i
	c.all = append(c.all, identity{
		Identity: model.Identity{Owned: true},
		key:      string(key),
		labels:   -1,
		netset:   c.all[members[0]].netset,
		members:  slices.Clone(members),
	})
	return i
}

// seal orders the identities by ID. The second result maps the collector's indexes to the sealed ones.
func (c *collector) seal() (*identities, []int32, error) {
	ids := make([]model.IdentityID, len(c.all))
	for i := range c.all {
		if c.all[i].members == nil {
			ids[i] = c.all[i].ID()
		}
	}
	for i := range c.all {
		if m := c.all[i].members; m != nil {
			of := make([]model.IdentityID, len(m))
			for k := range m {
				of[k] = ids[m[k]]
			}
			ids[i] = model.SharedID(of)
		}
	}
	order := make([]int32, len(c.all))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(ids[a], ids[b]) })
	sealed := make([]int32, len(order))
	for i, from := range order {
		sealed[from] = int32(i)
	}
	out := &identities{
		ids:       make([]model.IdentityID, len(order)),
		all:       make([]identity, len(order)),
		index:     make(map[model.IdentityID]int32, len(order)),
		labels:    c.labels,
		byLabels:  make([][]int32, len(c.labels)),
		byNetset:  make([][]int32, len(c.nets.netsets)),
		sharedIn:  make([][]int32, len(order)),
		membersOf: make([]span, len(order)),
	}
	for i, from := range order {
		if i > 0 && ids[from] == out.ids[i-1] {
			return nil, nil, fmt.Errorf("two identities have the number %s: change a label of %q or of %q",
				ids[from], out.all[i-1].Labels, c.all[from].Labels)
		}
		id := c.all[from]
		for k, m := range id.members {
			if k == 0 {
				id.members = slices.Clone(id.members)
			}
			id.members[k] = sealed[m]
		}
		out.ids[i], out.all[i], out.index[ids[from]] = ids[from], id, int32(i)
		at := int32(i)
		switch {
		case id.members != nil:
			out.sharedAll = append(out.sharedAll, at)
			out.membersOf[i] = span{int32(len(out.members)), int32(len(out.members) + len(id.members))}
			out.members = append(out.members, id.members...)
			for _, m := range id.members {
				out.sharedIn[m] = append(out.sharedIn[m], at)
			}
		case id.Owned:
			out.byLabels[id.labels] = append(out.byLabels[id.labels], at)
			fallthrough
		default:
			out.byNetset[id.netset] = append(out.byNetset[id.netset], at)
		}
	}
	return out, sealed, nil
}
