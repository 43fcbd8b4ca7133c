package hostpolicy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
)

// Hash identifies the content of a Policy: what it does, not the revision that it came from.
type Hash [sha256.Size]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Short returns the first twelve digits, for people.
func (h Hash) Short() string { return h.String()[:12] }

// Hash returns the hash of everything but Revision.
func (p *Policy) Hash() Hash {
	var addresses, ports Bag
	for i := range p.Addresses {
		addresses.Add(p.Addresses[i].Digest())
	}
	for i := range p.Ports {
		ports.Add(p.Ports[i].Digest())
	}
	var h Hasher
	h.Host(p.Host, p.Subjects)
	return h.Hash(p.Common(&addresses, &ports))
}

// Common is the part of a policy that hosts may have in common, encoded for a Hasher: all but the host's name and its
// subjects.
type Common struct{ encoded []byte }

// Common is for who keeps the digests of the addresses and ports in bags: it reads Sets, of which the IDs count,
// Controllers and Domains.
func (p *Policy) Common(addresses, ports *Bag) Common {
	e := encoder{buf: make([]byte, 0, 128+10*len(p.Sets)+24*len(p.Controllers))}
	e.num(uint64(len(p.Sets)))
	for i := range p.Sets {
		// A set's ID is the hash of its content, so the ID stands for it. Seal makes them and Check tests them.
		e.num(uint64(p.Sets[i].ID))
	}
	e.bag(addresses)
	e.bag(ports)
	e.num(uint64(len(p.Controllers)))
	for _, c := range p.Controllers {
		e.addr(c.Addr())
		e.num(uint64(c.Port()))
	}
	if len(p.Domains) > 0 { // so that a policy without names has the hash that it had before there were any
		e.num(uint64(len(p.Domains)))
		for _, d := range p.Domains {
			e.str(d.Pattern)
			e.num(uint64(d.Base))
			e.num(uint64(d.Identity))
		}
	}
	return Common{e.buf}
}

// Hasher hashes the policies of hosts one after the other without garbage. The zero Hasher is ready.
type Hasher struct {
	buf  []byte
	host int // length of the host's part
}

// Host begins the policy of a host with these subjects.
func (h *Hasher) Host(host string, subjects []Subject) {
	e := encoder{buf: h.buf[:0]}
	e.str(host)
	e.num(uint64(len(subjects)))
	for i := range subjects {
		s := &subjects[i]
		e.str(s.Workload)
		e.str(s.Unit)
		e.num(uint64(s.Identity))
		e.num(uint64(s.Set))
		e.num(uint64(len(s.Local)))
		for _, l := range s.Local {
			e.addr(l.Addr)
			e.num(uint64(l.Identity))
			e.num(uint64(l.Set))
		}
		e.num(uint64(s.Isolation))
		e.num(uint64(s.Quarantine))
		e.num(uint64(s.OnAgentLoss))
	}
	h.buf, h.host = e.buf, len(e.buf)
}

// Hash returns the hash of the policy that was begun with this rest.
func (h *Hasher) Hash(rest Common) Hash {
	h.buf = append(h.buf[:h.host], rest.encoded...)
	return sha256.Sum256(h.buf)
}

// ContentID returns the ID that the set's content asks for.
func (s *PolicySet) ContentID() PolicySetID { return SetID(s.Ingress.Hash(), s.Egress.Hash()) }

// SetID returns the ID of the policy set of two tables, by their hashes.
func SetID(ingress, egress Hash) PolicySetID {
	sum := sha256.Sum256(append(ingress[:], egress[:]...))
	if n := binary.BigEndian.Uint64(sum[:8]); n != 0 {
		return PolicySetID(n)
	}
	return 1
}

type encoder struct{ buf []byte }

func (e *encoder) num(n uint64) { e.buf = binary.AppendUvarint(e.buf, n) }

func (e *encoder) str(s string) {
	e.num(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) flag(b bool) {
	if b {
		e.num(1)
	} else {
		e.num(0)
	}
}

func (e *encoder) addr(a netip.Addr) {
	s := a.AsSlice()
	e.num(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) bag(b *Bag) {
	e.num(b.N)
	e.buf = b.Sum.bytes(e.buf)
}

// cells appends a function.
func (e *encoder) cells(f Func) {
	e.num(uint64(len(f)))
	for i := range f {
		c := &f[i]
		e.num(uint64(c.Ports.Proto))
		e.num(uint64(c.Ports.Lo))
		e.num(uint64(c.Ports.Hi))
		e.num(uint64(c.Verdict) + 4*uint64(len(c.When)))
		e.str(string(c.Rule))
		for _, a := range c.When {
			e.str(a.Process.Unit)
			e.str(a.Process.Path)
			e.str(a.Process.User)
			e.num(uint64(a.Verdict))
			e.str(string(a.Rule))
		}
	}
}
