// Package flowline reads and writes flows, verdicts and recorded flows as JSON lines: the contract of `bulkhead eval`.
//
//	{"from": "portal-1", "to": "10.0.3.7", "proto": "tcp", "port": 5432}
//	{"from": "portal-1", "to": "pay-db-1", "proto": "icmp", "icmp_type": 8, "icmp_code": 0}
//
// It reads exactly JSON (RFC 8259), skips fields that it does not know, takes null for a field that is left out, and
// refuses a field that is there twice, since readers differ on which one counts. It is written by hand because a
// million flows are read in about a second; a Parser allocates nothing for names that it has met.
package flowline

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Parse reads one flow. It is Parser.Parse without a memory for names; it may be called from several goroutines.
func Parse(line []byte, f *model.Flow) error {
	p := Parser{forgetful: true}
	return p.Parse(line, f)
}

// ParseRecord reads one recorded flow. It is Parser.ParseRecord without a memory for names; it may be called from
// several goroutines.
func ParseRecord(line []byte, r *model.RecordedFlow) error {
	p := Parser{forgetful: true}
	return p.ParseRecord(line, r)
}

// Parser reads flows and keeps a bounded table of the names it met, so that the same names cost no allocation. The zero
// value is ready. It must not be used by several goroutines at once.
type Parser struct {
	scanner
	forgetful bool // serves one line only, for which a table does not pay
	names     map[string]name
	bytes     int // of all names
	processes map[model.Process]*model.Process
}

// name is the text of an end, and the address if it is one.
type name struct {
	text string
	addr netip.Addr
}

// The table of names starts over when it is full, so that a stream of ever new addresses does not grow it.
const (
	maxNames     = 1 << 17
	maxNameBytes = 8 << 20
	maxProcesses = 1 << 14
)

// Parse reads one flow into f and overwrites all of it. An end that is given as text which is an address has both
// Workload, the text, and Addr: a workload may go by such a name. Two flows may share a Process; nobody writes to it.
// An error says what is wrong with the line; f is then of no use.
func (p *Parser) Parse(line []byte, f *model.Flow) error {
	return p.parse(line, f, nil)
}

// ParseRecord reads one recorded flow into r and overwrites all of it: a flow as Parse reads it, and how often
// ("connections", 1 if absent) and when ("first", "last", RFC 3339) it was seen, by which addresses ("from_addr",
// "to_addr") and processes ("from_process_name", "to_process_name"), and what the verdict was ("verdict", allow if
// absent). If only one of first and last is given it stands for both.
func (p *Parser) ParseRecord(line []byte, r *model.RecordedFlow) error {
	*r = model.RecordedFlow{Connections: 1, Verdict: model.Allow}
	if err := p.parse(line, &r.Flow, r); err != nil {
		return err
	}
	switch {
	case r.Connections == 0:
		return errors.New("connections must be at least 1")
	case r.First.IsZero():
		r.First = r.Last
	case r.Last.IsZero():
		r.Last = r.First
	}
	if r.Last.Before(r.First) {
		return errors.New("last is before first")
	}
	return nil
}

// icmp is the type and code of a flow, which stand in the place of its port.
type icmp struct {
	typ, code uint8
}

// Fields that were seen, to find those that are missing or repeated.
const (
	hasFrom = 1 << iota
	hasTo
	hasProto
	hasPort
	hasType
	hasCode
	hasFromProcess
	hasToProcess
	hasToDomain
	hasConnections
	hasFirst
	hasLast
	hasFromAddr
	hasToAddr
	hasFromName
	hasToName
	hasVerdict
)

