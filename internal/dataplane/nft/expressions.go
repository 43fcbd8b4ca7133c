package nft

import "golang.org/x/sys/unix"

// expression is one step of a rule, as the kernel takes it. A rule's steps share its registers.
type expression []byte

// register is one of the sixteen 32-bit registers of a rule; longer values take those that follow.
type register uint32

func (r register) number() uint32 { return unix.NFT_REG32_00 + uint32(r) }

// Keys of ct that package unix does not name (linux/netfilter/nf_tables.h).
const (
	ctOriginal = 0
	ctReply    = 1

	ctSrcIP  = 19
	ctDstIP  = 20
	ctSrcIP6 = 21

	exthdrIPv4 = 2 // NFT_EXTHDR_OP_IPV4

	attrTproxyFamily  = 1
	attrTproxyAddress = 2
	attrTproxyPort    = 3

	attrSocketKey      = 1
	attrSocketRegister = 2
	attrSocketLevel    = 3

	socketMark        = 1
	socketTransparent = 0
	socketCgroup      = 3
)

func step(name string, data func(*attributes)) expression {
	var a attributes
	a.nest(unix.NFTA_LIST_ELEM, func(a *attributes) {
		a.text(unix.NFTA_EXPR_NAME, name)
		a.nest(unix.NFTA_EXPR_DATA, data)
	})
	return expression(a)
}

// loadMeta puts something about the packet into a register.
func loadMeta(key uint32, to register) expression {
	return step("meta", func(a *attributes) {
		a.u32(unix.NFTA_META_DREG, to.number())
		a.u32(unix.NFTA_META_KEY, key)
	})
}

// setPacketMark sets the packet's mark.
func setPacketMark(from register) expression {
	return step("meta", func(a *attributes) {
		a.u32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		a.u32(unix.NFTA_META_SREG, from.number())
	})
}

// loadFlow puts something about the packet's connection into a register. Where it has none, the rule ends.
func loadFlow(key uint32, to register) expression {
	return step("ct", func(a *attributes) {
		a.u32(unix.NFTA_CT_DREG, to.number())
		a.u32(unix.NFTA_CT_KEY, key)
	})
}

// loadTuple does so with a part of the addresses and ports of one direction of the connection.
func loadTuple(key uint32, direction uint8, to register) expression {
	return step("ct", func(a *attributes) {
		a.u32(unix.NFTA_CT_DREG, to.number())
		a.u32(unix.NFTA_CT_KEY, key)
		a.u8(unix.NFTA_CT_DIRECTION, direction)
	})
}

// setFlowMark sets the mark of the connection.
func setFlowMark(from register) expression {
	return step("ct", func(a *attributes) {
		a.u32(unix.NFTA_CT_KEY, unix.NFT_CT_MARK)
		a.u32(unix.NFTA_CT_SREG, from.number())
	})
}

// loadExtension puts a byte of an extension header of IPv6 into a register. Where there is none, the rule ends.
func loadExtension(kind uint8, offset uint32, to register) expression {
	return step("exthdr", func(a *attributes) {
		a.u32(unix.NFTA_EXTHDR_DREG, to.number())
		a.u8(unix.NFTA_EXTHDR_TYPE, kind)
		a.u32(unix.NFTA_EXTHDR_OFFSET, offset)
		a.u32(unix.NFTA_EXTHDR_LEN, 1)
	})
}

// hasOption puts 1 into the register if a packet of IPv4 has the option, else 0.
func hasOption(kind uint8, to register) expression {
	return step("exthdr", func(a *attributes) {
		a.u32(unix.NFTA_EXTHDR_DREG, to.number())
		a.u8(unix.NFTA_EXTHDR_TYPE, kind)
		a.u32(unix.NFTA_EXTHDR_OFFSET, 0)
		a.u32(unix.NFTA_EXTHDR_LEN, 1)
		a.u32(unix.NFTA_EXTHDR_FLAGS, unix.NFT_EXTHDR_F_PRESENT)
		a.u32(unix.NFTA_EXTHDR_OP, exthdrIPv4)
	})
}

