package controller_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/store"
	"bulkhead/internal/store/fake"
)

func files(yaml string) []*pb.File { return []*pb.File{{Name: "shop.yaml", Content: yaml}} }

func TestApplyAndHistory(t *testing.T) {
	c := Start(t)
	first := c.Apply(shop)
	if first.Revision != 1 || !first.Changed || len(first.Hash) != 64 {
		t.Errorf("first: %v", first)
	}
	// The same documents, spelt otherwise, are no change.
	again := c.Apply("# a comment\n" + strings.ReplaceAll(shop, "{name: shop}", "{name: \"shop\"}"))
	if again.Changed || again.Revision != 1 || again.Hash != first.Hash {
		t.Errorf("again: %v", again)
	}
	// Without prune, documents are laid over those there are, and may name them.
	more, err := c.API.Apply(t.Context(), &pb.ApplyRequest{BaseRevision: 1, Note: "a service", Files: files(`
apiVersion: bulkhead/v1
kind: Service
metadata: {name: redis}
spec: {ports: [tcp/6379]}
`)})
	if err != nil || more.Revision != 2 {
		t.Fatalf("more: %v, %v", more, err)
	}
	if _, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(`
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: cache}
spec: {rules: [{name: r, allow: {from: "app=shop", to: "app=cache", on: [redis]}}]}
`)}); err != nil {
		t.Fatal(err)
	}
	w, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"name: shop", "name: redis", "name: cache"} {
		if !strings.Contains(w.Documents, part) {
			t.Errorf("the documents lack %q:\n%s", part, w.Documents)
		}
	}
	// Documents go by name; what others need stays.
	_, err = c.API.Apply(t.Context(), &pb.ApplyRequest{Remove: []*pb.DocumentRef{{Kind: "Service", Name: "redis"}}})
	wantError(t, err, connect.CodeInvalidArgument, "redis")
	removed, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Remove: []*pb.DocumentRef{{Kind: "Policy", Name: "cache"}, {Kind: "Service", Name: "redis"}}})
	if err != nil || removed.Revision != 4 || removed.Hash != first.Hash {
		t.Errorf("removed: %v, %v; want revision 4 with the hash of the first", removed, err)
	}
	_, err = c.API.Apply(t.Context(), &pb.ApplyRequest{Remove: []*pb.DocumentRef{{Kind: "Policy", Name: "cache"}}})
	wantError(t, err, connect.CodeNotFound, "cache")
	_, err = c.API.Apply(t.Context(), &pb.ApplyRequest{Remove: []*pb.DocumentRef{{Kind: "Cat", Name: "x"}}})
	wantError(t, err, connect.CodeInvalidArgument, "Cat")

	back, err := c.API.Rollback(t.Context(), &pb.RollbackRequest{Revision: 3})
	if err != nil || back.Revision != 5 || !back.Changed {
		t.Fatalf("rollback: %v, %v", back, err)
	}
	if _, err := c.API.Rollback(t.Context(), &pb.RollbackRequest{Revision: 99}); err == nil {
		t.Error("rolled back to a revision that is not there")
	} else {
		wantError(t, err, connect.CodeNotFound, "99")
	}
	_, err = c.API.Rollback(t.Context(), &pb.RollbackRequest{})
	wantError(t, err, connect.CodeNotFound)
	if same, err := c.API.Rollback(t.Context(), &pb.RollbackRequest{Revision: 5}); err != nil || same.Changed {
		t.Errorf("rollback to the newest: %v, %v", same, err)
	}
	list, err := c.API.ListRevisions(t.Context(), &pb.ListRevisionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var notes []string
	for i, r := range list.Revisions {
		if r.Number != uint64(5-i) || r.Author != "root@local" || r.TimeMs == 0 {
			t.Errorf("revision %v", r)
		}
		notes = append(notes, r.Note)
	}
	if got := strings.Join(notes, "|"); got != "back to revision 3|||a service|" {
		t.Errorf("notes %q", got)
	}
	third, err := c.API.GetRevision(t.Context(), &pb.GetRevisionRequest{Number: 3})
	if err != nil || third.Revision.Documents != 4 || third.Revision.Hash != back.Hash || !strings.Contains(third.Documents, "cache") {
		t.Errorf("revision 3: %v, %v", third, err)
	}
	_, err = c.API.GetRevision(t.Context(), &pb.GetRevisionRequest{Number: 99})
	wantError(t, err, connect.CodeNotFound, "99")
	old, err := c.API.GetWorld(t.Context(), &pb.GetWorldRequest{Revision: 1})
	if err != nil || old.Revision != 1 || strings.Contains(old.Documents, "redis") {
		t.Errorf("the world of revision 1: %v, %v", old.GetRevision(), err)
	}
	auditHas(t, c, "policy.apply", "revision 2", false, "a service")
	auditHas(t, c, "policy.rollback", "revision 5", false, "root@local")
	if n := auditHas(t, c, "policy.apply", "", true, "redis"); n != nil && n.Number == 0 {
		t.Error("a refused change has no number")
	}
}

