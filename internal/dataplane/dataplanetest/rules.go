package dataplanetest

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testRules tries what policy can say about addresses and ports.
func testRules(t *testing.T, open Open) {
	whole := newHost(t, open)
	t.Run("what no rule closes", func(t *testing.T) { whole.with(t).unclosed() })
	t.Run("ranges of ports", func(t *testing.T) { whole.with(t).ranges() })
	t.Run("the longest prefix", func(t *testing.T) { whole.with(t).prefixes() })
	t.Run("addresses that workloads share", func(t *testing.T) { whole.with(t).shared() })
	t.Run("policy sets of local addresses", func(t *testing.T) { whole.with(t).localSets() })
	t.Run("controllers", func(t *testing.T) { whole.with(t).controllers() })
	t.Run("essentials", func(t *testing.T) { whole.with(t).essentials() })
	t.Run("denials are folded and none is forgotten", func(t *testing.T) { whole.with(t).folded() })
	t.Run("a flood is denied by another rule, then allowed", func(t *testing.T) { whole.with(t).floodRejudged() })
}

// reaches checks what a process sees when it dials, "" for success. EPERM stands for whatever error a denial has.
func (h *host) reaches(p *Process, network, to, want string) {
	h.t.Helper()
	if want == "EPERM" {
		want = h.forbids(network, to)
	}
	if err := p.Try(network, to, wait(want)); err != want {
		h.t.Errorf("%s to %s over %s: %q instead of %q", p.Name, to, network, err, want)
	}
}

