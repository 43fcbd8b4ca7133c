package controller_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
	"bulkhead/internal/store/fake"
)

const (
	watch    = pb.QuarantineLevel_QUARANTINE_LEVEL_WATCH
	restrict = pb.QuarantineLevel_QUARANTINE_LEVEL_RESTRICT
	isolate  = pb.QuarantineLevel_QUARANTINE_LEVEL_ISOLATE
)

func quarantine(t *testing.T, c *Controller, r *pb.SetQuarantineRequest) *pb.SetQuarantineResponse {
	t.Helper()
	resp, err := c.API.SetQuarantine(t.Context(), r)
	if err != nil {
		t.Fatalf("quarantine %s: %v", r.Workload, err)
	}
	return resp
}

func level(a *Agent) model.QuarantineLevel {
	if p := a.Policy(); p != nil {
		return p.Subjects[0].Quarantine
	}
	return model.QuarantineNone
}

// pair is a controller with a web server and its database.
func pair(t *testing.T, options ...Option) (c *Controller, web, db *Agent) {
	t.Helper()
	c = Start(t, options...)
	c.Apply(shop)
	web = c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	db = c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "both know each other", func() bool {
		return current(t, c, "web-1") && current(t, c, "db-1") && len(db.Policy().Addresses) > 0 && len(web.Policy().Addresses) > 0
	})
	return c, web, db
}

func TestIsolate(t *testing.T) {
	c, web, db := pair(t)
	before := len(web.Received())
	resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, Reason: "odd", TtlSeconds: 60})
	if !resp.Isolated || resp.TookUs <= 0 || resp.TookUs > 2_000_000 || !strings.Contains(resp.Detail, "agent of web-1") {
		t.Errorf("answer %v", resp)
	}
	if !web.Isolated("web-1") {
		t.Error("the answer came before the agent had isolated the workload")
	}
	if left := time.Until(time.UnixMilli(resp.UntilMs)); left > time.Minute || left < 50*time.Second {
		t.Errorf("it lasts for %v", left)
	}
	Eventually(t, "the policy says the same", func() bool { return level(web) == model.QuarantineIsolate })
	if got := web.Received()[before]; got != "isolate web-1 true" {
		t.Errorf("the first message was %q, want the isolation", got)
	}
	Eventually(t, "its peer sees its new label", func() bool {
		w, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(w.Instances, func(i *pb.Instance) bool {
			return i.Name == "web-1" && i.Quarantine == isolate && i.Labels["bulkhead/quarantine"] == "isolate"
		})
	})
	if db.Isolated("web-1") {
		t.Error("another agent was told to isolate")
	}
	list, err := c.API.ListQuarantines(t.Context(), &pb.ListQuarantinesRequest{})
	if err != nil || len(list.Quarantines) != 1 {
		t.Fatalf("quarantines %v, %v", list, err)
	}
	if q := list.Quarantines[0]; q.Workload != "web-1" || q.Level != isolate || q.Reason != "odd" || q.By != "root@local" || q.UntilMs != resp.UntilMs {
		t.Errorf("quarantine %v", q)
	}
	auditHas(t, c, "quarantine.set", "web-1", false, "odd")
	if c.Metric("bulkhead_quarantine_seconds_count") != 1 || c.Metric("bulkhead_quarantines") != 1 {
		t.Error("quarantines are not measured")
	}

	if _, err := c.API.LiftQuarantine(t.Context(), &pb.LiftQuarantineRequest{Workload: "web-1", Reason: "false alarm"}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "it is free", func() bool { return !web.Isolated("web-1") && level(web) == model.QuarantineNone })
	auditHas(t, c, "quarantine.lift", "web-1", false, "false alarm")
	_, err = c.API.LiftQuarantine(t.Context(), &pb.LiftQuarantineRequest{Workload: "web-1"})
	wantError(t, err, connect.CodeNotFound, "not in quarantine")
}