func loadTransport(offset, length uint32, to register) expression {
	return step("payload", func(a *attributes) {
		a.u32(unix.NFTA_PAYLOAD_DREG, to.number())
		a.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER)
		a.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		a.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

func loadNetwork(offset, length uint32, to register) expression {
	return step("payload", func(a *attributes) {
		a.u32(unix.NFTA_PAYLOAD_DREG, to.number())
		a.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
		a.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		a.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

// reopen gives up the socket in TIME_WAIT that a packet of that family is for, which must be the first of a connection, if
// somebody listens at the address and port in the registers. A packet for a transparent socket is that socket's from then
// on, whose it would be anyway; for any other the rule ends.
func reopen(family uint32, address, port register) expression {
	return step("tproxy", func(a *attributes) {
		a.u32(attrTproxyFamily, family)
		a.u32(attrTproxyAddress, address.number())
		a.u32(attrTproxyPort, port.number())
	})
}

// loadSocket puts something about the packet's socket into a register. Where it has none, the rule ends.
func loadSocket(key uint32, to register) expression {
	return step("socket", func(a *attributes) {
		a.u32(attrSocketKey, key)
		a.u32(attrSocketRegister, to.number())
	})
}

// loadCgroup puts the id of the cgroup at that depth above the packet's socket into a register.
func loadCgroup(depth uint32, to register) expression {
	return step("socket", func(a *attributes) {
		a.u32(attrSocketKey, socketCgroup)
		a.u32(attrSocketRegister, to.number())
		a.u32(attrSocketLevel, depth)
	})
}

func loadValue(b []byte, to register) expression {
	return step("immediate", func(a *attributes) {
		a.u32(unix.NFTA_IMMEDIATE_DREG, to.number())
		a.nest(unix.NFTA_IMMEDIATE_DATA, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, b) })
	})
}

func compare(r register, op uint32, b []byte) expression {
	return step("cmp", func(a *attributes) {
		a.u32(unix.NFTA_CMP_SREG, r.number())
		a.u32(unix.NFTA_CMP_OP, op)
		a.nest(unix.NFTA_CMP_DATA, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, b) })
	})
}

// equal ends the rule unless the register has the value.
func equal(r register, b []byte) expression { return compare(r, unix.NFT_CMP_EQ, b) }

// differs ends the rule if the register has the value.
func differs(r register, b []byte) expression { return compare(r, unix.NFT_CMP_NEQ, b) }

// combine makes r & mask ^ xor of a register.
func combine(r register, mask, xor []byte) expression {
	return step("bitwise", func(a *attributes) {
		a.u32(unix.NFTA_BITWISE_SREG, r.number())
		a.u32(unix.NFTA_BITWISE_DREG, r.number())
		a.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		a.nest(unix.NFTA_BITWISE_MASK, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, mask) })
		a.nest(unix.NFTA_BITWISE_XOR, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, xor) })
	})
}

// find ends the rule unless the set has what is in the register.
func find(set string, r register) expression {
	return step("lookup", func(a *attributes) {
		a.text(unix.NFTA_LOOKUP_SET, set)
		a.u32(unix.NFTA_LOOKUP_SREG, r.number())
	})
}

// miss ends the rule if the set has what is in the register.
func miss(set string, r register) expression {
	return step("lookup", func(a *attributes) {
		a.text(unix.NFTA_LOOKUP_SET, set)
		a.u32(unix.NFTA_LOOKUP_SREG, r.number())
		a.u32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
	})
}

// look puts what the map has for a register into another, or ends the rule. What is found is looked up in its turn, a rule of
// which nft cannot make anything: where it follows a value from one look-up to the next, several of its versions abort. So
// values have a word in front, for which the register before is: nft then does not know where the next look-up's key is from,
// says so, and goes on.
func look(set string, from, to register) expression {
	return step("lookup", func(a *attributes) {
		a.text(unix.NFTA_LOOKUP_SET, set)
		a.u32(unix.NFTA_LOOKUP_SREG, from.number())
		a.u32(unix.NFTA_LOOKUP_DREG, (to - valueFront/4).number())
	})
}

// valueFront is how many bytes of no meaning are in front of a map's values.
const valueFront = 4

// decide does what the map of verdicts has for a register, or ends the rule.
func decide(set string, from register) expression {
	return step("lookup", func(a *attributes) {
		a.text(unix.NFTA_LOOKUP_SET, set)
		a.u32(unix.NFTA_LOOKUP_SREG, from.number())
		a.u32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
	})
}

// verdict is what becomes of the packet: accept, drop, return, or another chain.
type verdict struct {
	code  int32
	chain string
}

var (
	accept = verdict{code: 1}
	drop   = verdict{code: 0}
)

func jump(chain string) verdict { return verdict{unix.NFT_JUMP, chain} }
func goTo(chain string) verdict { return verdict{unix.NFT_GOTO, chain} }

func (v verdict) attributes(a *attributes) {
	a.nest(unix.NFTA_DATA_VERDICT, func(a *attributes) {
		a.u32(unix.NFTA_VERDICT_CODE, uint32(v.code))
		if v.chain != "" {
			a.text(unix.NFTA_VERDICT_CHAIN, v.chain)
		}
	})
}

func (v verdict) expression() expression {
	return step("immediate", func(a *attributes) {
		a.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		a.nest(unix.NFTA_IMMEDIATE_DATA, v.attributes)
	})
}

// tell sends the start of the packet to the log group.
func tell(group uint16, prefix string) expression {
	return step("log", func(a *attributes) {
		a.u16(unix.NFTA_LOG_GROUP, group)
		a.text(unix.NFTA_LOG_PREFIX, prefix)
		a.u32(unix.NFTA_LOG_SNAPLEN, loggedBytes)
		a.u16(unix.NFTA_LOG_QTHRESHOLD, 1)
	})
}

// atMost ends the rule if it has been reached more often than that in a second.
func atMost(rate uint64) expression {
	return step("limit", func(a *attributes) {
		a.u64(unix.NFTA_LIMIT_RATE, rate)
		a.u64(unix.NFTA_LIMIT_UNIT, 1)
		a.u32(unix.NFTA_LIMIT_BURST, uint32(rate))
	})
}

// add counts the packet.
func add(counter string) expression {
	return step("objref", func(a *attributes) {
		a.u32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		a.text(unix.NFTA_OBJREF_IMM_NAME, counter)
	})
}

// rejectTCP answers with a reset, rejectOther with port unreachable.
func rejectTCP() expression {
	return step("reject", func(a *attributes) { a.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST) })
}

func rejectOther() expression {
	return step("reject", func(a *attributes) {
		a.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMPX_UNREACH)
		a.u8(unix.NFTA_REJECT_ICMP_CODE, unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	})
}
