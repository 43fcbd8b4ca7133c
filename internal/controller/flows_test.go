package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/flowstore/fake"
)

// seen makes the record of one end.
func seen(workload string, d pb.Direction, local, remote string, port uint32, v pb.Verdict, rule string, n uint64) *pb.FlowRecord {
	now := time.Now().UnixMilli()
	return &pb.FlowRecord{
		Workload: workload, Direction: d, LocalAddr: Addresses(local)[0], RemoteAddr: Addresses(remote)[0], Proto: 6, Port: port,
		Verdict: v, Rule: rule, FirstMs: now - 2000, LastMs: now - 1000, Connections: n, BytesSent: 10 * n, BytesReceived: 100 * n,
		Process: &pb.FlowProcess{Name: workload + "-proc", Path: "/usr/bin/" + workload, Uid: 33},
	}
}

const (
	egress  = pb.Direction_DIRECTION_EGRESS
	ingress = pb.Direction_DIRECTION_INGRESS
	allow   = pb.Verdict_VERDICT_ALLOW
	would   = pb.Verdict_VERDICT_WOULD_DENY
	deny    = pb.Verdict_VERDICT_DENY
)

func listFlows(t *testing.T, c *Controller, r *pb.ListFlowsRequest) ([]*pb.Edge, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := c.API.ListFlows(ctx, r)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var edges []*pb.Edge
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return edges, nil
		}
		if err != nil {
			return edges, err
		}
		edges = append(edges, m.Edges...)
	}
}

func edgeLines(edges []*pb.Edge) (lines []string) {
	for _, e := range edges {
		lines = append(lines, fmt.Sprintf("%s %s>%s %d x%d %s", e.Verdict, e.From, e.To, e.Port, e.Connections, e.Seen))
	}
	slices.Sort(lines)
	return lines
}

func wantLines(t *testing.T, what string, got []*pb.Edge, want ...string) {
	t.Helper()
	slices.Sort(want)
	if lines := edgeLines(got); !slices.Equal(lines, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(lines, "\n     "), strings.Join(want, "\n     "))
	}
}

// traffic reports some flows of web-1 and db-1.
func traffic(t *testing.T, web, db *Agent) {
	t.Helper()
	web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("web-1", egress, "10.0.0.1", "10.0.0.2", 5432, allow, "shop/web-to-db", 7),
		seen("web-1", egress, "10.0.0.1", "10.0.0.2", 22, deny, "default-deny", 2),
		seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, would, "default-deny", 1),
	}})
	db.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("db-1", ingress, "10.0.0.2", "10.0.0.1", 5432, allow, "shop/web-to-db", 7),
		seen("db-1", ingress, "10.0.0.2", "203.0.113.5", 5432, deny, "default-deny", 3),
	}})
	Eventually(t, "both batches are acknowledged", func() bool { return len(web.Acked()) == 1 && len(db.Acked()) == 1 })
}

