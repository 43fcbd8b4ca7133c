package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batch is one transaction: all of it happens, at one moment, or nothing.
type batch struct {
	messages []netlink.Message
	probe    bool // it is about a table of another name, which it takes away again: nobody ever sees it
}

// name is that of the table that the batch is about.
func (b *batch) name() string {
	if b.probe {
		return tableName + "-probe"
	}
	return tableName
}

// header is struct nfgenmsg.
func header(family uint8, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
}

func nftables(msg int) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg)
}

func (b *batch) add(msg int, flags netlink.HeaderFlags, a attributes) {
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: nftables(msg), Flags: netlink.Request | flags},
		Data:   append(header(unix.NFPROTO_INET, 0), a...),
	})
}

func (b *batch) empty() bool { return len(b.messages) == 0 }

func (b *batch) table(msg int) {
	var a attributes
	a.text(unix.NFTA_TABLE_NAME, b.name())
	b.add(msg, created(msg), a)
}

func created(msg int) netlink.HeaderFlags {
	switch msg {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWSET, unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_NEWOBJ:
		return netlink.Create
	case unix.NFT_MSG_NEWRULE:
		return netlink.Create | netlink.Append
	}
	return 0
}

// named adds a message that needs no more than the name of what it is about.
func (b *batch) named(msg int, tableAttribute, nameAttribute uint16, name string) {
	var a attributes
	a.text(tableAttribute, b.name())
	a.text(nameAttribute, name)
	b.add(msg, created(msg), a)
}

func (b *batch) newChain(name string, c *chain) {
	var a attributes
	a.text(unix.NFTA_CHAIN_TABLE, b.name())
	a.text(unix.NFTA_CHAIN_NAME, name)
	if c.hook != nil {
		a.nest(unix.NFTA_CHAIN_HOOK, func(a *attributes) {
			a.u32(unix.NFTA_HOOK_HOOKNUM, *c.hook)
			a.u32(unix.NFTA_HOOK_PRIORITY, hookPriority)
		})
		a.u32(unix.NFTA_CHAIN_POLICY, 1) // accept: what rules say is said by rules
		a.text(unix.NFTA_CHAIN_TYPE, "filter")
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, a)
}

// flush removes every rule of a chain.
func (b *batch) flush(chain string) {
	b.named(unix.NFT_MSG_DELRULE, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, chain)
}

func (b *batch) rule(chain string, r *rule) { b.ruleAt(chain, r, netlink.Append) }

// replace gives a chain other rules.
func (b *batch) replace(chain string, rules []rule) {
	b.flush(chain)
	for i := range rules {
		b.rule(chain, &rules[i])
	}
}

// ruleFirst adds a rule before all others of the chain.
func (b *batch) ruleFirst(chain string, r *rule) { b.ruleAt(chain, r, 0) }

func (b *batch) ruleAt(chain string, r *rule, where netlink.HeaderFlags) {
	var a attributes
	a.text(unix.NFTA_RULE_TABLE, b.name())
	a.text(unix.NFTA_RULE_CHAIN, chain)
	a.nest(unix.NFTA_RULE_EXPRESSIONS, func(a *attributes) {
		for _, s := range r.steps {
			*a = append(*a, s...)
		}
	})
	if r.data != nil {
		a.bytes(unix.NFTA_RULE_USERDATA, r.data)
	}
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|where, a)
}

func (b *batch) newSet(name string, s *set) {
	var a attributes
	a.text(unix.NFTA_SET_TABLE, b.name())
	a.text(unix.NFTA_SET_NAME, name)
	flags := uint32(0)
	if s.ranges {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(s.fields) > 1 {
		flags |= setConcat
	}
	if s.value != none {
		flags |= unix.NFT_SET_MAP
	}
	if s.timeouts {
		flags |= unix.NFT_SET_TIMEOUT
	}
	a.u32(unix.NFTA_SET_FLAGS, flags)
	a.u32(unix.NFTA_SET_KEY_TYPE, s.keyType())
	a.u32(unix.NFTA_SET_KEY_LEN, uint32(s.keyLength()))
	switch s.value {
	case none:
	case verdicts:
		a.u32(unix.NFTA_SET_DATA_TYPE, s.value.typ)
	default:
		a.u32(unix.NFTA_SET_DATA_TYPE, s.value.typ)
		a.u32(unix.NFTA_SET_DATA_LEN, valueFront+uint32(s.value.length))
	}
	if len(s.fields) > 1 {
		a.nest(unix.NFTA_SET_DESC, func(a *attributes) {
			a.nest(setDescConcat, func(a *attributes) {
				for _, f := range s.fields {
					a.nest(unix.NFTA_LIST_ELEM, func(a *attributes) { a.u32(setFieldLen, uint32(f.length)) })
				}
			})
		})
	}
	a.u32(unix.NFTA_SET_ID, uint32(len(b.messages)+1)) // unlike any other of the batch
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, a)
}

