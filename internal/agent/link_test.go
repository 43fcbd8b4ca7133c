package agent_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/status"
)

func TestFlowsArriveOnce(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	for i := range 100 {
		n.dp.Emit(flow(uint16(i)))
	}
	c.WaitFor("all flows", func() bool { return ports(c) == 100 })
	n.status("an empty spool", func(r *status.Report) bool { return r.SpoolBytes == 0 })
}

// ports counts the different ports in the records, and fails the test by its result if one came twice.
func ports(c *agenttest.Controller) int {
	records, batches, _ := c.Records()
	seen := map[uint32]uint64{}
	for _, r := range records {
		seen[r.Port] += r.Connections
	}
	for _, n := range seen {
		if n != 1 {
			return -1
		}
	}
	if !slices.IsSorted(batches) {
		return -2
	}
	return len(seen)
}

func TestFlowsAreSpooledWhileTheControllerIsAwayAndOverARestart(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	n.dp.Emit(flow(0))
	c.WaitFor("the first flow", func() bool { return ports(c) == 1 })
	c.Stop()

	emit := func(from, to int) {
		for i := from; i < to; i++ {
			n.dp.Emit(flow(uint16(i)))
			time.Sleep(time.Millisecond) // several windows
		}
	}
	emit(1, 60)
	n.stop()
	n.start()
	n.status("the new agent", func(r *status.Report) bool { return r.SpoolBytes > 0 })
	emit(60, 100)
	c.Start()
	c.WaitFor("all flows", func() bool { return ports(c) == 100 })
	n.status("an empty spool", func(r *status.Report) bool { return r.SpoolBytes == 0 && r.RecordsLost == 0 })
}

func TestUnacknowledgedFlowsAreSentAgainAndNoMoreThanAFewAtOnce(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	c.HoldAcks(true)
	n.start()
	connected(c, 1)
	flows := 0
	emit := func() {
		n.dp.Emit(flow(uint16(flows)))
		flows++
		time.Sleep(3 * time.Millisecond)
	}
	c.WaitFor("some batches", func() bool { emit(); return len(batches(c)) == 4 })
	for range 50 { // of several windows more
		emit()
	}
	time.Sleep(200 * time.Millisecond)
	if got := batches(c); len(got) != 4 {
		t.Errorf("batches %v without an acknowledgement, want 4", got)
	}
	c.HoldAcks(false)
	c.Stop()
	c.Start()
	c.WaitFor("all flows", func() bool { return ports(c) == flows })
}

func batches(c *agenttest.Controller) []uint64 {
	_, b, _ := c.Records()
	return b
}

func TestControllerThatDoesNotReadHoldsNothingUp(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	resume := c.StopReading()
	for i := range 3000 {
		n.dp.Emit(flow(uint16(i)))
	}
	n.status("a growing spool", func(r *status.Report) bool { return r.SpoolBytes > 10_000 })
	// Down is another direction: policy still comes.
	c.SetPolicy(agenttest.Policy(2))
	n.status("the policy", func(r *status.Report) bool { return r.Revision == 2 })
	resume()
	c.WaitFor("all flows", func() bool { return ports(c) == 3000 })
	acked(c)
	if c.Sessions() != 1 {
		t.Errorf("%d sessions, want the first", c.Sessions())
	}
}

func TestFullSpoolIsCountedAndTold(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.cfg.SpoolBytes = 64 << 10
	n.start()
	connected(c, 1)
	c.Stop()
	for i := range 5000 {
		n.dp.Emit(flow(uint16(i)))
	}
	r := n.status("lost records", func(r *status.Report) bool { return r.RecordsLost > 0 })
	if r.SpoolBytes > 64<<10 {
		t.Errorf("%d bytes on disk", r.SpoolBytes)
	}
	// A batch that is dropped on its way counts as lost even if it arrives: let all drops be over before.
	var lost uint64
	for settled := time.Now(); time.Since(settled) < 2*time.Second; time.Sleep(10 * time.Millisecond) {
		if r := n.status("a report", func(*status.Report) bool { return true }); r.RecordsLost != lost {
			lost, settled = r.RecordsLost, time.Now()
		}
	}
	c.Start()
	n.status("an empty spool", func(r *status.Report) bool { return r.Connected && r.SpoolBytes == 0 })
	n.dp.Emit(flow(6000)) // takes the count along
	c.WaitFor("the flows that are left, and the count of the others", func() bool {
		records, _, lost := c.Records()
		return len(records)+int(lost) == 5001
	})
}

func TestCertificateIsRenewedWithoutLosingTheStream(t *testing.T) {
	t.Parallel()
	c := agenttest.New(t)
	c.TTL, c.Grace = 8*time.Second, time.Hour // a busy machine may be late
	c.Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	first := c.Last().Serial
	// By the second one the certificate that the stream was opened with has expired.
	c.WaitFor("two renewals", func() bool { return c.Renewals() >= 2 })
	if c.Sessions() != 1 || !c.Last().Open {
		t.Fatalf("%d sessions, want the first", c.Sessions())
	}
	c.Stop()
	c.Start()
	connected(c, 2)
	if c.Last().Serial == first {
		t.Error("the new connection uses the old certificate")
	}
}

