package dataplanetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testLive changes policy under flows that are open.
func testLive(t *testing.T, open Open, f family) {
	whole := newHost(t, open)
	for _, d := range []model.Direction{model.Egress, model.Ingress} {
		t.Run(d.String()+" is cut when it is denied", func(t *testing.T) { whole.with(t).cut(f, d) })
		t.Run("UDP "+d.String()+" stops when it is denied", func(t *testing.T) { whole.with(t).stop(f, d) })
	}
	t.Run("cut between units", func(t *testing.T) { whole.with(t).cutSameHost(f) })
	t.Run("goes on when it stays allowed", func(t *testing.T) { whole.with(t).goesOn(f) })
	t.Run("quarantine isolates and lifts", func(t *testing.T) { whole.with(t).quarantine(f) })
	t.Run("a reply is never judged alone", func(t *testing.T) { whole.with(t).reply(f) })
}

// testChanges changes policy and units at odd moments.
func testChanges(t *testing.T, open Open) {
	whole := newHost(t, open)
	t.Run("a handshake that policy overtakes", func(t *testing.T) { whole.with(t).dialing() })
	t.Run("an idle connection is cut", func(t *testing.T) { whole.with(t).idle() })
	t.Run("many connections are cut at once", func(t *testing.T) { whole.with(t).many() })
	t.Run("a unit in a network namespace of its own", func(t *testing.T) { whole.with(t).container() })
	t.Run("live bytes are told", func(t *testing.T) { whole.with(t).updates() })
	t.Run("a unit's cgroup becomes known", func(t *testing.T) { whole.with(t).lateUnit() })
	t.Run("the other end of a loopback flow changes hands", func(t *testing.T) { whole.with(t).changesHands() })
}