// parse reads the object of a line. Fields of records are known only if r is given.
func (p *Parser) parse(line []byte, f *model.Flow, r *model.RecordedFlow) error {
	*f = model.Flow{}
	p.reset(line)
	if err := p.open(); err != nil {
		return err
	}
	var seen uint32
	var ic icmp
	for first := true; ; first = false {
		key, more, err := p.key(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		bit := fieldBit(key, r != nil)
		if bit == 0 {
			if err := p.skip(0); err != nil {
				return err
			}
			continue
		}
		if seen&bit != 0 {
			return fmt.Errorf("%s is there twice", key)
		}
		if p.null() {
			continue
		}
		seen |= bit
		if bit < hasConnections {
			err = p.flowField(bit, f, &ic)
		} else {
			err = p.recordField(bit, r)
		}
		if err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	return finish(f, seen, ic)
}

// fieldBit returns the bit of a field, or 0 for one that is skipped.
func fieldBit(key []byte, record bool) uint32 {
	switch string(key) {
	case "from":
		return hasFrom
	case "to":
		return hasTo
	case "proto":
		return hasProto
	case "port":
		return hasPort
	case "icmp_type":
		return hasType
	case "icmp_code":
		return hasCode
	case "from_process":
		return hasFromProcess
	case "to_process":
		return hasToProcess
	case "to_domain":
		return hasToDomain
	}
	if !record {
		return 0
	}
	switch string(key) {
	case "connections":
		return hasConnections
	case "first":
		return hasFirst
	case "last":
		return hasLast
	case "from_addr":
		return hasFromAddr
	case "to_addr":
		return hasToAddr
	case "from_process_name":
		return hasFromName
	case "to_process_name":
		return hasToName
	case "verdict":
		return hasVerdict
	}
	return 0
}

func (p *Parser) flowField(bit uint32, f *model.Flow, ic *icmp) (err error) {
	var n uint64
	switch bit {
	case hasFrom:
		f.From, err = p.endpoint("from")
	case hasTo:
		f.To, err = p.endpoint("to")
	case hasProto:
		f.Proto, err = p.proto()
	case hasPort:
		n, err = p.number("port", 65535)
		f.Port = uint16(n)
	case hasType:
		n, err = p.number("icmp_type", 255)
		ic.typ = uint8(n)
	case hasCode:
		n, err = p.number("icmp_code", 255)
		ic.code = uint8(n)
	case hasFromProcess:
		f.FromProcess, err = p.process("from_process")
	case hasToProcess:
		f.ToProcess, err = p.process("to_process")
	case hasToDomain:
		f.ToDomain, err = p.domain("to_domain")
	}
	return err
}

func (p *Parser) recordField(bit uint32, r *model.RecordedFlow) (err error) {
	switch bit {
	case hasConnections:
		r.Connections, err = p.number("connections", 1<<64-1)
	case hasFirst:
		r.First, err = p.moment("first")
	case hasLast:
		r.Last, err = p.moment("last")
	case hasFromAddr:
		r.FromAddr, err = p.address("from_addr")
	case hasToAddr:
		r.ToAddr, err = p.address("to_addr")
	case hasFromName:
		r.FromName, err = p.word("from_process_name")
	case hasToName:
		r.ToName, err = p.word("to_process_name")
	case hasVerdict:
		r.Verdict, err = p.verdict()
	}
	return err
}

// finish checks that a flow is whole, and puts type and code of ICMP into the port.
func finish(f *model.Flow, seen uint32, ic icmp) error {
	switch {
	case seen&hasFrom == 0:
		return errors.New("from is missing")
	case seen&hasTo == 0:
		return errors.New("to is missing")
	case seen&hasProto == 0:
		return errors.New("proto is missing")
	}
	if f.Proto.IsICMP() {
		switch {
		case f.Port != 0:
			return fmt.Errorf("%s has no port; give icmp_type and icmp_code", f.Proto)
		case seen&hasType == 0:
			return fmt.Errorf("icmp_type is required for %s", f.Proto)
		}
		f.Port = model.ICMPPort(ic.typ, ic.code)
		return nil
	}
	if seen&hasPort == 0 && (f.Proto == model.ProtoTCP || f.Proto == model.ProtoUDP || f.Proto == model.ProtoSCTP) {
		return fmt.Errorf("port is required for %s", f.Proto)
	}
	return nil
}

// endpoint reads from or to.
func (p *Parser) endpoint(field string) (model.End, error) {
	s, err := p.text(field)
	if err != nil {
		return model.End{}, err
	}
	if len(s) == 0 {
		return model.End{}, fmt.Errorf("%s is empty", field)
	}
	n := p.name(s)
	return model.End{Workload: n.text, Addr: n.addr}, nil
}

// name returns the text as a string, from the table if it is there.
func (p *Parser) name(s []byte) name {
	if n, ok := p.names[string(s)]; ok {
		return n
	}
	n := name{text: string(s)}
	n.addr, _ = parseAddr(n.text) // not an address: a name
	if p.forgetful {
		return n
	}
	if p.bytes += len(s); p.names == nil || len(p.names) >= maxNames || p.bytes > maxNameBytes {
		p.names = map[string]name{}
		p.bytes = len(s)
	}
	p.names[n.text] = n
	return n
}

// parseAddr parses an address as policy sees it: IPv4-mapped IPv6 is IPv4, and the zone of the host that saw it does not count.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	return a.WithZone("").Unmap(), nil
}

// word reads text that is kept.
func (p *Parser) word(field string) (string, error) {
	s, err := p.text(field)
	if err != nil || len(s) == 0 {
		return "", err
	}
	return p.name(s).text, nil
}

// domain reads a host name: DNS knows no capital letters, and a final dot says nothing.
func (p *Parser) domain(field string) (string, error) {
	s, err := p.word(field)
	return strings.ToLower(strings.TrimSuffix(s, ".")), err
}

func (p *Parser) address(field string) (netip.Addr, error) {
	s, err := p.text(field)
	if err != nil {
		return netip.Addr{}, err
	}
	if n := p.name(s); n.addr.IsValid() {
		return n.addr, nil
	}
	return netip.Addr{}, fmt.Errorf("%s %q is no address", field, clip(s))
}

func (p *Parser) proto() (model.Proto, error) {
	if p.atNumber() {
		n, err := p.number("proto", 255)
		if err == nil && n == 0 {
			err = errors.New("proto 0 is no protocol of a flow; name it, such as tcp")
		}
		return model.Proto(n), err
	}
	s, err := p.text("proto")
	if err != nil {
		return 0, err
	}
	switch string(s) {
	case "tcp":
		return model.ProtoTCP, nil
	case "udp":
		return model.ProtoUDP, nil
	case "icmp":
		return model.ProtoICMP, nil
	case "icmpv6":
		return model.ProtoICMPv6, nil
	}
	return otherProto(string(s))
}

// otherProto parses a protocol that is spelt otherwise, or is one by number: "TCP", "sctp", "47".
func otherProto(s string) (model.Proto, error) {
	if n, ok := decimal(s); ok && n > 0 && n <= 255 {
		return model.Proto(n), nil
	}
	proto, err := model.ParseProto(s)
	if err != nil || proto == model.ProtoAny {
		return 0, fmt.Errorf("unknown protocol %q: use tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255", clip([]byte(s)))
	}
	return proto, nil
}

func (p *Parser) verdict() (model.Verdict, error) {
	s, err := p.text("verdict")
	if err != nil {
		return model.Deny, err
	}
	switch string(s) {
	case "allow":
		return model.Allow, nil
	case "deny":
		return model.Deny, nil
	case "would-deny":
		return model.WouldDeny, nil
	}
	return model.Deny, fmt.Errorf("unknown verdict %q: use allow, deny or would-deny", clip(s))
}

func (p *Parser) moment(field string) (time.Time, error) {
	s, err := p.text(field)
	if err != nil {
		return time.Time{}, err
	}
	var t time.Time
	if err := t.UnmarshalText(s); err != nil || t.UTC().Year() < 0 || t.UTC().Year() > 9999 { // a zone may lead out of what can be written
		return time.Time{}, fmt.Errorf("%s %q is no moment; write it as 2026-12-31T23:59:59Z", field, clip(s))
	}
	return t.UTC(), nil
}

// process reads the process at one end. Equal processes are one value.
func (p *Parser) process(field string) (*model.Process, error) {
	if err := p.openNested(field); err != nil {
		return nil, err
	}
	var x model.Process
	var seen [3]bool
	for first := true; ; first = false {
		key, more, err := p.key(first)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		var to *string
		var i int
		switch string(key) {
		case "unit":
			to, i = &x.Unit, 0
		case "path":
			to, i = &x.Path, 1
		case "user":
			to, i = &x.User, 2
		default:
			if err := p.skip(1); err != nil {
				return nil, err
			}
			continue
		}
		if seen[i] {
			return nil, fmt.Errorf("%s is there twice in %s", key, field)
		}
		seen[i] = true
		if p.null() {
			continue
		}
		if *to, err = p.word(processFields[i]); err != nil {
			return nil, err
		}
	}
	if known, ok := p.processes[x]; ok {
		return known, nil
	}
	own := x // x itself stays on the stack
	if p.forgetful {
		return &own, nil
	}
	if p.processes == nil || len(p.processes) >= maxProcesses {
		p.processes = map[model.Process]*model.Process{}
	}
	p.processes[x] = &own
	return &own, nil
}

var processFields = [...]string{"unit of a process", "path of a process", "user of a process"}

func clip(s []byte) string {
	if len(s) > 60 {
		return string(s[:60]) + "…"
	}
	return string(s)
}