func TestQuarantineRequests(t *testing.T) {
	c, _, _ := pair(t)
	for name, x := range map[string]struct {
		r     *pb.SetQuarantineRequest
		code  connect.Code
		words string
	}{
		"unknown workload": {&pb.SetQuarantineRequest{Workload: "nobody", Level: isolate}, connect.CodeNotFound, "nobody"},
		"no workload":      {&pb.SetQuarantineRequest{Level: isolate}, connect.CodeInvalidArgument, "workload"},
		"no level":         {&pb.SetQuarantineRequest{Workload: "web-1"}, connect.CodeInvalidArgument, "watch, restrict or isolate"},
		"level 9":          {&pb.SetQuarantineRequest{Workload: "web-1", Level: 9}, connect.CodeInvalidArgument, "9"},
		"negative time":    {&pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, TtlSeconds: -5}, connect.CodeInvalidArgument, "seconds"},
		"for ever":         {&pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, TtlSeconds: 1 << 61}, connect.CodeInvalidArgument, "seconds"},
		"for years":        {&pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, TtlSeconds: 1 << 28}, connect.CodeInvalidArgument, "days"},
		"negative wait":    {&pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, WaitMs: -1}, connect.CodeInvalidArgument, "wait"},
		"wait for ever":    {&pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, WaitMs: 1 << 60}, connect.CodeInvalidArgument, "wait"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.API.SetQuarantine(t.Context(), x.r)
			wantError(t, err, x.code, x.words)
		})
	}
	list, err := c.API.ListQuarantines(t.Context(), &pb.ListQuarantinesRequest{})
	if err != nil || len(list.Quarantines) != 0 {
		t.Errorf("quarantines %v, %v", list, err)
	}
}

func TestQuarantineWithoutAnAnswer(t *testing.T) {
	c, web, _ := pair(t)
	c.Apply(shop + `---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: printer}
spec: {addresses: [10.0.9.9], managed: false}
`)
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	web.Change(func(a *Agent) { a.Unhearing, a.Mute = true, true })
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, WaitMs: 100}); resp.Isolated ||
		!strings.Contains(resp.Detail, "not answered within 100ms") || resp.TookUs < 100_000 {
		t.Errorf("an agent that does not answer: %v", resp)
	}
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "printer", Level: isolate}); resp.Isolated || !strings.Contains(resp.Detail, "no agent enforces") {
		t.Errorf("a workload without an agent: %v", resp)
	}
	web.Change(func(a *Agent) { a.Unhearing, a.Mute = false, false })
	web.Session().Close()
	Eventually(t, "it is gone", func() bool { return connected(t, c) == 1 })
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate}); resp.Isolated || !strings.Contains(resp.Detail, "not connected") {
		t.Errorf("an agent that is away: %v", resp)
	}
	web.Connect()
	Eventually(t, "it is told when it is back", func() bool { return level(web) == model.QuarantineIsolate && current(t, c, "web-1") })
}

func TestLiftWhileTheAgentIsAway(t *testing.T) {
	c, web, _ := pair(t)
	quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate})
	web.Session().Close()
	Eventually(t, "it is gone", func() bool { return connected(t, c) == 1 })
	if _, err := c.API.LiftQuarantine(t.Context(), &pb.LiftQuarantineRequest{Workload: "web-1"}); err != nil {
		t.Fatal(err)
	}
	web.Connect()
	Eventually(t, "it is free", func() bool {
		return !web.Isolated("web-1") && level(web) == model.QuarantineNone && current(t, c, "web-1")
	})
}

