package world

import (
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"bulkhead/internal/core/model"
)

// roster is every workload, by name and by address. It does not change; with makes another one, which shares with it whatever
// is the same.
type roster struct {
	chunks [][]*model.Instance // sorted by name, none empty
	n      int
	owners *bart.Table[[]*model.Instance] // sorted by name
}

// chunk is how many workloads are copied because one of them changes, at most.
const chunk = 256

func newRoster() *roster { return &roster{owners: &bart.Table[[]*model.Instance]{}} }

// all yields every workload, sorted by name.
func (r *roster) all() iter.Seq[*model.Instance] {
	return func(yield func(*model.Instance) bool) {
		for _, c := range r.chunks {
			for _, inst := range c {
				if !yield(inst) {
					return
				}
			}
		}
	}
}

func compareInstance(i *model.Instance, name string) int { return strings.Compare(i.Name, name) }

// find returns the workload of that name, or nil.
func (r *roster) find(name string) *model.Instance {
	at, found := slices.BinarySearchFunc(r.chunks, name, func(c []*model.Instance, name string) int { return compareInstance(c[0], name) })
	if found {
		return r.chunks[at][0]
	}
	if at == 0 {
		return nil
	}
	c := r.chunks[at-1]
	if k, found := slices.BinarySearchFunc(c, name, compareInstance); found {
		return c[k]
	}
	return nil
}

// ownersOf returns the workloads that have the address, sorted by name.
func (r *roster) ownersOf(a netip.Addr) []*model.Instance {
	owners, _ := r.owners.Lookup(a.Unmap().WithZone(""))
	return owners
}

// workload is a workload that is new or differs; nil: it is there no more.
type workload struct {
	name string
	inst *model.Instance
}

// with returns the roster after the changes, which are sorted by name, each of another one.
func (r *roster) with(changes []workload) *roster {
	out := &roster{chunks: make([][]*model.Instance, 0, len(r.chunks)+1), n: r.n, owners: r.owners}
	out.own(r, changes)
	left := r.chunks
	for len(changes) > 0 {
		// Those before the chunk that the next change belongs into are as they were.
		at, found := slices.BinarySearchFunc(left, changes[0].name, func(c []*model.Instance, name string) int { return compareInstance(c[0], name) })
		if !found && at > 0 {
			at--
		}
		out.chunks, left = append(out.chunks, left[:at]...), left[at:]
		var old []*model.Instance
		if len(left) > 0 {
			old, left = left[0], left[1:]
		}
		n := len(changes)
		if len(left) > 0 {
			n, _ = slices.BinarySearchFunc(changes, left[0][0].Name, func(c workload, name string) int { return strings.Compare(c.name, name) })
		}
		list := merge(old, changes[:n])
		changes = changes[n:]
		out.n += len(list) - len(old)
		switch {
		case len(list) > chunk:
			out.chunks = slices.AppendSeq(out.chunks, slices.Chunk(list, chunk/2))
		case len(list) > 0:
			out.chunks = append(out.chunks, list)
		}
	}
	out.chunks = append(out.chunks, left...)
	return out
}

// merge returns the list after the changes.
func merge(list []*model.Instance, changes []workload) []*model.Instance {
	out := make([]*model.Instance, 0, len(list)+len(changes))
	for _, inst := range list {
		for len(changes) > 0 && changes[0].name < inst.Name {
			if changes[0].inst != nil {
				out = append(out, changes[0].inst)
			}
			changes = changes[1:]
		}
		if len(changes) > 0 && changes[0].name == inst.Name {
			if changes[0].inst != nil {
				out = append(out, changes[0].inst)
			}
			changes = changes[1:]
			continue
		}
		out = append(out, inst)
	}
	for _, c := range changes {
		if c.inst != nil {
			out = append(out, c.inst)
		}
	}
	return out
}

// own gives addresses the owners that they have after the changes.
func (r *roster) own(before *roster, changes []workload) {
	put := func(p netip.Prefix, owners []*model.Instance) { r.owners = r.owners.InsertPersist(p, owners) }
	drop := func(p netip.Prefix) { r.owners = r.owners.DeletePersist(p) }
	if len(changes) > chunk { // to copy the table once is cheaper than a way through it each time
		r.owners = r.owners.Clone()
		put = func(p netip.Prefix, owners []*model.Instance) { r.owners.Insert(p, owners) }
		drop = func(p netip.Prefix) { r.owners.Delete(p) }
	}
	for _, c := range changes {
		old := before.find(c.name)
		if old != nil {
			for _, a := range old.Addresses {
				p := netip.PrefixFrom(a, a.BitLen())
				owners, _ := r.owners.Get(p)
				if left := slices.DeleteFunc(slices.Clone(owners), func(i *model.Instance) bool { return i.Name == c.name }); len(left) > 0 {
					put(p, left)
				} else {
					drop(p)
				}
			}
		}
		if c.inst == nil {
			continue
		}
		for _, a := range c.inst.Addresses {
			p := netip.PrefixFrom(a, a.BitLen())
			owners, _ := r.owners.Get(p)
			at, _ := slices.BinarySearchFunc(owners, c.name, compareInstance)
			put(p, slices.Insert(slices.Clone(owners), at, c.inst))
		}
	}
}
