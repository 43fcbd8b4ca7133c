package hostpolicy

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"bulkhead/internal/core/model"
)

// Sum stands for a set of things, whatever their order: the sum, modulo 2^256, of their SHA-256 hashes. Adding or
// removing one thing costs the same however many there are, which is what lets a large table change by a row (ADR
// 0005). The zero Sum is the empty set.
type Sum [4]uint64

// Add adds a thing, or another set.
func (s *Sum) Add(x Sum) {
	var c uint64
	s[0], c = bits.Add64(s[0], x[0], 0)
	s[1], c = bits.Add64(s[1], x[1], c)
	s[2], c = bits.Add64(s[2], x[2], c)
	s[3], _ = bits.Add64(s[3], x[3], c)
}

// Remove is the inverse of Add.
func (s *Sum) Remove(x Sum) {
	var b uint64
	s[0], b = bits.Sub64(s[0], x[0], 0)
	s[1], b = bits.Sub64(s[1], x[1], b)
	s[2], b = bits.Sub64(s[2], x[2], b)
	s[3], _ = bits.Sub64(s[3], x[3], b)
}

func (s *Sum) bytes(dst []byte) []byte {
	for _, w := range s {
		dst = binary.LittleEndian.AppendUint64(dst, w)
	}
	return dst
}

func sumOf(b []byte) Sum {
	h := sha256.Sum256(b)
	var s Sum
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(h[8*i:])
	}
	return s
}

// Bag is a Sum that knows how many things are in it.
type Bag struct {
	N   uint64
	Sum Sum
}

// Add adds one thing.
func (b *Bag) Add(x Sum) {
	b.N++
	b.Sum.Add(x)
}

// Remove removes one thing that is there.
func (b *Bag) Remove(x Sum) {
	b.N--
	b.Sum.Remove(x)
}

// PeerDigest returns what a peer of a table adds to the Bag of the function that judges it.
func PeerDigest(id model.IdentityID) Sum {
	var b [12]byte
	copy(b[:], "peer")
	binary.LittleEndian.PutUint64(b[4:], uint64(id))
	return sumOf(b[:])
}

// Hash returns the hash of the function's canonical encoding.
func (f Func) Hash() Hash {
	e := encoder{buf: make([]byte, 0, 64*len(f))}
	e.cells(f)
	return sha256.Sum256(e.buf)
}

// FuncDigest returns what a function, and the peers that it judges, add to the Sum of a table. The function that
// judges nobody but those without a row adds nothing.
func FuncDigest(f Hash, peers *Bag) Sum {
	buf := make([]byte, 0, 2*sha256.Size+8)
	buf = append(buf, f[:]...)
	buf = binary.LittleEndian.AppendUint64(buf, peers.N)
	return sumOf(peers.Sum.bytes(buf))
}

// TableHash returns the hash of a table: of the function that judges peers without a row, and of the sum of the
// FuncDigests of all others.
func TableHash(others Hash, functions Sum) Hash {
	buf := make([]byte, 0, 2*sha256.Size)
	return sha256.Sum256(functions.bytes(append(buf, others[:]...)))
}

// Hash returns the hash of the table's content, which neither the order of functions nor that of peers changes.
func (t *Table) Hash() Hash {
	if len(t.Funcs) == 0 {
		return Hash{}
	}
	peers := make([]Bag, len(t.Funcs))
	for _, p := range t.Peers {
		if int(p.Func) >= len(peers) {
			return Hash{} // no function of that number: Check refuses it
		}
		peers[p.Func].Add(PeerDigest(p.Peer))
	}
	var functions Sum
	for i := range peers {
		if peers[i].N > 0 {
			functions.Add(FuncDigest(t.Funcs[i].Hash(), &peers[i]))
		}
	}
	return TableHash(t.Funcs[0].Hash(), functions)
}

// Digest returns what the entry adds to the Bag of a policy's addresses.
func (a *Address) Digest() Sum {
	var buf [48]byte
	e := encoder{buf: buf[:0]}
	e.addr(a.Prefix.Addr())
	e.num(uint64(a.Prefix.Bits()))
	e.num(uint64(a.Identity))
	e.flag(a.Shared)
	return sumOf(e.buf)
}

// Digest returns what the entry adds to the Bag of a policy's ports.
func (o *PortOwner) Digest() Sum {
	var buf [48]byte
	e := encoder{buf: buf[:0]}
	e.addr(o.Addr)
	e.num(uint64(o.Proto))
	e.num(uint64(o.Port))
	e.num(uint64(o.Identity))
	return sumOf(e.buf)
}
