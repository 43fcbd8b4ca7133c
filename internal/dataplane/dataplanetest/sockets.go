package dataplanetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testSockets tries what sockets can do.
func testSockets(t *testing.T, open Open) {
	whole := newHost(t, open)
	t.Run("a port on which nothing listens", func(t *testing.T) { whole.with(t).closedPort() })
	t.Run("IPv4 in an IPv6 socket", func(t *testing.T) { whole.with(t).mapped() })
	t.Run("multipath TCP", func(t *testing.T) { whole.with(t).multipath() })
	t.Run("datagrams in fragments", func(t *testing.T) { whole.with(t).fragments() })
	t.Run("IPv6 extension headers", func(t *testing.T) { whole.with(t).extensions() })
	t.Run("source routes", func(t *testing.T) { whole.with(t).routes() })
	t.Run("a datagram elsewhere on a connected socket", func(t *testing.T) { whole.with(t).elsewhere() })
	t.Run("a packet of a protocol without ports", func(t *testing.T) { whole.with(t).raw() })
	t.Run("a connection that becomes a listener", func(t *testing.T) { whole.with(t).relisten() })
	t.Run("a port that changes hands", func(t *testing.T) { whole.with(t).samePort() })
	t.Run("a socket of a process that moves on", func(t *testing.T) { whole.with(t).moved() })
}

// closedPort checks that an attempt is seen where it is made, and only there.
func (h *host) closedPort() {
	h.apply(policy{host: everything(model.Allow), one: everything(model.Allow), two: everything(model.Allow)})
	for _, f := range families {
		h.events.clear()
		h.reaches(h.one, f.tcp, at(f.far, 9), "ECONNREFUSED")
		e := h.events.one("elsewhere", all(kind(dataplane.EventOpen), port(9)))
		if e.Dir != model.Egress || e.Workload != "near/one" {
			h.t.Errorf("%s", describe(&e))
		}
		h.reaches(h.one, f.tcp, at(f.loop, 10), "ECONNREFUSED")
		e = h.events.one("on this host", all(kind(dataplane.EventOpen), port(10)))
		if e.Dir != model.Egress || e.RemoteWorkload != "" {
			h.t.Errorf("%s", describe(&e))
		}
		h.reaches(h.farP, f.tcp, at(f.near, 11), "ECONNREFUSED")
		h.events.none("from elsewhere", port(11))
	}
}

// mapped uses IPv6 sockets for IPv4: they are judged as what they send.
func (h *host) mapped() {
	h.apply(policy{})
	server := h.farP.Listen("tcp", at("::", 8200)) // for both families
	udp := h.farP.Listen("udp", at("::", 8200))
	here := h.one.Listen("tcp", at("::", 8201))
	for _, l := range []*Socket{server, udp, here} {
		defer l.Close()
	}
	h.apply(policy{one: []Rule{
		rule(model.Egress, farID, "any", model.Allow), rule(model.Ingress, farID, "tcp/8201", model.WouldDeny),
	}})
	h.events.clear()
	v4 := "[::ffff:" + Far4 + "]:8200"
	h.reaches(h.one, "tcp", v4, "")
	s := h.one.Bind("udp", at("::", 0))
	if err := s.Exchange("x", v4); err != "" {
		h.t.Errorf("a datagram: %s", err)
	}
	h.reaches(h.farP, "tcp", at(Near4, 8201), "")
	for _, p := range []uint16{8200, 8201} {
		for _, e := range h.events.find(all(kind(dataplane.EventOpen), port(p))) {
			if !e.Remote.Addr().Is4() || e.RemoteIdentity != farID {
				h.t.Errorf("%s", describe(&e))
			}
		}
	}
	h.events.one("inbound", all(kind(dataplane.EventOpen), port(8201)))
	h.apply(policy{one: []Rule{rule(model.Egress, netID, "any", model.Allow)}})
	h.reaches(h.one, "tcp", v4, "EPERM")
	if err := s.Exchange("x", v4); err != "EPERM" {
		h.t.Errorf("a datagram that is denied: %q", err)
	}
}

