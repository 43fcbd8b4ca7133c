package agent_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent"
	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/durable"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"

	pb "bulkhead/api/bulkhead/v1"
)

// node is a host: its directories and its kernel, on which agents come and go.
type node struct {
	t       *testing.T
	cfg     agent.Config
	dp      *agenttest.Dataplane
	running *running
}

type running struct {
	cancel context.CancelFunc
	done   chan error
}

func newNode(t *testing.T, c *agenttest.Controller) *node {
	t.Helper()
	n := newHost(t)
	n.cfg.Controller = c.Addr
	n.token(c.Token("first", "node-1", 1, time.Hour))
	return n
}

// newHost is a node whose agent does not know yet where policy comes from.
func newHost(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	cfg := agent.DefaultConfig()
	cfg.Host = "node-1"
	cfg.Data, cfg.CgroupRoot = filepath.Join(dir, "data"), filepath.Join(dir, "cgroup")
	cfg.Socket, cfg.TokenFile = filepath.Join(dir, "agent.sock"), filepath.Join(dir, "token")
	cfg.FlowWindow, cfg.StatusEvery = 20*time.Millisecond, 200*time.Millisecond
	cfg.RetryMin, cfg.RetryMax = 5*time.Millisecond, 50*time.Millisecond
	n := &node{t: t, cfg: cfg, dp: agenttest.NewDataplane()}
	n.cgroup("system.slice")
	t.Cleanup(func() {
		n.stop()
		if err := n.dp.Misuse(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) token(text string) {
	n.t.Helper()
	if err := os.WriteFile(n.cfg.TokenFile, []byte(text+"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) cgroup(dir string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Join(n.cfg.CgroupRoot, dir), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

// start runs an agent until stop or the end of the test.
func (n *node) start() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.running = &running{cancel: cancel, done: make(chan error, 1)}
	a := agent.New(n.cfg, agent.Deps{Dataplane: n.dp, Log: slog.New(slog.DiscardHandler)})
	go func(r *running) { r.done <- a.Run(ctx) }(n.running)
}

func (n *node) stop() {
	n.t.Helper()
	if n.running == nil {
		return
	}
	n.running.cancel()
	if err := n.end(); err != nil {
		n.t.Errorf("the agent ended with %v", err)
	}
}

// end returns how the agent ended, which it must do by itself.
func (n *node) end() error {
	n.t.Helper()
	r := n.running
	n.running = nil
	defer r.cancel()
	select {
	case err := <-r.done:
		return err
	case <-time.After(time.Minute):
		n.t.Fatal("the agent does not end")
		return nil
	}
}

// status waits until the agent's own report meets the condition.
func (n *node) status(what string, ok func(*status.Report) bool) *status.Report {
	n.t.Helper()
	var last *status.Report
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		r, err := status.NewClient(n.cfg.Socket).Status(n.t.Context())
		if err != nil {
			continue
		}
		if last = r; ok(r) {
			return r
		}
	}
	n.t.Fatalf("waited a minute for %s; the agent says %+v", what, last)
	return nil
}

func hasProblem(text string) func(*status.Report) bool {
	return func(r *status.Report) bool {
		return slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, text) })
	}
}

// acked waits until the agent has acknowledged the controller's policy.
func acked(c *agenttest.Controller) {
	want := c.Policy().Hash()
	c.WaitFor("the acknowledgement of "+want.Short(), func() bool {
		s := c.Last()
		return s != nil && len(s.Acks) > 0 && string(s.Acks[len(s.Acks)-1].Hash) == string(want[:])
	})
}

func connected(c *agenttest.Controller, sessions int) {
	c.WaitFor(fmt.Sprintf("session %d", sessions), func() bool { return c.Sessions() >= sessions && c.Last().Open })
}

func TestEnrolThenSnapshotThenDeltas(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	if h := c.Last().Hello; len(h.Hash) != 0 || h.Dataplane != "fake" || h.Instance == "" || h.BootId == "" || len(h.Limits) != 1 {
		t.Errorf("hello %v", h)
	}
	for revision := uint64(1); revision <= 5; revision++ {
		c.SetPolicy(agenttest.Policy(revision))
		acked(c)
		if n.dp.Hash() != c.Policy().Hash() {
			t.Fatalf("revision %d is acknowledged and not in force", revision)
		}
	}
	for _, a := range c.Last().Acks {
		if a.Refused != "" || a.Rows != 7 || a.TookUs != 1000 {
			t.Errorf("acknowledgement %v", a)
		}
	}
	if len(c.Last().Acks) != 5 {
		t.Errorf("%d acknowledgements of 5 changes", len(c.Last().Acks))
	}
	c.WaitFor("the status", func() bool {
		s := c.Last().Statuses
		return len(s) > 0 && s[len(s)-1].Revision == 5 && s[len(s)-1].Judged == 11 && s[len(s)-1].ResidentBytes > 0
	})
}

func TestPolicyOnDiskIsInForceBeforeTheControllerAnswers(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	c.SetPolicy(agenttest.Policy(3))
	acked(c)
	n.stop()
	c.Stop()

	n.dp = agenttest.NewDataplane() // the host has rebooted: the kernel holds nothing
	n.start()
	r := n.status("the restored policy", func(r *status.Report) bool { return r.Revision == 3 })
	if r.Connected || n.dp.Hash() != c.Policy().Hash() {
		t.Errorf("connected %t, in force %s; want revision 3 without a controller", r.Connected, n.dp.Hash().Short())
	}
	n.status("a word about the controller", hasProblem("not connected"))

	c.Start()
	connected(c, 2)
	if h := c.Last().Hello; h.Revision != 3 || string(h.Hash) == "" {
		t.Errorf("hello %v, want revision 3 with its hash", h)
	}
	n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
	if len(c.Last().Acks) != 0 || n.dp.Applies() != 1 {
		t.Errorf("the same policy was sent and applied again")
	}
}

func TestDeltaThatDoesNotFitLeadsToASnapshot(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	before := c.Policy()
	c.Forget(agenttest.Policy(2)) // the controller believes that the agent has revision 2
	c.SetPolicy(agenttest.Policy(3))
	acked(c)
	acks := c.Last().Acks
	if len(acks) != 3 || acks[1].Refused != "" || string(acks[1].Hash) != string(hash(before.Hash())) {
		t.Errorf("acknowledgements %v; want the second to ask for a snapshot with the hash of revision 1", acks)
	}
}

func hash[T ~[32]byte](h T) []byte { return h[:] }

func TestRefusedPolicyIsAnsweredWithTheReason(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	old := n.dp.Hash()

	n.dp.Refuse(fmt.Errorf("%w: 9 rows do not fit into 5", dataplane.ErrRefused))
	c.SetPolicy(agenttest.Policy(2))
	c.WaitFor("the refusal", func() bool { return len(c.Last().Acks) == 2 })
	if a := c.Last().Acks[1]; !strings.Contains(a.Refused, "9 rows do not fit into 5") || string(a.Hash) != string(hash(old)) || a.Revision != 1 {
		t.Errorf("answer %v, want the reason and the hash of revision 1", a)
	}
	if n.dp.Hash() != old {
		t.Error("the old policy is not in force any more")
	}
	n.status("the problem", hasProblem("revision 2 is not enforced"))

	n.dp.Refuse(nil)
	c.SetPolicy(agenttest.Policy(3)) // the delta is from revision 2, which is not here
	acked(c)
	n.status("no problem", func(r *status.Report) bool { return len(r.Problems) == 0 })
}

func TestMalformedPolicyIsRefused(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	bad := []*pb.HostPolicy{{}, {Host: "node-1", Subjects: []*pb.Subject{{Workload: "node-1", Set: 5}}}, {Host: "node-2"}}
	for i, m := range bad {
		c.Send(&pb.ControllerMessage{Message: &pb.ControllerMessage_Snapshot{Snapshot: m}})
		c.WaitFor("the answer", func() bool { return len(c.Last().Acks) == i+2 })
		if a := c.Last().Acks[i+1]; a.Refused == "" || a.Revision != 1 {
			t.Errorf("answer to %v: %v, want a refusal", m, a)
		}
	}
	// What this agent does not know comes from a newer controller and is left alone.
	c.Send(&pb.ControllerMessage{})
	c.SetPolicy(agenttest.Policy(2))
	acked(c)
	if c.Sessions() != 1 {
		t.Errorf("%d sessions, want the first", c.Sessions())
	}
}

func TestIsolateIsImmediateAndTold(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.cfg.StatusEvery = time.Hour // what is told, is told because of the isolation
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1, "db.service"))
	acked(c)
	const w = "node-1/db.service"
	last := func() []string {
		s := c.Last().Statuses
		return s[len(s)-1].Isolated
	}
	c.WaitFor("a first status", func() bool { return len(c.Last().Statuses) > 0 })
	for _, on := range []bool{true, false} {
		began := time.Now()
		c.Send(isolate(w, on))
		c.WaitFor("the word", func() bool { return slices.Contains(last(), w) == on })
		if n.dp.IsIsolated(w) != on {
			t.Errorf("isolated in the kernel: %t, want %t", !on, on)
		}
		t.Logf("isolation %t told after %v", on, time.Since(began))
	}

	// A workload that is in a policy which is still on its way.
	n.dp.Slow(100 * time.Millisecond)
	c.SetPolicy(agenttest.Policy(2, "db.service", "web.service"))
	c.Send(isolate("node-1/web.service", true))
	c.WaitFor("the isolation behind the policy", func() bool { return slices.Contains(last(), "node-1/web.service") })

	// One that is nowhere is a problem, and not the end of the stream.
	n.dp.Slow(0)
	c.Send(isolate("stranger", true))
	n.status("the problem", hasProblem("stranger"))
	if c.Sessions() != 1 {
		t.Errorf("%d sessions, want the first", c.Sessions())
	}
}

