package dataplanetest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testAgentLoss lets the agent fall silent.
func testAgentLoss(t *testing.T, open Open) {
	whole := newHost(t, open)
	if whole.d.Capabilities().AgentLoss == 0 {
		t.Skip("this dataplane always keeps the last policy")
	}
	t.Run("the last policy is kept", func(t *testing.T) { whole.with(t).lossKeep() })
	t.Run("a workload that then is open", func(t *testing.T) { whole.with(t).lossOpen() })
	t.Run("an isolated workload stays isolated", func(t *testing.T) { whole.with(t).lossIsolated() })
	t.Run("a workload that then is closed", func(t *testing.T) { whole.with(t).lossClosed() })
}

// beating has the agent say that it is there until the function returned is called.
func (h *host) beating() (stop func()) {
	h.t.Helper()
	if err := h.d.Beat(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				ended <- nil
				return
			case <-tick.C:
				if err := h.d.Beat(context.Background()); err != nil {
					ended <- err
					return
				}
			}
		}
	}()
	return func() {
		h.t.Helper()
		close(end)
		if err := <-ended; err != nil {
			h.t.Error(err)
		}
	}
}

// eventually waits until the attempt ends so. No attempt waits long for an answer: what changes meanwhile may swallow it.
func (h *host) eventually(p *Process, network, to, want string) {
	h.t.Helper()
	if want == "EPERM" {
		want = h.forbids(network, to)
	}
	got := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		s, err := p.dial(request{Net: network, To: to, Wait: brief})
		if err == "" {
			err = s.exchange("x", "", brief)
			s.Close()
		}
		if got = err; got == want {
			return
		}
	}
	h.t.Errorf("%s to %s over %s stays %q instead of %q", p.Name, to, network, got, want)
}

// servers listens at far in both families, over TCP and UDP.
func (h *host) servers() map[string]string {
	h.t.Helper()
	servers := map[string]string{}
	for _, f := range families {
		for _, network := range []string{f.tcp, f.udp} {
			l := h.farP.Listen(network, at(f.far, 0))
			h.t.Cleanup(l.Close)
			servers[network] = l.Addr
		}
	}
	return servers
}

func (h *host) lossKeep() {
	servers := h.servers()
	h.apply(policy{one: []Rule{rule(model.Egress, farID, "tcp", model.Allow)}})
	h.beating()()
	time.Sleep(h.d.Capabilities().AgentLoss + 500*time.Millisecond)
	h.reaches(h.one, "tcp4", servers["tcp4"], "")
	h.reaches(h.one, "udp4", servers["udp4"], "EPERM")
}

func (h *host) lossOpen() {
	servers := h.servers()
	h.apply(policy{loss: model.LossOpen})
	stop := h.beating()
	for network, to := range servers {
		h.reaches(h.one, network, to, "EPERM")
	}
	stop()
	h.events.clear()
	for network, to := range servers {
		h.eventually(h.one, network, to, "")
	}
	server := h.one.Listen("tcp4", at(Near4, 0))
	defer server.Close()
	h.reaches(h.farP, "tcp4", server.Addr, "")
	h.reaches(h.two, "tcp4", servers["tcp4"], "EPERM") // which keeps its policy
	allowed := func(e *dataplane.Event) bool { return e.Verdict == model.Allow }
	for _, e := range h.events.find(all(kind(dataplane.EventOpen), workload("near/one"), allowed)) { // older flows may end late
		if e.Rule != model.RuleAgentLost {
			h.t.Errorf("%s", describe(&e))
		}
	}
	meanwhile := h.one.MustDial("tcp4", servers["tcp4"])
	stop = h.beating()
	defer stop()
	for network, to := range servers {
		h.reaches(h.one, network, to, "EPERM")
	}
	if err := meanwhile.exchange("x", "", brief); err == "" {
		h.t.Error("a connection made meanwhile goes on")
	}
}

func (h *host) lossClosed() {
	servers := h.servers()
	controller := h.farP.Listen("tcp4", at(Far4, 0))
	defer controller.Close()
	h.apply(policy{
		one: everything(model.Allow), loss: model.LossClosed,
		host: []Rule{}, controllers: []netip.AddrPort{netip.MustParseAddrPort(controller.Addr)},
	})
	stop := h.beating()
	live := h.one.MustDial("tcp4", servers["tcp4"])
	if err := live.Exchange("x", ""); err != "" {
		h.t.Fatal(err)
	}
	h.events.stop() // nobody is there who would reset what is denied
	stop()
	for network, to := range servers {
		h.eventually(h.one, network, to, "EPERM")
	}
	server := h.one.Listen("tcp4", at(Near4, 0))
	defer server.Close()
	h.reaches(h.farP, "tcp4", server.Addr, "timeout")
	if err := live.exchange("x", "", brief); err != "timeout" {
		h.t.Errorf("a live connection: %q", err)
	}
	h.reaches(h.own, "tcp4", controller.Addr, "") // by which the agent comes back
	stop = h.beating()
	defer stop()
	for network, to := range servers {
		h.reaches(h.one, network, to, "")
	}
	h.reaches(h.farP, "tcp4", server.Addr, "")
	if answer, err := live.Read(patience); err != "" || answer == "" {
		h.t.Errorf("the live connection does not go on: %q, %q", answer, err)
	}
}

