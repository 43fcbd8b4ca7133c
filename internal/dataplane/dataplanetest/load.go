package dataplanetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// farPolicy lets the far host judge too.
func farPolicy(rules []Rule) *hostpolicy.Policy {
	p := policy{host: rules, addresses: map[string]hostpolicy.Address{
		Near4 + "/32": {Identity: oneID}, Near6 + "/128": {Identity: oneID},
	}}.build()
	p.Host = "far"
	p.Subjects = p.Subjects[:1]
	p.Subjects[0].Workload = "far"
	p.Sets = []hostpolicy.PolicySet{compile(rules), isolation()}
	if p.Sets[0].ID > p.Sets[1].ID {
		p.Sets[0], p.Sets[1] = p.Sets[1], p.Sets[0]
	}
	return p
}

// testExact makes thousands of flows and wants each of them told exactly once at each end.
func testExact(t *testing.T, open Open) {
	h := newHost(t, open)
	far := h.OpenFar(open)
	farEvents := record(t, far)
	farRules := func(rules []Rule) {
		t.Helper()
		if _, err := far.Apply(context.Background(), &dataplane.State{Policy: farPolicy(rules)}); err != nil {
			t.Fatal(err)
		}
	}
	const n = 2000
	h.apply(policy{one: everything(model.Allow), two: everything(model.Allow)})
	farRules(everything(model.Allow))
	both := func(t *testing.T, network string, server, client *Process, addr string, at []*recorder, sides []string) {
		t.Helper()
		l := server.Listen(network, addr)
		defer l.Close()
		res := client.Burst(network, l.Addr, n, 16)
		t.Logf("%v", res)
		if res.Bad != 0 {
			t.Fatalf("%v", res)
		}
		p, err := model.ParseProto(network[:3])
		if err != nil {
			t.Fatal(err)
		}
		for i, side := range sides {
			d := model.Egress
			if i == 1 {
				d = model.Ingress
			}
			flow := all(workload(side), dir(d), proto(p), port(l.Port()))
			want := n
			if p == model.ProtoUDP && d == model.Ingress {
				// A server cannot tell a new socket from an old one that had the same port a moment ago.
				want = n * 9 / 10
			}
			at[i].wait("every opening and end", func() bool {
				opens, _ := at[i].count(all(kind(dataplane.EventOpen), flow))
				closes, _ := at[i].count(all(kind(dataplane.EventClose), flow))
				return opens >= want && closes == opens
			})
			time.Sleep(late)
			opens, _ := at[i].count(all(kind(dataplane.EventOpen), flow))
			closes, _ := at[i].count(all(kind(dataplane.EventClose), flow))
			if opens != closes || opens > n || opens < want {
				t.Errorf("%s %s: %d openings and %d ends of %d flows", side, d, opens, closes, n)
			}
			c := at[i].carried(flow)
			if c.sent != n || c.received != n {
				t.Errorf("%s %s: carried %+v", side, d, c)
			}
		}
	}
	ends := []*recorder{h.events, farEvents}
	for _, f := range families {
		for _, network := range []string{f.tcp, f.udp} {
			t.Run(network+" between hosts", func(t *testing.T) {
				both(t, network, h.farP, h.one, at(f.far, 0), ends, []string{"near/one", "far"})
			})
			t.Run(network+" on one host", func(t *testing.T) {
				both(t, network, h.two, h.one, at(f.near, 0), []*recorder{h.events, h.events}, []string{"near/one", "near/two"})
			})
		}
	}
	t.Run("connections that are refused", func(t *testing.T) {
		res := h.one.Burst("tcp4", at(Far4, 9), n, 16)
		if res.Errors["ECONNREFUSED"] != n {
			t.Fatalf("%v", res)
		}
		flow := all(workload("near/one"), port(9))
		h.events.wait("every attempt", func() bool { return len(h.events.find(all(kind(dataplane.EventOpen), flow))) >= n })
		quiet()
		if opens, _ := h.events.count(all(kind(dataplane.EventOpen), flow)); opens != n {
			t.Errorf("%d openings of %d attempts", opens, n)
		}
		farEvents.none("anything at the other end", port(9))
	})
	t.Run("connections that this end denies", func(t *testing.T) {
		h.apply(policy{})
		res := h.one.Burst("tcp4", at(Far4, 1234), n, 16)
		if res.Errors[h.forbids("tcp4", Far4)] != n {
			t.Fatalf("%v", res)
		}
		denied := all(kind(dataplane.EventDeny), workload("near/one"), port(1234))
		h.events.wait("every attempt", func() bool { _, a := h.events.count(denied); return a >= n })
		quiet()
		if events, attempts := h.events.count(denied); attempts != n || events > 20 {
			t.Errorf("%d attempts of %d in %d events", attempts, n, events)
		}
	})
	t.Run("connections that the other end denies", func(t *testing.T) {
		const n = 400
		h.apply(policy{one: everything(model.Allow)})
		farRules(nil)
		l := h.farP.Listen("tcp4", at(Far4, 0))
		defer l.Close()
		// Long enough for each SYN to be sent again, after a second: that is no second attempt.
		a := h.one.must(request{Do: "burst", Net: "tcp4", To: l.Addr, N: n, Flow: n, Data: "x", Wait: 2500 * time.Millisecond})
		if a.Bad != n {
			t.Fatalf("%+v", a)
		}
		if _, accepted := l.Seen(); accepted != 0 {
			t.Errorf("%d were accepted", accepted)
		}
		h.events.wait("every attempt at its source", func() bool {
			return len(h.events.find(all(kind(dataplane.EventOpen), port(l.Port())))) >= n
		})
		denied := all(kind(dataplane.EventDeny), workload("far"), port(l.Port()))
		farEvents.wait("every attempt", func() bool { _, a := farEvents.count(denied); return a >= n })
		quiet()
		if opens, _ := h.events.count(all(kind(dataplane.EventOpen), port(l.Port()))); opens != n {
			t.Errorf("%d openings of %d attempts", opens, n)
		}
		if _, attempts := farEvents.count(denied); attempts != n {
			t.Errorf("%d attempts of %d were denied", attempts, n)
		}
		c, err := far.Counters()
		if err != nil || c.DroppedPkts < 2*n {
			t.Errorf("each attempt is sent twice, but %d packets were dropped (%v)", c.DroppedPkts, err)
		}
	})
	for name, d := range map[string]dataplane.Dataplane{"near": h.d, "far": far} {
		if c, err := d.Counters(); err != nil || c.EventsLost != 0 || c.Errors != 0 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// quiet waits long enough for an event too many to come: denials are folded for a second.
func quiet() { time.Sleep(1200 * time.Millisecond) }

// testSwitching changes policy back and forth under load: what is allowed throughout never fails, and what is denied
// never passes.
func testSwitching(t *testing.T, open Open) {
	h := newHost(t, open)
	always, sometimes := h.farP.Listen("tcp4", at(Far4, 0)), h.farP.Listen("tcp4", at(Far4, 0))
	alwaysUDP, sometimesUDP := h.farP.Listen("udp4", at(Far4, 0)), h.farP.Listen("udp4", at(Far4, 0))
	inAlways, inSometimes := h.one.Listen("tcp4", at(Near4, 0)), h.one.Listen("tcp4", at(Near4, 0))
	set := func(on bool, round int) dataplane.ApplyStats {
		id, addresses := farID, standard()
		if round%2 == 1 { // identities change together with the rules that name them
			id = model.IdentityID(0x5000 + round)
			a := addresses[Far4+"/32"]
			a.Identity = id
			addresses[Far4+"/32"] = a
		}
		p := policy{addresses: addresses, one: []Rule{
			rule(model.Egress, id, fmt.Sprintf("tcp/%d", always.Port()), model.Allow),
			rule(model.Egress, id, fmt.Sprintf("udp/%d", alwaysUDP.Port()), model.Allow),
			rule(model.Ingress, id, fmt.Sprintf("tcp/%d", inAlways.Port()), model.Allow),
		}}
		if on {
			p.one = append(p.one,
				rule(model.Egress, id, fmt.Sprintf("tcp/%d", sometimes.Port()), model.Allow),
				rule(model.Egress, id, fmt.Sprintf("udp/%d", sometimesUDP.Port()), model.Allow),
				rule(model.Ingress, id, fmt.Sprintf("tcp/%d", inSometimes.Port()), model.Allow))
		}
		return h.apply(p)
	}
	set(true, 0)
	packets := h.sniff().stop
	const total = 5 * time.Second
	end := time.Now().Add(total)
	// Bursts until the end: new connections all the time, besides streams on old ones.
	type job struct {
		p       *Process
		network string
		to      *Socket
		always  bool
	}
	jobs := []job{
		{h.one, "tcp4", always, true}, {h.one, "udp4", alwaysUDP, true}, {h.farP, "tcp4", inAlways, true},
		{h.one, "tcp4", sometimes, false}, {h.one, "udp4", sometimesUDP, false}, {h.farP, "tcp4", inSometimes, false},
	}
	type outcome struct {
		job
		good, bad int
		errors    map[string]int
	}
	results := make(chan outcome)
	for _, j := range jobs {
		go func() {
			o := outcome{job: j, errors: map[string]int{}}
			for time.Now().Before(end) {
				a := j.p.await(j.p.begin(request{
					Do: "burst", Net: j.network, To: j.to.Addr, N: 20, Flow: 2, Data: "x",
					Wait: map[bool]time.Duration{true: patience, false: 30 * time.Millisecond}[j.always],
				}))
				o.good += a.Good
				o.bad += a.Bad
				for e, n := range a.Errors {
					o.errors[e] += n
				}
			}
			results <- o
		}()
	}
	live := h.one.MustDial("tcp4", always.Addr)
	stream := live.Stream(total, "")
	liveUDP := h.one.Bind("udp4", "0.0.0.0:0")
	datagrams := liveUDP.Stream(total, alwaysUDP.Addr)

	type interval struct{ from, to time.Time }
	var denied []interval
	for round := 0; time.Now().Before(end); round++ {
		set(false, 2*round)
		from := time.Now()
		time.Sleep(30 * time.Millisecond)
		denied = append(denied, interval{from, time.Now()})
		set(true, 2*round+1)
		time.Sleep(10 * time.Millisecond)
	}
	for range jobs {
		o := <-results
		t.Logf("%s to %s over %s (always: %v): %d good, %d bad %v", o.p.Name, o.to.Addr, o.network, o.always, o.good, o.bad, o.errors)
		if o.always && (o.bad > 0 || o.good == 0) {
			t.Errorf("%s over %s, always allowed: %d failed %v", o.p.Name, o.network, o.bad, o.errors)
		}
		if !o.always && (o.good == 0 || o.bad == 0) {
			t.Errorf("%s over %s: the test shows nothing: %d good, %d bad", o.p.Name, o.network, o.good, o.bad)
		}
	}
	if res, err := stream(); err != "" || res.Bad > 0 || res.Good == 0 {
		t.Errorf("the live connection: %v, %s", res, err)
	}
	if res, err := datagrams(); err != "" || res.Bad > 0 || res.Good == 0 {
		t.Errorf("the live datagrams: %v, %s", res, err)
	}
	ports := map[bool]map[uint16]bool{ // by whether it is TCP
		true: {sometimes.Port(): true, inSometimes.Port(): true}, false: {sometimesUDP.Port(): true},
	}
	// Who was interrupted between the programs and the cable, before the switch, goes on when there is time for it.
	const underWay = 5 * time.Millisecond
	passed, leaks := 0, 0
	for _, p := range packets() {
		if on := ports[p.tcp]; !on[p.src] && !on[p.dst] || !p.carries() {
			continue
		}
		passed++
		for i, d := range denied {
			if p.at.After(d.from.Add(underWay)) && p.at.Before(d.to) {
				leaks++
				t.Errorf("round %d: %v after the switch, %v before the next, a packet passed: %+v", i, p.at.Sub(d.from), d.to.Sub(p.at), p)
			}
		}
	}
	t.Logf("%d switches, %d packets passed while it was allowed, %d while it was denied", 2*len(denied), passed, leaks)
	if passed == 0 {
		t.Error("the test shows nothing: no packet was seen")
	}
	c, err := h.d.Counters()
	if err != nil || c.Errors != 0 {
		t.Errorf("counters: %+v, %v", c, err)
	}
}
