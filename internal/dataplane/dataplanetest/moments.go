package dataplanetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testMoments changes policy, or the network, at moments in the life of a connection that are rare.
func testMoments(t *testing.T, open Open, f family) {
	whole := newHost(t, open)
	t.Run("TIME_WAIT", func(t *testing.T) { whole.with(t).timeWait(f) })
	t.Run("simultaneous open", func(t *testing.T) { whole.with(t).simultaneous(f) })
	t.Run("half-open", func(t *testing.T) { whole.with(t).halfOpen(f) })
	t.Run("long idle", func(t *testing.T) { whole.with(t).longIdle(f) })
	t.Run("MTU", func(t *testing.T) { whole.with(t).mtu(f) })
	t.Run("a unit's cgroup is made again", func(t *testing.T) { whole.with(t).madeAgain(f) })
}

// hangUp ends what a listener has accepted; if it vanishes, without a word to the other end.
func (o *opened) hangUp(vanish bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, c := range o.peers {
		if vanish {
			raw, err := c.(*net.TCPConn).SyscallConn()
			if err != nil {
				return err
			}
			var set error
			err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
			errs = append(errs, err, set)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	o.peers = nil
	return errors.Join(errs...)
}

func (s *Socket) hangUp() { s.p.must(request{Do: "hang up", ID: s.id}) }
func (s *Socket) vanish() { s.p.must(request{Do: "vanish", ID: s.id}) }

// timeWait has far come back from the port of a connection that this host remembers the end of: it is judged as whoever listens
// there now, whatever was before it.
func (h *host) timeWait(f family) {
	h.apply(policy{})
	server := h.one.Listen(f.tcp, at(f.near, 0))
	on := fmt.Sprintf("tcp/%d", server.Port())
	from := at(f.far, 8600)
	dial := func(d time.Duration) (s *Socket, err string) {
		h.t.Helper()
		h.events.wait("its port", func() bool { // which the far end lets go of a moment after it was closed
			s, err = h.farP.dial(request{Net: f.tcp, Local: from, To: server.Addr, Wait: d})
			return err != "EADDRINUSE"
		})
		return s, err
	}
	passes := func(when, who string) {
		h.t.Helper()
		h.events.clear()
		s, err := dial(patience)
		if err == "" {
			err = s.Exchange("hello", "")
		}
		if err != "" {
			h.t.Fatalf("%s: %s", when, err)
		}
		server.hangUp() // who closes first remembers
		s.Close()
		h.events.wait("TIME_WAIT", func() bool { return h.hasTCP(h.one, f, server.Port(), "06") })
		m := all(port(server.Port()), dir(model.Ingress))
		if e := h.events.one(when+": its opening", all(kind(dataplane.EventOpen), m)); e.Workload != who || e.Rejudged || e.Remote.String() != from {
			h.t.Errorf("%s: %s", when, describe(&e))
		}
		h.events.one(when+": its end", all(kind(dataplane.EventClose), m))
	}
	denied := func(when, who string) {
		h.t.Helper()
		if st := h.apply(policy{}); st.Reset != 0 {
			h.t.Errorf("%s: %d connections were reset that have ended", when, st.Reset)
		}
		h.events.clear()
		if _, err := dial(brief); err != "timeout" {
			h.t.Errorf("%s, denied: %q", when, err)
		}
		m := all(port(server.Port()), dir(model.Ingress))
		h.events.wait(when+": the denial", func() bool {
			return len(h.events.find(all(kind(dataplane.EventDeny), workload(who), m))) > 0
		})
		h.events.none(when+": anything of another workload", all(m, func(e *dataplane.Event) bool { return e.Workload != who }))
	}
	// What the host itself or another unit may is nothing to the one that listens.
	ofOne := policy{one: []Rule{rule(model.Ingress, farID, on, model.Allow)}}
	ofTwo := policy{two: ofOne.one}
	for _, when := range []string{"at first", "after a denial"} {
		h.apply(ofOne)
		passes(when, "near/one")
		passes(when+", again", "near/one")
		denied(when, "near/one")
	}
	h.apply(ofOne)
	passes("before another one listens", "near/one")
	server.Close()
	server = h.two.Listen(f.tcp, server.Addr)
	defer func() { server.Close() }()
	denied("another one listens", "near/two")
	h.apply(ofTwo)
	passes("another one listens", "near/two")
	passes("another one listens, again", "near/two")

	from = at(f.near, 8601) // and on the same host, where this end's is known exactly too
	dial = func(d time.Duration) (s *Socket, err string) {
		h.t.Helper()
		h.events.wait("its port", func() bool {
			s, err = h.one.dial(request{Net: f.tcp, Local: from, To: server.Addr, Wait: d})
			return err != "EADDRINUSE"
		})
		return s, err
	}
	here := policy{
		one: []Rule{rule(model.Egress, twoID, on, model.Allow)},
		two: []Rule{rule(model.Ingress, oneID, on, model.Allow)},
	}
	h.apply(here)
	passes("on the same host", "near/two")
	passes("on the same host, again", "near/two")
	here.two = nil
	h.apply(here)
	h.events.clear()
	if _, err := dial(brief); err != "timeout" {
		h.t.Errorf("on the same host, denied: %q", err)
	}
	h.events.one("the denial", all(kind(dataplane.EventDeny), dir(model.Ingress), workload("near/two"), port(server.Port())))
}

// hasTCP reports whether there is a connection of the local port in the state, as /proc/net/tcp has it, where the process is.
func (h *host) hasTCP(p *Process, f family, local uint16, state string) bool {
	name := map[string]string{"tcp4": "tcp", "tcp6": "tcp6"}[f.tcp]
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.PID(), name))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", local)) && fields[3] == state {
			return true
		}
	}
	return false
}