func TestFlowsOfBothEnds(t *testing.T) {
	c, web, db := pair(t)
	traffic(t, web, db)
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const (
		query  = "VERDICT_ALLOW web-1>db-1 5432 x7 both"
		ssh    = "VERDICT_DENY web-1>db-1 22 x2 source"
		out    = "VERDICT_WOULD_DENY web-1>192.0.2.9 443 x1 source"
		probed = "VERDICT_DENY 203.0.113.5>db-1 5432 x3 destination"
	)
	wantLines(t, "all", edges, query, ssh, out, probed)
	i := slices.IndexFunc(edges, func(e *pb.Edge) bool { return e.Seen == "both" })
	e := edges[i]
	if e.FromProcess != "web-1-proc" || e.ToProcess != "db-1-proc" || e.FromLabels["role"] != "web" || e.ToLabels["role"] != "db" ||
		e.FromAddr != "10.0.0.1" || e.ToAddr != "10.0.0.2" || e.Egress.Rule != "shop/web-to-db" || e.Ingress.Connections != 7 || e.LastMs < e.FirstMs {
		t.Errorf("edge %v", e)
	}
	if e.BytesToServer != 700 || e.BytesToClient != 700 { // each end's fake counts 10 sent and 100 received
		t.Errorf("bytes %d and %d", e.BytesToServer, e.BytesToClient)
	}
	for name, x := range map[string]struct {
		r    *pb.ListFlowsRequest
		want []string
	}{
		"from a name":      {&pb.ListFlowsRequest{From: "web-1"}, []string{query, ssh, out}},
		"to a selector":    {&pb.ListFlowsRequest{To: "app=shop,role=db"}, []string{query, ssh, probed}},
		"from an address":  {&pb.ListFlowsRequest{From: "203.0.113.5"}, []string{probed}},
		"to a prefix":      {&pb.ListFlowsRequest{To: "192.0.2.0/24"}, []string{out}},
		"on a port":        {&pb.ListFlowsRequest{Port: "tcp/5432"}, []string{query, probed}},
		"on a protocol":    {&pb.ListFlowsRequest{Port: "udp"}, nil},
		"denied":           {&pb.ListFlowsRequest{Verdicts: []pb.Verdict{deny, would}}, []string{ssh, out, probed}},
		"by a rule":        {&pb.ListFlowsRequest{Rule: "shop/web-to-db"}, []string{query}},
		"by a policy":      {&pb.ListFlowsRequest{Rule: "shop"}, []string{query}},
		"before":           {&pb.ListFlowsRequest{SinceMs: 1, UntilMs: time.Now().Add(-time.Hour).UnixMilli()}, nil},
		"of the last hour": {&pb.ListFlowsRequest{SinceMs: time.Now().Add(-time.Hour).UnixMilli()}, []string{query, ssh, out, probed}},
		"all at once":      {&pb.ListFlowsRequest{From: "role=web", To: "db-1", Port: "tcp", Verdicts: []pb.Verdict{allow}, Rule: "shop"}, []string{query}},
	} {
		t.Run(name, func(t *testing.T) {
			edges, err := listFlows(t, c, x.r)
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, name, edges, x.want...)
		})
	}
	if edges, err := listFlows(t, c, &pb.ListFlowsRequest{Limit: 2}); err != nil || len(edges) != 2 {
		t.Errorf("limit 2: %d edges, %v", len(edges), err)
	}
	for name, x := range map[string]struct {
		r     *pb.ListFlowsRequest
		code  connect.Code
		words string
	}{
		"a name that nobody has": {&pb.ListFlowsRequest{From: "web-7"}, connect.CodeNotFound, "web-7"},
		"a broken selector":      {&pb.ListFlowsRequest{To: "app=("}, connect.CodeInvalidArgument, "column"},
		"a broken port":          {&pb.ListFlowsRequest{Port: "tcp/99999"}, connect.CodeInvalidArgument, "99999"},
		"a port that is a word":  {&pb.ListFlowsRequest{Port: "postgres"}, connect.CodeInvalidArgument, "service"},
		"verdict 9":              {&pb.ListFlowsRequest{Verdicts: []pb.Verdict{9}}, connect.CodeInvalidArgument, "9"},
		"time backwards":         {&pb.ListFlowsRequest{SinceMs: 5000, UntilMs: 4000}, connect.CodeInvalidArgument, "before"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := listFlows(t, c, x.r)
			wantError(t, err, x.code, x.words)
		})
	}
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.FlowRecords != 5 || status.FlowRecordsLost != 0 {
		t.Errorf("status %v, %v", status, err)
	}
}

func TestNamesAreThoseOfTheTime(t *testing.T) {
	c, web, db := pair(t)
	traffic(t, web, db)
	if _, err := c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "db-1"}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "db-1 is no workload any more", func() bool { return !strings.Contains(world(t, c), `name:"db-1"`) })
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{To: "db-1", Port: "tcp/5432", From: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "flows to what is gone", edges, "VERDICT_ALLOW web-1>db-1 5432 x7 both")
}