func isolate(workload string, on bool) *pb.ControllerMessage {
	return &pb.ControllerMessage{Message: &pb.ControllerMessage_Isolate{Isolate: &pb.Isolate{Workload: workload, On: on}}}
}

func TestIsolateOverTheSocket(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	c.Stop() // and without a controller
	if err := status.NewClient(n.cfg.Socket).Isolate(t.Context(), "stranger", true); err == nil || !strings.Contains(err.Error(), "stranger") {
		t.Errorf("isolating a stranger: %v", err)
	}
	if err := status.NewClient(n.cfg.Socket).Isolate(t.Context(), "node-1", true); err != nil {
		t.Fatal(err)
	}
	if !n.dp.IsIsolated("node-1") {
		t.Error("the kernel was not told")
	}
	c.Start()
	c.WaitFor("the controller to hear of it", func() bool {
		s := c.Last().Statuses
		return c.Sessions() > 1 && len(s) > 0 && slices.Equal(s[len(s)-1].Isolated, []string{"node-1"})
	})
	r := n.status("the report", func(r *status.Report) bool { return len(r.Isolated) == 1 })
	if !r.Subjects[0].Isolated {
		t.Errorf("subjects %+v", r.Subjects)
	}
}

func TestTamperingIsTold(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	n.dp.Tamper("policy rows had been changed", nil)
	c.WaitFor("the controller to hear of it", func() bool {
		s := c.Last().Statuses
		return len(s) > 0 && s[len(s)-1].Tampered == "policy rows had been changed" && s[len(s)-1].TamperedAtMs > 0
	})
	n.status("the report", func(r *status.Report) bool {
		return len(r.Problems) == 1 && strings.Contains(r.Problems[0], "policy rows had been changed")
	})
}

