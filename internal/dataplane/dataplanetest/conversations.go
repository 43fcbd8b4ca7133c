package dataplanetest

import (
	"fmt"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testConversations has flows of many datagrams: an implementation may remember them elsewhere than those of a few.
func testConversations(t *testing.T, open Open, f family) {
	whole := newHost(t, open)
	t.Run("counted", func(t *testing.T) { whole.with(t).countedConversation(f) })
	t.Run("counted by peer", func(t *testing.T) { whole.with(t).countedPeers(f) })
	t.Run("cut", func(t *testing.T) { whole.with(t).cutConversation(f) })
	t.Run("answered late", func(t *testing.T) { whole.with(t).answeredLate(f) })
	t.Run("denied for long", func(t *testing.T) { whole.with(t).deniedForLong(f) })
	t.Run("answered after denials", func(t *testing.T) { whole.with(t).answeredAfterDenials(f) })
	t.Run("fallen silent", func(t *testing.T) { whole.with(t).fallenSilent(f) })
}

// RunConversations runs only the situations with many datagrams, for another way in which an implementation remembers them.
func RunConversations(t *testing.T, open Open) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { testConversations(t, open, f) })
	}
}

// talk exchanges n datagrams.
func (h *host) talk(s *Socket, to string, n int) {
	h.t.Helper()
	for i := range n {
		if err := s.Exchange("0123456789", to); err != "" {
			h.t.Fatalf("exchange %d: %s", i, err)
		}
	}
}

// countedConversation wants every packet told, once.
func (h *host) countedConversation(f family) {
	const n = 200
	h.apply(policy{one: everything(model.Allow)})
	server := h.farP.Listen(f.udp, at(f.far, 0))
	defer server.Close()
	client := h.one.MustDial(f.udp, server.Addr)
	h.talk(client, "", n)
	client.Close()
	h.awaitCarried(all(port(server.Port()), workload("near/one")), n)
}

// awaitCarried waits until events have told of n datagrams each way, and lets none tell of more.
func (h *host) awaitCarried(m match, n uint64) {
	h.t.Helper()
	want := traffic{sent: 10 * n, received: 10 * n, packetsSent: n, packetsRecv: n}
	h.events.wait("all packets", func() bool { return h.events.carried(m).packetsRecv >= n })
	h.events.wait("its end", func() bool { return len(h.events.find(all(kind(dataplane.EventClose), m))) > 0 })
	if got := h.events.carried(m); got != want {
		h.t.Errorf("carried %+v instead of %+v", got, want)
	}
}

// countedPeers has one socket talk to several peers in turns.
func (h *host) countedPeers(f family) {
	const n, rounds = 5, 20
	h.apply(policy{one: everything(model.Allow)})
	server := h.one.Listen(f.udp, at(f.near, 0))
	defer server.Close()
	var clients []*Socket
	for range n {
		c := h.farP.MustDial(f.udp, server.Addr)
		defer c.Close()
		clients = append(clients, c)
	}
	for range rounds {
		for _, c := range clients {
			h.talk(c, "", 1)
		}
	}
	m := all(port(server.Port()), workload("near/one"), dir(model.Ingress))
	h.events.wait("all packets", func() bool { return h.events.carried(m).packetsRecv >= n*rounds })
	for _, c := range clients {
		of := all(m, func(e *dataplane.Event) bool { return e.Remote.Port() == c.Port() })
		want := traffic{sent: 10 * rounds, received: 10 * rounds, packetsSent: rounds, packetsRecv: rounds}
		h.events.wait("its packets", func() bool { return h.events.carried(of).packetsSent >= rounds })
		if got := h.events.carried(of); got != want {
			h.t.Errorf("of %s: carried %+v instead of %+v", c.Addr, got, want)
		}
	}
}

// conversation is a socket at either end that answers, and one at the other end that asks it.
type conversation struct{ there, here, out, in *Socket }

func (h *host) bothWays(f family) *conversation {
	h.t.Helper()
	c := &conversation{there: h.farP.Listen(f.udp, at(f.far, 0)), here: h.one.Listen(f.udp, at(f.near, 0))}
	c.out, c.in = h.one.MustDial(f.udp, c.there.Addr), h.farP.MustDial(f.udp, c.here.Addr)
	return c
}

func (c *conversation) close() {
	for _, s := range []*Socket{c.out, c.in, c.there, c.here} {
		s.Close()
	}
}

// cutConversation denies one in either direction in the middle, and allows it again.
func (h *host) cutConversation(f family) {
	allow, deny := policy{one: everything(model.Allow)}, policy{}
	h.apply(allow)
	c := h.bothWays(f)
	defer c.close()
	there, here, out, in := c.there, c.here, c.out, c.in
	for range 3 {
		h.talk(out, "", 20)
		h.talk(in, "", 20)
		h.apply(deny)
		if err := out.exchange("x", "", brief); err != h.forbids(f.udp, there.Addr) {
			h.t.Errorf("out: %q", err)
		}
		before, _ := here.Seen()
		h.inVain(in, "", 20)
		if now, _ := here.Seen(); now != before {
			h.t.Errorf("%d datagrams came in", now-before)
		}
		h.apply(allow)
	}
	h.talk(out, "", 1)
	h.talk(in, "", 1)
}

