// Package nat translates addresses by nf_tables, as administrators, Docker and kube-proxy do: for the lab and for tests.
// The product translates nothing.
package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Rule translates what goes to an address. It is one of: another destination, a port of this host, another source.
type Rule struct {
	Proto  uint8          // of IP
	Match  netip.AddrPort // the destination it is for; port 0 is any
	To     netip.AddrPort // the destination instead; port 0 leaves it
	Local  uint16         // or this port of the host itself
	Source netip.Addr     // or this source
	// Arriving says that the rule is for packets that come in, not for those that are sent here.
	Arriving bool
}

// table is the name of the table that Set makes.
const table = "translated"

// What package unix does not name.
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4
	natSource       = 0 // NFT_NAT_SNAT
	natDestination  = 1 // NFT_NAT_DNAT
)

// Set puts the rules in force in the network namespace of the calling thread, in a table of their own for each family, in
// place of those of the last call; without rules there is no table.
func Set(rules ...Rule) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("translate addresses: %w", err)
	}
	defer conn.Close()
	for _, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		var mine []Rule
		for _, r := range rules {
			if r.Match.Addr().Is4() == (family == unix.NFPROTO_IPV4) {
				mine = append(mine, r)
			}
		}
		b := batch{family: family}
		b.table(unix.NFT_MSG_DELTABLE)
		if err := b.send(conn); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove translated addresses: %w", err)
		}
		if len(mine) == 0 {
			continue
		}
		b = batch{family: family}
		b.table(unix.NFT_MSG_NEWTABLE)
		b.chain("arriving", hookPrerouting, -100)
		b.chain("sent", hookOutput, -100)
		b.chain("source", hookPostrouting, 100)
		for _, r := range mine {
			b.rule(&r)
		}
		if err := b.send(conn); err != nil {
			return fmt.Errorf("translate addresses: %w", err)
		}
	}
	return nil
}

type batch struct {
	family   uint8
	messages []netlink.Message
	err      error
}

func (b *batch) add(kind int, flags netlink.HeaderFlags, attributes func(*netlink.AttributeEncoder)) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	attributes(e)
	data, err := e.Encode()
	if err != nil && b.err == nil {
		b.err = err
	}
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append([]byte{b.family, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

func (b *batch) table(kind int) {
	flags := netlink.HeaderFlags(0)
	if kind == unix.NFT_MSG_NEWTABLE {
		flags = netlink.Create
	}
	b.add(kind, flags, func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, table) })
}

func (b *batch) chain(name string, hook uint32, priority int32) {
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, table)
		e.String(unix.NFTA_CHAIN_NAME, name)
		e.Nested(unix.NFTA_CHAIN_HOOK, func(e *netlink.AttributeEncoder) error {
			e.Uint32(unix.NFTA_HOOK_HOOKNUM, hook)
			e.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(priority))
			return nil
		})
		e.String(unix.NFTA_CHAIN_TYPE, "nat")
	})
}

func (b *batch) rule(r *Rule) {
	chain := "sent"
	switch {
	case r.Source.IsValid():
		chain = "source"
	case r.Arriving:
		chain = "arriving"
	}
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, table)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) error {
			b.match(e, r)
			b.translate(e, r)
			return nil
		})
	})
}

func (b *batch) match(e *netlink.AttributeEncoder, r *Rule) {
	offset := uint32(16)
	if b.family == unix.NFPROTO_IPV6 {
		offset = 24
	}
	load(e, unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(r.Match.Addr().BitLen()/8))
	equal(e, r.Match.Addr().AsSlice())
	expression(e, "meta", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO)
		e.Uint32(unix.NFTA_META_DREG, unix.NFT_REG_1)
	})
	equal(e, []byte{r.Proto})
	if r.Match.Port() != 0 {
		load(e, unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
		equal(e, binary.BigEndian.AppendUint16(nil, r.Match.Port()))
	}
}

func (b *batch) translate(e *netlink.AttributeEncoder, r *Rule) {
	port := r.To.Port()
	if r.Local != 0 {
		port = r.Local
	}
	if port != 0 {
		immediate(e, unix.NFT_REG_2, binary.BigEndian.AppendUint16(nil, port))
	}
	if r.Local != 0 {
		expression(e, "redir", func(e *netlink.AttributeEncoder) { e.Uint32(unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFT_REG_2) })
		return
	}
	to, kind := r.To.Addr(), uint32(natDestination)
	if r.Source.IsValid() {
		to, kind = r.Source, natSource
	}
	immediate(e, unix.NFT_REG_1, to.AsSlice())
	expression(e, "nat", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_NAT_TYPE, kind)
		e.Uint32(unix.NFTA_NAT_FAMILY, uint32(b.family))
		e.Uint32(unix.NFTA_NAT_REG_ADDR_MIN, unix.NFT_REG_1)
		if port != 0 {
			e.Uint32(unix.NFTA_NAT_REG_PROTO_MIN, unix.NFT_REG_2)
		}
	})
}

func expression(e *netlink.AttributeEncoder, name string, data func(*netlink.AttributeEncoder)) {
	e.Nested(unix.NFTA_LIST_ELEM, func(e *netlink.AttributeEncoder) error {
		e.String(unix.NFTA_EXPR_NAME, name)
		e.Nested(unix.NFTA_EXPR_DATA, func(e *netlink.AttributeEncoder) error {
			data(e)
			return nil
		})
		return nil
	})
}

func load(e *netlink.AttributeEncoder, base, offset, length uint32) {
	expression(e, "payload", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1)
		e.Uint32(unix.NFTA_PAYLOAD_BASE, base)
		e.Uint32(unix.NFTA_PAYLOAD_OFFSET, offset)
		e.Uint32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

func equal(e *netlink.AttributeEncoder, value []byte) {
	expression(e, "cmp", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_CMP_SREG, unix.NFT_REG_1)
		e.Uint32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ)
		e.Nested(unix.NFTA_CMP_DATA, func(e *netlink.AttributeEncoder) error {
			e.Bytes(unix.NFTA_DATA_VALUE, value)
			return nil
		})
	})
}

func immediate(e *netlink.AttributeEncoder, register uint32, value []byte) {
	expression(e, "immediate", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_IMMEDIATE_DREG, register)
		e.Nested(unix.NFTA_IMMEDIATE_DATA, func(e *netlink.AttributeEncoder) error {
			e.Bytes(unix.NFTA_DATA_VALUE, value)
			return nil
		})
	})
}

// send makes the batch one transaction and waits for the answer to each message.
func (b *batch) send(conn *netlink.Conn) error {
	if b.err != nil {
		return b.err
	}
	edge := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data:   []byte{0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := append([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, b.messages...)
	if _, err := conn.SendMessages(append(all, edge(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	for n := 0; n < len(b.messages); {
		answers, err := conn.Receive()
		if err != nil {
			return err
		}
		n += len(answers)
	}
	return nil
}
