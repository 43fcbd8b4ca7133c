package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// machine does what a table says, as the kernel does (net/netfilter/nf_tables_core.c and the expressions beside it). It reads the
// bytes that the kernel is sent, so it knows nothing of what they are meant to do.
type machine struct {
	chains map[string][][]instruction
	table  *table
	ranges map[string][]element // the members of sets of ranges
}

// instruction does one step. It reports whether the rule goes on.
type instruction func(m *machine, p *passing) bool

// passing is a packet on its way through the table.
type passing struct {
	family, proto byte
	in, out       uint32 // numbers of interfaces
	transport     []byte // the transport header
	flow          *tracked
	answer        bool // the packet is one of the flow's other direction
	socket        *owned
	alive, glass  bool // what is in the sets of these names

	registers [80]byte
	mark      uint32
	verdict   verdict
	decided   bool
	told      []string // log prefixes with the mark of the packet
	counted   map[string]int
}

// tracked is a connection as the kernel tracks it: addresses and ports of both directions, in network order.
type tracked struct {
	mark        uint32
	established bool
	src, dst    [2][]byte
	from, to    [2]uint16
}

// owned is the socket of a packet: the ids of the cgroups that it is in, from the root down. One that is not whole says nothing.
type owned struct {
	cgroups []uint64
	whole   bool
}

func newMachine(t *table) *machine {
	m := &machine{chains: map[string][][]instruction{}, table: t, ranges: map[string][]element{}}
	for name, c := range t.chains {
		rules := [][]instruction{}
		for _, r := range c.rules {
			var rule []instruction
			for _, s := range r.steps {
				rule = append(rule, decode(s))
			}
			rules = append(rules, rule)
		}
		m.chains[name] = rules
	}
	for name, s := range t.sets {
		if s.ranges {
			for _, k := range sorted(s.members) {
				m.ranges[name] = append(m.ranges[name], s.members[k])
			}
		}
	}
	return m
}

// run sends the packet into a chain.
func (m *machine) run(chain string, p *passing) {
	rules, ok := m.chains[chain]
	if !ok {
		panic("no chain " + chain)
	}
	for _, rule := range rules {
		p.verdict, p.decided = verdict{}, false
		for _, do := range rule {
			if !do(m, p) || p.decided {
				break
			}
		}
		if !p.decided {
			continue
		}
		switch p.verdict.code {
		case unix.NFT_JUMP:
			m.run(p.verdict.chain, p)
			if p.decided {
				return
			}
		case unix.NFT_GOTO:
			m.run(p.verdict.chain, p)
			return
		default:
			return
		}
	}
	p.decided = false // the end of the chain: back to whoever jumped here
}

func (p *passing) load(number uint32, n int) []byte {
	at := int(number-unix.NFT_REG32_00) * 4
	return p.registers[at : at+n]
}

// store fills whole registers, as nft_reg_store8 and its like do.
func (p *passing) store(number uint32, b []byte) {
	at := int(number-unix.NFT_REG32_00) * 4
	clear(p.registers[at : at+(len(b)+3)&^3])
	copy(p.registers[at:], b)
}

// fields are the attributes of an expression.
type fields map[uint16][]byte

func fieldsOf(b []byte) fields {
	f := fields{}
	eachAttribute(b, func(typ uint16, b []byte) { f[typ] = b })
	return f
}

func (f fields) u32(typ uint16) uint32   { return binary.BigEndian.Uint32(f[typ]) }
func (f fields) text(typ uint16) string  { return textOf(f[typ]) }
func (f fields) value(typ uint16) []byte { return fieldsOf(f[typ])[unix.NFTA_DATA_VALUE] }

func verdictOf(b []byte) verdict {
	f := fieldsOf(fieldsOf(b)[unix.NFTA_DATA_VERDICT])
	return verdict{int32(f.u32(unix.NFTA_VERDICT_CODE)), f.text(unix.NFTA_VERDICT_CHAIN)}
}

