package lab

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/lab/fabric"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// TestMain lets the test binary play the services of a lab, as the program does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "lab" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		root := &cobra.Command{Use: "bulkhead", SilenceUsage: true}
		root.AddCommand(Command())
		if root.ExecuteContext(ctx) != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func need(t *testing.T) {
	t.Helper()
	err := fabric.Preflight()
	if err == nil {
		return
	}
	if strings.Contains(os.Getenv("BULKHEAD_REQUIRE"), "netns") {
		t.Fatal(err)
	}
	t.Skip(err)
}

func TestEveryScenarioLoads(t *testing.T) {
	names, err := scenario.Names(Scenarios())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		s, err := scenario.Load(Scenarios(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Name != name {
			t.Errorf("%s calls itself %q", name, s.Name)
		}
		t.Logf("%s: %s", name, s.Summary())
	}
}

// noDaemons makes a directory with programs that only wait, for tests that need no controller and no agent.
func noDaemons(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"bulkhead-controller", "bulkhead-agent"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTrafficRunsAndIsCounted(t *testing.T) {
	need(t)
	s, err := scenario.Load(Scenarios(), "bank")
	if err != nil {
		t.Fatal(err)
	}
	s.Name = "banktest"
	start := time.Now()
	r, err := rig.Build(t.Context(), rig.Config{Scenario: s, Bin: noDaemons(t), Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("up in %s", time.Since(start))
	if err := r.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second)
	start = time.Now()
	if err := r.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("paused in %s", time.Since(start))
	if err := r.Book.Update(); err != nil {
		t.Fatal(err)
	}
	outcomes := map[traffic.Outcome]int{}
	for _, e := range r.Book.Entries(func(e *traffic.Entry) bool { return e.Role == traffic.RoleCall }) {
		outcomes[e.Outcome]++
		if e.Outcome != traffic.OK {
			t.Logf("%+v", e)
		}
	}
	t.Log(outcomes)
	a, err := r.Attack(t.Context(), s.Story.Breach.From)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(a)
}

func TestHealRestartsWhatTheWormTook(t *testing.T) {
	need(t)
	s, err := scenario.Load(Scenarios(), "bank")
	if err != nil {
		t.Fatal(err)
	}
	s.Name = "banktest"
	r, err := rig.Build(t.Context(), rig.Config{Scenario: s, Bin: noDaemons(t), Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a, err := r.Attack(t.Context(), s.Story.Breach.From)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Taken) < 10 || a.Taken[0] != s.Story.Breach.From {
			t.Errorf("the worm took %v", a.Taken)
		}
		if err := r.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, id := range a.Taken {
			ids[id] = true
		}
		if err := r.Heal(t.Context(), ids); err != nil {
			t.Fatal(err)
		}
		if ended := r.Ended(); len(ended) > 0 {
			t.Fatal(ended)
		}
		if err := r.Settle(t.Context()); err != nil {
			for _, e := range r.Ended() {
				t.Log(e)
			}
			logs, _ := filepath.Glob(r.Layout.Dir + "/log/*.log")
			for _, l := range logs {
				b, _ := os.ReadFile(l)
				t.Logf("%s: %s", l, b)
			}
			t.Fatal(err)
		}
		if err := r.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if taken, _, err := r.WormProgress(); err != nil || taken != 0 {
			t.Errorf("after healing the worm is in %d workloads, %v", taken, err)
		}
	}
}
