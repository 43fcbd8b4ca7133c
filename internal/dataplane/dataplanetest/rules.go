package dataplanetest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testRules tries what policy can say about addresses and ports.
func testRules(t *testing.T, open Open) {
	whole := newHost(t, open)
	t.Run("ranges of ports", func(t *testing.T) { whole.with(t).ranges() })
	t.Run("the longest prefix", func(t *testing.T) { whole.with(t).prefixes() })
	t.Run("addresses that workloads share", func(t *testing.T) { whole.with(t).shared() })
	t.Run("policy sets of local addresses", func(t *testing.T) { whole.with(t).localSets() })
	t.Run("controllers", func(t *testing.T) { whole.with(t).controllers() })
	t.Run("essentials", func(t *testing.T) { whole.with(t).essentials() })
	t.Run("a port on which nothing listens", func(t *testing.T) { whole.with(t).closedPort() })
	t.Run("IPv4 in an IPv6 socket", func(t *testing.T) { whole.with(t).mapped() })
	t.Run("multipath TCP", func(t *testing.T) { whole.with(t).multipath() })
	t.Run("denials are folded and none is forgotten", func(t *testing.T) { whole.with(t).folded() })
	t.Run("datagrams in fragments", func(t *testing.T) { whole.with(t).fragments() })
	t.Run("IPv6 extension headers", func(t *testing.T) { whole.with(t).extensions() })
	t.Run("a datagram elsewhere on a connected socket", func(t *testing.T) { whole.with(t).elsewhere() })
}

// reaches checks what a process sees when it dials, "" for success.
func (h *host) reaches(p *Process, network, to, want string) {
	h.t.Helper()
	s, err := p.Dial(network, to)
	if err == "" {
		err = s.Exchange("x", "")
		s.Close()
	}
	if err != want {
		h.t.Errorf("%s to %s over %s: %q instead of %q", p.Name, to, network, err, want)
	}
}

func (h *host) ranges() {
	h.apply(policy{})
	for _, p := range []uint16{4999, 5000, 5001, 5007, 5100, 5101, 6000} {
		for _, network := range []string{"tcp4", "udp4"} {
			l := h.farP.Listen(network, at(Far4, p))
			defer l.Close()
		}
	}
	h.apply(policy{one: []Rule{
		rule(model.Egress, farID, "tcp/5001", model.Deny),
		rule(model.Egress, farID, "tcp/5000-5100", model.Allow),
		rule(model.Egress, farID, "udp", model.Allow),
		rule(model.Egress, nobody, "tcp/6000-65535", model.Allow),
	}})
	for p, want := range map[uint16]string{4999: "EPERM", 5000: "", 5001: "EPERM", 5007: "", 5100: "", 5101: "EPERM", 6000: ""} {
		h.reaches(h.one, "tcp4", at(Far4, p), want)
		h.reaches(h.one, "udp4", at(Far4, p), "")
	}
	h.events.clear()
}

func (h *host) prefixes() {
	l, other := h.farP.Listen("tcp4", at(Far4, 7000)), h.farP.Listen("tcp4", at(Other4, 7000))
	l6, other6 := h.farP.Listen("tcp6", at(Far6, 7000)), h.farP.Listen("tcp6", at(Other6, 7000))
	for _, l := range []*Socket{l, other, l6, other6} {
		defer l.Close()
	}
	rules := []Rule{
		rule(model.Egress, netID, "tcp/7000", model.Allow),
		rule(model.Egress, farID, "tcp/7000", model.Deny),
	}
	check := func(name string, addresses map[string]hostpolicy.Address, far, otherWant string) {
		h.t.Helper()
		h.apply(policy{one: rules, addresses: addresses})
		for to, want := range map[string]string{l.Addr: far, l6.Addr: far, other.Addr: otherWant, other6.Addr: otherWant} {
			s, err := h.one.Dial("tcp", to)
			if err == "" {
				s.Close()
			}
			if err != want {
				h.t.Errorf("%s: to %s: %q instead of %q", name, to, err, want)
			}
		}
	}
	check("none", map[string]hostpolicy.Address{}, "EPERM", "EPERM")
	wide := map[string]hostpolicy.Address{"10.0.0.0/8": {Identity: netID}, "fd00::/8": {Identity: netID}}
	check("one for all", wide, "", "")
	check("IPv6 only does not hold for IPv4", map[string]hostpolicy.Address{"::/0": {Identity: netID}, "0.0.0.0/0": {Identity: farID}, "10.77.1.0/24": {Identity: netID}, "fd77::/64": {Identity: farID}}, "EPERM", "")
	check("a longer one", map[string]hostpolicy.Address{
		"10.0.0.0/8": {Identity: netID}, "fd00::/8": {Identity: netID}, "10.77.0.0/24": {Identity: farID}, "fd77::/64": {Identity: farID},
	}, "EPERM", "")
	check("an address", map[string]hostpolicy.Address{
		"10.0.0.0/8": {Identity: netID}, "fd00::/8": {Identity: netID}, "10.77.0.0/16": {Identity: farID}, "fd77::/32": {Identity: farID},
		Other4 + "/32": {Identity: netID}, Other6 + "/128": {Identity: netID},
	}, "EPERM", "")
	check("what was longer goes", wide, "", "")
	h.events.clear()
}

