package controller_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// shop is a policy in which web may reach db, and nothing else goes.
const shop = `
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: shop}
spec: {selector: app=shop, mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: shop}
spec:
  rules:
    - {name: web-to-db, allow: {from: "app=shop,role=web", to: "app=shop,role=db", on: [tcp/5432]}}
`

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func newClock() *clock { return &clock{} }

// Now returns the time of the clock.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

// Advance turns the clock.
func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

// agent returns what the controller says about the agent of a host.
func agent(t *testing.T, c *Controller, host string) *pb.Agent {
	t.Helper()
	resp, err := c.API.ListAgents(t.Context(), &pb.ListAgentsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range resp.Agents {
		if a.Host == host {
			return a
		}
	}
	t.Fatalf("there is no agent of %s", host)
	return nil
}

func current(t *testing.T, c *Controller, host string) bool {
	t.Helper()
	return agent(t, c, host).Current
}

func connected(t *testing.T, c *Controller) uint32 {
	t.Helper()
	resp, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.AgentsConnected
}

// judge returns what the agent's policy says about traffic with a peer at one address.
func judge(t *testing.T, a *Agent, d model.Direction, peer string, port uint16) model.EndVerdict {
	t.Helper()
	p := a.Policy()
	if p == nil {
		t.Fatalf("%s has no policy", a.Host)
	}
	var id model.IdentityID
	for _, x := range p.Addresses {
		if x.Prefix.IsSingleIP() && x.Prefix.Addr().String() == peer {
			id = x.Identity
		}
	}
	return p.Set(p.Subjects[0].Set).Table(d).Judge(id, model.ProtoTCP, port)
}

func TestAgentsGetWhatConcernsThem(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	web := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	db := c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "both are current", func() bool { return current(t, c, "web-1") && current(t, c, "db-1") })
	Eventually(t, "db-1 knows the address of web-1", func() bool {
		return judge(t, db, model.Ingress, "10.0.0.1", 5432) == model.EndVerdict{Verdict: model.Allow, Rule: "shop/web-to-db"}
	})
	if got := judge(t, db, model.Ingress, "10.0.0.1", 22); got.Verdict != model.Deny || got.Rule != model.RuleDefaultDeny {
		t.Errorf("ssh is %v", got)
	}
	Eventually(t, "web-1 knows the address of db-1", func() bool {
		return judge(t, web, model.Egress, "10.0.0.2", 5432).Verdict == model.Allow
	})

	// A change reaches those whom it concerns, as deltas.
	resp := c.Apply(strings.ReplaceAll(shop, "5432", "3306"))
	if resp.Revision != 2 || !resp.Changed {
		t.Fatalf("apply: %v", resp)
	}
	Eventually(t, "the new port is open", func() bool { return judge(t, db, model.Ingress, "10.0.0.1", 3306).Verdict == model.Allow })
	Eventually(t, "both are current at revision 2", func() bool {
		w, d := agent(t, c, "web-1"), agent(t, c, "db-1")
		return w.Current && d.Current && w.Revision == 2 && d.Revision == 2
	})
	if got := judge(t, db, model.Ingress, "10.0.0.1", 5432).Verdict; got != model.Deny {
		t.Errorf("the old port is %v", got)
	}
	for _, a := range []*Agent{web, db} {
		got := a.Received()
		if got[0] != "welcome" || got[1] != "snapshot" || got[len(got)-1] != "delta" || slices.Contains(got[2:], "snapshot") {
			t.Errorf("%s received %v, want one snapshot and then deltas", a.Host, got)
		}
	}
	// What changes nothing for an agent is not sent.
	before := len(db.Received())
	c.Apply(strings.ReplaceAll(shop, "5432", "3306") + "---\napiVersion: bulkhead/v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [tcp/1]}\n")
	Eventually(t, "an agent that needs nothing is current at revision 3", func() bool {
		a := agent(t, c, "db-1")
		return a.Current && a.Revision == 3
	})
	if got := db.Received()[before:]; len(got) != 0 {
		t.Errorf("db-1 received %v", got)
	}
	a := agent(t, c, "db-1")
	if a.Version != "test" || a.Kernel != "6.1" || a.Dataplane != "memory" || len(a.Limits) != 1 || a.Workloads != 1 ||
		a.Hash != db.Policy().Hash().String() || a.CertificateExpiresMs == 0 || a.LastSeenMs == 0 {
		t.Errorf("agent %v", a)
	}
	policy, err := c.API.GetHostPolicy(t.Context(), &pb.GetHostPolicyRequest{Host: "db-1"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := wire.PolicyFromProto(policy.Policy)
	if err != nil || p.Hash() != db.Policy().Hash() || policy.Hash != p.Hash().String() {
		t.Errorf("GetHostPolicy: %v, %v", policy.Hash, err)
	}
	_, err = c.API.GetHostPolicy(t.Context(), &pb.GetHostPolicyRequest{Host: "nobody"})
	wantError(t, err, connect.CodeNotFound, "nobody")
}

func TestReconnect(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	a := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	a.Session().Close()
	Eventually(t, "it is gone", func() bool { return connected(t, c) == 0 })
	if got := agent(t, c, "web-1"); got.Connected || got.Current {
		t.Errorf("an agent that is gone: %v", got)
	}
	received := len(a.Received())
	a.Connect()
	Eventually(t, "it is current again", func() bool { return current(t, c, "web-1") && len(a.Received()) > received })
	if got := a.Received()[received:]; !slices.Equal(got, []string{"welcome"}) {
		t.Errorf("an agent that has everything received %v", got)
	}
	// Changed while it is away: it gets what it missed.
	a.Session().Close()
	c.Apply(strings.ReplaceAll(shop, "5432", "3306"))
	a.Connect()
	Eventually(t, "it is current at revision 2", func() bool { x := agent(t, c, "web-1"); return x.Current && x.Revision == 2 })
	// A second stream takes the place of the first.
	first := a.Session()
	a.Connect()
	wantError(t, first.Err(t), connect.CodeAborted)
	Eventually(t, "the second stream is current", func() bool { return current(t, c, "web-1") && connected(t, c) == 1 })
}

func TestRefusedPolicy(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	a := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "it knows its peer", func() bool { p := a.Policy(); return p != nil && len(p.Addresses) > 0 })
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	good := a.Policy().Hash()
	a.Change(func(a *Agent) {
		a.Refuse = func(p *hostpolicy.Policy) string {
			if p.Revision == 2 {
				return "more rows than the map holds"
			}
			return ""
		}
	})
	c.Apply(strings.Replace(shop, "tcp/5432", "tcp/1-100", 1))
	Eventually(t, "the refusal shows", func() bool { return agent(t, c, "web-1").Refused != "" })
	got := agent(t, c, "web-1")
	if got.Current || got.Refused != "more rows than the map holds" || got.Hash != good.String() || got.Revision != 1 {
		t.Errorf("after a refusal: %v", got)
	}
	received := a.Received()
	if tail := received[len(received)-2:]; !slices.Equal(tail, []string{"delta", "snapshot"}) {
		t.Errorf("after a delta that was refused the whole policy should have been tried: %v", received)
	}
	if n := c.Metric("bulkhead_policies_refused_total"); n != 1 {
		t.Errorf("%v refusals counted, want 1", n)
	}
	time.Sleep(50 * time.Millisecond)
	if again := a.Received(); len(again) != len(received) {
		t.Errorf("a refused policy is sent again and again: %v", again)
	}
	c.Apply(shop)
	Eventually(t, "it is current again", func() bool { x := agent(t, c, "web-1"); return x.Current && x.Refused == "" })
}

func TestAcknowledgementOfAnotherPolicy(t *testing.T) {
	c := Start(t)
	a := c.NewAgent("web-1")
	a.Wrong = true
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Labels: map[string]string{"app": "shop", "role": "web"}})); err != nil {
		t.Fatal(err)
	}
	a.Connect()
	a.Report(&pb.HostInventory{Addresses: Addresses("10.0.0.1")})
	Eventually(t, "it shows", func() bool { return strings.Contains(agent(t, c, "web-1").Refused, "another policy") })
	if got := a.Received(); len(got) > 4 {
		t.Errorf("received %v: the controller does not stop", got)
	}
	a.Change(func(a *Agent) { a.Wrong = false })
	c.Apply(shop)
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	if got := a.Received(); slices.Contains(got, "delta") {
		t.Errorf("received %v: a delta from a policy that the controller does not know", got)
	}
}