func TestOtherLevels(t *testing.T) {
	c, web, db := pair(t)
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: watch}); !resp.Isolated || level(web) != model.QuarantineWatch {
		t.Errorf("watch: %v", resp)
	}
	// web-1 talked to db-1 today, to the address of nobody, and was denied something.
	now := time.Now().UnixMilli()
	edge := func(local, remote string, port uint32, v pb.Verdict) *pb.FlowRecord {
		return &pb.FlowRecord{
			Workload: "web-1", Direction: pb.Direction_DIRECTION_EGRESS, LocalAddr: Addresses(local)[0], RemoteAddr: Addresses(remote)[0],
			Proto: 6, Port: port, Verdict: v, Rule: "shop/web-to-db", FirstMs: now - 1000, LastMs: now, Connections: 1,
		}
	}
	web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{
		edge("10.0.0.1", "10.0.0.2", 5432, pb.Verdict_VERDICT_ALLOW), edge("10.0.0.1", "10.0.0.2", 22, pb.Verdict_VERDICT_DENY),
		edge("10.0.0.1", "192.0.2.1", 443, pb.Verdict_VERDICT_ALLOW),
	}})
	Eventually(t, "the batch is acknowledged", func() bool { return slices.Equal(web.Acked(), []uint64{1}) })
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: restrict}); !resp.Isolated {
		t.Errorf("restrict: %v", resp)
	}
	w, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range w.Instances {
		if i.Name != "web-1" {
			continue
		}
		if len(i.InUse) != 1 || i.InUse[0].Peer != "db-1" || i.InUse[0].Ports != "tcp/5432" || i.InUse[0].Direction != pb.Direction_DIRECTION_EGRESS {
			t.Errorf("in use: %v", i.InUse)
		}
	}
	if got := judge(t, web, model.Egress, "10.0.0.2", 5432); got.Verdict != model.Allow {
		t.Errorf("what is in use is %v", got)
	}
	// From isolation back to a lower level: the isolation is lifted.
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "db-1", Level: isolate}); !resp.Isolated {
		t.Errorf("isolate: %v", resp)
	}
	if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "db-1", Level: watch}); !resp.Isolated {
		t.Errorf("watch after isolate: %v", resp)
	}
	Eventually(t, "db-1 is watched only", func() bool { return !db.Isolated("db-1") && level(db) == model.QuarantineWatch })
}

func TestLeasesExpire(t *testing.T) {
	c, web, _ := pair(t)
	quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, TtlSeconds: 1})
	Eventually(t, "it is held", func() bool { return level(web) == model.QuarantineIsolate })
	Eventually(t, "it is free", func() bool { return !web.Isolated("web-1") && level(web) == model.QuarantineNone })
	Eventually(t, "the log says so", func() bool {
		resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{Limit: 1})
		return err == nil && resp.Entries[0].Action == "quarantine.expire" && resp.Entries[0].Actor == "controller"
	})
	if list, err := c.API.ListQuarantines(t.Context(), &pb.ListQuarantinesRequest{}); err != nil || len(list.Quarantines) != 0 {
		t.Errorf("quarantines %v, %v", list, err)
	}
}

func TestLeaseThatRanOutWhileTheControllerWasDown(t *testing.T) {
	now := newClock()
	c, web, _ := pair(t, func(_ *controller.Config, d *controller.Deps) { d.Now = now.Now })
	quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, TtlSeconds: 600})
	Eventually(t, "it is held", func() bool { return level(web) == model.QuarantineIsolate })
	c.Stop()
	now.Advance(11 * time.Minute)
	c.Restart()
	web.Connect()
	Eventually(t, "it is free", func() bool { return !web.Isolated("web-1") && level(web) == model.QuarantineNone })
	Eventually(t, "the log says so", func() bool {
		resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
		return err == nil && resp.Intact && slices.ContainsFunc(resp.Entries, func(e *pb.AuditEntry) bool { return e.Action == "quarantine.expire" })
	})
}

// TestQuarantineWhileTheStoreFails is about a breach while the disk is full: isolation goes on, is stored later, and
// nothing is opened that the log does not tell of.
func TestQuarantineWhileTheStoreFails(t *testing.T) {
	s := &fake.Store{}
	c, web, _ := pair(t, func(_ *controller.Config, d *controller.Deps) { d.Store = s })
	s.Fail(store.ErrFull)
	resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, Reason: "breach"})
	if !resp.Isolated || !strings.Contains(resp.Detail, "could not be stored") {
		t.Errorf("answer %v", resp)
	}
	_, err := c.API.LiftQuarantine(t.Context(), &pb.LiftQuarantineRequest{Workload: "web-1"})
	wantError(t, err, connect.CodeResourceExhausted, "full")
	if !web.Isolated("web-1") && level(web) != model.QuarantineIsolate {
		t.Error("it was opened although that could not be stored")
	}
	s.Fail(nil)
	Eventually(t, "it is stored once the store works", func() bool {
		resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
		return err == nil && slices.ContainsFunc(resp.Entries, func(e *pb.AuditEntry) bool {
			return e.Action == "quarantine.set" && strings.Contains(e.Detail, "breach")
		})
	})
	if err := s.View(t.Context(), func(r store.Reader) error {
		list, err := r.Leases()
		if len(list) != 1 || list[0].Workload != "web-1" {
			t.Errorf("leases %v", list)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
