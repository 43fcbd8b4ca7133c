package sqlite

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/flowstore"
)

// A batch is encoded as a version, the distinct texts and addresses, and the records as numbers. It is some thirty
// bytes a record where neighbours have much in common, and they have.
const encodingVersion = 1

const (
	flagEgress = 1 << iota
	flagExact
	flagVerdict // and the bit above
)

func flagsOf(k *flowstore.Key) (flags uint64) {
	if k.Direction == model.Egress {
		flags |= flagEgress
	}
	if k.Exact {
		flags |= flagExact
	}
	return flags | uint64(k.Verdict)*flagVerdict
}

func setFlags(k *flowstore.Key, flags uint64) error {
	verdict := flags / flagVerdict
	if verdict > uint64(model.Allow) {
		return fmt.Errorf("verdict %d: %w", verdict, flowstore.ErrCorrupt)
	}
	if flags&flagEgress != 0 {
		k.Direction = model.Egress
	}
	k.Exact, k.Verdict = flags&flagExact != 0, model.Verdict(verdict)
	return nil
}

type encoder struct {
	texts map[string]uint64
	head  []byte
	body  []byte
}

func (e *encoder) num(n uint64) { e.body = binary.AppendUvarint(e.body, n) }

func (e *encoder) text(s string) {
	id, ok := e.texts[s]
	if !ok {
		id = uint64(len(e.texts))
		e.texts[s] = id
		e.head = binary.AppendUvarint(e.head, uint64(len(s)))
		e.head = append(e.head, s...)
	}
	e.num(id)
}

func (e *encoder) addr(a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		e.text(string(b[:]))
		return
	}
	b := a.As16()
	e.text(string(b[:]))
}

// encode returns the records as one value, and the time of the latest.
func encode(records []flowstore.Record) (data []byte, last time.Time) {
	e := encoder{texts: map[string]uint64{}, body: make([]byte, 0, 40*len(records))}
	var base int64
	for i := range records {
		r := &records[i]
		e.num(flagsOf(&r.Key))
		e.text(r.Workload)
		e.text(r.Peer)
		e.addr(r.Source)
		e.addr(r.Dest)
		e.num(uint64(r.Proto))
		e.num(uint64(r.Port))
		e.text(r.Process)
		e.text(r.Path)
		e.num(uint64(r.UID))
		e.text(string(r.Rule))
		first := r.First.UnixMilli()
		e.body = binary.AppendVarint(e.body, first-base)
		e.body = binary.AppendVarint(e.body, r.Last.UnixMilli()-first)
		base = first
		for _, n := range [...]uint64{r.Connections, r.Existing, r.BytesToServer, r.BytesToClient, r.PacketsToServer, r.PacketsToClient} {
			e.num(n)
		}
		if r.Last.After(last) {
			last = r.Last
		}
	}
	data = make([]byte, 0, len(e.head)+len(e.body)+12)
	data = append(data, encodingVersion)
	data = binary.AppendUvarint(data, uint64(len(e.texts)))
	data = append(data, e.head...)
	data = binary.AppendUvarint(data, uint64(len(records)))
	return append(data, e.body...), last
}

type decoder struct {
	data  []byte
	texts []string
	bad   bool
}

func (d *decoder) num() uint64 {
	n, size := binary.Uvarint(d.data)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.data = d.data[size:]
	return n
}

func (d *decoder) signed() int64 {
	n, size := binary.Varint(d.data)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.data = d.data[size:]
	return n
}

func (d *decoder) below(limit uint64) uint64 {
	n := d.num()
	if n >= limit {
		d.bad = true
		return 0
	}
	return n
}

func (d *decoder) text() string {
	i := d.below(uint64(len(d.texts)))
	if d.bad {
		return ""
	}
	return d.texts[i]
}

func (d *decoder) addr() netip.Addr {
	a, ok := netip.AddrFromSlice([]byte(d.text()))
	d.bad = d.bad || !ok
	return a
}

// decode calls fn for each record of a value that encode made. The record is valid during the call only.
func decode(host string, data []byte, fn func(*flowstore.Record) error) error {
	if len(data) == 0 || data[0] != encodingVersion {
		return fmt.Errorf("flow records of an unknown encoding: %w", flowstore.ErrCorrupt)
	}
	d := decoder{data: data[1:]}
	for n := d.below(uint64(len(data))); n > 0 && !d.bad; n-- {
		size := d.below(uint64(len(d.data)))
		if !d.bad {
			d.texts = append(d.texts, string(d.data[:size]))
			d.data = d.data[size:]
		}
	}
	var base int64
	for n := d.below(uint64(len(data))); n > 0 && !d.bad; n-- {
		r := flowstore.Record{Key: flowstore.Key{Host: host}}
		if err := setFlags(&r.Key, d.num()); err != nil {
			return err
		}
		r.Workload, r.Peer = d.text(), d.text()
		r.Source, r.Dest = d.addr(), d.addr()
		r.Proto, r.Port = model.Proto(d.below(256)), uint16(d.below(65536))
		r.Process, r.Path = d.text(), d.text()
		r.UID, r.Rule = uint32(d.below(1<<32)), model.RuleID(d.text())
		base += d.signed()
		r.First, r.Last = fromMillis(base), fromMillis(base+d.signed())
		for _, into := range [...]*uint64{&r.Connections, &r.Existing, &r.BytesToServer, &r.BytesToClient, &r.PacketsToServer, &r.PacketsToClient} {
			*into = d.num()
		}
		if d.bad {
			break
		}
		if err := fn(&r); err != nil {
			return err
		}
	}
	if d.bad || len(d.data) > 0 {
		return fmt.Errorf("flow records are cut short or changed: %w", flowstore.ErrCorrupt)
	}
	return nil
}

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
