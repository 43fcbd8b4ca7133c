package dataplanetest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// host is near with a dataplane, and processes at both hosts.
type host struct {
	*Bed
	t             testing.TB
	d             dataplane.Dataplane
	events        *recorder
	own, one, two *Process // of near: no unit, and two units
	farP          *Process
	open          Open
}

// newHost builds a lab with a dataplane at near.
func newHost(t testing.TB, open Open) *host {
	t.Helper()
	return newHostAt(t, NewBed(t), open)
}

// newHostAt does so in a lab that is there.
func newHostAt(t testing.TB, b *Bed, open Open) *host {
	t.Helper()
	h := &host{Bed: b, t: t, open: open, d: b.Open(open)}
	h.events = record(t, h.d)
	h.own, h.one, h.two, h.farP = b.Start(""), b.Start("one"), b.Start("two/inner"), b.StartFar()
	return h
}

// with returns the host for a subtest, which is the one that fails until it ends.
func (h *host) with(t testing.TB) *host {
	sub := *h
	sub.t = t
	fails := []*testing.TB{&h.events.t, &h.own.t, &h.one.t, &h.two.t, &h.farP.t}
	for _, f := range fails {
		*f = t
	}
	h.events.clear()
	t.Cleanup(func() {
		h.events.end()
		for _, f := range fails {
			*f = h.t
		}
	})
	return &sub
}

// units are the cgroups of near's units. A unit owns what is below its cgroup.
func (h *host) units() map[string][]string {
	return map[string][]string{"one": {h.Unit("one")}, "two": {h.Unit("two")}}
}

// apply makes the policy the one that judges.
func (h *host) apply(p policy) dataplane.ApplyStats {
	h.t.Helper()
	units := h.units()
	if p.inner != "" {
		units[p.inner] = []string{h.Unit("two/" + p.inner)}
	}
	st, err := h.d.Apply(context.Background(), &dataplane.State{Policy: p.build(), Units: units, Users: p.users})
	if err != nil {
		h.t.Fatalf("apply: %v", err)
	}
	return st
}

// RunLoad tests an implementation that judges real packets under as much load as the machine can make: it should have
// the machine for itself.
func RunLoad(t *testing.T, open Open) {
	t.Run("exact", func(t *testing.T) { testExact(t, open) })
	t.Run("switching", func(t *testing.T) { testSwitching(t, open) })
}

// RunSwitching is the part of RunLoad in which policy changes under load: for implementations whose flows of UDP do not end
// with their sockets, so that they cannot be counted.
func RunSwitching(t *testing.T, open Open) { testSwitching(t, open) }