// TestBadDocuments gives what must not be taken: each is an error with its place, and nothing changes.
func TestBadDocuments(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	before := world(t, c)
	for name, x := range map[string]struct{ yaml, words string }{
		"broken YAML":      {"kind: [", "shop.yaml:1"},
		"unknown field":    {strings.Replace(shop, "mode: enforce", "mood: enforce", 1), "shop.yaml:5"},
		"port 70000":       {strings.Replace(shop, "tcp/5432", "tcp/70000", 1), "70000"},
		"label with space": {shop + "---\napiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: x, labels: {app: \"a b\"}}\nspec: {addresses: [10.1.1.1]}\n", "a b"},
		"never matching":   {strings.Replace(shop, `"app=shop,role=db"`, `"role=db,role=web"`, 1), "role"},
		"twice":            {shop + "---\n" + shop, "declared already"},
		"two problems":     {strings.NewReplacer("tcp/5432", "tcp/70000", "mode: enforce", "mode: harder").Replace(shop), "harder"},
		"unknown service":  {strings.Replace(shop, "tcp/5432", "postgres", 1), "postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Prune: true, Files: files(x.yaml)})
			wantError(t, err, connect.CodeInvalidArgument, "shop.yaml:", x.words)
			_, err = c.API.Plan(t.Context(), &pb.PlanRequest{Prune: true, Files: files(x.yaml)})
			wantError(t, err, connect.CodeInvalidArgument, x.words)
		})
	}
	if after := world(t, c); after != before {
		t.Errorf("something has changed:\n%s\nwas\n%s", after, before)
	}
}

func TestConcurrentChanges(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{BaseRevision: 7, Files: files(shop)})
	wantError(t, err, connect.CodeAborted, "revision 7", "newest is 1")
	// Of several changes based on one revision, one is made.
	var wg sync.WaitGroup
	results := make([]error, 5)
	for i := range results {
		wg.Go(func() {
			_, results[i] = c.API.Apply(t.Context(), &pb.ApplyRequest{
				BaseRevision: 1, Files: files(strings.Replace(shop, "tcp/5432", "tcp/"+string(rune('1'+i)), 1)),
			})
		})
	}
	wg.Wait()
	made := 0
	for _, err := range results {
		if err == nil {
			made++
		} else {
			wantError(t, err, connect.CodeAborted)
		}
	}
	if made != 1 {
		t.Errorf("%d changes made, want 1", made)
	}
}

const guarded = shop + `---
apiVersion: bulkhead/v1
kind: Guardrail
metadata: {name: dev-stays-out}
spec: {never: {from: "env=dev,!app", to: "app=shop,role=db", on: [any]}}
---
apiVersion: bulkhead/v1
kind: Expectation
metadata: {name: basics}
spec:
  cases:
    - {from: web-1, to: db-1, on: tcp/5432, expect: allow}
`

func TestGuardrailsAndExpectations(t *testing.T) {
	c := Start(t)
	_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(guarded)})
	wantError(t, err, connect.CodeFailedPrecondition, "basics", "web-1", "--force") // nobody is there yet
	c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	c.Join("dev-1", map[string]string{"env": "dev"}, "10.0.0.3")
	Eventually(t, "all are workloads with addresses", func() bool { return strings.Count(world(t, c), `addresses:"`) == 3 })
	c.Apply(guarded)
	broken := strings.Replace(guarded, "rules:", `rules:
    - {name: oops, allow: {from: "env=dev", to: "app=shop", on: [tcp/5432]}}`, 1)
	_, err = c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(broken)})
	wantError(t, err, connect.CodeFailedPrecondition, "dev-stays-out", "dev-1", "db-1", "shop/oops")
	auditHas(t, c, "policy.apply", "", true, "dev-stays-out")
	status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil || status.Revision != 1 {
		t.Errorf("after a change that was refused: %v, %v", status, err)
	}

	resp, err := c.API.Plan(t.Context(), &pb.PlanRequest{Files: files(broken)})
	if err != nil || resp.Ok || resp.BaseRevision != 1 {
		t.Fatalf("plan: %v, %v", resp, err)
	}
	var p plan.Plan
	if err := json.Unmarshal([]byte(resp.PlanJson), &p); err != nil {
		t.Fatal(err)
	}
	if p.OK || len(p.Guardrails) != 1 || p.Guardrails[0].Holds || len(p.Opened) == 0 {
		t.Errorf("plan %s", resp.PlanJson)
	}

	forced, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(broken), Force: true, Note: "I know"})
	if err != nil || forced.Revision != 2 || !strings.Contains(strings.Join(forced.Warnings, "\n"), "dev-stays-out") {
		t.Fatalf("forced: %v, %v", forced, err)
	}
	auditHas(t, c, "policy.apply", "revision 2", false, "forced: guardrail dev-stays-out")
	if back, err := c.API.Rollback(t.Context(), &pb.RollbackRequest{Revision: 1}); err != nil || back.Revision != 3 {
		t.Errorf("rollback: %v, %v", back, err)
	}
}