func TestBurstsWhileAnAgentIsSlow(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	a := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "it knows its peer", func() bool { p := a.Policy(); return p != nil && len(p.Addresses) > 0 })
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	a.Change(func(a *Agent) { a.Mute = true })
	received := len(a.Received())
	for _, port := range []string{"1", "2", "3", "4", "5"} {
		c.Apply(strings.Replace(shop, "tcp/5432", "tcp/"+port, 1))
	}
	Eventually(t, "something arrives", func() bool { return len(a.Received()) > received })
	time.Sleep(50 * time.Millisecond)
	if got := a.Received()[received:]; len(got) != 1 {
		t.Errorf("an agent that does not answer received %v, want one policy", got)
	}
	if got := agent(t, c, "web-1"); got.Current || got.Revision != 1 {
		t.Errorf("a pending agent: %v", got)
	}
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.AgentsConnected != 2 || status.AgentsCurrent != 1 || status.Revision != 6 {
		t.Errorf("status %v, %v", status, err)
	}
	a.Change(func(a *Agent) { a.Mute = false })
	sum := a.Policy().Hash()
	a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Ack{Ack: &pb.Ack{Revision: a.Policy().Revision, Hash: sum[:]}}})
	Eventually(t, "it is current at revision 6", func() bool { x := agent(t, c, "web-1"); return x.Current && x.Revision == 6 })
}

