package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/lab/bypass"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
)

// TestBypass tries every way around that we know of, with the real controller and agent.
func TestBypass(t *testing.T) {
	need(t)
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "bulkhead/cmd/bulkhead-controller", "bulkhead/cmd/bulkhead-agent").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := scenario.Load(Scenarios(), theRange)
	if err != nil {
		t.Fatal(err)
	}
	s.Name = "rangetest"
	report, err := bypass.Run(t.Context(), bypass.Options{Scenario: s, Bin: bin, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	report.Print(&b)
	t.Logf("\n%s", b.String())
	for _, bad := range report.Bad() {
		t.Error(bad)
	}
	layout, err := fabric.LayoutOf(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join("/run/netns", layout.NetnsName("*")))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, dir := range []string{layout.Dir, layout.Cgroup} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("left behind: %s, %v", dir, err)
		}
	}
}

// TestBypassDocumented holds the documentation to the techniques that there are.
func TestBypassDocumented(t *testing.T) {
	docs, err := os.ReadFile("../docs/enforcement.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range bypass.Names() {
		if !strings.Contains(string(docs), "`"+name+"`") {
			t.Errorf("docs/enforcement.md does not say what becomes of %s", name)
		}
	}
}
