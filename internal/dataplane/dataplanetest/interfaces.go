package dataplanetest

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os/exec"
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
	t.Run("other frames", func(t *testing.T) { whole.with(t).otherFrames() })
	t.Run("translated addresses", func(t *testing.T) { whole.with(t).translated() })
	for _, f := range yardFamilies {
		t.Run("packet sockets "+f.name, func(t *testing.T) { whole.with(t).packetSockets(f) })
		t.Run("a spoofed source "+f.name, func(t *testing.T) { whole.with(t).spoofed(f) })
		t.Run("a stack in user space "+f.name, func(t *testing.T) { whole.with(t).stack(f) })
		t.Run("sockets of a container "+f.name, func(t *testing.T) { whole.with(t).container(f) })
		t.Run("a virtual machine "+f.name+" echo", func(t *testing.T) { whole.with(t).machineEcho(f) })
		t.Run("a virtual machine "+f.name+" fragments", func(t *testing.T) { whole.with(t).machineFragments(f) })
		t.Run("a virtual machine "+f.name+" policy changes", func(t *testing.T) { whole.with(t).machineChanges(f) })
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

// machineEcho pings in both directions, through the stack of the virtual machine.
func (y *yard) machineEcho(f yardFamily) {
	for _, d := range model.Directions {
		p, to := y.guest, f.far
		if d == model.Ingress {
			p, to = y.farP, f.guest
		}
		for _, v := range verdicts {
			y.apply(policy{two: []Rule{rule(d, farID, f.echo, v)}})
			y.events.clear()
			k, want, wait := dataplane.EventOpen, "", patience
			if v == model.Deny {
				k, want, wait = dataplane.EventDeny, "timeout", brief
			}
			if err := p.ping(to, wait); err != want {
				y.t.Errorf("%s %s: %q instead of %q", d, v, err, want)
			}
			y.events.one("the echo", all(kind(k), workload("near/two"), dir(d), proto(f.icmp)))
		}
	}
}

// machineFragments sends datagrams that do not fit into a packet, there and back.
func (y *yard) machineFragments(f yardFamily) {
	l := y.farP.Listen(f.udp, at(f.far, 0))
	defer l.Close()
	y.apply(policy{two: []Rule{rule(model.Egress, farID, fmt.Sprintf("udp/%d", l.Port()), model.Allow)}})
	s := y.guest.MustDial(f.udp, l.Addr)
	defer s.Close()
	if err := s.Exchange(strings.Repeat("x", 4000), ""); err != "" {
		y.t.Errorf("what is allowed: %s", err)
	}
	y.apply(policy{})
	seen, _ := l.Seen()
	if err := s.exchange(strings.Repeat("x", 4000), "", brief); err != "timeout" {
		y.t.Errorf("what is denied: %q", err)
	}
	if now, _ := l.Seen(); now != seen {
		y.t.Error("what is denied has come")
	}
}

// machineChanges has policy change under a live connection of the virtual machine.
func (y *yard) machineChanges(f yardFamily) {
	l := y.farP.Listen(f.tcp, at(f.far, 0))
	defer l.Close()
	open := policy{two: []Rule{rule(model.Egress, farID, fmt.Sprintf("tcp/%d", l.Port()), model.Allow)}}
	y.apply(open)
	s := y.guest.MustDial(f.tcp, l.Addr)
	defer s.Close()
	if err := s.Exchange("hello", ""); err != "" {
		y.t.Fatal(err)
	}
	y.events.clear()
	y.apply(policy{})
	if err := s.exchange("hello", "", brief); err != "timeout" {
		y.t.Errorf("what is denied: %q", err)
	}
	mine := all(workload("near/two"), port(l.Port()))
	y.events.wait("the denial", func() bool { return len(y.events.find(all(kind(dataplane.EventDeny), rejudged(true), mine))) == 1 })
	y.apply(open)
	if b, err := s.Read(patience); b != "hello" { // the guest has gone on trying
		y.t.Errorf("allowed again: %q, %s", b, err)
	}
}

// container has the sockets of a container talk, behind whose interface there is nothing but this kernel: each flow is judged and
// told once, at its socket.
func (y *yard) container(f yardFamily) {
	for name, p := range map[string]*Process{"at a bridge": y.bridged, "without one": y.routed} {
		addr := f.bridged
		if p == y.routed {
			addr = f.routed
		}
		for _, network := range []string{f.tcp, f.udp} {
			for _, d := range model.Directions {
				server, client, serves := y.farP, p, f.far
				if d == model.Ingress {
					server, client, serves = p, y.farP, addr
				}
				l := server.Listen(network, at(serves, 0))
				y.apply(policy{one: []Rule{rule(d, farID, fmt.Sprintf("%s/%d", network[:3], l.Port()), model.Allow)}})
				y.events.clear()
				s := client.MustDial(network, l.Addr)
				for range 3 {
					if err := s.Exchange(strings.Repeat("x", 3000), ""); err != "" {
						y.t.Errorf("%s, %s %s: %s", name, network, d, err)
					}
				}
				mine := all(workload("near/one"), dir(d), port(l.Port()))
				y.events.one(fmt.Sprintf("%s, %s %s", name, network, d), all(kind(dataplane.EventOpen), mine))
				y.events.none("a denial", all(kind(dataplane.EventDeny), workload("near/one")))
				s.Close()
				l.Close()
			}
		}
		y.apply(policy{one: []Rule{rule(model.Egress, farID, f.echo, model.Allow)}})
		y.events.clear()
		if err := p.ping(f.far, patience); err != "" {
			y.t.Errorf("%s, echo: %s", name, err)
		}
		y.events.one("the echo", all(kind(dataplane.EventOpen), proto(f.icmp)))
		y.events.none("a denied echo", all(kind(dataplane.EventDeny), proto(f.icmp)))
	}
}

// stack has a process of no judged cgroup send frames in the namespace of a container, as a network stack in user space would: it is
// the container's unit.
func (y *yard) stack(f yardFamily) {
	l := y.farP.Listen(f.udp, at(f.far, 0))
	defer l.Close()
	d := datagram{
		srcMAC: y.macs["bridged"], dstMAC: y.macs["bridge"], data: "hello",
		src: netip.AddrPortFrom(netip.MustParseAddr(f.bridged), 7100), dst: netip.AddrPortFrom(netip.MustParseAddr(f.far), l.Port()),
	}
	for _, v := range verdicts {
		y.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("udp/%d", l.Port()), v)}})
		y.events.clear()
		if err := y.stranger.send("eth0", d); err != "" {
			y.t.Fatal(err)
		}
		mine := all(workload("near/one"), dir(model.Egress), port(l.Port()))
		y.events.wait(v.String(), func() bool {
			return len(y.events.find(all(mine, func(e *dataplane.Event) bool {
				return (e.Kind == dataplane.EventOpen || e.Kind == dataplane.EventDeny) && e.Verdict == v
			}))) == 1
		})
		d.src = netip.AddrPortFrom(d.src.Addr(), d.src.Port()+1)
	}
}

