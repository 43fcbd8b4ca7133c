package dataplanetest

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Record is one record of an answer of the lab's resolver: an address, or another name.
type Record struct {
	Name   string
	Addr   string `json:",omitempty"`
	Target string `json:",omitempty"`
	TTL    uint32
}

// Zone is what a resolver of the lab answers: all records to each name, of addresses those of the type that was asked for.
// What it does not know it does not answer.
type Zone map[string][]Record

// Resolve makes a resolver.
func (p *Process) Resolve(network, addr string, zone Zone) *Socket {
	p.t.Helper()
	text, err := json.Marshal(zone)
	if err != nil {
		p.t.Fatal(err)
	}
	s := &Socket{p: p, id: p.id(), Net: network}
	s.Addr = p.must(request{Do: "resolver", ID: s.id, Net: network, Local: addr, Data: string(text)}).Addr
	return s
}

// Lookup asks a resolver for the addresses of a name.
func (p *Process) Lookup(network, resolver, name string, v6 bool) {
	p.t.Helper()
	p.must(request{Do: "lookup", Net: network, To: resolver, Data: name, Multi: v6, Wait: patience})
}

// LookupAndDial asks for the addresses of a name and connects to the first one as soon as it has the answer. It returns the
// name of the error.
func (p *Process) LookupAndDial(network, resolver, name string, v6 bool, port uint16) string {
	p.t.Helper()
	return p.ask(request{Do: "lookup", Net: network, To: resolver, Data: name, Multi: v6, N: int(port), Wait: patience}).Err
}

// Question sends a question and does not wait for the answer.
func (s *Socket) Question(to, name string, id uint16) {
	s.p.t.Helper()
	s.p.must(request{Do: "question", ID: s.id, To: to, Data: name, N: int(id)})
}

// Answer sends an answer that nobody may have asked for.
func (s *Socket) Answer(to, name string, id uint16, addr string) {
	s.p.t.Helper()
	s.p.must(request{Do: "answer", ID: s.id, To: to, Data: name, N: int(id), Local: addr})
}

func question(name string, id uint16, typ dnsmessage.Type) ([]byte, error) {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// reply answers a question with records.
func reply(q *dnsmessage.Message, records []Record) ([]byte, error) {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: q.Questions,
	}
	for _, r := range records {
		n, err := dnsmessage.NewName(r.Name + ".")
		if err != nil {
			return nil, err
		}
		x := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: r.TTL}}
		if r.Target != "" {
			t, err := dnsmessage.NewName(r.Target + ".")
			if err != nil {
				return nil, err
			}
			x.Body = &dnsmessage.CNAMEResource{CNAME: t}
		} else {
			a, err := netip.ParseAddr(r.Addr)
			if err != nil {
				return nil, err
			}
			typ := dnsmessage.TypeA
			if a.Is6() {
				typ = dnsmessage.TypeAAAA
			}
			if typ != q.Questions[0].Type {
				continue
			}
			if a.Is6() {
				x.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
			} else {
				x.Body = &dnsmessage.AResource{A: a.As4()}
			}
		}
		m.Answers = append(m.Answers, x)
	}
	return m.Pack()
}

// resolver serves a zone.
func (w *sockets) resolver(r request) (answer, error) {
	var zone Zone
	if err := json.Unmarshal([]byte(r.Data), &zone); err != nil {
		return answer{}, err
	}
	p, err := net.ListenPacket(r.Net, r.Local)
	if err != nil {
		return answer{}, err
	}
	w.put(r.ID, &opened{packet: p})
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := p.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			var q dnsmessage.Message
			if err != nil || q.Unpack(b[:n]) != nil || len(q.Questions) != 1 {
				continue
			}
			records, ok := zone[strings.TrimSuffix(strings.ToLower(q.Questions[0].Name.String()), ".")]
			if !ok {
				continue
			}
			if out, err := reply(&q, records); err == nil {
				_, _ = p.WriteTo(out, from) // who does not get an answer will say so
			}
		}
	}()
	return answer{Addr: p.LocalAddr().String()}, nil
}

// lookup asks for a name, and connects to the first address of the answer at once if N is a port.
func lookup(r request) (answer, error) {
	typ := dnsmessage.TypeA
	if r.Multi {
		typ = dnsmessage.TypeAAAA
	}
	out, err := question(r.Data, uint16(time.Now().UnixNano()), typ)
	if err != nil {
		return answer{}, err
	}
	c, err := net.Dial(r.Net, r.To)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if _, err := c.Write(out); err != nil {
		return answer{}, err
	}
	if err := c.SetReadDeadline(time.Now().Add(r.Wait)); err != nil {
		return answer{}, err
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return answer{}, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(b[:n]); err != nil {
		return answer{}, err
	}
	for _, x := range m.Answers {
		var addr netip.Addr
		switch body := x.Body.(type) {
		case *dnsmessage.AResource:
			addr = netip.AddrFrom4(body.A)
		case *dnsmessage.AAAAResource:
			addr = netip.AddrFrom16(body.AAAA)
		default:
			continue
		}
		if r.N == 0 {
			return answer{Data: addr.String()}, nil
		}
		d := net.Dialer{Timeout: r.Wait}
		to, err := d.Dial("tcp", netip.AddrPortFrom(addr, uint16(r.N)).String())
		if err != nil {
			return answer{}, err
		}
		return answer{Data: addr.String()}, to.Close()
	}
	return answer{}, errors.New("the answer holds no address")
}

// send sends a question, or an answer, from a socket.
func send(o *opened, r request) error {
	out, err := question(r.Data, uint16(r.N), dnsmessage.TypeA)
	if err != nil {
		return err
	}
	if r.Do == "answer" {
		var q dnsmessage.Message
		if err := q.Unpack(out); err != nil {
			return err
		}
		if out, err = reply(&q, []Record{{Name: r.Data, Addr: r.Local, TTL: 3600}}); err != nil {
			return err
		}
	}
	to, err := net.ResolveUDPAddr("udp", r.To)
	if err != nil {
		return err
	}
	_, err = o.packet.WriteTo(out, to)
	return err
}
