package nft

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"slices"

	"golang.org/x/sys/unix"
)

// generation returns the number of the last transaction of nftables in the namespace, anybody's.
func (n *namespace) generation() (id uint32, err error) {
	err = n.query(nftables(unix.NFT_MSG_GETGEN), unix.AF_UNSPEC, unix.NLM_F_ACK, nil, func(b []byte) {
		eachAttribute(b, func(typ uint16, b []byte) {
			if typ == unix.NFTA_GEN_ID && len(b) == 4 {
				id = binary.BigEndian.Uint32(b)
			}
		})
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the generation: %w", err)
	}
	return id, nil
}

// picture is what the table looks like in the kernel: of each chain a digest of its rules, of each set one of its members,
// in no order, and how many there are.
type picture struct {
	chains map[string]chainPicture
	sets   map[string]setPicture
}

type chainPicture struct {
	rules  int
	digest [32]byte
}

type setPicture struct {
	members int
	digest  uint64
}

// picture looks at the table. It is empty where there is none.
func (n *namespace) picture() (*picture, error) {
	p := &picture{chains: map[string]chainPicture{}, sets: map[string]setPicture{}}
	ours := func(b []byte, tableAttribute, nameAttribute uint16) (name string, ok bool) {
		eachAttribute(b, func(typ uint16, b []byte) {
			switch typ {
			case tableAttribute:
				ok = textOf(b) == tableName
			case nameAttribute:
				name = textOf(b)
			}
		})
		return name, ok
	}
	there := func(err error) (bool, error) {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return err == nil, err
	}
	digests := map[string]hash.Hash{}
	err := n.query(nftables(unix.NFT_MSG_GETCHAIN), unix.NFPROTO_INET, unix.NLM_F_DUMP, nil, func(b []byte) {
		name, ok := ours(b, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)
		if !ok {
			return
		}
		digests[name] = sha256.New()
		p.chains[name] = chainPicture{}
		eachAttribute(b, func(typ uint16, b []byte) {
			if typ == unix.NFTA_CHAIN_HOOK || typ == unix.NFTA_CHAIN_POLICY || typ == chainFlags {
				digests[name].Write(b)
			}
		})
	})
	if ok, err := there(err); !ok {
		return p, err
	}
	var a attributes
	a.text(unix.NFTA_RULE_TABLE, tableName)
	err = n.query(nftables(unix.NFT_MSG_GETRULE), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(b []byte) {
		name, ok := ours(b, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN)
		if !ok || digests[name] == nil {
			return
		}
		c := p.chains[name]
		c.rules++
		p.chains[name] = c
		eachAttribute(b, func(typ uint16, b []byte) {
			if typ == unix.NFTA_RULE_EXPRESSIONS || typ == unix.NFTA_RULE_USERDATA {
				fmt.Fprintf(digests[name], "%d %d ", typ, len(b))
				digests[name].Write(b)
			}
		})
	})
	if ok, err := there(err); !ok {
		return p, err
	}
	for name, h := range digests {
		c := p.chains[name]
		copy(c.digest[:], h.Sum(nil))
		p.chains[name] = c
	}
	a = nil
	a.text(unix.NFTA_SET_TABLE, tableName)
	err = n.query(nftables(unix.NFT_MSG_GETSET), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(b []byte) {
		if name, ok := ours(b, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME); ok {
			p.sets[name] = setPicture{}
		}
	})
	if ok, err := there(err); !ok {
		return p, err
	}
	for name := range p.sets {
		if name == setAlive || name == setGlass { // what ends by itself
			continue
		}
		s, err := n.members(name)
		if err != nil {
			return p, err
		}
		p.sets[name] = s
	}
	return p, nil
}

// members looks at the members of one set.
func (n *namespace) members(name string) (s setPicture, err error) {
	var a attributes
	a.text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
	err = n.query(nftables(unix.NFT_MSG_GETSETELEM), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(b []byte) {
		eachAttribute(b, func(typ uint16, b []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			eachAttribute(b, func(_ uint16, b []byte) {
				h := fnv.New64a()
				h.Write(b)
				s.members++
				s.digest += h.Sum64()
			})
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return setPicture{}, nil
	}
	return s, err
}

// differences says what is not as it was.
func (p *picture) differences(was *picture) (found []string) {
	if len(p.chains) == 0 && len(was.chains) > 0 {
		return []string{"the table inet " + tableName + " was deleted"}
	}
	for _, name := range sorted(was.chains) {
		if now, ok := p.chains[name]; !ok {
			found = append(found, "chain "+name+" was deleted")
		} else if now != was.chains[name] {
			found = append(found, "chain "+name+" was changed")
		}
	}
	for _, name := range sorted(p.chains) {
		if _, ok := was.chains[name]; !ok {
			found = append(found, "chain "+name+" was added")
		}
	}
	for _, name := range sorted(was.sets) {
		if now, ok := p.sets[name]; !ok {
			found = append(found, "set "+name+" was deleted")
		} else if now != was.sets[name] {
			found = append(found, "members of set "+name+" were changed")
		}
	}
	return found
}

// missing says what is not as many as was written.
func (p *picture) missing(t *table) (found []string) {
	if len(p.chains) == 0 {
		return []string{"the table inet " + tableName + " was deleted"}
	}
	for _, name := range sorted(t.chains) {
		if now, ok := p.chains[name]; !ok {
			found = append(found, "chain "+name+" was deleted")
		} else if now.rules != len(t.chains[name].rules) {
			found = append(found, "chain "+name+" was changed")
		}
	}
	for _, name := range sorted(t.sets) {
		if now, ok := p.sets[name]; !ok {
			found = append(found, "set "+name+" was deleted")
		} else if now.members != len(t.sets[name].members) {
			found = append(found, "members of set "+name+" were changed")
		}
	}
	return found
}

// chainFlags is NFTA_CHAIN_FLAGS.
const chainFlags = 10

// Repair looks whether the table is as it was written, and writes all of it anew, in one transaction, if it is not. As long
// as nobody else has changed anything in nftables that is one question.
func (d *Dataplane) Repair(ctx context.Context) ([]string, error) {
	if !d.mu.TryLock() { // Apply is at work
		return nil, ctx.Err()
	}
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return nil, err
	}
	if d.content == nil {
		return nil, nil // the next policy writes all of it
	}
	if d.table == nil { // what was not needed any more could not be removed
		c := *d.content
		return nil, d.switchTo(&c, func(*record) {})
	}
	id, err := d.ns.generation()
	if err != nil || d.looked != nil && id == d.ns.seen.Load() {
		return nil, err
	}
	now, err := d.ns.picture()
	if err != nil {
		return nil, err
	}
	if after, err := d.ns.generation(); err != nil || after != id {
		return nil, err // it has changed while we looked: the next time tells
	}
	var found []string
	if d.looked == nil { // this is the first look since we have changed something ourselves
		found = now.missing(d.table)
	} else {
		found = now.differences(d.looked)
	}
	if len(found) == 0 {
		d.looked = now
		d.ns.seen.Store(id)
		return nil, nil
	}
	if n := len(found); n > maxFound {
		found = append(found[:maxFound], fmt.Sprintf("and %d more", n-maxFound))
	}
	d.table = nil
	c := *d.content
	if err := d.switchTo(&c, func(*record) {}); err != nil {
		return slices.Clone(found), fmt.Errorf("write the table anew: %w", err)
	}
	_, err = d.settle()
	return found, err
}

// maxFound is how many findings are told at once.
const maxFound = 8