// spoofed has a container send from addresses of others of this host.
func (y *yard) spoofed(f yardFamily) {
	l := y.farP.Listen(f.udp, at(f.far, 0))
	defer l.Close()
	ports := []uint16{7201, 7202, 7203, l.Port()} // or denials would be folded
	y.apply(policy{one: everything(model.WouldDeny)})
	y.events.clear()
	if err := y.bridged.send("eth0", datagram{
		srcMAC: y.macs["bridged"], dstMAC: y.macs["bridge"], data: "hello",
		src: netip.AddrPortFrom(netip.MustParseAddr(f.routed), 7199), dst: netip.AddrPortFrom(netip.MustParseAddr(f.far), 7204),
	}); err != "" {
		y.t.Fatal(err)
	}
	if e := y.events.one("where nothing is enforced", all(kind(dataplane.EventOpen), dir(model.Egress), port(7204))); e.Workload != "near/one" || e.Verdict != model.WouldDeny {
		y.t.Errorf("%s", describe(&e))
	}
	y.apply(policy{one: []Rule{rule(model.Egress, nobody, "udp", model.Allow)}})
	for i, addr := range []string{f.near, f.bridge, f.routed, f.bridged} {
		y.events.clear()
		err := y.bridged.send("eth0", datagram{
			srcMAC: y.macs["bridged"], dstMAC: y.macs["bridge"], data: "hello",
			src: netip.AddrPortFrom(netip.MustParseAddr(addr), 7200), dst: netip.AddrPortFrom(netip.MustParseAddr(f.far), ports[i]),
		})
		if err != "" {
			y.t.Fatal(err)
		}
		from := func(e *dataplane.Event) bool { return e.Local.Addr().String() == addr && e.Workload == "near/one" }
		if addr == f.bridged { // its own
			y.events.one("what is not spoofed", all(kind(dataplane.EventOpen), from))
			y.events.wait("what is not spoofed", func() bool { seen, _ := l.Seen(); return seen == 1 })
			continue
		}
		e := y.events.one("from "+addr, all(kind(dataplane.EventDeny), from))
		if e.Rule != "dataplane/spoofed-source" || e.Dir != model.Egress {
			y.t.Errorf("%s", describe(&e))
		}
	}
	if seen, _ := l.Seen(); seen != 1 {
		y.t.Errorf("%d datagrams have come", seen)
	}
}