// expired starts an agent and lets its certificate expire while the controller is away. When it returns, both are gone.
func expired(t *testing.T, c *agenttest.Controller) *node {
	t.Helper()
	c.Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	c.Stop()
	n.stop()
	c.Expire(n.cfg.Data)
	return n
}

func TestCertificateThatExpiredWhileTheControllerWasAwayIsRenewed(t *testing.T) {
	t.Parallel()
	c := agenttest.New(t)
	c.Grace = time.Hour
	n := expired(t, c)
	sessions := c.Sessions()
	n.start()
	// The controller is still away: the agent says so, and does not ask for a token.
	r := n.status("the problem", hasProblem("the certificate expired at"))
	if text := strings.Join(r.Problems, " "); strings.Contains(text, "token") || !strings.Contains(text, "connection refused") || r.Revision != 1 {
		t.Errorf("revision %d, problems %v; want the policy in force and why there is no connection", r.Revision, r.Problems)
	}
	c.Start()
	connected(c, sessions+1)
	n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
	n.stop()
	n.start() // and the new one is on disk
	connected(c, sessions+2)
}

func TestExpiredCertificateNeedsAToken(t *testing.T) {
	t.Parallel()
	c := agenttest.New(t)
	n := expired(t, c)
	sessions := c.Sessions()
	c.Start()
	n.start()
	r := n.status("the problem", hasProblem("the certificate expired at"))
	if r.Revision != 1 || !strings.Contains(strings.Join(r.Problems, " "), "bulkhead token create --host node-1") {
		t.Errorf("revision %d, problems %v; want the policy in force and a word on what to do", r.Revision, r.Problems)
	}
	n.token(c.Token("second", "node-1", 1, time.Hour))
	connected(c, sessions+1)
	n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
}

func TestRevokedAgentKeepsItsPolicyAndComesBackWithAnotherToken(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.token(c.Token("many", "", 100, time.Hour)) // a token with uses left does not undo a revocation
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	c.Revoke("node-1")
	r := n.status("the problem", hasProblem("has been revoked"))
	if r.Revision != 1 || n.dp.Hash() != c.Policy().Hash() {
		t.Error("the policy is not in force any more")
	}
	time.Sleep(300 * time.Millisecond)
	if c.Sessions() != 1 {
		t.Fatal("it came back by itself")
	}
	n.token(c.Token("new", "node-1", 1, time.Hour))
	n.status("the controller's word on the new token", hasProblem("refuses to enrol this host: host node-1 has been revoked"))
	c.Allow("node-1")
	connected(c, 2)
	n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
}

func TestAnotherControllerIsNotTrusted(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	c.Stop()
	other := agenttest.New(t) // the same address, another CA
	other.Addr = c.Addr
	other.Start()
	other.SetPolicy(agenttest.Policy(9))
	n.status("the problem", hasProblem("do not trust each other"))
	if other.Sessions() != 0 || n.dp.Hash() != c.Policy().Hash() {
		t.Error("it took policy from a stranger")
	}
	other.Stop()
	c.Start()
	connected(c, 2)
}

func TestCertificateOfAnotherIsRefusedByTheController(t *testing.T) {
	// An identity from elsewhere, in the place of ours: the controller's TLS refuses it.
	c, other := agenttest.New(t).Start(), agenttest.New(t).Start()
	n := newNode(t, other)
	n.start()
	connected(other, 1)
	other.SetPolicy(agenttest.Policy(1))
	acked(other)
	n.stop()
	n.cfg.Controller = c.Addr
	// The agent knows our CA, so only its own certificate is wrong.
	ours := newNode(t, c)
	ours.start()
	connected(c, 1)
	ours.stop()
	data, err := os.ReadFile(filepath.Join(ours.cfg.Data, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Data, "ca.crt"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	n.start()
	r := n.status("the problem", hasProblem("do not trust each other"))
	if c.Sessions() != 1 || r.Revision != 1 {
		t.Errorf("%d sessions, revision %d", c.Sessions(), r.Revision)
	}
}

func TestIdentityThatCannotBeReadNeedsAToken(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	n.stop()
	if err := os.WriteFile(filepath.Join(n.cfg.Data, "identity.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.token(c.Token("second", "node-1", 1, time.Hour))
	n.start()
	connected(c, 2)
}

func TestTruncatedMessageEndsTheStreamAndNothingElse(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.SetPolicy(agenttest.Policy(1))
	acked(c)
	c.Stop()
	broken := agenttest.Broken(t, c, 3)
	n.status("the problem", hasProblem("not connected"))
	broken.Wait()
	if n.dp.Applies() != 1 || n.dp.Hash() != c.Policy().Hash() {
		t.Error("half a message changed what is in force")
	}
	broken.Stop()
	c.Start()
	connected(c, 2)
	n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
}

func TestSilentControllerIsNotWaitedForForever(t *testing.T) {
	if testing.Short() {
		t.Skip("takes twenty seconds")
	}
	t.Parallel()
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	c.Stop()
	silent, err := net.Listen("tcp", c.Addr) // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	began := time.Now()
	for deadline := began.Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		r, err := status.NewClient(n.cfg.Socket).Status(t.Context())
		if err == nil && hasProblem("handshake timeout")(r) {
			return
		}
	}
	t.Error("two minutes and no word")
}
