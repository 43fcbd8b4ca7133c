package fake_test

import (
	"context"
	"net/netip"
	"testing"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
	"bulkhead/internal/dataplane/fake"
)

func TestPort(t *testing.T) {
	dataplanetest.RunPort(t, func(testing.TB) (dataplane.Dataplane, func() dataplane.Dataplane) {
		d := fake.New()
		return d, func() dataplane.Dataplane { return d.Reopen() }
	})
}

func set(v model.Verdict, rule model.RuleID) hostpolicy.PolicySet {
	t := hostpolicy.Table{Funcs: []hostpolicy.Func{{{Ports: model.AnyPort, Verdict: v, Rule: rule}}}}
	s := hostpolicy.PolicySet{Ingress: t, Egress: t}
	s.ID = s.ContentID()
	return s
}

func policy(v model.Verdict, rule model.RuleID) *hostpolicy.Policy {
	normal, isolation := set(v, rule), set(model.Deny, model.RuleIsolate)
	p := &hostpolicy.Policy{
		Host:     "h",
		Subjects: []hostpolicy.Subject{{Workload: "h", Identity: 1, Set: normal.ID, Isolation: isolation.ID}},
		Sets:     []hostpolicy.PolicySet{normal, isolation},
	}
	if normal.ID > isolation.ID {
		p.Sets[0], p.Sets[1] = isolation, normal
	}
	return p
}

// TestLiveFlows follows one connection through judgement, isolation and its end.
func TestLiveFlows(t *testing.T) {
	d := fake.New()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := make(chan dataplane.Event, 16)
	go func() {
		if err := d.Events(ctx, func(e *dataplane.Event) { events <- *e }); err != nil {
			t.Error(err)
		}
	}()
	flow := fake.Flow{
		Packet: hostpolicy.Packet{
			Workload: "h", Dir: model.Egress, Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2"),
			Proto: model.ProtoTCP, Port: 443,
		},
		LocalPort: 40000, RemotePort: 443,
	}
	if v := d.Begin(flow); v.Rule != model.RuleOpen || v.Verdict != model.Allow {
		t.Errorf("before any policy: %v", v)
	}
	if e := <-events; e.Kind != dataplane.EventOpen || e.Rejudged || e.Remote.Port() != 443 {
		t.Errorf("open: %+v", e)
	}
	if st, err := d.Apply(ctx, &dataplane.State{Policy: policy(model.Allow, "p/r")}); err != nil || st.Reset != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if e := <-events; e.Kind != dataplane.EventOpen || !e.Rejudged || e.Rule != "p/r" {
		t.Errorf("judged again: %+v", e)
	}
	if err := d.Isolate(ctx, "h", true); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Kind != dataplane.EventDeny || !e.Rejudged || e.Rule != model.RuleIsolate || e.Count != 1 {
		t.Errorf("isolated: %+v", e)
	}
	if e := <-events; e.Kind != dataplane.EventClose {
		t.Errorf("cut: %+v", e)
	}
	if d.Live() != 0 {
		t.Error("it is still live")
	}
	if v := d.Begin(flow); v.Verdict != model.Deny {
		t.Errorf("a new one while isolated: %v", v)
	}
}