// otherFrames sends what is not IP, or hides it.
func (y *yard) otherFrames() {
	tagged := datagram{
		srcMAC: y.macs["near"], dstMAC: y.macs["far"], data: "hello", tags: []uint16{7},
		src: netip.AddrPortFrom(netip.MustParseAddr(Near4), 7300), dst: netip.AddrPortFrom(netip.MustParseAddr(Far4), 7301),
	}
	odd := append(append(append([]byte{}, y.macs["far"]...), y.macs["near"]...), 0x88, 0xb5, 'x')
	cut := tagged.frame()[:12+4+2+10]
	routed := tagged.frame()[:12+4+2] // with a source route
	routed = append(routed, 0x47, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2, 131, 7, 4, 10, 77, 1, 3, 0, 0x1c, 0x84, 0x1c, 0x85, 0, 8, 0, 0)
	arp := append(append(append([]byte{}, y.macs["far"]...), y.macs["near"]...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	arp = append(arp, make([]byte, 20)...)
	forLink := append([]byte{0x01, 0x80, 0xc2, 0, 0, 0x0e}, odd[6:]...)
	for _, v := range []model.Verdict{model.Allow, model.Deny} {
		y.apply(policy{two: everything(v)})
		for _, c := range []struct {
			name   string
			frame  []byte
			proto  model.Proto
			port   uint16
			passes bool
		}{
			{"in a VLAN", tagged.frame(), model.ProtoUDP, 7301, false},
			{"of a protocol of its own", odd, 255, 0x88b5, false},
			{"cut short", cut, 255, 0x0800, false},
			{"with a source route", routed, 255, 0x0800, false},
			{"ARP", arp, 0, 0, true},
			{"for the link", forLink, 0, 0, true},
		} {
			y.events.clear()
			want, k := "", dataplane.EventOpen
			if v == model.Deny && !c.passes {
				want, k = "ENOBUFS", dataplane.EventDeny
			}
			if err := y.two.ask(request{Do: "frame", Local: "eth0", Data: hex.EncodeToString(c.frame)}).Err; err != want {
				y.t.Errorf("%s, %s: %q instead of %q", c.name, v, err, want)
			}
			if !c.passes {
				y.events.one(c.name, all(kind(k), workload("near/two"), proto(c.proto), port(c.port)))
			}
		}
	}
}

// translated has near translate addresses, as container runtimes have it done: of what its containers send, and of a port that
// it publishes.
func (y *yard) translated() {
	nft, err := exec.LookPath("nft")
	if err != nil {
		Cannot(y.t, "firewalls", err)
	}
	inside, outside := y.bridged.Listen("tcp4", at(Bridged4, 0)), y.farP.Listen("tcp4", at(Far4, 0))
	defer inside.Close()
	defer outside.Close()
	rules := fmt.Sprintf(`table ip lab {
		chain in { type nat hook prerouting priority -100; tcp dport 8088 dnat to %s; }
		chain out { type nat hook postrouting priority 100; ip saddr 10.78.0.0/16 oifname "eth0" masquerade; }
	}`, inside.Addr)
	y.nft(nft, rules)
	defer y.nft(nft, "delete table ip lab")
	y.apply(policy{one: []Rule{
		rule(model.Ingress, farID, fmt.Sprintf("tcp/%d", inside.Port()), model.Allow),
		rule(model.Egress, farID, fmt.Sprintf("tcp/%d", outside.Port()), model.Allow),
	}})
	y.events.clear()
	y.reaches(y.farP, "tcp4", at(Near4, 8088), "")
	e := y.events.one("the published port", all(kind(dataplane.EventOpen), dir(model.Ingress), port(inside.Port())))
	if e.Workload != "near/one" || e.Remote.Addr().String() != Far4 {
		y.t.Errorf("%s", describe(&e))
	}
	y.reaches(y.bridged, "tcp4", outside.Addr, "")
	e = y.events.one("the masqueraded one", all(kind(dataplane.EventOpen), dir(model.Egress), port(outside.Port())))
	if e.Workload != "near/one" || e.Local.Addr().String() != Bridged4 {
		y.t.Errorf("%s", describe(&e))
	}
	y.events.none("a denial", kind(dataplane.EventDeny))
}

func (y *yard) nft(path, rules string) {
	y.t.Helper()
	in(y.t, y.near, func() {
		cmd := exec.Command(path, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			y.t.Fatalf("nft: %v\n%s", err, out)
		}
	})
}