func (h *host) shared() {
	h.apply(policy{})
	owned, rest := h.farP.Listen("tcp4", at(Shared4, 8001)), h.farP.Listen("tcp4", at(Shared4, 8002))
	server := h.one.Listen("tcp4", at(Near4, 8003))
	for _, l := range []*Socket{owned, rest, server} {
		defer l.Close()
	}
	p := policy{
		one: []Rule{
			rule(model.Egress, ownerID, "tcp", model.Deny),
			rule(model.Egress, sharedID, "tcp", model.Allow),
			rule(model.Ingress, sharedID, "tcp", model.WouldDeny),
		},
		ports: []hostpolicy.PortOwner{{
			Addr: netip.MustParseAddr(Shared4), Proto: model.ProtoTCP, Port: 8001, Identity: ownerID,
		}, {
			Addr: netip.MustParseAddr(Shared4), Proto: model.ProtoTCP, Port: 8004, Identity: ownerID,
		}},
	}
	h.apply(p)
	h.events.clear()
	h.reaches(h.one, "tcp4", owned.Addr, "EPERM") // the port's owner is known
	h.reaches(h.one, "tcp4", rest.Addr, "")       // somebody at the address
	e := h.events.one("the owner", all(kind(dataplane.EventDeny), port(8001)))
	if e.RemoteIdentity != ownerID {
		h.t.Errorf("owner: %s", describe(&e))
	}
	a := h.farP.ask(request{Do: "dial", ID: h.farP.id(), Net: "tcp4", Local: at(Shared4, 8004), To: server.Addr})
	if a.Err != "" {
		h.t.Errorf("from the owner's own port: %s", a.Err)
	}
	e = h.events.one("inbound", all(kind(dataplane.EventOpen), port(8003)))
	if e.RemoteIdentity != sharedID || e.Verdict != model.WouldDeny {
		h.t.Errorf("inbound, where a port says nothing: %s", describe(&e))
	}
	p.ports = nil
	h.apply(p)
	h.reaches(h.one, "tcp4", owned.Addr, "")
	h.events.clear()
}

func (h *host) localSets() {
	h.apply(policy{})
	server := h.own.Listen("tcp4", at("0.0.0.0", 8100))
	far := h.farP.Listen("tcp4", at(Far4, 8101))
	defer server.Close()
	defer far.Close()
	h.apply(policy{
		host: []Rule{rule(model.Ingress, farID, "tcp/8100", model.Allow), rule(model.Egress, farID, "tcp/8101", model.Allow)},
		hostLocal: map[string]localRules{Near4b: {id: netID, rules: []Rule{
			{model.Ingress, oneID, ports("tcp/8100"), model.Allow, "lab/local"},
		}}},
		one: []Rule{rule(model.Egress, netID, "tcp/8100", model.Allow)},
	})
	h.events.clear()
	h.reaches(h.farP, "tcp4", at(Near4, 8100), "")
	h.reaches(h.farP, "tcp4", at(Near4b, 8100), "timeout")
	h.reaches(h.own, "tcp4", far.Addr, "")
	a := h.own.ask(request{Do: "dial", ID: h.own.id(), Net: "tcp4", Local: at(Near4b, 0), To: far.Addr, Wait: 500e6})
	if a.Err == "" {
		h.t.Error("from the second address: it passes")
	}
	// On the host itself the other end is the host, with the identity that it has at that address.
	h.reaches(h.one, "tcp4", at(Near4b, 8100), "")
	h.reaches(h.one, "tcp4", at(Near4, 8100), "EPERM")
	e := h.events.one("on the host", all(kind(dataplane.EventOpen), workload("near"), dir(model.Ingress), func(e *dataplane.Event) bool { return e.RemoteWorkload != "" }))
	if e.Rule != "lab/local" {
		h.t.Errorf("on the host: %s", describe(&e))
	}
	h.events.clear()
}