// simultaneous has both ends connect to each other at once: neither listens.
func (h *host) simultaneous(f family) {
	const mine, theirs = 8610, 8611
	h.apply(policy{one: []Rule{rule(model.Egress, farID, fmt.Sprintf("tcp/%d", theirs), model.Allow)}})
	h.events.clear()
	h.estrange(f, true)
	begin := func(p *Process, from, to string) (*Socket, <-chan answer) {
		s := &Socket{p: p, id: p.id(), Net: f.tcp}
		return s, p.begin(request{Do: "dial", ID: s.id, Net: f.tcp, Local: from, To: to, Wait: patience})
	}
	near, first := begin(h.one, at(f.near, mine), at(f.far, theirs))
	far, second := begin(h.farP, at(f.far, theirs), at(f.near, mine))
	h.events.wait("both have sent their SYN in vain", func() bool {
		return h.hasTCP(h.one, f, mine, "02") && h.hasTCP(h.farP, f, theirs, "02")
	})
	h.estrange(f, false)
	for who, c := range map[string]<-chan answer{"near": first, "far": second} {
		if a := h.one.await(c); a.Err != "" {
			h.t.Fatalf("%s: %s", who, a.Err)
		}
	}
	near.exchange("hello", "", brief) // nobody answers
	if got, err := far.Read(patience); got != "hello" {
		h.t.Errorf("far reads %q, %s", got, err)
	}
	m := all(workload("near/one"), proto(model.ProtoTCP))
	e := h.events.one("the connection", all(kind(dataplane.EventOpen), m))
	if e.Dir != model.Egress || e.Port != theirs || e.Verdict != model.Allow {
		h.t.Errorf("opening: %s", describe(&e))
	}
	h.events.none("a denial", all(kind(dataplane.EventDeny), m, rejudged(false)))
	if st := h.apply(policy{}); st.Reset != 1 {
		h.t.Errorf("%d connections were reset", st.Reset)
	}
	if _, err := far.Read(patience); err != "ECONNRESET" {
		h.t.Errorf("far sees %q", err)
	}
	far.Close()
	near.Close()
}

// estrange has both hosts believe that the other's interface is another one, so that nothing arrives.
func (h *host) estrange(f family, on bool) {
	for other, isFar := range map[string]bool{f.far: false, f.near: true} {
		h.On(isFar, func() {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				h.t.Fatal(err)
			}
			n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(other), State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
			if on {
				err = netlink.NeighSet(n)
			} else {
				err = netlink.NeighDel(n)
			}
			if err != nil {
				h.t.Fatal(err)
			}
		})
	}
}

// halfOpen has far forget a connection, as a machine does that is switched off and on again.
func (h *host) halfOpen(f family) {
	h.apply(policy{one: everything(model.Allow)})
	server := h.farP.Listen(f.tcp, at(f.far, 0))
	defer server.Close()
	open := func() *Socket {
		s := h.one.MustDial(f.tcp, server.Addr)
		if err := s.Exchange("hello", ""); err != "" {
			h.t.Fatal(err)
		}
		server.vanish()
		return s
	}
	s := open()
	if err := s.Exchange("hello", ""); err != "ECONNRESET" {
		h.t.Errorf("what far says to a connection that it does not know: %q", err)
	}
	h.events.one("its end", all(kind(dataplane.EventClose), port(server.Port())))
	h.events.none("a denial", kind(dataplane.EventDeny))
	h.events.clear()
	s = open()
	if st := h.apply(policy{}); st.Reset != 1 {
		h.t.Errorf("%d connections were reset", st.Reset)
	}
	if _, err := s.Read(patience); err != "ECONNABORTED" {
		h.t.Errorf("denied: %q", err)
	}
}