// TestWhatHostsCannotHold: a change that an agent would refuse is refused when it is planned and applied, but not what was
// so before.
func TestWhatHostsCannotHold(t *testing.T) {
	c := Start(t)
	join := func(host, dataplane string, labels map[string]string, addr string) *Agent {
		a := c.NewAgent(host)
		a.Dataplane = dataplane
		if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Host: host, Labels: labels})); err != nil {
			t.Fatal(err)
		}
		a.Connect()
		a.Report(&pb.HostInventory{Addresses: Addresses(addr)})
		return a
	}
	join("db-1", "ebpf", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	join("other-1", "", map[string]string{"app": "shop", "role": "web"}, "10.0.0.3")
	Eventually(t, "both are workloads with addresses", func() bool { return strings.Count(world(t, c), `addresses:"`) == 2 })
	much := shop // more rules for processes than may apply to one peer
	for i := range budget.EBPF().MaxAlternatives + 1 {
		much += fmt.Sprintf("    - {name: as-%d, allow: {from: {workloads: \"app=shop,role=web\", process: {user: u%d}}, to: \"app=shop,role=web\", on: [tcp/443]}}\n", i, i)
	}
	join("web-1", "ebpf", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	c.Apply(shop)
	Eventually(t, "the third is there", func() bool { return strings.Count(world(t, c), `addresses:"`) == 3 })
	_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(much)})
	wantError(t, err, connect.CodeFailedPrecondition, "web-1 (ebpf) cannot hold it", "shop/as-0", "use fewer rules", "--force")
	resp, err := c.API.Plan(t.Context(), &pb.PlanRequest{Files: files(much)})
	if err != nil || resp.Ok {
		t.Fatalf("plan: %v, %v", resp, err)
	}
	var p plan.Plan
	if err := json.Unmarshal([]byte(resp.PlanJson), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Budget) != 2 || !p.Budget[0].Assumed && !p.Budget[1].Assumed || !strings.Contains(p.Text(), "2 hosts cannot hold it") {
		t.Errorf("plan\n%s", p.Text())
	}
	forced, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(much), Force: true})
	if err != nil || !strings.Contains(strings.Join(forced.Warnings, "\n"), "web-1 (ebpf) cannot hold it") {
		t.Fatalf("forced: %v, %v", forced, err)
	}
	c.Apply(much + "    - {name: more, allow: {from: app=shop, to: app=shop, on: [tcp/1]}}\n")
}