func TestBrokenGlassIsToldAndEnds(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	client := status.NewClient(n.cfg.Socket)
	until := time.Now().Add(time.Hour)
	if err := client.BreakGlass(t.Context(), status.Glass{Until: until, Reason: "payments are down"}); err != nil {
		t.Fatal(err)
	}
	c.WaitFor("the controller to hear of it", func() bool {
		s := c.Last().Statuses
		return len(s) > 0 && s[len(s)-1].GlassReason == "payments are down" && s[len(s)-1].GlassUntilMs == uint64(until.UnixMilli())
	})
	n.status("the report", func(r *status.Report) bool {
		return r.Glass != nil && len(r.Problems) == 1 && strings.Contains(r.Problems[0], "payments are down")
	})
	if err := client.BreakGlass(t.Context(), status.Glass{Until: time.Now().Add(-time.Second)}); err != nil {
		t.Fatal(err)
	}
	n.status("the end", func(r *status.Report) bool { return r.Glass == nil && len(r.Problems) == 0 })
	c.WaitFor("the controller to hear of the end", func() bool {
		s := c.Last().Statuses
		return s[len(s)-1].GlassUntilMs == 0
	})
	n.status("signs of life", func(*status.Report) bool { return n.dp.Beats() > 1 })
}

func TestInventoryIsSentAndFollowed(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.cgroup("system.slice/db.service")
	n.start()
	connected(c, 1)
	units := func() (names []string) {
		s := c.Last().Inventories
		if len(s) == 0 {
			return nil
		}
		for _, u := range s[len(s)-1].Units {
			names = append(names, u.Name+"="+strings.Join(u.Cgroups, ","))
		}
		return names
	}
	c.WaitFor("the first inventory", func() bool {
		return slices.Equal(units(), []string{"db.service=system.slice/db.service"})
	})
	n.cgroup("system.slice/web.service")
	c.WaitFor("the new unit", func() bool { return len(units()) == 2 })

	// A unit that only policy names is found before the policy is applied.
	n.cgroup("user.slice/app")
	c.SetPolicy(agenttest.Policy(1, "app", "web.service", "absent"))
	acked(c)
	want := map[string]string{"app": "user.slice/app", "web.service": "system.slice/web.service"}
	got := n.dp.Units()
	if len(got) != len(want) || n.dp.Applies() != 1 {
		t.Errorf("units %v after %d applies, want %v after one", got, n.dp.Applies(), want)
	}
	for u, p := range want {
		if !slices.Equal(got[u], []string{filepath.Join(n.cfg.CgroupRoot, p)}) {
			t.Errorf("unit %s is %v, want %s", u, got[u], p)
		}
	}
	c.WaitFor("the named unit in the inventory", func() bool { return len(units()) == 3 })

	n.cgroup("absent")
	n.status("the unit that starts", func(*status.Report) bool { return len(n.dp.Units()["absent"]) == 1 })
}