// TestMessagesThatMakeNoSense is about agents that are broken or evil: the stream ends with a clear error, is counted,
// and nothing has changed.
func TestMessagesThatMakeNoSense(t *testing.T) {
	c, a, _ := pair(t)
	before := world(t, c)
	msg := func(m *pb.AgentMessage) *pb.AgentMessage { return m }
	for name, x := range map[string]struct {
		send  *pb.AgentMessage
		words string
	}{
		"a second hello":            {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{}}}), "second hello"},
		"an address of 3 bytes":     {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Addresses: [][]byte{{1, 2, 3}}}}}), "3 bytes"},
		"a unit without a name":     {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Units: []*pb.UnitInfo{{}}}}}), "name"},
		"a unit's name with spaces": {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Units: []*pb.UnitInfo{{Name: "a b"}}}}}), "space"},
		"a port 70000":              {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Listeners: []*pb.ListenerInfo{{Port: 70000, Proto: 6}}}}}), "70000"},
		"too many addresses":        {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Addresses: make([][]byte, 100_000)}}}), "at most"},
		"a hash of 5 bytes":         {msg(&pb.AgentMessage{Message: &pb.AgentMessage_Ack{Ack: &pb.Ack{Hash: []byte("12345")}}}), "5 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := c.Metric("bulkhead_bad_messages_total")
			s := a.Connect()
			Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
			s.Send(x.send)
			wantError(t, s.Err(t), connect.CodeInvalidArgument, x.words)
			if got := c.Metric("bulkhead_bad_messages_total"); got != bad+1 {
				t.Errorf("%v bad messages counted, want %v", got, bad+1)
			}
		})
	}
	t.Run("no hello", func(t *testing.T) {
		stream, err := a.Service(nil).Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: &pb.AgentStatus{}}}); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Receive()
		wantError(t, err, connect.CodeInvalidArgument, "hello")
	})
	a.Connect()
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	if after := world(t, c); after != before {
		t.Errorf("something has changed:\n%s\nwas\n%s", after, before)
	}
}

// TestTruncatedMessages is about what arrives when a wire is cut or a program is broken: bytes that are no message.
func TestTruncatedMessages(t *testing.T) {
	c, a, _ := pair(t)
	before := world(t, c)
	frame := func(m *pb.AgentMessage) []byte {
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	}
	hello := frame(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{Instance: "raw"}}})
	inventory := frame(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: &pb.HostInventory{Addresses: Addresses("10.9.9.9", "10.9.9.8")}}})
	flows := frame(&pb.AgentMessage{Message: &pb.AgentMessage_Flows{Flows: &pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{{
		Workload: "web-1", LocalAddr: Addresses("10.0.0.1")[0], RemoteAddr: Addresses("10.0.0.2")[0], Proto: 6, Port: 5432, Connections: 1,
	}}}}})
	// A frame that is whole, of a message that is not.
	short := func(f []byte) []byte {
		body := f[5 : len(f)-3]
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	}
	taken := c.Metric("bulkhead_flow_records_total")
	for name, x := range map[string]struct {
		body   []byte
		status connect.Code
	}{
		"half a hello":              {hello[:len(hello)-3], connect.CodeInvalidArgument},
		"half a length":             {append(slices.Clone(hello), inventory[:3]...), connect.CodeInvalidArgument},
		"half an inventory":         {append(slices.Clone(hello), inventory[:len(inventory)-4]...), connect.CodeInvalidArgument},
		"an inventory cut short":    {append(slices.Clone(hello), short(inventory)...), connect.CodeInvalidArgument},
		"half a batch of flows":     {append(slices.Clone(hello), flows[:len(flows)-4]...), connect.CodeInvalidArgument},
		"a batch of flows cut":      {append(slices.Clone(hello), short(flows)...), connect.CodeInvalidArgument},
		"noise":                     {append(slices.Clone(hello), bytes.Repeat([]byte{0xa5}, 100)...), connect.CodeResourceExhausted},
		"a length of four gigabyte": {append(slices.Clone(hello), 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3), connect.CodeResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			bad := c.Metric("bulkhead_bad_messages_total")
			status, message := a.Post(x.body)
			if status != strconv.Itoa(int(x.status)) || !strings.Contains(message, "nothing of it was taken") {
				t.Errorf("status %s, %q; want %d", status, message, x.status)
			}
			if got := c.Metric("bulkhead_bad_messages_total"); got != bad+1 {
				t.Errorf("%v bad messages counted, want %v", got, bad+1)
			}
		})
	}
	a.Connect()
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	if after := world(t, c); after != before {
		t.Errorf("something has changed:\n%s\nwas\n%s", after, before)
	}
	if got := c.Metric("bulkhead_flow_records_total"); got != taken {
		t.Errorf("%v flow records taken, want %v", got, taken)
	}
}

