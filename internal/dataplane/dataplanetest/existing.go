package dataplanetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testExisting installs the dataplane under flows that are open.
func testExisting(t *testing.T, open Open) {
	b := NewBed(t)
	h := &host{Bed: b, t: t, open: open}
	h.own, h.one, h.two, h.farP = b.Start(""), b.Start("one"), b.Start("two/inner"), b.StartFar()
	out, outServer := h.pair("tcp4", Far4, Near4, model.Egress)
	in, inServer := h.pair("tcp6", Far6, Near6, model.Ingress)
	loop := h.two.Listen("tcp4", "127.0.0.1:0")
	lo := h.one.MustDial("tcp4", loop.Addr)
	udpServer := h.one.Listen("udp4", "0.0.0.0:5353")
	udp := h.farP.MustDial("udp4", at(Near4, 5353))
	if err := udp.Exchange("before", ""); err != "" {
		t.Fatal(err)
	}
	idle := h.one.Listen("tcp4", at(Near4, 0))
	doomed := h.two.Listen("tcp4", "127.0.0.1:0")
	lost := h.one.MustDial("tcp4", doomed.Addr)
	hostServer := h.own.Listen("tcp4", at(Near4, 0))
	contained := start(t, "contained", b.far, b.Unit("one"), program{}).MustDial("tcp4", hostServer.Addr)
	// Go programs listen like this; the socket that the process has open is not the one that accepts.
	multi := h.one.ListenMultipath("tcp", "[::]:0")
	many := h.farP.MustDial("tcp4", at(Near4, multi.Port()))

	h.d = b.Open(open)
	h.events = record(t, h.d)
	// Without a policy everything passes, and nothing is told: nobody knows yet whose it is.
	for _, s := range []*Socket{out, in, lo, udp, lost, contained} {
		if err := s.Exchange("hello", ""); err != "" {
			t.Errorf("before any policy: %s", err)
		}
	}
	if text := h.events.text(); text != "" {
		t.Errorf("told before any policy:\n%s", text)
	}

	// Policy allows them in their own direction only.
	p := policy{
		one: []Rule{
			rule(model.Egress, farID, fmt.Sprintf("tcp/%d", outServer.Port()), model.Allow),
			rule(model.Ingress, farID, fmt.Sprintf("tcp/%d", inServer.Port()), model.Allow),
			rule(model.Ingress, farID, "udp/5353", model.Allow),
			rule(model.Ingress, farID, fmt.Sprintf("tcp/%d", idle.Port()), model.WouldDeny),
			rule(model.Ingress, farID, fmt.Sprintf("tcp/%d", multi.Port()), model.Allow),
			rule(model.Egress, twoID, fmt.Sprintf("tcp/%d", loop.Port()), model.Allow),
			rule(model.Egress, nearID, fmt.Sprintf("tcp/%d", hostServer.Port()), model.Allow),
		},
		host: []Rule{rule(model.Ingress, farID, fmt.Sprintf("tcp/%d", hostServer.Port()), model.Allow)},
		two:  []Rule{rule(model.Ingress, oneID, fmt.Sprintf("tcp/%d", loop.Port()), model.Allow)},
	}
	if st := h.apply(p); st.Reset != 0 && !h.d.Capabilities().PeersAtOnce || st.Reset > 2 { // the two ends of what is lost
		t.Errorf("%d reset:\n%s", st.Reset, h.events.text())
	}
	for name, s := range map[string]*Socket{
		"outbound": out, "inbound": in, "loopback": lo, "datagrams": udp, "multipath": many, "contained": contained,
	} {
		if err := s.Exchange("hello", ""); err != "" {
			t.Errorf("%s, allowed: %s\n%s", name, err, h.events.text())
		}
	}
	for what, m := range map[string]match{
		"outbound":                       all(dir(model.Egress), port(outServer.Port())),
		"inbound":                        all(dir(model.Ingress), port(inServer.Port())),
		"loopback":                       all(dir(model.Egress), port(loop.Port())),
		"inbound, to a multipath socket": all(dir(model.Ingress), port(multi.Port())),
	} {
		e := h.events.one(what, all(kind(dataplane.EventOpen), m))
		if !e.Existing || e.Rejudged || e.Verdict != model.Allow || e.Workload != "near/one" || !h.isOf(&e, h.one) {
			t.Errorf("%s: %s", what, describe(&e))
		}
	}
	e := h.events.one("datagrams", all(kind(dataplane.EventOpen), proto(model.ProtoUDP)))
	if e.Dir != model.Ingress || e.Port != 5353 || e.Workload != "near/one" || !h.isOf(&e, h.one) {
		t.Errorf("datagrams: %s", describe(&e))
	}
	lostDenied := func() {
		t.Helper()
		e := h.events.one("loopback, denied", all(kind(dataplane.EventDeny), port(doomed.Port()), workload("near/one")))
		if !e.Existing || e.RemoteWorkload != "near/two" {
			t.Errorf("loopback, denied: %s", describe(&e))
		}
	}
	if h.d.Capabilities().PeersAtOnce {
		lostDenied()
	}
	// A socket that listened before is judged like any other.
	for number, want := range map[uint16]model.Verdict{idle.Port(): model.WouldDeny, multi.Port(): model.Allow} {
		h.events.clear()
		s := h.farP.MustDial("tcp4", at(Near4, number))
		s.Exchange("x", "")
		e = h.events.one("a new connection to an old listener", all(kind(dataplane.EventOpen), port(number)))
		if e.Existing || e.Verdict != want || e.Workload != "near/one" || !h.isOf(&e, h.one) {
			t.Errorf("old listener: %s", describe(&e))
		}
	}
	// Who is at the other end of a loopback connection perhaps only its packets tell: then it is denied, and cut.
	if err := lost.Exchange("hello", ""); err != "ECONNABORTED" && err != "ECONNRESET" && err != "EPIPE" {
		t.Errorf("loopback, denied: %q", err)
	}
	if !h.d.Capabilities().PeersAtOnce {
		lostDenied()
	}
	p.one = p.one[:len(p.one)-1]
	h.apply(p)
	if err := contained.Exchange("hello", ""); h.d.Capabilities().Namespaces && err != "ECONNABORTED" && err != "EPIPE" {
		t.Errorf("in another network namespace, denied: %q", err)
	}
	if st := h.apply(policy{}); st.Reset < 4 {
		t.Errorf("%d reset", st.Reset)
	}
	for name, s := range map[string]*Socket{"outbound": out, "inbound": in, "loopback": lo, "datagrams": udp} {
		if err := s.exchange("hello", "", brief); err == "" {
			t.Errorf("%s goes on although it is denied", name)
		}
	}
	_ = udpServer
}