func (h *host) controllers() {
	h.apply(policy{})
	c := h.farP.Listen("tcp4", at(Far4, 9443))
	here := h.two.Listen("tcp4", at(Near4, 9444))
	defer c.Close()
	defer here.Close()
	p := policy{controllers: []netip.AddrPort{netip.MustParseAddrPort(c.Addr), netip.MustParseAddrPort(here.Addr)}}
	h.apply(p)
	h.events.clear()
	h.reaches(h.own, "tcp4", c.Addr, "")
	h.reaches(h.one, "tcp4", c.Addr, "EPERM") // only the host itself, not its units
	h.reaches(h.farP, "tcp4", here.Addr, "")  // a controller that answers here
	h.reaches(h.own, "tcp4", here.Addr, "")
	e := h.events.one("the host", all(kind(dataplane.EventOpen), workload("near"), port(9443)))
	if e.Rule != model.RuleController || e.Verdict != model.Allow {
		h.t.Errorf("the host: %s", describe(&e))
	}
	live := h.own.MustDial("tcp4", c.Addr)
	defer live.Close()
	if err := h.d.Isolate(h.t.Context(), "near", true); err != nil {
		h.t.Fatal(err)
	}
	if err := live.Exchange("isolated", ""); err != "" {
		h.t.Errorf("an isolated host and its controller: %s", err)
	}
	if err := h.d.Isolate(h.t.Context(), "near", false); err != nil {
		h.t.Fatal(err)
	}
	h.events.clear()
}

func (h *host) essentials() {
	h.apply(policy{})
	for _, p := range []uint16{67, 68, 546, 547} {
		l := h.farP.Listen("udp4", at(Far4, p))
		h.events.clear()
		h.reaches(h.one, "udp4", l.Addr, "")
		e := h.events.one("DHCP", all(kind(dataplane.EventOpen), port(p)))
		if e.Rule != model.RuleDHCP {
			h.t.Errorf("%s", describe(&e))
		}
		l.Close()
	}
	// What is denied still learns of errors: the port unreachable comes back although nothing else may.
	h.apply(policy{one: []Rule{rule(model.Egress, farID, "udp/9", model.Allow)}})
	s := h.one.MustDial("udp4", at(Far4, 9))
	if err := s.Exchange("x", ""); err != "ECONNREFUSED" {
		h.t.Errorf("an ICMP error: %q", err)
	}
	h.events.clear()
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
	h.events.clear()
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
	if e.Workload != "near/one" || e.Process.PID != uint32(h.one.PID()) {
		h.t.Errorf("inbound: %s", describe(&e))
	}
	far := h.farP.Listen("tcp4", at(Far4, 0))
	defer far.Close()
	for _, want := range []model.Verdict{model.Allow, model.Deny} {
		h.apply(policy{one: everything(want)})
		h.events.clear()
		a := h.one.ask(request{Do: "burst", Net: "tcp4", To: far.Addr, N: 1, Data: "x", Multi: true, Wait: 500e6})
		if (a.Good == 1) != (want == model.Allow) {
			h.t.Errorf("%s: %+v", want, a)
		}
		k := dataplane.EventOpen
		if want == model.Deny {
			k = dataplane.EventDeny
		}
		e = h.events.one("outbound", all(kind(k), port(far.Port())))
		if e.Workload != "near/one" || e.Process.PID != uint32(h.one.PID()) {
			h.t.Errorf("outbound: %s", describe(&e))
		}
	}
	h.events.clear()
}

// folded makes many denied attempts in a short time.
func (h *host) folded() {
	const n = 300
	h.apply(policy{})
	server := h.one.Listen("udp4", at(Near4, 0))
	defer server.Close()
	h.events.clear()
	for name, attempt := range map[string]struct {
		p       *Process
		network string
		to      string
		port    uint16
	}{
		"connect":           {h.one, "tcp4", at(Far4, 8300), 8300},
		"datagrams":         {h.one, "udp4", at(Far4, 8301), 8301},
		"inbound datagrams": {h.farP, "udp4", server.Addr, server.Port()},
	} {
		a := attempt.p.must(request{Do: "burst", Net: attempt.network, To: attempt.to, N: n, Flow: 60, Data: "x", Wait: 100e6})
		if a.Good != 0 {
			h.t.Fatalf("%s: %d succeed", name, a.Good)
		}
		m := all(kind(dataplane.EventDeny), port(attempt.port), workload("near/one"))
		h.events.wait(name, func() bool { _, attempts := h.events.count(m); return attempts >= n })
		events, attempts := h.events.count(m)
		if attempts != n || events > 10 {
			h.t.Errorf("%s: %d attempts in %d events instead of %d in a few", name, attempts, events, n)
		}
	}
	h.events.clear()
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
	h.events.clear()
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
	h.events.clear()
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
			a := tt.p.must(request{Do: "burst", Net: network, To: tt.to, N: 1, Data: "x", Opts: true, Wait: 500e6})
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
	h.events.clear()
}
