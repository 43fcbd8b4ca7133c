package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// The chain "state", which no packet enters, keeps what the next agent must know of what is in force, in the data of its
// rules.
const stateChain = "state"

const (
	recordState   = 's' // version, generation, flags, digest of the content
	recordSubject = 'w' // number, isolated, name
)

const (
	flagBeaten = 1
	flagGlass  = 2
	flagPolicy = 4
	// What is not in force may be there besides what is: an agent has died between two transactions.
	flagUnfinished = 8
)

// record is what the kernel keeps.
type record struct {
	version  uint8
	gen      uint8
	flags    uint8
	digest   [32]byte
	subjects numbers
}

func (r *record) rules() (all []rule) {
	// The rule that asks for bytes has the kernel count what connections carry.
	steps := []expression{loadFlow(unix.NFT_CT_BYTES, scratch), accept.expression()}
	data := append([]byte{recordState, r.version, r.gen, r.flags}, r.digest[:]...)
	all = append(all, rule{steps, data})
	for _, name := range sorted(r.subjects) {
		s := r.subjects[name]
		isolated := byte(0)
		if s.isolated {
			isolated = 1
		}
		all = append(all, rule{[]expression{accept.expression()}, append([]byte{recordSubject, s.number, isolated}, name...)})
	}
	return all
}

// readRecord returns what the kernel keeps; ok is false if our table is not there.
func (n *namespace) readRecord() (r record, ok bool, err error) {
	r.subjects = numbers{}
	var a attributes
	a.text(unix.NFTA_RULE_TABLE, tableName)
	a.text(unix.NFTA_RULE_CHAIN, stateChain)
	err = n.query(nftables(unix.NFT_MSG_GETRULE), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(attributes []byte) {
		var chain, table string
		var data []byte
		eachAttribute(attributes, func(typ uint16, b []byte) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				table = textOf(b)
			case unix.NFTA_RULE_CHAIN:
				chain = textOf(b)
			case unix.NFTA_RULE_USERDATA:
				data = b
			}
		})
		if table != tableName || chain != stateChain || len(data) < 4 {
			return
		}
		switch {
		case data[0] == recordState && len(data) == 36:
			ok = true
			r.version, r.gen, r.flags = data[1], data[2], data[3]
			copy(r.digest[:], data[4:])
		case data[0] == recordSubject:
			r.subjects[string(data[3:])] = numbered{data[1], data[2] != 0}
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("read the table: %w", err)
	}
	return r, ok, nil
}

// isThere reports whether a table of our name is there, of whatever making.
func (n *namespace) isThere() (bool, error) {
	var a attributes
	a.text(unix.NFTA_TABLE_NAME, tableName)
	err := n.query(nftables(unix.NFT_MSG_GETTABLE), unix.NFPROTO_INET, 0, a, func([]byte) {})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("look for the table: %w", err)
}

// readCounters returns the counters of the table.
func (n *namespace) readCounters() (map[string]uint64, error) {
	all := map[string]uint64{}
	var a attributes
	a.text(unix.NFTA_OBJ_TABLE, tableName)
	a.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	err := n.query(nftables(unix.NFT_MSG_GETOBJ), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(attributes []byte) {
		var name, table string
		var packets uint64
		eachAttribute(attributes, func(typ uint16, b []byte) {
			switch typ {
			case unix.NFTA_OBJ_TABLE:
				table = textOf(b)
			case unix.NFTA_OBJ_NAME:
				name = textOf(b)
			case unix.NFTA_OBJ_DATA:
				eachAttribute(b, func(typ uint16, b []byte) {
					if typ == unix.NFTA_COUNTER_PACKETS && len(b) == 8 {
						packets = binary.BigEndian.Uint64(b)
					}
				})
			}
		})
		if table == tableName {
			all[name] = packets
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

// left returns how long the one member of a set still lasts, in milliseconds; 0: it is not there.
func (n *namespace) left(set string) (ms uint64, err error) {
	var a attributes
	a.text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	a.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	err = n.query(nftables(unix.NFT_MSG_GETSETELEM), unix.NFPROTO_INET, unix.NLM_F_DUMP, a, func(attributes []byte) {
		eachAttribute(attributes, func(typ uint16, b []byte) {
			if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			eachAttribute(b, func(_ uint16, b []byte) {
				eachAttribute(b, func(typ uint16, b []byte) {
					if typ == unix.NFTA_SET_ELEM_EXPIRATION && len(b) == 8 {
						ms = binary.BigEndian.Uint64(b)
					}
				})
			})
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how long %s lasts: %w", set, err)
	}
	return ms, nil
}

// directions in which a packet may be read, as prefixes of the log name ends.
func directionOf(letter byte) model.Direction {
	if letter == 'e' {
		return model.Egress
	}
	return model.Ingress
}