// TestStoreThatFails is about a disk that is full, a store that is locked or damaged: a clear error, nothing changed,
// and everything works on as soon as the store does.
func TestStoreThatFails(t *testing.T) {
	s := &fake.Store{}
	c := Start(t, func(_ *controller.Config, d *controller.Deps) { d.Store = s })
	c.Apply(shop)
	a := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") })
	token := c.Token(&pb.CreateTokenRequest{})
	before := world(t, c)
	for name, x := range map[string]struct {
		err   error
		code  connect.Code
		words string
	}{
		"full":    {store.ErrFull, connect.CodeResourceExhausted, "full"},
		"locked":  {store.ErrBusy, connect.CodeUnavailable, "locked"},
		"damaged": {store.ErrCorrupt, connect.CodeDataLoss, "damaged"},
		"else":    {errors.New("secret text of a driver"), connect.CodeInternal, "its log says more"},
	} {
		t.Run(name, func(t *testing.T) {
			s.Fail(x.err)
			defer s.Fail(nil)
			_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(strings.Replace(shop, "5432", "3306", 1))})
			wantError(t, err, x.code, x.words)
			if strings.Contains(err.Error(), "secret") {
				t.Error("the text of the driver reaches the client")
			}
			_, err = c.API.RevokeAgent(t.Context(), &pb.RevokeAgentRequest{Host: "web-1"})
			wantError(t, err, x.code, x.words)
			_, err = c.API.CreateToken(t.Context(), &pb.CreateTokenRequest{})
			wantError(t, err, x.code, x.words)
			wantError(t, c.NewAgent("new-1").Enroll(token), x.code, x.words)
		})
	}
	if after := world(t, c); after != before {
		t.Errorf("something has changed:\n%s\nwas\n%s", after, before)
	}
	if c.Metric("bulkhead_store_failures_total") < 12 {
		t.Error("failures of the store are not counted")
	}
	// Agents are served all the while.
	s.Fail(store.ErrFull)
	a.Session().Close()
	a.Connect()
	Eventually(t, "it is current while the store fails", func() bool { return current(t, c, "web-1") })
	s.Fail(nil)
	if got := c.Apply(strings.Replace(shop, "5432", "3306", 1)); got.Revision != 2 {
		t.Errorf("after the store works again: %v", got)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	web := c.Join("web-1", map[string]string{"app": "shop", "role": "web"}, "10.0.0.1")
	db := c.Join("db-1", map[string]string{"app": "shop", "role": "db"}, "10.0.0.2")
	Eventually(t, "both know each other", func() bool {
		return current(t, c, "web-1") && current(t, c, "db-1") && len(db.Policy().Addresses) > 0 && len(web.Policy().Addresses) > 0
	})
	quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: pb.QuarantineLevel_QUARANTINE_LEVEL_ISOLATE, Reason: "odd"})
	Eventually(t, "both are current", func() bool {
		return level(web) == model.QuarantineIsolate && current(t, c, "web-1") && current(t, c, "db-1")
	})
	policy := web.Policy().Hash()
	time.Sleep(1100 * time.Millisecond) // what agents report is saved every second
	fingerprint, admin := c.Fingerprint(), c.AdminToken()
	session := web.Session()
	c.Stop()
	wantError(t, session.Err(t), connect.CodeUnavailable)
	c.Restart()
	if c.Fingerprint() != fingerprint || c.AdminToken() != admin {
		t.Error("a restart makes a new CA or a new token")
	}
	// Before any agent is back, the inventory and the leases are known.
	w := world(t, c)
	for _, part := range []string{"10.0.0.1", "10.0.0.2", "QUARANTINE_LEVEL_ISOLATE", "web-to-db"} {
		if !strings.Contains(w, part) {
			t.Errorf("after a restart the world lacks %s:\n%s", part, w)
		}
	}
	if n := connected(t, c); n != 0 {
		t.Errorf("%d agents connected", n)
	}
	received := len(web.Received())
	web.Connect()
	Eventually(t, "it is current", func() bool { return current(t, c, "web-1") && len(web.Received()) > received })
	if got := web.Received()[received:]; len(got) != 1 || web.Policy().Hash() != policy {
		t.Errorf("an agent that has everything received %v after the restart", got)
	}
	auditHas(t, c, "quarantine.set", "web-1", false, "odd")
	if resp := c.Apply(shop); resp.Changed {
		t.Error("the same documents are a change after a restart")
	}
}

func TestOneControllerADirectory(t *testing.T) {
	c := Start(t)
	cfg := controller.DefaultConfig()
	cfg.Data = c.Dir
	err := controller.New(cfg, controller.Deps{}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another controller uses") {
		t.Errorf("a second controller: %v", err)
	}
}

func TestDamagedStates(t *testing.T) {
	c := Start(t)
	c.Apply(shop)
	c.Stop()
	for _, name := range []string{"flows.db", "flows.db-wal", "flows.db-shm"} {
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "flows.db"), []byte(strings.Repeat("damage", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Restart() // policy does not depend on the flow history
	if got := c.Apply(shop); got.Revision != 1 {
		t.Errorf("after the flow history was damaged: %v", got)
	}
	if aside, err := filepath.Glob(filepath.Join(c.Dir, "flows.db.unusable-*")); err != nil || len(aside) != 1 {
		t.Errorf("moved aside: %v, %v", aside, err)
	}
	c.Stop()
	if err := os.WriteFile(filepath.Join(c.Dir, "state.db"), []byte(strings.Repeat("damage", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := controller.DefaultConfig()
	cfg.Data = c.Dir
	err := controller.New(cfg, controller.Deps{}).Run(t.Context())
	if !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a damaged state: %v, want ErrCorrupt", err)
	}
}