// answeredLate has nobody answer until many datagrams have gone.
func (h *host) answeredLate(f family) {
	h.apply(policy{one: everything(model.Allow)})
	there := h.farP.Bind(f.udp, at(f.far, 0))
	defer there.Close()
	here := h.one.Bind(f.udp, at(f.near, 0))
	defer here.Close()
	const n = 12
	for range n {
		if err := here.exchange("x", there.Addr, 1); err != "timeout" {
			h.t.Fatalf("exchange: %q", err)
		}
	}
	h.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("udp/%d", there.Port()), model.Allow)}})
	for range n {
		if err := here.exchange("x", there.Addr, 1); err != "timeout" {
			h.t.Fatalf("exchange: %q", err)
		}
	}
	for range n { // it is the flow's answer, which no rule needs to name
		if err := there.exchange("answer", here.Addr, 1); err != "" && err != "timeout" { // of its own it has many to read
			h.t.Fatalf("answer: %q", err)
		}
		if data, err := here.Read(patience); data != "answer" {
			h.t.Fatalf("it reads %q, %q", data, err)
		}
	}
}

// inVain sends n datagrams that nobody answers, and waits a while for an answer to the last one.
func (h *host) inVain(s *Socket, to string, n int) {
	h.t.Helper()
	for i := range n {
		wait := brief
		if i < n-1 {
			wait = 1
		}
		if err := s.exchange("x", to, wait); err != "timeout" {
			h.t.Fatalf("datagram %d: %q", i, err)
		}
	}
}

// deniedForLong wants every datagram of a flood counted, that is told or not, in both directions.
func (h *host) deniedForLong(f family) {
	const n = 300
	h.apply(policy{})
	c := h.bothWays(f)
	defer c.close()
	there, here, out, in := c.there, c.here, c.out, c.in
	before, err := h.d.Counters()
	if err != nil {
		h.t.Fatal(err)
	}
	h.inVain(in, "", n)
	for range n {
		if err := out.exchange("x", "", brief); err != h.forbids(f.udp, there.Addr) {
			h.t.Fatalf("out: %q", err)
		}
	}
	if seen, _ := here.Seen(); seen != 0 {
		h.t.Errorf("%d datagrams came in", seen)
	}
	for d, p := range map[model.Direction]uint16{model.Ingress: here.Port(), model.Egress: there.Port()} {
		m := all(kind(dataplane.EventDeny), workload("near/one"), dir(d), port(p))
		h.events.wait("all attempts", func() bool { _, attempts := h.events.count(m); return attempts >= n })
		if events, attempts := h.events.count(m); attempts != n {
			h.t.Errorf("%s: %d attempts of %d are told, in %d events", d, attempts, n, events)
		}
	}
	after, err := h.d.Counters()
	if err != nil {
		h.t.Fatal(err)
	}
	if denied := after.Denied - before.Denied; denied < 2*n {
		h.t.Errorf("%d of %d are counted", denied, 2*n)
	}
}

// answeredAfterDenials has a socket talk to those whose datagrams to it were denied until a moment ago: now they answer.
func (h *host) answeredAfterDenials(f family) {
	h.apply(policy{one: []Rule{rule(model.Egress, farID, "udp", model.Allow)}})
	here := h.one.Bind(f.udp, at(f.near, 0))
	defer here.Close()
	for range 10 {
		there := h.farP.Listen(f.udp, at(f.far, 0))
		h.inVain(there, here.Addr, 20)
		h.talk(here, there.Addr, 2)
		there.Close()
	}
}

// fallenSilent waits until nothing is left of a flow: who was asked may not ask then.
func (h *host) fallenSilent(f family) {
	if !h.d.Capabilities().SocketFlows {
		h.t.Skip("how long a flow may be silent the kernel says here, and it is long")
	}
	there := h.farP.Listen(f.udp, at(f.far, 0))
	defer there.Close()
	h.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("udp/%d", there.Port()), model.Allow)}})
	here := h.one.Bind(f.udp, at(f.near, 0))
	defer here.Close()
	h.talk(here, there.Addr, 50)
	h.events.wait("its end", func() bool {
		return len(h.events.find(all(kind(dataplane.EventClose), workload("near/one"), port(there.Port())))) > 0
	})
	if err := there.exchange("x", here.Addr, brief); err != "timeout" {
		h.t.Errorf("it asks: %q", err)
	}
	h.events.wait("the denial", func() bool {
		return len(h.events.find(all(kind(dataplane.EventDeny), dir(model.Ingress), workload("near/one"), port(here.Port())))) > 0
	})
	if data, err := here.Read(brief); err != "timeout" {
		h.t.Errorf("it hears %q, %q", data, err)
	}
	h.talk(here, there.Addr, 1)
}