// multipath makes sockets of which the kernel makes the real ones.
func (h *host) multipath() {
	h.apply(policy{one: everything(model.Allow)})
	id := h.one.id()
	a := h.one.ask(request{Do: "listen", ID: id, Net: "tcp4", Local: at(Near4, 0), Multi: true})
	if a.Err != "" {
		h.t.Fatal(a.Err)
	}
	server := &Socket{p: h.one, id: id, Net: "tcp4", Addr: a.Addr}
	defer server.Close()
	h.events.clear()
	h.reaches(h.farP, "tcp4", server.Addr, "")
	e := h.events.one("inbound", all(kind(dataplane.EventOpen), port(server.Port())))
	if e.Workload != "near/one" || !h.isOf(&e, h.one) {
		h.t.Errorf("inbound: %s", describe(&e))
	}
	far := h.farP.Listen("tcp4", at(Far4, 0))
	defer far.Close()
	for _, want := range []model.Verdict{model.Allow, model.Deny} {
		h.apply(policy{one: everything(want)})
		h.events.clear()
		d := patience
		if want == model.Deny {
			d = brief
		}
		a := h.one.ask(request{Do: "burst", Net: "tcp4", To: far.Addr, N: 1, Data: "x", Multi: true, Wait: d})
		if (a.Good == 1) != (want == model.Allow) {
			h.t.Errorf("%s: %+v", want, a)
		}
		k := dataplane.EventOpen
		if want == model.Deny {
			k = dataplane.EventDeny
		}
		e = h.events.one("outbound", all(kind(k), port(far.Port())))
		if e.Workload != "near/one" || !h.isOf(&e, h.one) {
			h.t.Errorf("outbound: %s", describe(&e))
		}
	}
}

// elsewhere sends from a connected socket to somebody else, which the kernel permits.
func (h *host) elsewhere() {
	h.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("udp/%d", 8400), model.Allow)}})
	allowed, denied := h.farP.Listen("udp4", at(Far4, 8400)), h.farP.Listen("udp4", at(Far4, 8401))
	defer allowed.Close()
	defer denied.Close()
	s := h.one.Bind("udp4", "0.0.0.0:0")
	if err := s.Exchange("x", allowed.Addr); err != "" {
		h.t.Errorf("allowed: %s", err)
	}
	if err := s.Exchange("x", denied.Addr); err != "EPERM" {
		h.t.Errorf("denied: %q", err)
	}
	if n, _ := denied.Seen(); n != 0 {
		h.t.Errorf("%d datagrams came through", n)
	}
	s.Close()
}

// fragments sends datagrams that do not fit into a packet.
func (h *host) fragments() {
	big := strings.Repeat("0123456789", 400)
	for _, f := range families {
		h.apply(policy{})
		allowed, denied := h.farP.Listen(f.udp, at(f.far, 0)), h.farP.Listen(f.udp, at(f.far, 0))
		in := h.one.Listen(f.udp, at(f.near, 0))
		h.apply(policy{one: []Rule{
			rule(model.Egress, farID, fmt.Sprintf("udp/%d", allowed.Port()), model.Allow),
			rule(model.Ingress, farID, fmt.Sprintf("udp/%d", in.Port()), model.Allow),
		}})
		h.events.clear()
		for to, want := range map[*Socket]string{allowed: "", denied: "EPERM"} {
			if err := h.one.MustDial(f.udp, to.Addr).Exchange(big, ""); err != want {
				h.t.Errorf("%s: %q instead of %q", f.name, err, want)
			}
		}
		if err := h.farP.MustDial(f.udp, in.Addr).Exchange(big, ""); err != "" {
			h.t.Errorf("%s inbound: %s", f.name, err)
		}
		for _, p := range []uint16{allowed.Port(), in.Port()} {
			h.events.one(f.name, all(kind(dataplane.EventOpen), port(p)))
		}
		for _, s := range []*Socket{allowed, denied, in} {
			s.Close()
		}
	}
}