// testReopen lets an agent go and come back.
func testReopen(t *testing.T, open Open) {
	h := newHost(t, open)
	allowed := h.farP.Listen("tcp4", at(Far4, 0))
	denied := h.farP.Listen("tcp4", at(Far4, 0))
	p := policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("tcp/%d", allowed.Port()), model.Allow)}, two: everything(model.Allow)}
	h.apply(p)
	if err := h.d.Isolate(context.Background(), "near/two", true); err != nil {
		t.Fatal(err)
	}
	live := h.one.MustDial("tcp4", allowed.Addr)
	stream := live.Stream(4*time.Second, "")
	check := func(when string) {
		t.Helper()
		if s, err := h.one.Dial("tcp4", allowed.Addr); err != "" {
			t.Errorf("%s: what is allowed: %s", when, err)
		} else {
			if err := s.Exchange("x", ""); err != "" {
				t.Errorf("%s: what is allowed: %s", when, err)
			}
			s.Close()
		}
		if _, err := h.one.Dial("tcp4", denied.Addr); err != h.forbids("tcp4", denied.Addr) {
			t.Errorf("%s: what is denied: %q", when, err)
		}
		if _, err := h.two.Dial("tcp4", allowed.Addr); err != h.forbids("tcp4", allowed.Addr) {
			t.Errorf("%s: what is isolated: %q", when, err)
		}
	}
	check("with the agent")
	attempts := all(kind(dataplane.EventDeny), workload("near/one"), port(denied.Port()))
	h.events.wait("a denial", func() bool { _, n := h.events.count(attempts); return n == 1 })
	before, err := h.d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	h.events.stop()
	if err := h.d.Close(); err != nil {
		t.Fatal(err)
	}
	check("without an agent")
	h.d = h.Open(open)
	check("with the next agent")
	h.events = record(t, h.d)
	if h.d.Capabilities().Backlog { // what happened meanwhile is told, by name, before the next one has applied anything
		h.events.wait("what happened meanwhile", func() bool {
			_, n := h.events.count(attempts)
			return n == 2 && len(h.events.find(all(kind(dataplane.EventOpen), workload("near/one")))) >= 2
		})
		if e := h.events.find(all(kind(dataplane.EventOpen), workload("near/one"))); len(e) != 2 || e[0].Rule != "lab/egress-allow" {
			t.Errorf("openings meanwhile:\n%s", h.events.text())
		}
	}
	if st := h.apply(p); st.Changed || st.Reset != 0 {
		t.Errorf("the same policy again: %+v", st)
	}
	check("after the same policy again")
	if err := h.d.Isolate(context.Background(), "near/two", false); err != nil {
		t.Fatal(err)
	}
	if s, err := h.two.Dial("tcp4", allowed.Addr); err != "" {
		t.Errorf("lifted: %s", err)
	} else {
		s.Close()
	}
	if res, err := stream(); err != "" || res.Bad > 0 {
		t.Errorf("the live connection: %v, %s", res, err)
	}
	after, err := h.d.Counters()
	if err != nil || after.Denied <= before.Denied || after.Allowed <= before.Allowed || after.EventsLost != 0 || after.Errors != 0 {
		t.Errorf("counters: %+v, then %+v, %v", before, after, err)
	}

	h.events.stop()
	if err := h.d.Remove(); err != nil {
		t.Fatal(err)
	}
	if s, err := h.one.Dial("tcp4", denied.Addr); err != "" {
		t.Errorf("removed, and yet: %s", err)
	} else {
		s.Close()
	}
}
