package world_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

func documents(t *testing.T, revision uint64, yaml string) *world.Documents {
	t.Helper()
	d, err := world.NewDocuments(revision, fmt.Sprint("hash-", revision), yaml)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const basic = `
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
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: printer, labels: {app: office}}
spec: {addresses: [10.0.9.9], managed: false}
`

func report(host, role string, addrs ...string) inventory.Report {
	r := inventory.Report{Host: host, Labels: model.Labels{"app": "shop", "role": role}}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

func load(t *testing.T, cfg world.Config, docs *world.Documents, reports []inventory.Report, leases ...inventory.Lease) *world.World {
	t.Helper()
	w := world.New(cfg, slog.New(slog.DiscardHandler))
	if err := w.Load(docs, reports, leases); err != nil {
		t.Fatal(err)
	}
	return w
}

func flush(t *testing.T, w *world.World) *world.Snapshot {
	t.Helper()
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return w.Snapshot()
}

// judge returns the snapshot as a world that judges.
func judge(t *testing.T, s *world.Snapshot) *compile.World {
	t.Helper()
	c, err := s.Compiled()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func hostPolicy(t *testing.T, w *world.World, host string) *world.HostPolicy {
	t.Helper()
	p, err := w.HostPolicy(host)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSnapshotOfWhatWasStored(t *testing.T) {
	w := load(t, world.Config{Controllers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:7443")}}, documents(t, 3, basic),
		[]inventory.Report{report("web-1", "web", "10.0.0.1"), report("db-1", "db", "10.0.0.2")},
		inventory.Lease{Workload: "db-1", Level: model.QuarantineIsolate})
	s := w.Snapshot()
	if s.Revision() != 3 || s.Documents().Hash != "hash-3" {
		t.Errorf("revision %d, hash %s", s.Revision(), s.Documents().Hash)
	}
	p := hostPolicy(t, w, "db-1")
	if p == nil || p.Revision != 3 || p.Host != "db-1" || p.Subjects[0].Quarantine != model.QuarantineIsolate || len(p.Controllers) != 1 {
		t.Fatalf("policy of db-1: %+v", p)
	}
	if p.Sum != p.Hash() {
		t.Error("the sum is not the hash")
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	defer w.Watch("db-1", func() {})()
	if o := w.Wanted("db-1"); o.Sum != p.Sum || o.Revision != 3 || w.Wanted("db-1") != o {
		t.Error("the outline of a host is another one, or made twice")
	}
	if hostPolicy(t, w, "nobody") != nil || w.Wanted("nobody") != nil || w.Draw("nobody", nil) != nil {
		t.Error("a host that is not there has a policy")
	}
}

func TestAnEmptyWorld(t *testing.T) {
	s := load(t, world.Config{}, nil, nil).Snapshot()
	if s.Revision() != 0 || s.Len() != 0 || len(judge(t, s).Inventory().Instances) != 0 {
		t.Errorf("revision %d with %d workloads", s.Revision(), s.Len())
	}
}

func TestBurstsBecomeOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that a slow machine does not end the burst
		var compiled atomic.Int32
		w := load(t, world.Config{Coalesce: 50 * time.Millisecond, Compiled: func(time.Duration, error) { compiled.Add(1) }}, documents(t, 1, basic), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		before := compiled.Load()
		for i := range 100 {
			w.SetReport(report(fmt.Sprintf("web-%d", i), "web", fmt.Sprintf("10.0.1.%d", i)))
		}
		time.Sleep(time.Minute)
		if n := len(judge(t, w.Snapshot()).Hosts()); n != 100 {
			t.Errorf("%d hosts in the snapshot, want 100", n)
		}
		if n := compiled.Load() - before; n != 1 {
			t.Errorf("compiled %d times, want once", n)
		}
		// What changes nothing makes no snapshot.
		last := w.Snapshot()
		w.SetReport(report("web-7", "web", "10.0.1.7"))
		w.DropReport("nobody")
		w.DropLease("nobody")
		w.SetConnected("web-7", true)
		if time.Sleep(150 * time.Millisecond); w.Snapshot() != last {
			t.Error("a snapshot of nothing new")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReportsAndLeasesChangeTheWorld(t *testing.T) {
	w := load(t, world.Config{}, documents(t, 1, basic), []inventory.Report{report("web-1", "web", "10.0.0.1"), report("db-1", "db", "10.0.0.2")})
	before := w.Wanted("db-1").Sum
	w.SetLease(inventory.Lease{Workload: "web-1", Level: model.QuarantineIsolate})
	s := flush(t, w)
	if got := s.Instance("web-1").Labels[model.QuarantineLabel]; got != "isolate" {
		t.Errorf("label %q", got)
	}
	if w.Wanted("db-1").Sum == before {
		t.Error("a peer's new labels are the same policy")
	}
	w.DropLease("web-1")
	if flush(t, w); w.Wanted("db-1").Sum != before {
		t.Error("the same world has another policy")
	}
	w.DropReport("web-1")
	if flush(t, w).Instance("web-1") != nil {
		t.Error("a host that was dropped is still there")
	}
}

func TestTryChangesNothing(t *testing.T) {
	w := load(t, world.Config{}, documents(t, 1, basic), []inventory.Report{report("web-1", "web", "10.0.0.1")})
	before := w.Snapshot()
	other := documents(t, 0, strings.ReplaceAll(basic, "5432", "3306"))
	c, err := w.Try(other)
	if err != nil {
		t.Fatal(err)
	}
	if w.Snapshot() != before || flush(t, w) != before {
		t.Error("a trial is published")
	}
	if err := w.Adopt(c, 2); err != nil {
		t.Fatal(err)
	}
	s := w.Snapshot()
	if s.Revision() != 2 || judge(t, s) != c.Compiled || hostPolicy(t, w, "web-1").Revision != 2 || w.Wanted("web-1").Revision != 2 {
		t.Errorf("adopted revision %d", s.Revision())
	}
	if flush(t, w) != s {
		t.Error("an adopted candidate is compiled again")
	}
	// Of what has changed since the trial nothing is lost.
	if c, err = w.Try(documents(t, 0, basic)); err != nil {
		t.Fatal(err)
	}
	w.SetReport(report("web-2", "web", "10.0.0.2"))
	if err := w.Adopt(c, 3); err != nil {
		t.Fatal(err)
	}
	if s := w.Snapshot(); s.Revision() != 3 || s.Instance("web-2") == nil {
		t.Errorf("revision %d, web-2 %v", s.Revision(), s.Instance("web-2"))
	}
}

func TestRulesExpireByThemselves(t *testing.T) {
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	var clock atomic.Pointer[time.Time]
	clock.Store(&now)
	docs := documents(t, 1, strings.Replace(basic, "on: [tcp/5432]}}", "on: [tcp/5432]}, expires: 2026-11-23T09:00:01Z}", 1))
	w := load(t, world.Config{Now: func() time.Time { return *clock.Load() }}, docs,
		[]inventory.Report{report("web-1", "web", "10.0.0.1"), report("db-1", "db", "10.0.0.2")})
	before := w.Wanted("db-1").Sum
	poked := make(chan struct{}, 1)
	defer w.Watch("db-1", func() { poked <- struct{}{} })()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	later := now.Add(2 * time.Second)
	clock.Store(&later)
	select {
	case <-poked:
	case <-time.After(time.Minute):
		t.Fatal("nobody is told when the rule expired")
	}
	if w.Wanted("db-1").Sum == before {
		t.Error("the rule is still there")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAnAgentCannotTakeAnAddress is about agents that claim what is not theirs.
func TestAnAgentCannotTakeAnAddress(t *testing.T) {
	now := time.Now()
	w := load(t, world.Config{Now: func() time.Time { return now }}, documents(t, 1, basic), nil)
	step := func() { now = now.Add(time.Second) }
	owner := func(addr string) string {
		t.Helper()
		s := flush(t, w)
		owners := s.Owners(netip.MustParseAddr(addr))
		if len(owners) != 1 {
			t.Fatalf("%s has %d owners", addr, len(owners))
		}
		return owners[0].Name
	}
	problem := func(host, word string) {
		t.Helper()
		if got := strings.Join(w.Snapshot().Problems[host], "; "); !strings.Contains(got, word) {
			t.Errorf("problems of %s: %q, want one that says %q", host, got, word)
		}
	}
	w.SetReport(report("db-1", "db", "10.0.0.2"))
	w.SetConnected("db-1", true)
	step()
	w.SetReport(report("evil", "web", "10.0.0.66", "10.0.0.2", "10.0.9.9"))
	w.SetConnected("evil", true)
	if got := owner("10.0.0.2"); got != "db-1" {
		t.Errorf("the address of db-1 belongs to %s", got)
	}
	if got := owner("10.0.9.9"); got != "printer" {
		t.Errorf("the address of the printer belongs to %s", got)
	}
	if got := owner("10.0.0.66"); got != "evil" {
		t.Errorf("an address that nobody else has belongs to %s", got)
	}
	problem("evil", "10.0.0.2 is taken for that of host db-1")
	problem("evil", "10.0.9.9 is taken for that of workload printer")

	// To say it again, or in another order, does not help.
	step()
	w.SetReport(report("evil", "web", "10.0.0.2", "10.0.0.66"))
	w.SetReport(report("db-1", "db", "10.0.0.2", "10.0.0.3"))
	if got := owner("10.0.0.2"); got != "db-1" {
		t.Errorf("the address of db-1 belongs to %s", got)
	}
	// An address that moves is its new host's once the old one is gone.
	w.SetConnected("db-1", false)
	if got := owner("10.0.0.2"); got != "evil" {
		t.Errorf("the address of a host that is gone belongs to %s", got)
	}
	w.SetConnected("db-1", true)
	if got := owner("10.0.0.2"); got != "db-1" {
		t.Errorf("the address of a host that is back belongs to %s", got)
	}
	w.SetReport(report("db-1", "db", "10.0.0.3"))
	if got := owner("10.0.0.2"); got != "evil" {
		t.Errorf("an address that was given up belongs to %s", got)
	}
}

// TestOneBadReportDoesNotStopOthers is about a report that does not go with the documents.
func TestOneBadReportDoesNotStopOthers(t *testing.T) {
	docs := documents(t, 1, basic+`---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: pay-db, labels: {app: shop, role: db}}
spec: {unit: {host: node-1, name: postgresql.service}}
`)
	var reports []inventory.Report
	for i := range 9 {
		reports = append(reports, report(fmt.Sprintf("node-%d", i), "web", fmt.Sprintf("10.0.0.%d", i+1)))
	}
	w := load(t, world.Config{}, docs, append(reports, report("pay-db", "db", "10.0.7.7")))
	s := w.Snapshot()
	if n := len(judge(t, s).Hosts()); n != 9 {
		t.Errorf("%d hosts, want the 9 good ones", n)
	}
	if p := strings.Join(s.Problems["pay-db"], ""); !strings.Contains(p, "not taken") || !strings.Contains(p, "rename") {
		t.Errorf("problems of the bad report: %q", p)
	}
	if len(s.Problems) != 1 {
		t.Errorf("problems %v", s.Problems)
	}
	w.DropReport("pay-db")
	if s := flush(t, w); len(s.Problems) != 0 || len(judge(t, s).Hosts()) != 9 {
		t.Errorf("after it is gone: %v", s.Problems)
	}
}

func TestResolve(t *testing.T) {
	docs := documents(t, 1, basic+`---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: pay-db, labels: {role: db}}
spec: {unit: {host: node-1, name: postgresql.service}}
`)
	r := report("node-1", "web", "10.0.0.1", "fd00::1")
	r.Listeners = []inventory.ListenerReport{
		{Unit: "postgresql.service", Listener: model.Listener{Addr: netip.IPv6Unspecified(), Proto: model.ProtoTCP, Port: 5432}},
		{Unit: "postgresql.service", Listener: model.Listener{Addr: netip.MustParseAddr("fd00::1"), Proto: model.ProtoTCP, Port: 80}},
	}
	s := load(t, world.Config{}, docs, []inventory.Report{r, report("node-2", "web", "10.0.0.2")}).Snapshot()
	for _, c := range []struct {
		addr string
		dest bool
		port uint16
		want string
	}{
		{"10.0.0.2", true, 5432, "node-2"},
		{"10.0.0.1", true, 5432, "pay-db"},
		{"10.0.0.1", true, 80, "node-1"}, // it listens at another address
		{"fd00::1", true, 80, "pay-db"},
		{"10.0.0.1", false, 5432, "node-1"},
		{"10.0.9.9", true, 1, "printer"},
		{"192.0.2.1", true, 443, ""},
	} {
		if got := s.Resolve(netip.MustParseAddr(c.addr), c.dest, model.ProtoTCP, c.port); got != c.want {
			t.Errorf("%s (destination %v) port %d is %q, want %q", c.addr, c.dest, c.port, got, c.want)
		}
	}
}

func TestWhatCannotBeCompiledIsNotLoaded(t *testing.T) {
	if _, err := world.NewDocuments(4, "h", "kind: Nonsense"); err == nil || !strings.Contains(err.Error(), "revision-4.yaml") {
		t.Errorf("error %v, want one with the place", err)
	}
}