// extensions sends packets whose transport header is behind an extension header.
func (h *host) extensions() {
	h.apply(policy{})
	for _, network := range []string{"tcp6", "udp6"} {
		allowed, denied := h.farP.Listen(network, at(Far6, 0)), h.farP.Listen(network, at(Far6, 0))
		in := h.one.Listen(network, at(Near6, 0))
		h.apply(policy{one: []Rule{
			rule(model.Egress, farID, fmt.Sprintf("%s/%d", network[:3], allowed.Port()), model.Allow),
			rule(model.Ingress, farID, fmt.Sprintf("%s/%d", network[:3], in.Port()), model.WouldDeny),
		}})
		h.events.clear()
		for _, tt := range []struct {
			p    *Process
			to   string
			good bool
		}{{h.one, allowed.Addr, true}, {h.one, denied.Addr, false}, {h.farP, in.Addr, true}} {
			d := brief
			if tt.good {
				d = patience
			}
			a := tt.p.must(request{Do: "burst", Net: network, To: tt.to, N: 1, Data: "x", Opts: true, Wait: d})
			if (a.Good == 1) != tt.good {
				h.t.Errorf("%s to %s: %+v", tt.p.Name, tt.to, a)
			}
		}
		h.events.one("outbound", all(kind(dataplane.EventOpen), port(allowed.Port())))
		h.events.one("denied", all(kind(dataplane.EventDeny), port(denied.Port())))
		h.events.one("inbound", all(kind(dataplane.EventOpen), port(in.Port())))
		if n, _ := denied.Seen(); n != 0 {
			h.t.Errorf("%d messages came through", n)
		}
		for _, s := range []*Socket{allowed, denied, in} {
			s.Close()
		}
	}
}

// raw sends packets of protocols that have no ports, some too short to hold any.
func (h *host) raw() {
	h.apply(policy{one: []Rule{rule(model.Egress, farID, "any", model.Allow)}, addresses: map[string]hostpolicy.Address{
		Far4 + "/32": {Identity: farID}, "::/0": {Identity: farID}, // which is nothing to IPv4
	}})
	for _, data := range []string{"", "x", "four", "twelve bytes", strings.Repeat("x", 100)} {
		for to, want := range map[string]string{Far4: "", Other4: "EPERM"} {
			if a := h.one.ask(request{Do: "raw", To: at(to, 0), N: 253, Data: data}); a.Err != want {
				h.t.Errorf("%d bytes to %s: %q instead of %q", len(data), to, a.Err, want)
			}
		}
	}
	m := all(workload("near/one"), proto(253))
	opened := all(kind(dataplane.EventOpen), m)
	flows := 1
	if h.d.Capabilities().SocketFlows {
		flows = 5 // each was a socket of its own
	}
	h.events.wait("openings", func() bool { return len(h.events.find(opened)) == flows })
	for _, e := range h.events.find(opened) {
		if e.Port != 0 || e.RemoteIdentity != farID || e.Remote.Addr().String() != Far4 {
			h.t.Errorf("allowed: %s", describe(&e))
		}
	}
	h.events.wait("five denials", func() bool { _, n := h.events.count(all(kind(dataplane.EventDeny), m)); return n == 5 })
}

// relisten makes a server of a socket that was an allowed connection a moment ago: what it accepts is judged as what it
// is.
func (h *host) relisten() {
	far := h.farP.Listen("tcp4", at(Far4, 0))
	defer far.Close()
	rules := []Rule{rule(model.Egress, farID, fmt.Sprintf("tcp/%d", far.Port()), model.Allow)}
	h.apply(policy{one: append(rules, rule(model.Ingress, farID, "tcp", model.WouldDeny))})
	h.events.clear()
	id := h.one.id()
	a := h.one.must(request{Do: "relisten", ID: id, To: far.Addr, Local: at(Near4, 0)})
	server := &Socket{p: h.one, id: id, Net: "tcp4", Addr: a.Addr}
	defer server.Close()
	client := h.farP.MustDial("tcp4", server.Addr)
	if err := client.Exchange("hello", ""); err != "" {
		h.t.Fatalf("exchange: %s", err)
	}
	inbound := all(workload("near/one"), port(server.Port()))
	e := h.events.one("what it accepts", all(kind(dataplane.EventOpen), inbound))
	if e.Dir != model.Ingress || e.Verdict != model.WouldDeny || e.Remote.String() != client.Addr {
		h.t.Errorf("accepted: %s", describe(&e))
	}
	if st := h.apply(policy{one: rules}); st.Reset != 1 {
		h.t.Errorf("%d connections were reset", st.Reset)
	}
	if err := client.Exchange("hello", ""); err == "" {
		h.t.Error("the connection lives")
	}
	h.events.one("its end", all(kind(dataplane.EventClose), inbound))
	if got := h.events.carried(inbound); !h.carriedIs(got, traffic{sent: 5, received: 5}) {
		h.t.Errorf("carried %+v", got)
	}
}

