package dataplanetest

import (
	"fmt"
	"net/netip"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/nat"
)

// testTranslated has the host translate addresses, as Docker and kube-proxy do.
func testTranslated(t *testing.T, open Open, f family) {
	whole := newHost(t, open)
	for _, network := range []string{f.tcp, f.udp} {
		t.Run("DNAT of what is sent, "+network, func(t *testing.T) { whole.with(t).translatedOut(f, network) })
		t.Run("DNAT of what arrives, "+network, func(t *testing.T) { whole.with(t).translatedIn(f, network) })
		t.Run("SNAT, "+network, func(t *testing.T) { whole.with(t).translatedSource(f, network) })
	}
}

// translate puts rules of translation in force at near, until the end of the test.
func (h *host) translate(rules ...nat.Rule) {
	h.t.Helper()
	set := func(rules ...nat.Rule) {
		h.On(false, func() {
			if err := nat.Set(rules...); err != nil {
				h.t.Errorf("translate: %v", err)
			}
		})
	}
	set(rules...)
	h.t.(*testing.T).Cleanup(func() { set() })
}

func protoOf(network string) (model.Proto, uint8) {
	p, err := model.ParseProto(network[:3])
	if err != nil {
		panic(err) // a mistake in the suite itself
	}
	return p, uint8(p)
}

// translatedOut turns what far's other address is asked into a question to far: where it goes must be allowed.
func (h *host) translatedOut(f family, network string) {
	p, number := protoOf(network)
	h.apply(policy{})
	server := h.farP.Listen(network, at(f.far, 0))
	defer server.Close()
	asked := netip.MustParseAddrPort(at(f.other, 8800))
	h.translate(nat.Rule{Proto: number, Match: asked, To: netip.MustParseAddrPort(server.Addr)})
	asks := rule(model.Egress, otherID, fmt.Sprintf("%s/%d", p, asked.Port()), model.Allow)
	goes := rule(model.Egress, farID, fmt.Sprintf("%s/%d", p, server.Port()), model.Allow)
	h.apply(policy{one: []Rule{asks, goes}})
	h.events.clear()
	h.reaches(h.one, network, asked.String(), "")
	opening := all(kind(dataplane.EventOpen), workload("near/one"), proto(p), dir(model.Egress))
	if p == model.ProtoUDP && h.d.Capabilities().SocketFlows { // the answer opens a flow to what was asked
		h.events.one("what is asked", all(opening, port(asked.Port())))
		opening = all(opening, port(server.Port()))
	}
	h.events.one("what is allowed", opening)
	messages, _ := server.Seen()

	h.apply(policy{one: []Rule{asks}})
	h.events.clear()
	s, err := h.one.dial(request{Net: network, To: asked.String(), Wait: brief})
	if err == "" {
		err = s.exchange("x", "", brief)
		s.Close()
	}
	if err == "" {
		h.t.Error("what is asked is allowed, but not where it goes, and it goes")
	}
	if n, _ := server.Seen(); n != messages {
		h.t.Errorf("%d messages came through", n-messages)
	}
	e := h.events.one("the denial", all(kind(dataplane.EventDeny), workload("near/one"), proto(p)))
	if e.Remote.Addr().String() != f.far || e.Port != server.Port() || e.Dir != model.Egress {
		h.t.Errorf("denial: %s", describe(&e))
	}
}

// translatedIn turns a port of near into another: the one at which somebody listens is judged.
func (h *host) translatedIn(f family, network string) {
	p, number := protoOf(network)
	h.apply(policy{})
	server := h.one.Listen(network, at(f.near, 0))
	defer server.Close()
	asked := netip.MustParseAddrPort(at(f.near, 8810))
	h.translate(nat.Rule{Proto: number, Match: asked, To: netip.MustParseAddrPort(server.Addr), Arriving: true})
	for _, v := range []model.Verdict{model.Allow, model.Deny} {
		h.apply(policy{one: []Rule{rule(model.Ingress, farID, fmt.Sprintf("%s/%d", p, server.Port()), v)}})
		h.events.clear()
		want, begun := "", dataplane.EventOpen
		if v == model.Deny {
			want, begun = "timeout", dataplane.EventDeny
		}
		h.reaches(h.farP, network, asked.String(), want)
		e := h.events.one(v.String(), all(kind(begun), workload("near/one"), proto(p)))
		if e.Port != server.Port() || e.Dir != model.Ingress || e.Remote.Addr().String() != f.far {
			h.t.Errorf("%s: %s", v, describe(&e))
		}
	}
	if n, _ := server.Seen(); n != 1 {
		h.t.Errorf("%d messages came through instead of one", n)
	}
}

// translatedSource sends from another address of near: what is judged, again too, does not depend on it.
func (h *host) translatedSource(f family, network string) {
	p, number := protoOf(network)
	h.apply(policy{})
	server := h.farP.Listen(network, at(f.far, 0))
	defer server.Close()
	source := map[string]string{Near4: Near4b, Near6: Near6b}[f.near]
	h.translate(nat.Rule{Proto: number, Match: netip.MustParseAddrPort(server.Addr), Source: netip.MustParseAddr(source)})
	h.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("%s/%d", p, server.Port()), model.Allow)}})
	h.events.clear()
	client := h.one.MustDial(network, server.Addr)
	defer client.Close()
	for range 2 {
		if err := client.Exchange("hello", ""); err != "" {
			h.t.Fatal(err)
		}
	}
	e := h.events.one("the flow", all(kind(dataplane.EventOpen), workload("near/one"), port(server.Port())))
	if e.Remote.Addr().String() != f.far || e.Dir != model.Egress {
		h.t.Errorf("opening: %s", describe(&e))
	}
	reset := 0
	if p == model.ProtoTCP {
		reset = 1
	}
	if st := h.apply(policy{}); st.Reset != reset {
		h.t.Errorf("%d connections were reset", st.Reset)
	}
	messages, _ := server.Seen()
	if err := client.exchange("hello", "", brief); err == "" {
		h.t.Error("it goes on although it is denied")
	}
	if n, _ := server.Seen(); n != messages {
		h.t.Errorf("%d messages came through", n-messages)
	}
	h.reaches(h.one, network, server.Addr, "EPERM")
}
