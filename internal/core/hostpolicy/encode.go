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

// Hash returns the hash of the canonical encoding of everything but Revision.
func (p *Policy) Hash() Hash {
	e := encoder{buf: make([]byte, 0, 4096)}
	e.str(p.Host)
	e.num(uint64(len(p.Subjects)))
	for i := range p.Subjects {
		s := &p.Subjects[i]
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
	e.num(uint64(len(p.Sets)))
	for i := range p.Sets {
		// A set's ID is the hash of its content, so the ID stands for it. Seal makes them and Check tests them.
		e.num(uint64(p.Sets[i].ID))
	}
	e.num(uint64(len(p.Addresses)))
	for _, a := range p.Addresses {
		e.addr(a.Prefix.Addr())
		e.num(uint64(a.Prefix.Bits()))
		e.num(uint64(a.Identity))
		e.flag(a.Shared)
	}
	e.num(uint64(len(p.Ports)))
	for _, o := range p.Ports {
		e.addr(o.Addr)
		e.num(uint64(o.Proto))
		e.num(uint64(o.Port))
		e.num(uint64(o.Identity))
	}
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
	return sha256.Sum256(e.buf)
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

// Hash returns the hash of the table's canonical encoding.
func (t *Table) Hash() Hash {
	return HashTable(t.Funcs, len(t.Peers), func(i int) PeerFunc { return t.Peers[i] })
}

// HashTable returns the hash of a table of that many rows without having it in memory. Rows have a fixed width: a
// table may have a hundred thousand of them, and every one is hashed in a full compile.
func HashTable(funcs []Func, rows int, row func(i int) PeerFunc) Hash {
	const chunk = 1 << 12
	h := sha256.New()
	e := encoder{buf: make([]byte, 0, chunk+256)}
	flush := func() {
		h.Write(e.buf) // a hash never fails
		e.buf = e.buf[:0]
	}
	e.num(uint64(len(funcs)))
	for _, f := range funcs {
		e.num(uint64(len(f)))
		for _, c := range f {
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
			if len(e.buf) >= chunk {
				flush()
			}
		}
	}
	e.num(uint64(rows))
	for i := range rows {
		p := row(i)
		e.buf = binary.LittleEndian.AppendUint64(e.buf, uint64(p.Peer))
		e.buf = binary.LittleEndian.AppendUint32(e.buf, p.Func)
		if len(e.buf) >= chunk {
			flush()
		}
	}
	flush()
	var out Hash
	h.Sum(out[:0])
	return out
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