// longIdle is silent for longer than a kernel that tracks connections is told to remember them.
func (h *host) longIdle(f family) {
	const setting = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
	remember := func(seconds string) {
		h.On(false, func() {
			if err := os.WriteFile(setting, []byte(seconds), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				h.t.Fatal(err)
			}
		})
	}
	remember("1")
	defer remember("432000")
	for _, d := range model.Directions {
		h.apply(policy{one: []Rule{rule(d, farID, "tcp", model.Allow)}})
		h.events.clear()
		client, server := h.pair(f.tcp, f.far, f.near, d)
		time.Sleep(1500 * time.Millisecond)
		if err := client.Exchange("still here", ""); err != "" {
			h.t.Errorf("%s: %s", d, err)
		}
		h.events.none("a denial", all(kind(dataplane.EventDeny), port(server.Port()), rejudged(false)))
		if st := h.apply(policy{}); st.Reset != 1 {
			h.t.Errorf("%s, denied: %d reset", d, st.Reset)
		}
		if err := client.exchange("hello", "", brief); err == "" {
			h.t.Errorf("%s goes on although it is denied", d)
		}
	}
}

// mtu makes the way narrower under flows that are open.
func (h *host) mtu(f family) {
	narrow := func(bytes int) {
		for _, isFar := range []bool{false, true} {
			h.On(isFar, func() {
				link, err := netlink.LinkByName("eth0")
				if err == nil {
					err = netlink.LinkSetMTU(link, bytes)
				}
				if err != nil {
					h.t.Fatal(err)
				}
			})
		}
	}
	defer narrow(1500)
	h.apply(policy{})
	denied := h.farP.Listen(f.udp, at(f.far, 0))
	defer denied.Close()
	h.apply(policy{one: []Rule{
		rule(model.Egress, farID, fmt.Sprintf("udp/%d", denied.Port()), model.Deny),
		rule(model.Egress, farID, "any", model.Allow), rule(model.Ingress, farID, "any", model.Allow),
	}})
	h.events.clear()
	out, _ := h.pair(f.tcp, f.far, f.near, model.Egress)
	in, _ := h.pair(f.tcp, f.far, f.near, model.Ingress)
	udp, _ := h.pair(f.udp, f.far, f.near, model.Egress)
	blocked := h.one.MustDial(f.udp, denied.Addr)
	big := strings.Repeat("0123456789", 4000)
	for _, bytes := range []int{1500, 1280, 1500} {
		narrow(bytes)
		for name, s := range map[string]*Socket{"outbound": out, "inbound": in, "datagrams": udp} {
			if err := s.Exchange(big, ""); err != "" {
				h.t.Errorf("%s with %d bytes a packet: %s", name, bytes, err)
			}
		}
		if err := blocked.Exchange(big, ""); err != "EPERM" {
			h.t.Errorf("denied with %d bytes a packet: %q", bytes, err)
		}
	}
	if n, _ := denied.Seen(); n != 0 {
		h.t.Errorf("%d datagrams came through", n)
	}
	h.events.none("a denial of what is allowed", all(kind(dataplane.EventDeny), func(e *dataplane.Event) bool { return e.Port != denied.Port() }))
}

// madeAgain removes a unit's cgroup and makes it again, as a service manager does when it restarts a service.
func (h *host) madeAgain(f family) {
	server := h.farP.Listen(f.tcp, at(f.far, 0))
	defer server.Close()
	late := h.Unit("late")
	p := policy{host: everything(model.Allow), late: everything(model.Deny)}
	units := h.units()
	units["late"] = []string{late}
	apply := func() {
		h.t.Helper()
		if _, err := h.d.Apply(h.t.Context(), &dataplane.State{Policy: p.build(), Units: units}); err != nil {
			h.t.Fatal(err)
		}
	}
	for round := range 2 {
		apply()
		h.events.clear()
		process := h.Start("late")
		if _, err := process.Dial(f.tcp, server.Addr); err != h.forbids(f.tcp, server.Addr) {
			h.t.Errorf("round %d: %q", round, err)
		}
		h.events.one("the denial", all(kind(dataplane.EventDeny), workload("near/late"), port(server.Port())))
		process.end()
		h.events.wait("its cgroup can be removed", func() bool { return os.Remove(late) == nil })
		if err := os.Mkdir(late, 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	h.events.clear()
	// Before it is named again nobody's rules are those of the unit that was: it is what it lies in.
	process := h.Start("late")
	h.reaches(process, f.tcp, server.Addr, "")
	apply()
	h.reaches(process, f.tcp, server.Addr, "EPERM")
	process.end()
	h.apply(policy{})
}

// end ends the process before the test does.
func (p *Process) end() {
	p.t.Helper()
	_ = p.in.Close()
	_ = p.cmd.Wait() // it was told to
}