// pair makes a server and a client that is connected to it, on the two hosts, with unit one at near.
func (h *host) pair(network, farAddr, nearAddr string, d model.Direction) (client *Socket, server *Socket) {
	h.t.Helper()
	if d == model.Egress {
		server = h.farP.Listen(network, at(farAddr, 0))
		client = h.one.MustDial(network, server.Addr)
	} else {
		server = h.one.Listen(network, at(nearAddr, 0))
		client = h.farP.MustDial(network, server.Addr)
	}
	if err := client.Exchange("hello", ""); err != "" {
		h.t.Fatalf("exchange: %s", err)
	}
	h.t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func (h *host) cut(f family, d model.Direction) {
	h.apply(policy{one: everything(model.Allow)})
	client, server := h.pair(f.tcp, f.far, f.near, d)
	h.events.one("opening", all(kind(dataplane.EventOpen), port(server.Port()), workload("near/one")))
	stream := client.Stream(patience, "")
	server.seenMore()
	st := h.apply(policy{one: everything(model.Deny)})
	if st.Reset != 1 {
		h.t.Errorf("%d connections were reset instead of 1", st.Reset)
	}
	before, _ := server.Seen()
	res, err := stream()
	want := "ECONNRESET" // at the far end: the reset has arrived
	if d == model.Egress {
		want = "ECONNABORTED"
	}
	if err != want && !(d == model.Egress && err == "EPIPE") {
		h.t.Errorf("the client sees %q instead of %q", err, want)
	}
	if res.Errors["timeout"] > 0 {
		h.t.Errorf("it waited in vain before it learned of it: %v", res)
	}
	if after, _ := server.Seen(); after != before {
		h.t.Errorf("%d messages came through after Apply had returned", after-before)
	}
	e := h.events.one("the denial", all(kind(dataplane.EventDeny), port(server.Port()), workload("near/one")))
	if !e.Rejudged || e.Count != 1 || e.Dir != d || e.Verdict != model.Deny || !h.isOf(&e, h.one) {
		h.t.Errorf("denial: %s", describe(&e))
	}
	h.events.one("its end", all(kind(dataplane.EventClose), port(server.Port()), workload("near/one")))
}

func (h *host) stop(f family, d model.Direction) {
	h.apply(policy{one: everything(model.Allow)})
	client, server := h.pair(f.udp, f.far, f.near, d)
	h.apply(policy{one: everything(model.Deny)})
	before, _ := server.Seen()
	want := "timeout"
	if d == model.Egress {
		want = h.forbids(f.udp, f.far)
	}
	for range 3 {
		if err := client.exchange("hello", "", wait(want)); err != want {
			h.t.Errorf("the client sees %q instead of %q", err, want)
		}
	}
	if after, _ := server.Seen(); after != before {
		h.t.Errorf("%d messages came through", after-before)
	}
	denied := all(kind(dataplane.EventDeny), port(server.Port()), workload("near/one"))
	h.events.wait("three attempts", func() bool { _, n := h.events.count(denied); return n == 3 })
	// On a busy machine the flow may have ended by its silence before the change: then the next packet began another.
	ended := h.events.find(all(kind(dataplane.EventClose), port(server.Port()), workload("near/one")))
	if first := h.events.find(denied)[0]; !first.Rejudged && (len(ended) == 0 || ended[0].Time.After(first.Time)) {
		h.t.Errorf("first denial: %s", describe(&first))
	}
}

func (h *host) cutSameHost(f family) {
	h.apply(policy{one: everything(model.Allow), two: everything(model.Allow)})
	server := h.two.Listen(f.tcp, at(f.loop, 0))
	defer server.Close()
	client := h.one.MustDial(f.tcp, server.Addr)
	defer client.Close()
	stream := client.Stream(patience, "")
	server.seenMore()
	h.apply(policy{one: everything(model.Allow), two: []Rule{rule(model.Ingress, oneID, "any", model.Deny), rule(model.Egress, nobody, "any", model.Allow)}})
	if res, err := stream(); err != "ECONNRESET" || res.Errors["timeout"] > 0 {
		h.t.Errorf("the client sees %q: %v", err, res)
	}
	e := h.events.one("the denial", all(kind(dataplane.EventDeny), workload("near/two"), port(server.Port())))
	if e.RemoteWorkload != "near/one" || !e.Rejudged {
		h.t.Errorf("denial: %s", describe(&e))
	}
}

// goesOn changes policy many times under a flow that stays allowed.
func (h *host) goesOn(f family) {
	h.apply(policy{one: everything(model.Allow)})
	client, server := h.pair(f.tcp, f.far, f.near, model.Egress)
	udp, udpServer := h.pair(f.udp, f.far, f.near, model.Ingress)
	for _, p := range []uint16{server.Port(), udpServer.Port()} {
		h.events.one("its opening", all(kind(dataplane.EventOpen), port(p)))
	}
	h.events.clear()
	stream, datagrams := client.Stream(1500*time.Millisecond, ""), udp.Stream(1500*time.Millisecond, "")
	for i := range 40 {
		extra := rule(model.Egress, netID, fmt.Sprintf("tcp/%d", 1000+i), model.Deny)
		addresses := standard()
		if i%2 == 0 { // the peer's identity changes, and the rules with it
			for p, a := range addresses {
				if a.Identity == farID {
					a.Identity = otherID
					addresses[p] = a
				}
			}
		}
		id := addresses[Far4+"/32"].Identity
		if st := h.apply(policy{addresses: addresses, one: []Rule{
			extra, rule(model.Egress, id, "any", model.Allow), rule(model.Ingress, id, "any", model.Allow),
		}}); st.Reset != 0 || !st.Changed {
			h.t.Fatalf("change %d: %+v", i, st)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if res, err := stream(); err != "" || res.Bad != 0 || res.Good == 0 {
		h.t.Errorf("TCP: %v, %s", res, err)
	}
	if res, err := datagrams(); err != "" || res.Bad != 0 || res.Good == 0 {
		h.t.Errorf("UDP: %v, %s", res, err)
	}
	for _, p := range []uint16{server.Port(), udpServer.Port()} {
		h.events.none("a denial", all(kind(dataplane.EventDeny), port(p)))
		h.events.none("a second opening", all(kind(dataplane.EventOpen), port(p), rejudged(false)))
		h.events.none("a judgement that says nothing new", all(kind(dataplane.EventOpen), port(p), rejudged(true)))
	}
}

func (h *host) quarantine(f family) {
	p := policy{one: everything(model.Allow), two: everything(model.Allow)}
	h.apply(p)
	client, server := h.pair(f.tcp, f.far, f.near, model.Egress)
	inbound, inServer := h.pair(f.tcp, f.far, f.near, model.Ingress)
	forensic := h.farP.Listen(f.tcp, at(f.other, 0))
	defer forensic.Close()
	kept := h.one.MustDial(f.tcp, forensic.Addr)
	defer kept.Close()
	bystander := h.two.MustDial(f.tcp, server.Addr)
	defer bystander.Close()
	out, in := client.Stream(patience, ""), inbound.Stream(patience, "")
	server.seenMore()
	inServer.seenMore()

	ctx := context.Background()
	if err := h.d.Isolate(ctx, "near/one", true); err != nil {
		h.t.Fatal(err)
	}
	seen, _ := server.Seen()
	if res, err := out(); err != "ECONNABORTED" && err != "EPIPE" {
		h.t.Errorf("outbound: %v, %s", res, err)
	}
	if res, err := in(); err != "ECONNRESET" {
		h.t.Errorf("inbound: %v, %s", res, err)
	}
	if now, _ := server.Seen(); now != seen {
		h.t.Errorf("%d messages came through", now-seen)
	}
	for _, s := range []*Socket{kept, bystander} {
		if err := s.Exchange("still here", ""); err != "" {
			h.t.Errorf("a flow that isolation does not concern: %s", err)
		}
	}
	if _, err := h.one.Dial(f.tcp, server.Addr); err != h.forbids(f.tcp, server.Addr) {
		h.t.Errorf("a new connection of the isolated: %q", err)
	}
	if _, err := h.farP.dial(request{Net: f.tcp, To: inServer.Addr, Wait: brief}); err != "timeout" {
		h.t.Errorf("a new connection to the isolated: %q", err)
	}
	e := h.events.one("a denial", all(kind(dataplane.EventDeny), port(server.Port()), workload("near/one"), rejudged(true)))
	if e.Rule != model.RuleIsolate {
		h.t.Errorf("denial: %s", describe(&e))
	}

	p.revision = 7
	p.two = []Rule{rule(model.Egress, farID, "any", model.Allow), rule(model.Ingress, farID, "any", model.Allow)}
	h.apply(p) // does not lift it
	if _, err := h.one.Dial(f.tcp, server.Addr); err != h.forbids(f.tcp, server.Addr) {
		h.t.Errorf("after another Apply: %q", err)
	}
	if err := h.d.Isolate(ctx, "near/one", false); err != nil {
		h.t.Fatal(err)
	}
	if s, err := h.one.Dial(f.tcp, server.Addr); err != "" {
		h.t.Errorf("after it was lifted: %s", err)
	} else {
		s.Close()
	}
}

// dialing changes policy while a connection is being made: nothing of it may pass, and it is not forgotten.
func (h *host) dialing() {
	h.apply(policy{one: everything(model.Allow)})
	// Nobody answers at an address that no host has, so the connection hangs in its handshake.
	c := h.one.begin(request{Do: "dial", ID: "x", Net: "tcp4", To: "10.77.0.99:80", Wait: patience})
	h.events.one("the attempt", all(kind(dataplane.EventOpen), port(80), workload("near/one")))
	h.apply(policy{one: everything(model.Deny)})
	if a := h.one.await(c); a.Err != "ECONNABORTED" {
		h.t.Errorf("the client sees %q", a.Err)
	}
}

// idle cuts a connection on which nothing moves: only the sweep can.
func (h *host) idle() {
	h.apply(policy{one: everything(model.Allow)})
	server := h.farP.Listen("tcp4", at(Far4, 0))
	defer server.Close()
	client := h.one.MustDial("tcp4", server.Addr)
	defer client.Close()
	h.events.one("opening", all(kind(dataplane.EventOpen), port(server.Port()), workload("near/one")))
	if st := h.apply(policy{one: everything(model.Deny)}); st.Reset != 1 {
		h.t.Errorf("%d reset", st.Reset)
	}
	if _, err := client.Read(patience); err != "ECONNABORTED" {
		h.t.Errorf("the client sees %q", err)
	}
}

// many cuts connections of which some stay allowed.
func (h *host) many() {
	const n = 50
	h.apply(policy{one: everything(model.Allow), two: everything(model.Allow)})
	server := h.farP.Listen("tcp4", at(Far4, 0))
	defer server.Close()
	var cut, kept []*Socket
	for range n {
		cut = append(cut, h.one.MustDial("tcp4", server.Addr))
		kept = append(kept, h.two.MustDial("tcp4", server.Addr))
	}
	h.events.wait("openings", func() bool { return len(h.events.find(all(kind(dataplane.EventOpen), port(server.Port())))) >= 2*n })
	if st := h.apply(policy{one: everything(model.Deny), two: everything(model.Allow)}); st.Reset != n {
		h.t.Errorf("%d reset instead of %d", st.Reset, n)
	}
	for _, s := range cut {
		if err := s.Exchange("x", ""); err == "" {
			h.t.Error("one of them lives")
		}
		s.Close()
	}
	for _, s := range kept {
		if err := s.Exchange("x", ""); err != "" {
			h.t.Errorf("one that should live: %s", err)
		}
		s.Close()
	}
}

// reply lets one direction pass only: the answers belong to it, and do not open the other direction.
func (h *host) reply(f family) {
	for _, network := range []string{f.tcp, f.udp} {
		p := network[:3]
		h.apply(policy{one: []Rule{rule(model.Egress, farID, p, model.Allow)}})
		server := h.farP.Listen(network, at(f.far, 0))
		client := h.one.MustDial(network, server.Addr)
		for range 3 {
			if err := client.Exchange("x", ""); err != "" {
				h.t.Errorf("%s: %s", network, err)
			}
		}
		// The far end may not open a flow of its own to the client's port.
		if network == f.udp {
			other := h.farP.Bind(f.udp, at(f.far, 0))
			if err := other.exchange("x", client.Addr, brief); err != "timeout" {
				h.t.Errorf("%s: an unasked datagram: %q", network, err)
			}
			other.Close()
		}
		client.Close()
		server.Close()
	}
}

// container judges a unit that is in another network namespace than the host: that of far, as it happens.
func (h *host) container() {
	if !h.d.Capabilities().Namespaces {
		h.t.Skip("this dataplane judges one network namespace")
	}
	inside := start(h.t, "contained", h.far, h.Unit("one"), program{})
	h.apply(policy{one: everything(model.Allow)})
	server := h.farP.Listen("tcp4", at(Far4, 0))
	defer server.Close()
	var live []*Socket
	for _, p := range []*Process{h.one, inside} {
		s := p.MustDial("tcp4", server.Addr)
		live = append(live, s)
		if err := s.Exchange("x", ""); err != "" {
			h.t.Fatalf("%s: %s", p.Name, err)
		}
	}
	h.events.wait("two openings", func() bool {
		return len(h.events.find(all(kind(dataplane.EventOpen), workload("near/one"), port(server.Port())))) == 2
	})
	h.apply(policy{one: everything(model.Deny)}) // a sweep that goes on since before may be faster than its own
	for _, s := range live {
		if err := s.exchange("x", "", brief); err != "ECONNABORTED" && err != "EPIPE" {
			h.t.Errorf("%s: %q", s.p.Name, err)
		}
	}
	if _, err := inside.Dial("tcp4", server.Addr); err == "" {
		h.t.Error("a new connection is made")
	}
}

// updates watches the counters of a connection that stays open.
func (h *host) updates() {
	h.apply(policy{one: everything(model.Allow)})
	client, server := h.pair("tcp4", Far4, Near4, model.Egress)
	big := strings.Repeat("0123456789", 5000)
	for range 3 {
		if err := client.Exchange(big, ""); err != "" {
			h.t.Fatal(err)
		}
	}
	m := all(port(server.Port()), workload("near/one"))
	if h.d.Capabilities().LiveBytes {
		h.events.wait("an update", func() bool { return h.events.carried(all(kind(dataplane.EventUpdate), m)).sent > 0 })
	}
	client.Close()
	h.events.one("its end", all(kind(dataplane.EventClose), m))
	want := traffic{sent: uint64(3*len(big) + 5), received: uint64(3*len(big) + 5)}
	if got := h.events.carried(m); !h.carriedIs(got, want) {
		h.t.Errorf("carried %+v instead of %+v", got, want)
	}
}

// lateUnit names the cgroup of a unit while its processes already talk.
func (h *host) lateUnit() {
	late := h.Start("late")
	h.apply(policy{host: everything(model.Allow), late: everything(model.Deny)})
	server := h.farP.Listen("tcp4", at(Far4, 0))
	defer server.Close()
	client := late.MustDial("tcp4", server.Addr)
	defer client.Close()
	if err := client.Exchange("x", ""); err != "" {
		h.t.Fatal(err)
	}
	e := h.events.one("opening", all(kind(dataplane.EventOpen), port(server.Port())))
	if e.Workload != "near" {
		h.t.Errorf("before its cgroup is known: %s", describe(&e))
	}
	h.events.clear()
	units := h.units()
	units["late"] = []string{h.Unit("late"), h.Unit("gone")} // the second has ended already
	p := policy{host: everything(model.Allow), late: everything(model.Allow)}
	p.late[1].Name = "lab/late"
	apply := func() dataplane.ApplyStats {
		st, err := h.d.Apply(context.Background(), &dataplane.State{Policy: p.build(), Units: units})
		if err != nil {
			h.t.Fatal(err)
		}
		return st
	}
	if st := apply(); st.Reset != 0 {
		h.t.Errorf("%d reset", st.Reset)
	}
	if err := client.Exchange("x", ""); err != "" {
		h.t.Fatal(err)
	}
	e = h.events.one("judged again", all(kind(dataplane.EventOpen), port(server.Port()), rejudged(true)))
	if e.Workload != "near/late" || e.Rule != "lab/late" {
		h.t.Errorf("with its cgroup known: %s", describe(&e))
	}
	h.events.clear()
	p.late = everything(model.Deny)
	if st := apply(); st.Reset != 1 {
		h.t.Errorf("%d reset", st.Reset)
	}
	if _, err := late.Dial("tcp4", server.Addr); err != h.forbids("tcp4", server.Addr) {
		h.t.Errorf("the unit's next connection: %q", err)
	}
	// Its cgroup ends being a unit's: it is the host's again.
	delete(units, "late")
	apply()
	if s, err := late.Dial("tcp4", server.Addr); err != "" {
		h.t.Errorf("as a part of the host: %s", err)
	} else {
		s.Close()
	}
}

// changesHands lets another workload take the port that a connected datagram socket sends to.
func (h *host) changesHands() {
	h.apply(policy{})
	server := h.two.Bind("udp4", "127.0.0.1:0")
	on := fmt.Sprintf("udp/%d", server.Port())
	server.Close()
	h.apply(policy{
		one: []Rule{rule(model.Egress, twoID, on, model.Allow)}, host: everything(model.Allow),
		two: []Rule{rule(model.Ingress, oneID, on, model.Allow)},
	})
	server = h.two.Listen("udp4", server.Addr)
	client := h.one.MustDial("udp4", server.Addr)
	defer client.Close()
	if err := client.Exchange("x", ""); err != "" {
		h.t.Fatalf("with the first one: %s", err)
	}
	server.Close()
	server = h.own.Listen("udp4", server.Addr)
	defer server.Close()
	h.events.wait("its denial", func() bool { return client.exchange("x", "", brief) == h.forbids("udp4", server.Addr) })
	// Attempts that follow, where an answer was the first to be denied, are denials of their own.
	e := h.events.one("the denial that says so", all(kind(dataplane.EventDeny), workload("near/one"), port(server.Port()), rejudged(true)))
	if e.RemoteWorkload != "near" {
		h.t.Errorf("denial: %s", describe(&e))
	}
}