func decode(e expression) instruction {
	outer := fieldsOf(fieldsOf(e)[unix.NFTA_LIST_ELEM])
	name, f := outer.text(unix.NFTA_EXPR_NAME), fieldsOf(outer[unix.NFTA_EXPR_DATA])
	switch name {
	case "meta":
		return decodeMeta(f)
	case "ct":
		return decodeFlow(f)
	case "payload":
		to, offset, n := f.u32(unix.NFTA_PAYLOAD_DREG), f.u32(unix.NFTA_PAYLOAD_OFFSET), f.u32(unix.NFTA_PAYLOAD_LEN)
		return func(_ *machine, p *passing) bool {
			if int(offset+n) > len(p.transport) {
				return false
			}
			p.store(to, p.transport[offset:offset+n])
			return true
		}
	case "exthdr": // packets here have neither options nor extension headers
		to, present := f.u32(unix.NFTA_EXTHDR_DREG), f[unix.NFTA_EXTHDR_FLAGS] != nil
		return func(_ *machine, p *passing) bool {
			if present {
				p.store(to, []byte{0})
			}
			return present
		}
	case "socket":
		return decodeSocket(f)
	case "immediate":
		to := f.u32(unix.NFTA_IMMEDIATE_DREG)
		if to == unix.NFT_REG_VERDICT {
			v := verdictOf(f[unix.NFTA_IMMEDIATE_DATA])
			return func(_ *machine, p *passing) bool { p.verdict, p.decided = v, true; return true }
		}
		b := f.value(unix.NFTA_IMMEDIATE_DATA)
		return func(_ *machine, p *passing) bool { p.store(to, b); return true }
	case "cmp":
		from, same, b := f.u32(unix.NFTA_CMP_SREG), f.u32(unix.NFTA_CMP_OP) == unix.NFT_CMP_EQ, f.value(unix.NFTA_CMP_DATA)
		return func(_ *machine, p *passing) bool { return bytes.Equal(p.load(from, len(b)), b) == same }
	case "bitwise":
		from, to := f.u32(unix.NFTA_BITWISE_SREG), f.u32(unix.NFTA_BITWISE_DREG)
		mask, xor := f.value(unix.NFTA_BITWISE_MASK), f.value(unix.NFTA_BITWISE_XOR)
		return func(_ *machine, p *passing) bool {
			out := bytes.Clone(p.load(from, len(mask)))
			for i := range out {
				out[i] = out[i]&mask[i] ^ xor[i]
			}
			p.store(to, out)
			return true
		}
	case "lookup":
		return decodeLookup(f)
	case "log":
		prefix := f.text(unix.NFTA_LOG_PREFIX)
		return func(_ *machine, p *passing) bool {
			p.told = append(p.told, fmt.Sprintf("%s %08x", strings.TrimSpace(prefix), p.mark))
			return true
		}
	case "limit":
		return func(*machine, *passing) bool { return true }
	case "objref":
		counter := f.text(unix.NFTA_OBJREF_IMM_NAME)
		return func(_ *machine, p *passing) bool { p.counted[counter]++; return true }
	case "reject":
		return func(_ *machine, p *passing) bool { p.verdict, p.decided = drop, true; return true }
	}
	panic("an expression that no rule has: " + name)
}

func decodeMeta(f fields) instruction {
	key := f.u32(unix.NFTA_META_KEY)
	if f[unix.NFTA_META_SREG] != nil {
		from := f.u32(unix.NFTA_META_SREG)
		return func(_ *machine, p *passing) bool { p.mark = binary.NativeEndian.Uint32(p.load(from, 4)); return true }
	}
	to := f.u32(unix.NFTA_META_DREG)
	return func(_ *machine, p *passing) bool {
		switch key {
		case unix.NFT_META_L4PROTO:
			p.store(to, []byte{p.proto})
		case unix.NFT_META_NFPROTO:
			p.store(to, []byte{p.family})
		case unix.NFT_META_IIF:
			p.store(to, ne32(p.in))
		case unix.NFT_META_OIF:
			p.store(to, ne32(p.out))
		case unix.NFT_META_MARK:
			p.store(to, ne32(p.mark))
		default:
			panic(fmt.Sprintf("meta key %d", key))
		}
		return true
	}
}

