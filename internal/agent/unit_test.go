package agent_test

import (
	"os"
	"strings"
	"testing"
)

// TestUnits holds what the units of the service manager promise: how the programs fail depends on it as much as on code.
func TestUnits(t *testing.T) {
	for file, want := range map[string][]string{
		"bulkhead-agent.service": {
			// A reboot: the last policy is in force before the network's first workload starts.
			"Type=notify", "DefaultDependencies=no", "Wants=network-pre.target", "Before=network-pre.target shutdown.target",
			// A crash: it comes back, unless only a person can help (see the exit codes), also if it hangs.
			"Restart=always", "RestartPreventExitStatus=2 3", "WatchdogSec=30s",
		},
		"bulkhead-controller.service": {"Type=notify", "Restart=always", "RestartPreventExitStatus=2"},
	} {
		data, err := os.ReadFile("../../packaging/systemd/" + file)
		if err != nil {
			t.Fatal(err)
		}
		lines := map[string]bool{}
		for line := range strings.Lines(string(data)) {
			lines[strings.TrimSpace(line)] = true
		}
		for _, w := range want {
			if !lines[w] {
				t.Errorf("%s lacks %s", file, w)
			}
		}
	}
}