func TestBatchesCountOnce(t *testing.T) {
	c, web, _ := pair(t)
	batch := func(sequence uint64) *pb.FlowBatch {
		return &pb.FlowBatch{Sequence: sequence, Lost: 2, Records: []*pb.FlowRecord{seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, allow, "open", 1)}}
	}
	web.Flows(batch(1))
	web.Flows(batch(2))
	Eventually(t, "both are acknowledged", func() bool { return slices.Equal(web.Acked(), []uint64{1, 2}) })
	// The connection breaks before the agent has seen the answer: it sends again, and gets an answer.
	web.Session().Close()
	web.Connect()
	web.Flows(batch(2))
	web.Flows(batch(3))
	Eventually(t, "what is repeated is acknowledged too", func() bool { return slices.Equal(web.Acked(), []uint64{1, 2, 2, 3}) })
	// After a restart of the controller as well.
	c.Stop()
	c.Restart()
	web.Connect()
	web.Flows(batch(3))
	// An agent that has lost its spool counts from the start, under another name.
	web.Session().Close()
	web.Change(func(a *Agent) { a.Instance = "second" })
	web.Connect()
	web.Flows(batch(1))
	Eventually(t, "another numbering is acknowledged", func() bool { return len(web.Acked()) >= 5 })
	Eventually(t, "everything counts once", func() bool {
		edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
		return err == nil && len(edges) == 1 && edges[0].Connections == 4
	})
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.FlowRecordsLost == 0 {
		t.Errorf("what agents lost is not shown: %v, %v", status, err)
	}
}

// TestAgentsSpeakForThemselvesOnly is about an agent that invents flows of others.
func TestAgentsSpeakForThemselvesOnly(t *testing.T) {
	c, web, _ := pair(t)
	good := seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, allow, "open", 1)
	bad := func(change func(*pb.FlowRecord)) *pb.FlowRecord {
		r := seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, allow, "open", 1)
		change(r)
		return r
	}
	future := bad(func(r *pb.FlowRecord) { r.FirstMs += 3600_000; r.LastMs += 3600_000; r.Port = 8443 })
	web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		good, future,
		bad(func(r *pb.FlowRecord) { r.Workload = "db-1" }),
		bad(func(r *pb.FlowRecord) { r.Workload = "" }),
		bad(func(r *pb.FlowRecord) { r.LocalAddr = Addresses("10.0.0.2")[0] }),
		bad(func(r *pb.FlowRecord) { r.LocalAddr = []byte{1} }),
		bad(func(r *pb.FlowRecord) { r.RemoteAddr = nil }),
		bad(func(r *pb.FlowRecord) { r.Proto = 999 }),
		bad(func(r *pb.FlowRecord) { r.Verdict = 9 }),
		bad(func(r *pb.FlowRecord) { r.Direction = 9 }),
		bad(func(r *pb.FlowRecord) { r.LastMs = r.FirstMs - 1 }),
	}})
	Eventually(t, "the batch is acknowledged", func() bool { return len(web.Acked()) == 1 })
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "flows", edges, "VERDICT_ALLOW web-1>192.0.2.9 443 x1 source", "VERDICT_ALLOW web-1>192.0.2.9 8443 x1 source")
	if n := c.Metric(`bulkhead_flow_records_lost_total{where="rejected"}`); n != 9 {
		t.Errorf("%v records rejected, want 9", n)
	}
	if n := c.Metric("bulkhead_flow_records_shifted_total"); n != 1 {
		t.Errorf("%v records shifted, want 1", n)
	}
	for _, e := range edges {
		if time.Until(time.UnixMilli(e.LastMs)) > time.Minute {
			t.Errorf("a flow of the future: %v", e)
		}
	}
}