// samePort has two workloads of the host take turns at using one port towards the same server: each is judged as itself.
func (h *host) samePort() {
	h.apply(policy{})
	server := h.two.Listen("tcp4", at(Near4, 0))
	defer server.Close()
	on := fmt.Sprintf("tcp/%d", server.Port())
	h.apply(policy{
		one: []Rule{rule(model.Egress, twoID, on, model.Allow)}, host: []Rule{rule(model.Egress, twoID, on, model.Allow)},
		two: []Rule{rule(model.Ingress, oneID, on, model.Allow), rule(model.Ingress, nearID, on, model.WouldDeny)},
	})
	for round := range 10 {
		for p, want := range map[*Process]model.Verdict{h.one: model.Allow, h.own: model.WouldDeny} {
			h.events.clear()
			s, err := p.dial(request{Net: "tcp4", Local: at(Near4, 8500), To: server.Addr, Wait: patience})
			if err != "" {
				h.t.Fatalf("round %d, %s: %s", round, p.Name, err)
			}
			e := h.events.one(p.Name, all(kind(dataplane.EventOpen), workload("near/two"), port(server.Port())))
			if e.Verdict != want {
				h.t.Errorf("round %d, %s: %s", round, p.Name, describe(&e))
			}
			s.Abort()
		}
	}
}

// moved has a process go to another cgroup with a socket that it has used before: the socket stays what it was, and what
// it is connected to next is judged, not what it was connected to last.
func (h *host) moved() {
	h.apply(policy{})
	allowed, denied := h.farP.Listen("tcp4", at(Far4, 0)), h.farP.Listen("tcp4", at(Far4, 0))
	defer allowed.Close()
	defer denied.Close()
	rules := []Rule{rule(model.Egress, farID, fmt.Sprintf("tcp/%d", allowed.Port()), model.Allow)}
	h.apply(policy{one: rules, two: everything(model.Allow)})
	p := h.Start("one")
	connect := func(to, want string) {
		h.t.Helper()
		if err := p.Connect("socket", to, wait(want)); err != want && (want != "timeout" || err == "") {
			h.t.Errorf("to %s: %q instead of %q", to, err, want)
		}
	}
	connect(allowed.Addr, "")
	connect(denied.Addr, h.forbids("tcp4", denied.Addr))
	connect(allowed.Addr, "")
	connect("", "")
	if err := os.WriteFile(filepath.Join(h.Unit("two/inner"), "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0); err != nil {
		h.t.Fatal(err)
	}
	h.apply(policy{one: append(rules, rule(model.Egress, netID, "udp", model.Allow)), two: everything(model.Allow)})
	h.events.clear()
	connect(denied.Addr, "timeout") // connect cannot tell whose it is, its first packet can
	e := h.events.one("the denial", all(kind(dataplane.EventDeny), port(denied.Port())))
	if e.Workload != "near/one" {
		h.t.Errorf("denial: %s", describe(&e))
	}
	connect(allowed.Addr, "")
	// A new socket of its is the other unit's.
	if s, err := p.Dial("tcp4", denied.Addr); err != "" {
		h.t.Errorf("a new socket: %s", err)
	} else {
		if err := s.Exchange("x", ""); err != "" { // then it is accepted
			h.t.Errorf("a new socket: %s", err)
		}
		s.Close()
	}
	if _, accepted := denied.Seen(); accepted != 1 {
		h.t.Errorf("%d connections were accepted instead of one", accepted)
	}
}