// What package unix does not name.
const (
	setConcat     = 0x80 // NFT_SET_CONCAT
	setDescConcat = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen   = 1    // NFTA_SET_FIELD_LEN
	elemKeyEnd    = 10   // NFTA_SET_ELEM_KEY_END
	elemCatchall  = 2    // NFT_SET_ELEM_CATCHALL
)

// elementsEach is how many elements go into one message, whose attributes may have 64 KiB.
const elementsEach = 400

func (b *batch) elements(msg int, name string, s *set, all []element) {
	for len(all) > 0 {
		n := min(len(all), elementsEach)
		var a attributes
		a.text(unix.NFTA_SET_ELEM_LIST_TABLE, b.name())
		a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
		a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(a *attributes) {
			for i := range all[:n] {
				a.nest(unix.NFTA_LIST_ELEM, func(a *attributes) { all[i].attributes(a, s, msg == unix.NFT_MSG_NEWSETELEM) })
			}
		})
		b.add(msg, created(msg), a)
		all = all[n:]
	}
}

func (e *element) attributes(a *attributes, s *set, value bool) {
	if e.key == "" {
		a.u32(unix.NFTA_SET_ELEM_FLAGS, elemCatchall)
	} else {
		a.nest(unix.NFTA_SET_ELEM_KEY, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, []byte(e.key)) })
	}
	if e.last != "" {
		a.nest(elemKeyEnd, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, []byte(e.last)) })
	}
	if !value {
		return
	}
	if e.timeout != 0 {
		a.u64(unix.NFTA_SET_ELEM_TIMEOUT, e.timeout)
	}
	switch s.value {
	case none:
	case verdicts:
		a.nest(unix.NFTA_SET_ELEM_DATA, e.verdict.attributes)
	default:
		a.nest(unix.NFTA_SET_ELEM_DATA, func(a *attributes) { a.bytes(unix.NFTA_DATA_VALUE, append(make([]byte, valueFront), e.value...)) })
	}
}

func (b *batch) counter(name string, packets uint64) {
	var a attributes
	a.text(unix.NFTA_OBJ_TABLE, b.name())
	a.text(unix.NFTA_OBJ_NAME, name)
	a.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	a.nest(unix.NFTA_OBJ_DATA, func(a *attributes) {
		a.u64(unix.NFTA_COUNTER_BYTES, 0)
		a.u64(unix.NFTA_COUNTER_PACKETS, packets)
	})
	b.add(unix.NFT_MSG_NEWOBJ, netlink.Create, a)
}

// commitPatience is how long the kernel may take for a transaction.
const commitPatience = time.Minute

// errUnanswered says that nobody knows whether a transaction has happened.
var errUnanswered = errors.New("the kernel's answer was lost")

// commit makes the transaction happen. An error means that nothing of it has, unless it is errUnanswered.
func (n *namespace) commit(b *batch) (err error) {
	if b.empty() {
		return nil
	}
	if before, unknown := n.generation(); unknown == nil && before == n.seen.Load() {
		defer func() {
			if err == nil { // one more is ours; if there are others too, Repair looks
				n.seen.CompareAndSwap(before, before+1)
			}
		}()
	}
	c, err := n.dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	size := 0
	for i := range b.messages {
		size += len(b.messages[i].Data) + 64
	}
	if err := c.SetWriteBuffer(2*size + 1<<20); err != nil {
		return fmt.Errorf("make room for a transaction of %d bytes: %w", size, err)
	}
	last := &b.messages[len(b.messages)-1]
	last.Header.Flags |= netlink.Acknowledge // of all before it only errors are told
	all := make([]netlink.Message, 0, len(b.messages)+2)
	all = append(all, netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request},
		Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)})
	all = append(all, b.messages...)
	all = append(all, netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request},
		Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)})
	if err := c.SetReadDeadline(time.Now().Add(commitPatience)); err != nil {
		return err
	}
	if _, err := c.SendMessages(all); err != nil {
		return fmt.Errorf("send a transaction of %d bytes: %w", size, err)
	}
	_, err = c.Receive()
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("nftables transaction: %w: %w", errUnanswered, plain(err))
	}
	if err != nil {
		return fmt.Errorf("nftables transaction: %w", plain(err))
	}
	return nil
}

// plain takes the errno out of what the netlink package makes of it.
func plain(err error) error {
	var op *netlink.OpError
	if errors.As(err, &op) {
		if op.Message != "" {
			return fmt.Errorf("%w (%s)", op.Err, op.Message)
		}
		return op.Err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the kernel does not answer")
	}
	return err
}