// TestForgedSource is about a workload that tried to send from another's address: the attempt is on record, as its own.
func TestForgedSource(t *testing.T) {
	c, web, _ := pair(t)
	web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("web-1", egress, "10.0.0.2", "192.0.2.9", 25, deny, "default-deny", 3),
		seen("web-1", egress, "10.0.0.2", "192.0.2.9", 26, allow, "open", 1),
		seen("web-1", ingress, "10.0.0.2", "192.0.2.9", 27, deny, "default-deny", 1),
	}})
	Eventually(t, "the batch is acknowledged", func() bool { return len(web.Acked()) == 1 })
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{From: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "flows", edges, "VERDICT_DENY web-1>192.0.2.9 25 x3 source")
	if len(edges) == 1 && edges[0].FromAddr != "10.0.0.1" {
		t.Errorf("it was sent from %s", edges[0].FromAddr)
	}
	if n := c.Metric(`bulkhead_flow_records_lost_total{where="rejected"}`); n != 2 {
		t.Errorf("%v records rejected, want 2", n)
	}
}

func TestSharedAddressInFlows(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	node := c.Join("node-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	node.Report(&pb.HostInventory{
		Addresses: Addresses("10.0.0.1"), Units: []*pb.UnitInfo{{Name: "a.service"}, {Name: "b.service"}},
	})
	db := c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "the units are there", func() bool { p := node.Policy(); return p != nil && len(p.Subjects) == 3 })
	Eventually(t, "db-1 is there", func() bool { return current(t, c, "db-1") })
	node.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("node-1/a.service", egress, "10.0.0.1", "10.0.0.2", 5432, allow, "shop/web-to-db", 3),
		seen("node-1/b.service", egress, "10.0.0.1", "10.0.0.2", 5432, allow, "shop/web-to-db", 5),
	}})
	db.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("db-1", ingress, "10.0.0.2", "10.0.0.1", 5432, allow, "shop/web-to-db", 8),
	}})
	Eventually(t, "both batches are acknowledged", func() bool { return len(node.Acked()) == 1 && len(db.Acked()) == 1 })
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "flows", edges, "VERDICT_ALLOW node-1/a.service>db-1 5432 x3 both", "VERDICT_ALLOW node-1/b.service>db-1 5432 x5 both")
}

func TestFollow(t *testing.T) {
	c, web, db := pair(t)
	web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{seen("web-1", egress, "10.0.0.1", "10.0.0.2", 22, deny, "default-deny", 2)}})
	Eventually(t, "the batch is acknowledged", func() bool { return len(web.Acked()) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := c.API.ListFlows(ctx, &pb.ListFlowsRequest{Follow: true, Port: "tcp", To: "db-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	next := func() (edges []*pb.Edge) {
		t.Helper()
		m, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		return m.Edges
	}
	wantLines(t, "what was", next(), "VERDICT_DENY web-1>db-1 22 x2 source")
	web.Flows(&pb.FlowBatch{Sequence: 2, Records: []*pb.FlowRecord{
		seen("web-1", egress, "10.0.0.1", "10.0.0.2", 5432, allow, "shop/web-to-db", 1),
		seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, deny, "default-deny", 1), // not asked for
	}})
	db.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		seen("db-1", ingress, "10.0.0.2", "10.0.0.1", 5432, allow, "shop/web-to-db", 1),
	}})
	wantLines(t, "what comes in", next(), "VERDICT_ALLOW web-1>db-1 5432 x1 both")
	// The end of the controller ends it.
	c.Stop()
	if _, err := stream.Receive(); err == nil {
		t.Error("the stream goes on after the end of the controller")
	}
}

func TestFollowUpToALimit(t *testing.T) {
	c, web, db := pair(t)
	traffic(t, web, db)
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{Follow: true, Limit: 4})
	if err != nil || len(edges) != 4 {
		t.Errorf("%d edges, %v", len(edges), err)
	}
}

