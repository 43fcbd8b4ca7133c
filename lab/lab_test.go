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
