package hostpolicy

import (
	"iter"
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// AddressDelta is what changes in addresses and ports: what Remove names goes, then what Upsert lists takes the place of what
// had its key, or is new. Upsert has no key twice, and no key is in both. The order of blocks means nothing.
type AddressDelta struct {
	Upsert, Remove []*Block // none is empty; those of Remove say what was there
	Entries        int      // in all blocks
}

// Block is some addresses and ports, both sorted. Deltas share blocks: a host that is told thousands of addresses more is told
// some hundreds of blocks, those that others have been told of before. It does not change.
type Block struct {
	Addresses []Address
	Ports     []PortOwner
}

// Len returns how many entries change.
func (d *AddressDelta) Len() int {
	if d == nil {
		return 0
	}
	return d.Entries
}

// Empty reports whether nothing changes.
func (d *AddressDelta) Empty() bool { return d.Len() == 0 }

// Len returns how many entries there are.
func (b *Block) Len() int { return len(b.Addresses) + len(b.Ports) }

// Addresses yields the addresses of all blocks, one block after the other.
func Addresses(blocks []*Block) iter.Seq[*Address] {
	return func(yield func(*Address) bool) {
		for _, b := range blocks {
			for i := range b.Addresses {
				if !yield(&b.Addresses[i]) {
					return
				}
			}
		}
	}
}

// Ports yields the ports of all blocks, one block after the other.
func Ports(blocks []*Block) iter.Seq[*PortOwner] {
	return func(yield func(*PortOwner) bool) {
		for _, b := range blocks {
			for i := range b.Ports {
				if !yield(&b.Ports[i]) {
					return
				}
			}
		}
	}
}

// joinBlocks returns one block with the entries of all.
func joinBlocks(blocks []*Block) Block {
	if len(blocks) == 1 {
		return *blocks[0]
	}
	var out Block
	for _, b := range blocks {
		out.Addresses, out.Ports = append(out.Addresses, b.Addresses...), append(out.Ports, b.Ports...)
	}
	out.sort()
	return out
}

func (b *Block) sort() {
	slices.SortFunc(b.Addresses, func(x, y Address) int { return CompareAddresses(&x, &y) })
	slices.SortFunc(b.Ports, func(x, y PortOwner) int { return ComparePorts(&x, &y) })
}

// deltaOf returns the delta of one block each.
func deltaOf(upsert, remove *Block) *AddressDelta {
	d := &AddressDelta{Entries: upsert.Len() + remove.Len()}
	if upsert.Len() > 0 {
		d.Upsert = []*Block{upsert}
	}
	if remove.Len() > 0 {
		d.Remove = []*Block{remove}
	}
	return d
}

// JoinAddresses returns one delta that does what the deltas do one after the other. It may remove an entry that was not there
// at the beginning, which came and went in between: to remove it does no harm. The deltas stay as they are; the result may
// share memory with them.
func JoinAddresses(deltas []*AddressDelta) *AddressDelta {
	switch len(deltas) {
	case 0:
		return &AddressDelta{}
	case 1:
		return deltas[0]
	}
	type port struct {
		addr  netip.Addr
		proto model.Proto
		port  uint16
	}
	addresses := joined[netip.Prefix, Address]{}
	ports := joined[port, PortOwner]{}
	prefix := func(a *Address) netip.Prefix { return a.Prefix }
	key := func(o *PortOwner) port { return port{o.Addr, o.Proto, o.Port} }
	for _, d := range deltas {
		addresses.add(Addresses(d.Remove), prefix, true)
		addresses.add(Addresses(d.Upsert), prefix, false)
		ports.add(Ports(d.Remove), key, true)
		ports.add(Ports(d.Upsert), key, false)
	}
	var upsert, remove Block
	upsert.Addresses, remove.Addresses = addresses.lists()
	upsert.Ports, remove.Ports = ports.lists()
	upsert.sort()
	remove.sort()
	return deltaOf(&upsert, &remove)
}

// joined is what became of each key in the end.
type joined[K comparable, T any] map[K]fate[T]

type fate[T any] struct {
	entry *T
	gone  bool
}

func (j joined[K, T]) add(entries iter.Seq[*T], key func(*T) K, gone bool) {
	for x := range entries {
		j[key(x)] = fate[T]{x, gone}
	}
}

func (j joined[K, T]) lists() (upsert, remove []T) {
	for _, f := range j {
		if f.gone {
			remove = append(remove, *f.entry)
		} else {
			upsert = append(upsert, *f.entry)
		}
	}
	return upsert, remove
}