func TestProblemsShow(t *testing.T) {
	c := Start(t)
	a := c.Join("web-1", nil, "10.0.0.1")
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	b := c.Join("web-2", nil, "10.0.0.2")
	b.Report(&pb.HostInventory{Addresses: Addresses("10.0.0.2", "10.0.0.1")})
	a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: &pb.AgentStatus{
		EventsLost: 3, RecordsLost: 4, ResidentBytes: 5, Problems: []string{"disk is full"},
	}}})
	Eventually(t, "what the agent reports shows", func() bool {
		x := agent(t, c, "web-1")
		return x.EventsLost == 3 && x.RecordsLost == 4 && x.ResidentBytes == 5 && slices.Equal(x.Problems, []string{"disk is full"})
	})
	Eventually(t, "what the controller finds shows", func() bool {
		x := agent(t, c, "web-2")
		return len(x.Problems) == 1 && strings.Contains(x.Problems[0], "10.0.0.1 is taken for that of host web-1")
	})
}

func TestUnitsFoundAndDeclared(t *testing.T) {
	c := Start(t)
	c.Apply(shop + `---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: shop-db, labels: {role: db}}
spec: {unit: {host: node-1, name: postgresql.service}}
`)
	a := c.Join("node-1", map[string]string{"app": "shop", "role": "node"}, "10.0.0.1")
	a.Report(&pb.HostInventory{
		Addresses: Addresses("10.0.0.1"),
		Units:     []*pb.UnitInfo{{Name: "postgresql.service"}, {Name: "cron.service"}},
		Listeners: []*pb.ListenerInfo{{Unit: "postgresql.service", Proto: 6, Port: 5432, Process: "postgres"}},
	})
	Eventually(t, "three subjects", func() bool { p := a.Policy(); return p != nil && len(p.Subjects) == 3 })
	w, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*pb.Instance{}
	for _, i := range w.Instances {
		byName[i.Name] = i
	}
	db, cron := byName["shop-db"], byName["node-1/cron.service"]
	if db == nil || cron == nil {
		t.Fatalf("instances %v", w.Instances)
	}
	if db.Labels["app"] != "shop" || db.Labels["role"] != "db" || db.Host != "node-1" || db.Unit != "postgresql.service" || !db.Declared || !db.Connected {
		t.Errorf("declared unit %v", db)
	}
	if len(db.Listening) != 1 || db.Listening[0].Port != "tcp/5432" || db.Listening[0].Process != "postgres" || db.Listening[0].Addr != "" {
		t.Errorf("it listens on %v", db.Listening)
	}
	if cron.Declared || cron.Labels["role"] != "node" || !slices.Equal(cron.Addresses, []string{"10.0.0.1"}) {
		t.Errorf("found unit %v", cron)
	}
	// A unit's name cannot be enrolled as a host.
	wantError(t, c.NewAgent("shop-db").Enroll(c.Token(&pb.CreateTokenRequest{})), connect.CodePermissionDenied, "unit of host node-1")
}

func TestServiceManagerHearsOfReadinessAndOfTheEnd(t *testing.T) {
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", manager.LocalAddr().String())
	hear := func() string {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1024)
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	c := Start(t)
	if got, want := hear(), "READY=1\nSTATUS=serving agents at "+c.Addrs.Network.String(); got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	c.Stop()
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("at the end it says %q", got)
	}
}

func TestHealth(t *testing.T) {
	c := Start(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := c.Get(path); got != "ok\n" {
			t.Errorf("%s says %q", path, got)
		}
	}
	c.Apply(shop)
	for name, want := range map[string]float64{"bulkhead_revision": 1, "bulkhead_agents_connected": 0, "bulkhead_quarantines": 0} {
		if got := c.Metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if c.Metric("bulkhead_compile_seconds_count") < 1 {
		t.Error("compilations are not measured")
	}
}