// unclosed has a workload that no policy closes: nothing of it is denied, and all of it is seen.
func (h *host) unclosed() {
	open := everything(model.Allow)
	for i := range open {
		open[i].Name = model.RuleOpen
	}
	h.apply(policy{one: open})
	for _, network := range []string{"tcp4", "udp6"} {
		for _, d := range model.Directions {
			h.events.clear()
			addr := map[string]string{"tcp4": Far4, "udp6": Far6}[network]
			client, server := h.pair(network, addr, map[string]string{"tcp4": Near4, "udp6": Near6}[network], d)
			m := all(workload("near/one"), port(server.Port()))
			e := h.events.one("the flow", all(kind(dataplane.EventOpen), m))
			if e.Verdict != model.Allow || e.Rule != model.RuleOpen || e.Existing || e.Dir != d {
				h.t.Errorf("%s %s: %s", network, d, describe(&e))
			}
			client.Close()
			h.events.wait("its end", func() bool { return len(h.events.find(all(kind(dataplane.EventClose), m))) == 1 })
		}
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
			if want != "" {
				want = h.forbids("tcp", to)
			}
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
	if _, err := h.farP.dial(request{Net: "tcp4", Local: at(Shared4, 8004), To: server.Addr, Wait: patience}); err != "" {
		h.t.Errorf("from the owner's own port: %s", err)
	}
	e = h.events.one("inbound", all(kind(dataplane.EventOpen), port(8003)))
	if e.RemoteIdentity != sharedID || e.Verdict != model.WouldDeny {
		h.t.Errorf("inbound, where a port says nothing: %s", describe(&e))
	}
	p.ports = nil
	h.apply(p)
	h.reaches(h.one, "tcp4", owned.Addr, "")
}

func (h *host) localSets() {
	h.apply(policy{})
	server := h.own.Listen("tcp4", at("0.0.0.0", 8100))
	far := h.farP.Listen("tcp4", at(Far4, 8101))
	defer server.Close()
	defer far.Close()
	localPolicy := policy{
		host: []Rule{rule(model.Ingress, farID, "tcp/8100", model.Allow), rule(model.Egress, farID, "tcp/8101", model.Allow)},
		hostLocal: map[string]localRules{Near4b: {id: netID, rules: []Rule{
			{Dir: model.Ingress, Peer: oneID, Ports: ports("tcp/8100"), Verdict: model.Allow, Name: "lab/local"},
		}}},
		one: []Rule{rule(model.Egress, netID, "tcp/8100", model.Allow)},
	}
	h.apply(localPolicy)
	h.events.clear()
	h.reaches(h.farP, "tcp4", at(Near4, 8100), "")
	h.reaches(h.farP, "tcp4", at(Near4b, 8100), "timeout")
	h.reaches(h.own, "tcp4", far.Addr, "")
	if _, err := h.own.dial(request{Net: "tcp4", Local: at(Near4b, 0), To: far.Addr, Wait: brief}); err == "" {
		h.t.Error("from the second address: it passes")
	}
	// A datagram socket answers at both addresses, and what one of them lets in the other does not.
	udp := h.own.Listen("udp4", at("0.0.0.0", 8110))
	defer udp.Close()
	h.apply(policy{
		host:      []Rule{rule(model.Ingress, farID, "udp/8110", model.Allow)},
		hostLocal: map[string]localRules{Near4b: {id: netID, rules: []Rule{rule(model.Ingress, farID, "udp/8110", model.Deny)}}},
	})
	s := h.farP.Bind("udp4", at(Far4, 0))
	for addr, want := range map[string]string{Near4: "", Near4b: "timeout"} {
		for range 2 {
			if err := s.exchange("x", at(addr, 8110), wait(want)); err != want {
				h.t.Errorf("a datagram to %s: %q instead of %q", addr, err, want)
			}
		}
	}
	if n, _ := udp.Seen(); n != 2 {
		h.t.Errorf("%d datagrams came through", n)
	}
	h.apply(localPolicy)
	// On the host itself the other end is the host, with the identity that it has at that address.
	h.reaches(h.one, "tcp4", at(Near4b, 8100), "")
	h.reaches(h.one, "tcp4", at(Near4, 8100), "EPERM")
	e := h.events.one("on the host", all(kind(dataplane.EventOpen), workload("near"), dir(model.Ingress), func(e *dataplane.Event) bool { return e.RemoteWorkload != "" }))
	if e.Rule != "lab/local" {
		h.t.Errorf("on the host: %s", describe(&e))
	}
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
	h.events.clear()
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
}

// folded makes many denied attempts in a short time.
func (h *host) folded() {
	const n, unanswered = 300, 100 * time.Millisecond
	h.apply(policy{})
	server := h.one.Listen("udp4", at(Near4, 0))
	defer server.Close()
	h.events.clear()
	attempts := map[string]struct {
		p       *Process
		network string
		to      string
		port    uint16
		wait    time.Duration
		want    string
	}{
		"connect":           {h.one, "tcp4", at(Far4, 8300), 8300, patience, h.forbids("tcp4", Far4)},
		"datagrams":         {h.one, "udp4", at(Far4, 8301), 8301, patience, "EPERM"},
		"inbound datagrams": {h.farP, "udp4", server.Addr, server.Port(), unanswered, "timeout"},
	}
	for name, attempt := range attempts {
		a := attempt.p.must(request{Do: "burst", Net: attempt.network, To: attempt.to, N: n, Flow: 60, Data: "x", Wait: attempt.wait})
		if a.Errors[attempt.want] != n {
			h.t.Fatalf("%s: %d succeed, the others fail with %v", name, a.Good, a.Errors)
		}
	}
	for name, attempt := range attempts {
		m := all(kind(dataplane.EventDeny), port(attempt.port), workload("near/one"))
		h.events.wait(name, func() bool { _, attempts := h.events.count(m); return attempts >= n })
		if events, attempts := h.events.count(m); attempts != n || events > 10 {
			h.t.Errorf("%s: %d attempts in %d events instead of %d in a few", name, attempts, events, n)
		}
	}
}

// floodRejudged has the same socket go on while the verdict on its datagrams changes, to another rule and then to allow.
func (h *host) floodRejudged() {
	const n, unanswered = 20, 50 * time.Millisecond
	for _, d := range model.Directions {
		h.apply(policy{})
		near, far := h.one, h.farP
		server := far.Listen("udp4", at(Far4, 0))
		client := near.MustDial("udp4", server.Addr)
		if d == model.Ingress {
			server.Close()
			server = near.Listen("udp4", at(Near4, 0))
			client.Close()
			client = far.MustDial("udp4", server.Addr)
		}
		h.events.clear()
		denied := all(kind(dataplane.EventDeny), port(server.Port()), workload("near/one"))
		want := map[model.RuleID]int{model.RuleDefaultDeny: n, "lab/first": n, "lab/second": n}
		for _, name := range []model.RuleID{model.RuleDefaultDeny, "lab/first", "lab/second"} {
			if name != model.RuleDefaultDeny {
				r := rule(d, farID, "udp", model.Deny)
				r.Name = name
				h.apply(policy{one: []Rule{r}})
			}
			for range n {
				if err := client.exchange("denied", "", unanswered); err == "" {
					h.t.Fatalf("%s: a datagram passes that %s denies", d, name)
				}
			}
		}
		h.apply(policy{one: []Rule{rule(d, farID, "udp", model.Allow)}})
		if err := client.Exchange("allowed", ""); err != "" {
			h.t.Errorf("%s: a datagram that is allowed now: %s", d, err)
		}
		h.events.wait("all denials", func() bool { _, attempts := h.events.count(denied); return attempts >= 3*n })
		got := map[model.RuleID]int{}
		for _, e := range h.events.find(denied) {
			got[e.Rule] += int(e.Count)
		}
		if !maps.Equal(got, want) {
			h.t.Errorf("%s: denied %v instead of %v", d, got, want)
		}
		client.Close()
		server.Close()
	}
}