// TestFlowStoreThatFails is about a flow history that cannot be written: records are lost, which is counted and shown,
// agents are not held up, and policy goes on.
func TestFlowStoreThatFails(t *testing.T) {
	s := &fake.Store{}
	c, web, _ := pair(t, func(_ *controller.Config, d *controller.Deps) { d.Flows = s })
	s.Fail(flowstore.ErrFull)
	for i := range uint64(10) {
		web.Flows(&pb.FlowBatch{Sequence: i + 1, Records: []*pb.FlowRecord{seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, allow, "open", 1)}})
	}
	Eventually(t, "all are acknowledged", func() bool { return len(web.Acked()) == 10 })
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.FlowRecordsLost != 10 || status.FlowRecords != 0 {
		t.Errorf("status %v, %v", status, err)
	}
	if c.Metric("bulkhead_flow_store_failures_total") < 1 || c.Metric(`bulkhead_flow_records_lost_total{where="store"}`) != 10 {
		t.Error("failures of the flow store are not counted")
	}
	if got := c.Apply(strings.Replace(shop, "5432", "3306", 1)); got.Revision != 2 {
		t.Errorf("apply: %v", got)
	}
	Eventually(t, "policy goes on", func() bool { return current(t, c, "web-1") })
	s.Fail(nil)
	web.Flows(&pb.FlowBatch{Sequence: 11, Records: []*pb.FlowRecord{seen("web-1", egress, "10.0.0.1", "192.0.2.9", 443, allow, "open", 1)}})
	Eventually(t, "it works again", func() bool {
		edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
		return err == nil && len(edges) == 1 && edges[0].Connections == 1
	})
}

// TestManyFlows sends more batches than may wait, from several agents at once.
func TestManyFlows(t *testing.T) {
	c := Start(t)
	const hosts, batches, each = 4, 300, 20
	var list []*Agent
	for h := range hosts {
		host := fmt.Sprintf("node-%d", h)
		list = append(list, c.Join(host, nil, fmt.Sprintf("10.0.0.%d", h+1)))
		Eventually(t, "it is current", func() bool { return current(t, c, host) })
	}
	for h, a := range list {
		go func() {
			for i := range uint64(batches) {
				b := &pb.FlowBatch{Sequence: i + 1}
				for p := range uint32(each) {
					b.Records = append(b.Records, seen(a.Host, egress, fmt.Sprintf("10.0.0.%d", h+1), "192.0.2.9", p, allow, "open", 1))
				}
				a.Flows(b)
			}
		}()
	}
	for _, a := range list {
		Eventually(t, "every batch is acknowledged, in order", func() bool {
			acked := a.Acked()
			return len(acked) == batches && slices.IsSorted(acked)
		})
	}
	edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, e := range edges {
		total += e.Connections
	}
	if total != hosts*batches*each || len(edges) != hosts*each {
		t.Errorf("%d connections in %d edges, want %d in %d", total, len(edges), hosts*batches*each, hosts*each)
	}
}

func TestPlanKnowsWhatWouldBreak(t *testing.T) {
	c, web, db := pair(t)
	traffic(t, web, db)
	resp, err := c.API.Plan(t.Context(), &pb.PlanRequest{Prune: true, Files: files(strings.Replace(shop, "5432", "3306", 1))})
	if err != nil {
		t.Fatal(err)
	}
	var p plan.Plan
	if err := json.Unmarshal([]byte(resp.PlanJson), &p); err != nil {
		t.Fatal(err)
	}
	if p.Broken != 1 || len(p.Flows.Changed) != 1 {
		t.Fatalf("plan %s", resp.PlanJson)
	}
	if f := p.Flows.Changed[0]; f.From != "web-1" || f.To != "db-1" || f.On != "tcp/5432" || f.Connections != 7 || f.FromProcess != "web-1-proc" {
		t.Errorf("broken flow %+v", f)
	}
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.Revision != 1 {
		t.Errorf("a plan changed something: %v, %v", status, err)
	}
}
