package dataplanetest

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testInterfaces tries what no inet socket of the host sends or receives: packet sockets, and other network stacks.
func testInterfaces(t *testing.T, open Open) {
	whole := newYard(t, open)
	if !whole.d.Capabilities().Frames {
		if limits := strings.Join(whole.d.Capabilities().Limits, "\n"); !strings.Contains(limits, "forwards for others") || !strings.Contains(limits, "AF_PACKET") {
			t.Errorf("the limits do not say what is not judged:\n%s", limits)
		}
		return
	}
	for _, f := range yardFamilies {
		t.Run("packet sockets "+f.name, func(t *testing.T) { whole.with(t).packetSockets(f) })
		for _, network := range []string{f.tcp, f.udp} {
			for _, v := range verdicts {
				for _, d := range model.Directions {
					t.Run(fmt.Sprintf("a virtual machine %s %s %s", network, d, v), func(t *testing.T) {
						whole.with(t).machineFlow(f, network, d, v)
					})
				}
			}
		}
	}
}

// with returns the yard for a subtest.
func (y *yard) with(t testing.TB) *yard {
	sub := *y
	sub.host = y.host.with(t)
	for _, p := range []*Process{y.bridged, y.routed, y.guest, y.stranger} {
		p.t = t
	}
	t.Cleanup(func() {
		for _, p := range []*Process{y.bridged, y.routed, y.guest, y.stranger} {
			p.t = y.t
		}
	})
	return &sub
}

// yardFamily is a family and what is behind near in it.
type yardFamily struct {
	family
	bridge, bridged, guest, routed string
}

var yardFamilies = []yardFamily{
	{families[0], Bridge4, Bridged4, Guest4, Routed4},
	{families[1], Bridge6, Bridged6, Guest6, Routed6},
}

// send has a process send the frame by an interface, and returns the error that it gets.
func (p *Process) send(by string, d datagram) string {
	p.t.Helper()
	return p.ask(request{Do: "frame", Local: by, Data: hex.EncodeToString(d.frame())}).Err
}

// packetSockets has packet sockets send to far: of the host and of a unit by the host's own interface, of containers at a bridge
// and without one. They are judged as what their frames say, for whom they are.
func (y *yard) packetSockets(f yardFamily) {
	y.apply(policy{})
	from := func(addr string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	}
	senders := []struct {
		name, by, workload string
		p                  *Process
		d                  datagram
		behind             bool
	}{
		{"the host", "eth0", "near", y.own, datagram{srcMAC: y.macs["near"], dstMAC: y.macs["far"], src: from(f.near, 7001)}, false},
		{"a unit", "eth0", "near/two", y.two, datagram{srcMAC: y.macs["near"], dstMAC: y.macs["far"], src: from(f.near, 7002)}, false},
		{"a container at a bridge", "eth0", "near/one", y.bridged, datagram{srcMAC: y.macs["bridged"], dstMAC: y.macs["bridge"], src: from(f.bridged, 7003)}, true},
		{"a container", "eth0", "near/one", y.routed, datagram{srcMAC: y.macs["routed"], dstMAC: y.macs["gate"], src: from(f.routed, 7004)}, true},
	}
	for _, v := range verdicts {
		rules := []Rule{rule(model.Egress, farID, "udp", v)}
		y.apply(policy{host: rules, one: rules, two: rules})
		for _, s := range senders {
			y.events.clear()
			server := y.farP.Listen(f.udp, at(f.far, 0)) // each its own, or denials would be folded
			to := netip.AddrPortFrom(netip.MustParseAddr(f.far), server.Port())
			s.d.dst, s.d.data = to, "hello"
			k, want := dataplane.EventOpen, ""
			if v == model.Deny {
				k = dataplane.EventDeny
				if !s.behind {
					want = "ENOBUFS" // the frame has not got out
				}
			}
			if err := s.p.send(s.by, s.d); err != want {
				y.t.Errorf("%s, %s: %q instead of %q", s.name, v, err, want)
			}
			mine := all(proto(model.ProtoUDP), port(server.Port()), func(e *dataplane.Event) bool { return e.Local == s.d.src })
			e := y.events.one(s.name, all(kind(k), mine))
			if e.Workload != s.workload || e.Dir != model.Egress || e.RemoteIdentity != farID || e.Verdict != v || e.Rule != rules[0].Name {
				y.t.Errorf("%s: %s", s.name, describe(&e))
			}
			if v != model.Deny {
				y.events.wait(s.name+" is heard", func() bool { seen, _ := server.Seen(); return seen == 1 })
				server.Close()
				continue
			}
			// What is allowed comes later by the same way.
			s.d.dst = netip.AddrPortFrom(to.Addr(), 67)
			if err := s.p.send(s.by, s.d); err != "" {
				y.t.Errorf("%s: %s", s.name, err)
			}
			if seen, _ := server.Seen(); seen != 0 {
				y.t.Errorf("%s: what is denied has come", s.name)
			}
			server.Close()
		}
	}
}

// machineFlow has the guest of a virtual machine talk to far or answer it: it is judged as the unit that runs it.
func (y *yard) machineFlow(f yardFamily, network string, d model.Direction, v model.Verdict) {
	server, client, serves := y.farP, y.guest, f.far
	if d == model.Ingress {
		server, client, serves = y.guest, y.farP, f.guest
	}
	l := server.Listen(network, at(serves, 0))
	defer l.Close()
	y.apply(policy{two: []Rule{rule(d, farID, fmt.Sprintf("%s/%d", network[:3], l.Port()), v)}})
	y.events.clear()
	mine := all(workload("near/two"), dir(d), port(l.Port()), func(e *dataplane.Event) bool { return e.Local.Addr().String() == f.guest })
	if v == model.Deny {
		if s, err := client.dial(request{Net: network, To: l.Addr, Wait: brief}); err == "" {
			if err := s.exchange("hello", "", brief); err != "timeout" {
				y.t.Errorf("what is denied: %q", err)
			}
			s.Close()
		} else if err != "timeout" {
			y.t.Errorf("what is denied: %q", err)
		}
		e := y.events.one("the denial", all(kind(dataplane.EventDeny), mine))
		if e.Verdict != v || e.RemoteIdentity != farID {
			y.t.Errorf("%s", describe(&e))
		}
		y.events.none("anything else", all(kind(dataplane.EventOpen), mine))
		return
	}
	s := client.MustDial(network, l.Addr)
	for range 3 {
		if err := s.Exchange("hello", ""); err != "" {
			y.t.Fatalf("what is allowed: %s", err)
		}
	}
	e := y.events.one("the opening", all(kind(dataplane.EventOpen), mine))
	if e.Verdict != v || e.RemoteIdentity != farID {
		y.t.Errorf("%s", describe(&e))
	}
	s.Close()
	y.events.wait("the end", func() bool { return len(y.events.find(all(kind(dataplane.EventClose), mine))) > 0 })
	if sum := y.events.carried(mine); sum.sent != 15 || sum.received != 15 {
		y.t.Errorf("it has carried %+v", sum)
	}
}