func (h *host) lossIsolated() {
	servers := h.servers()
	h.apply(policy{loss: model.LossOpen, one: everything(model.Allow)})
	stop := h.beating()
	if err := h.d.Isolate(context.Background(), "near/one", true); err != nil {
		h.t.Fatal(err)
	}
	stop()
	time.Sleep(h.d.Capabilities().AgentLoss + 500*time.Millisecond)
	h.reaches(h.one, "tcp4", servers["tcp4"], "EPERM")
	h.beating()()
	if err := h.d.Isolate(context.Background(), "near/one", false); err != nil {
		h.t.Fatal(err)
	}
}

// testBreakGlass opens the host against its policy.
func testBreakGlass(t *testing.T, open Open) {
	whole := newHost(t, open)
	t.Run("everything passes until it is ended", func(t *testing.T) { whole.with(t).glassEnded() })
	t.Run("it ends by itself", func(t *testing.T) { whole.with(t).glassExpires() })
	t.Run("it outlives the agent", func(t *testing.T) { whole.with(t).glassWithoutAgent() })
}

func (h *host) breakGlass(until time.Time) {
	h.t.Helper()
	if err := h.d.BreakGlass(context.Background(), until); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) glassEnded() {
	servers := h.servers()
	h.apply(policy{})
	if err := h.d.Isolate(context.Background(), "near/two", true); err != nil {
		h.t.Fatal(err)
	}
	h.breakGlass(time.Now().Add(time.Hour))
	if left := time.Until(h.d.Glass()); left < 59*time.Minute || left > time.Hour {
		h.t.Errorf("it says that it ends in %s", left)
	}
	h.events.clear()
	check := func(when, out, in string) {
		h.t.Helper()
		for _, p := range []*Process{h.own, h.one, h.two} {
			for network, to := range servers {
				h.reaches(p, network, to, out)
			}
			for _, f := range families {
				l := p.Listen(f.tcp, at(f.near, 0))
				h.reaches(h.farP, f.tcp, l.Addr, in)
				l.Close()
			}
		}
		if h.t.Failed() {
			h.t.Fatalf("%s", when)
		}
	}
	check("broken", "", "")
	otherwise := func(e *dataplane.Event) bool { return e.Rule != model.RuleBreakGlass && e.Kind != dataplane.EventClose } // older flows may end late
	for _, e := range h.events.find(otherwise) {
		h.t.Errorf("%s", describe(&e))
	}
	live := h.one.MustDial("tcp4", servers["tcp4"])
	h.apply(policy{one: []Rule{rule(model.Egress, farID, "tcp/1", model.Allow)}}) // another policy waits for its time
	check("broken, another policy", "", "")
	h.breakGlass(time.Time{})
	if !h.d.Glass().IsZero() {
		h.t.Errorf("it lasts until %s", h.d.Glass())
	}
	if err := live.Exchange("x", ""); err != "ECONNABORTED" && err != "EPIPE" {
		h.t.Errorf("a connection made meanwhile: %q", err)
	}
	check("ended", "EPERM", "timeout")
	if err := h.d.Isolate(context.Background(), "near/two", false); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) glassExpires() {
	servers := h.servers()
	h.apply(policy{})
	for network, to := range servers {
		h.breakGlass(time.Now().Add(time.Minute))
		h.reaches(h.one, network, to, "")
		h.breakGlass(time.Now().Add(300 * time.Millisecond))
		h.eventually(h.one, network, to, "EPERM")
	}
	live := func() string {
		h.breakGlass(time.Now().Add(time.Minute))
		s := h.one.MustDial("tcp4", servers["tcp4"])
		h.breakGlass(time.Now().Add(300 * time.Millisecond))
		h.eventually(h.one, "tcp4", servers["tcp4"], "EPERM")
		if err := h.d.Beat(context.Background()); err != nil { // resets what nobody uses
			h.t.Fatal(err)
		}
		return s.Exchange("x", "")
	}()
	if live != "ECONNABORTED" && live != "EPIPE" {
		h.t.Errorf("a connection made meanwhile: %q", live)
	}
	if st := h.apply(policy{}); st.Changed {
		h.t.Errorf("the same policy again: %+v", st)
	}
}

func (h *host) glassWithoutAgent() {
	servers := h.servers()
	h.apply(policy{})
	h.breakGlass(time.Now().Add(time.Hour))
	h.events.stop()
	if err := h.d.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.reaches(h.one, "tcp4", servers["tcp4"], "")
	h.d = h.Open(h.open)
	if time.Until(h.d.Glass()) < 59*time.Minute {
		h.t.Errorf("the next agent believes that it ends at %s", h.d.Glass())
	}
	h.reaches(h.one, "tcp4", servers["tcp4"], "")
	h.breakGlass(time.Time{})
	h.reaches(h.one, "tcp4", servers["tcp4"], "EPERM")
	if !h.d.Glass().IsZero() {
		h.t.Errorf("it lasts until %s", h.d.Glass())
	}
	h.events = record(h.t, h.d)
}