// Run tests an implementation that judges real packets. Each group of situations has a lab of its own, and goes through
// them one after the other; the groups run side by side.
func Run(t *testing.T, open Open) {
	group := func(name string, test func(*testing.T, Open)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
	for _, f := range families {
		group("flows "+f.name, func(t *testing.T, open Open) { testFlows(t, open, f) })
		for _, address := range []string{f.near, f.loop} {
			group("same host "+address, func(t *testing.T, open Open) { testSameHost(t, open, f, address) })
		}
		group("live "+f.name, func(t *testing.T, open Open) { testLive(t, open, f) })
		group("moments "+f.name, func(t *testing.T, open Open) { testMoments(t, open, f) })
		group("conversations "+f.name, func(t *testing.T, open Open) { testConversations(t, open, f) })
		group("translated "+f.name, func(t *testing.T, open Open) { testTranslated(t, open, f) })
	}
	group("changes", testChanges)
	group("rules", testRules)
	group("sockets", testSockets)
	group("processes", testProcesses)
	group("domains", testDomains)
	group("existing", testExisting)
	group("reopen", testReopen)
	group("agent loss", testAgentLoss)
	group("break glass", testBreakGlass)
	group("interfaces", testInterfaces)
}

// RunInterfaces runs only the situations at interfaces, for another way in which an implementation guards them. It fails if they are
// not guarded.
func RunInterfaces(t *testing.T, open Open) {
	testInterfaces(t, func(t testing.TB, at Place) dataplane.Dataplane {
		d := open(t, at)
		if !d.Capabilities().Frames {
			t.Fatalf("interfaces are not guarded: %q", d.Capabilities().Limits)
		}
		return d
	})
}

// forbids is the error with which traffic from near to an address is denied where it is sent.
func (h *host) forbids(network, to string) string {
	addr, _, err := net.SplitHostPort(to)
	if err != nil {
		addr = to
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		h.t.Fatal(err)
	}
	here := ip.Unmap().IsLoopback() || slices.Contains([]string{Near4, Near4b, Near6}, ip.Unmap().String())
	if strings.HasPrefix(network, "udp") && !here {
		return "EPERM"
	}
	return h.d.Capabilities().Errno
}

// isOf reports whether the event names the process, where the dataplane can.
func (h *host) isOf(e *dataplane.Event, p *Process) bool {
	return !h.d.Capabilities().ProcessInfo || e.Process.PID == uint32(p.PID()) && e.Process.Name != "" && e.Process.Start != 0
}

// verdicts in the order in which situations go through them.
var verdicts = []model.Verdict{model.Allow, model.WouldDeny, model.Deny}

// family is an address family of the lab.
type family struct {
	name, tcp, udp   string
	near, far, other string
	loop             string
	icmp             model.Proto
	echo             string
}

var families = []family{
	{"IPv4", "tcp4", "udp4", Near4, Far4, Other4, "127.0.0.1", model.ProtoICMP, "icmp/8/0"},
	{"IPv6", "tcp6", "udp6", Near6, Far6, Other6, "::1", model.ProtoICMPv6, "icmpv6/128/0"},
}

// testFlows judges each kind of flow between two hosts, in both directions, with each verdict.
func testFlows(t *testing.T, open Open, f family) {
	whole := newHost(t, open)
	for _, v := range verdicts {
		for _, socket := range []string{"tcp", "udp connected", "udp unconnected"} {
			for _, d := range []model.Direction{model.Egress, model.Ingress} {
				t.Run(fmt.Sprintf("%s %s %s", socket, d, v), func(t *testing.T) { whole.with(t).flow(f, socket, d, v) })
			}
		}
		t.Run(fmt.Sprintf("echo egress %s", v), func(t *testing.T) { whole.with(t).echo(f, v) })
	}
}

// flow tests one flow between unit one and far.
func (h *host) flow(f family, socket string, d model.Direction, v model.Verdict) {
	p, network := model.ProtoTCP, f.tcp
	if socket != "tcp" {
		p, network = model.ProtoUDP, f.udp
	}
	h.apply(policy{}) // what an earlier situation has left is over
	client, server, addr := h.one, h.farP, f.far
	if d == model.Ingress {
		client, server, addr = h.farP, h.one, f.near
	}
	l := server.Listen(network, at(addr, 0))
	defer l.Close()
	h.apply(policy{one: []Rule{rule(d, farID, fmt.Sprintf("%s/%d", p, l.Port()), v)}})
	h.events.clear()

	want := ""
	switch {
	case v == model.Deny && d == model.Egress:
		want = h.forbids(network, addr)
	case v == model.Deny:
		want = "timeout"
	}
	var got string
	var s *Socket
	switch socket {
	case "udp unconnected":
		s = client.Bind(network, at(map[string]string{"udp4": "0.0.0.0", "udp6": "::"}[network], 0))
		got = s.exchange("hello", l.Addr, wait(want))
	default:
		if s, got = client.dial(request{Net: network, To: l.Addr, Wait: wait(want)}); got == "" {
			got = s.exchange("hello", "", wait(want))
		}
	}
	if got != want {
		h.t.Errorf("the client sees %q instead of %q", got, want)
	}
	messages, _ := l.Seen()
	if v == model.Deny && messages != 0 || v != model.Deny && messages != 1 {
		h.t.Errorf("the server has seen %d messages", messages)
	}

	flow := all(workload("near/one"), proto(p), dir(d), port(l.Port()), rejudged(false))
	begun := dataplane.EventOpen
	if v == model.Deny {
		begun = dataplane.EventDeny
	}
	e := h.events.one("the flow", all(kind(begun), flow))
	remote := f.far
	if e.Verdict != v || e.Rule != model.RuleID("lab/"+d.String()+"-"+v.String()) || e.RemoteIdentity != farID ||
		e.Remote.Addr().String() != remote || e.RemoteWorkload != "" || e.Existing {
		h.t.Errorf("event: %s", describe(&e))
	}
	if local := e.Local.Addr(); v != model.Deny && local.String() != f.near {
		h.t.Errorf("local address %s", local)
	}
	if v == model.Deny && e.Count != 1 {
		h.t.Errorf("one attempt counts as %d", e.Count)
	}
	if !h.isOf(&e, h.one) {
		h.t.Errorf("process: %+v, pid is %d", e.Process, h.one.PID())
	}
	if v == model.Deny {
		h.events.none("an opening of a denied flow", all(kind(dataplane.EventOpen), flow))
		return
	}
	s.Close()
	if p == model.ProtoTCP {
		c := h.events.one("its end", all(kind(dataplane.EventClose), workload("near/one"), port(l.Port())))
		if c.Local != e.Local || c.Remote != e.Remote {
			h.t.Errorf("end: %s", describe(&c))
		}
	}
	// A UDP flow ends with its socket where this host made it, else after its silence.
	h.events.wait("its end", func() bool { return len(h.events.find(all(kind(dataplane.EventClose), port(l.Port())))) > 0 })
	carried := h.events.carried(all(workload("near/one"), port(l.Port())))
	packets := uint64(1)
	if p == model.ProtoTCP {
		packets = 0
	}
	if want := (traffic{5, 5, packets, packets}); !h.carriedIs(carried, want) {
		h.t.Errorf("carried %+v instead of %+v", carried, want)
	}
}

// echo pings far.
func (h *host) echo(f family, v model.Verdict) {
	h.apply(policy{one: []Rule{rule(model.Egress, farID, f.echo, v)}})
	h.events.clear()
	want := ""
	if v == model.Deny && f.icmp == model.ProtoICMP {
		want = "EPERM"
	} else if v == model.Deny {
		want = "timeout" // the kernel keeps the error of an ICMPv6 socket to itself
	}
	if got := h.one.ping(f.far, wait(want)); got != want {
		h.t.Errorf("the client sees %q instead of %q", got, want)
	}
	e := h.events.one("the flow", all(workload("near/one"), proto(f.icmp), func(e *dataplane.Event) bool {
		return e.Kind == dataplane.EventOpen || e.Kind == dataplane.EventDeny
	}))
	if e.Verdict != v || e.Dir != model.Egress || e.Remote.Addr().String() != f.far || e.Remote.Port() != 0 || e.Local.Port() != 0 ||
		e.Port != ports(f.echo).Lo || !h.isOf(&e, h.one) {
		h.t.Errorf("event: %s", describe(&e))
	}
}

// testSameHost judges flows between the workloads of one host: each end is known exactly.
func testSameHost(t *testing.T, open Open, f family, address string) {
	whole := newHost(t, open)
	ends := map[string]struct {
		p  *Process
		id model.IdentityID
	}{"near": {whole.own, nearID}, "near/one": {whole.one, oneID}, "near/two": {whole.two, twoID}}
	for _, pair := range [][2]string{{"near/one", "near/two"}, {"near/one", "near"}, {"near", "near/two"}} {
		for _, network := range []string{f.tcp, f.udp} {
			for _, d := range []model.Direction{model.Egress, model.Ingress} {
				for _, v := range verdicts {
					t.Run(fmt.Sprintf("%s to %s %s %s %s", pair[0], pair[1], network, d, v), func(t *testing.T) {
						from, to := ends[pair[0]], ends[pair[1]]
						whole.with(t).sameHost(pair, from.p, to.p, from.id, to.id, address, network, d, v)
					})
				}
			}
		}
	}
	t.Run("one workload with itself", func(t *testing.T) { whole.with(t).itself(f, address) })
}

func (h *host) sameHost(names [2]string, client, server *Process, clientID, serverID model.IdentityID, address, network string,
	d model.Direction, v model.Verdict) {
	h.apply(policy{})
	l := server.Listen(network, at(address, 0))
	defer l.Close()
	p, err := model.ParseProto(network[:3])
	if err != nil {
		h.t.Fatal(err)
	}
	on := fmt.Sprintf("%s/%d", p, l.Port())
	rules := map[string][]Rule{}
	egress, ingress := model.Allow, model.Allow
	if d == model.Egress {
		egress = v
	} else {
		ingress = v
	}
	rules[names[0]] = []Rule{rule(model.Egress, serverID, on, egress)}
	rules[names[1]] = []Rule{rule(model.Ingress, clientID, on, ingress)}
	h.apply(policy{host: rules["near"], one: rules["near/one"], two: rules["near/two"]})
	h.events.clear()

	want := ""
	if v == model.Deny && d == model.Egress {
		want = h.forbids(network, address)
	} else if v == model.Deny {
		want = "timeout"
	}
	s, got := client.dial(request{Net: network, To: l.Addr, Wait: wait(want)})
	if got == "" {
		got = s.exchange("hello", "", wait(want))
	}
	if got != want {
		h.t.Errorf("the client sees %q instead of %q", got, want)
	}
	flow := all(proto(p), port(l.Port()), rejudged(false))
	first := func(e *dataplane.Event) bool { return e.Kind == dataplane.EventOpen || e.Kind == dataplane.EventDeny }
	out := h.events.one("the flow at its source", all(first, workload(names[0]), dir(model.Egress), flow))
	if out.Verdict != egress || out.RemoteWorkload != names[1] || out.RemoteIdentity != serverID {
		h.t.Errorf("source: %s", describe(&out))
	}
	if egress == model.Deny {
		h.events.none("anything at its destination", all(workload(names[1]), flow))
		return
	}
	in := h.events.one("the flow at its destination", all(first, workload(names[1]), dir(model.Ingress), flow))
	if in.Verdict != ingress || in.RemoteWorkload != names[0] || in.RemoteIdentity != clientID {
		h.t.Errorf("destination: %s", describe(&in))
	}
	s.Close()
}

// itself checks that a workload may always talk to itself.
func (h *host) itself(f family, address string) {
	h.apply(policy{})
	for _, network := range []string{f.tcp, f.udp} {
		h.events.clear()
		l := h.two.Listen(network, at(address, 0))
		s, err := h.two.Dial(network, l.Addr)
		if err == "" {
			err = s.Exchange("hello", "")
		}
		if err != "" {
			h.t.Errorf("%s: %s", network, err)
		}
		for _, d := range model.Directions {
			e := h.events.one(d.String(), all(kind(dataplane.EventOpen), workload("near/two"), dir(d), port(l.Port())))
			if e.Rule != model.RuleSameWorkload || e.RemoteWorkload != "near/two" {
				h.t.Errorf("%s: %s", network, describe(&e))
			}
		}
		s.Close()
		l.Close()
	}
}