func decodeFlow(f fields) instruction {
	key := f.u32(unix.NFTA_CT_KEY)
	if f[unix.NFTA_CT_SREG] != nil {
		from := f.u32(unix.NFTA_CT_SREG)
		return func(_ *machine, p *passing) bool {
			p.flow.mark = binary.NativeEndian.Uint32(p.load(from, 4))
			return true
		}
	}
	to, direction := f.u32(unix.NFTA_CT_DREG), 0
	if d := f[unix.NFTA_CT_DIRECTION]; d != nil {
		direction = int(d[0])
	}
	return func(_ *machine, p *passing) bool {
		c := p.flow
		if c == nil {
			return false
		}
		switch key {
		case unix.NFT_CT_DIRECTION:
			d := byte(ctOriginal)
			if p.answer {
				d = ctReply
			}
			p.store(to, []byte{d})
		case unix.NFT_CT_STATE:
			state := uint32(ctStateNew)
			if c.established {
				state = ctStateEstablished
			}
			p.store(to, ne32(state))
		case unix.NFT_CT_MARK:
			p.store(to, ne32(c.mark))
		case ctSrcIP, ctSrcIP6:
			if (key == ctSrcIP) != (p.family == unix.NFPROTO_IPV4) {
				return false
			}
			p.store(to, c.src[direction])
		case unix.NFT_CT_PROTO_SRC:
			p.store(to, be16(c.from[direction]))
		case unix.NFT_CT_PROTO_DST:
			p.store(to, be16(c.to[direction]))
		default:
			panic(fmt.Sprintf("ct key %d", key))
		}
		return true
	}
}

func decodeSocket(f fields) instruction {
	key, to := f.u32(attrSocketKey), f.u32(attrSocketRegister)
	level := 0
	if f[attrSocketLevel] != nil {
		level = int(f.u32(attrSocketLevel))
	}
	return func(_ *machine, p *passing) bool {
		s := p.socket
		switch {
		case s == nil:
			return false
		case key == socketTransparent:
			p.store(to, []byte{0})
		case !s.whole:
			return false
		case key == socketMark:
			p.store(to, ne32(0))
		case key == socketCgroup:
			if level >= len(s.cgroups) {
				return false
			}
			p.store(to, ne64(s.cgroups[level]))
		default:
			panic(fmt.Sprintf("socket key %d", key))
		}
		return true
	}
}

func decodeLookup(f fields) instruction {
	set, from := f.text(unix.NFTA_LOOKUP_SET), f.u32(unix.NFTA_LOOKUP_SREG)
	to, stores := uint32(0), f[unix.NFTA_LOOKUP_DREG] != nil
	if stores {
		to = f.u32(unix.NFTA_LOOKUP_DREG)
	}
	inverted := f[unix.NFTA_LOOKUP_FLAGS] != nil && f.u32(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0
	return func(m *machine, p *passing) bool {
		s := m.table.sets[set]
		if s == nil {
			panic("no set " + set)
		}
		e, ok := m.member(set, s, p.load(from, s.keyLength()))
		switch set {
		case setAlive:
			ok = p.alive
		case setGlass:
			ok = p.glass
		}
		switch {
		case ok == inverted:
			return false
		case !stores:
		case to == unix.NFT_REG_VERDICT:
			p.verdict, p.decided = e.verdict, true
		default:
			p.store(to, append(make([]byte, valueFront), e.value...))
		}
		return true
	}
}

// member finds what a set has for a key.
func (m *machine) member(name string, s *set, key []byte) (element, bool) {
	if !s.ranges {
		e, ok := s.members[string(key)]
		if !ok {
			e, ok = s.members[""] // for every other
		}
		return e, ok
	}
next:
	for _, e := range m.ranges[name] {
		at := 0
		for _, f := range s.fields {
			part := string(key[at : at+f.length])
			if part < e.key[at:at+f.length] || part > e.last[at:at+f.length] {
				continue next
			}
			at += (f.length + 3) &^ 3
		}
		return e, true
	}
	return element{}, false
}