func TestSecondAgentIsRefused(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	other := &node{t: t, cfg: n.cfg, dp: agenttest.NewDataplane()}
	other.cfg.Socket += "2"
	other.start()
	if err := other.end(); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("the second agent ended with %v, want ErrLocked", err)
	}
}

func TestNoCgroupRoot(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.cfg.CgroupRoot = filepath.Join(t.TempDir(), "missing")
	n.start()
	if err := n.end(); err == nil || !strings.Contains(err.Error(), "cgroup root") {
		t.Errorf("the agent ended with %v", err)
	}
}

func TestServiceManagerHearsOfReadinessBeforeTheControllerAnswers(t *testing.T) {
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", manager.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "200000")
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	c.Stop()
	n.start()
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	heard := map[string]bool{}
	buf := make([]byte, 1024)
	for !heard["READY=1"] || !heard["WATCHDOG=1"] {
		k, err := manager.Read(buf)
		if err != nil {
			t.Fatalf("heard %v: %v", heard, err)
		}
		first, _, _ := strings.Cut(string(buf[:k]), "\n")
		heard[first] = true
	}
}

// flow is an event of a connection from this host to a port.
func flow(port uint16) *dataplane.Event {
	return &dataplane.Event{
		Kind: dataplane.EventOpen, Time: time.Now(), Workload: "node-1", Dir: model.Egress, Proto: model.ProtoTCP, Port: port,
		Local: netip.MustParseAddrPort("10.0.0.1:4000"), Remote: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port),
		Verdict: model.Allow, Rule: "p/r",
	}
}

func TestRefusedEnrolmentEndsAFreshAgent(t *testing.T) {
	c := agenttest.New(t).Start()
	used := c.Token("used", "", 0, time.Hour)
	cases := map[string]struct{ token, want string }{
		"no token":        {"", "is empty; make one with `bulkhead token create --host node-1`"},
		"a used token":    {used, "used up"},
		"a damaged token": {used[:20], "not a join token"},
		"an expired one":  {c.Token("late", "", 1, -time.Minute), "expired"},
	}
	for name, test := range cases {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, c)
			n.token(test.token)
			n.start()
			err := n.end()
			if no := (*enroll.RefusedError)(nil); !errors.As(err, &no) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the agent ended with %v, want a refusal with %q", err, test.want)
			}
		})
	}
}

func TestMissingTokenFileIsNamed(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	if err := os.Remove(n.cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	n.start()
	if err := n.end(); err == nil || !strings.Contains(err.Error(), n.cfg.TokenFile) {
		t.Errorf("the agent ended with %v, want the name of the file", err)
	}
}
