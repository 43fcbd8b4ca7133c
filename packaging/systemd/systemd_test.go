// Package systemd_test holds what the units promise: docs and DESIGN rely on their ordering and on what they may do.
package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unit is a unit file: the words of each key, over all lines that set it, and its comments.
type unit struct {
	keys     map[string][]string
	comments string
}

func read(t *testing.T, name string) unit {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{keys: map[string][]string{}}
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case strings.HasPrefix(line, "#"):
			u.comments += line + "\n"
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				t.Fatalf("%s: %q is no setting", name, line)
			}
			u.keys[section+"."+key] = append(u.keys[section+"."+key], strings.Fields(value)...)
		}
	}
	return u
}

func (u unit) has(t *testing.T, key string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !slices.Contains(u.keys[key], w) {
			t.Errorf("%s is %q and lacks %s", key, u.keys[key], w)
		}
	}
}

func (u unit) is(t *testing.T, key string, words ...string) {
	t.Helper()
	if !slices.Equal(slices.Sorted(slices.Values(u.keys[key])), slices.Sorted(slices.Values(words))) {
		t.Errorf("%s is %q, want %q", key, u.keys[key], words)
	}
}

// TestAgentComesBeforeTheNetwork: policy on disk is in force before the first interface is up. That the agent says it is ready
// only then is TestHostReboot of internal/agent/command.
func TestAgentComesBeforeTheNetwork(t *testing.T) {
	u := read(t, "bulkhead-agent.service")
	u.is(t, "Service.Type", "notify")
	u.is(t, "Unit.DefaultDependencies", "no") // which would put it after basic.target
	u.has(t, "Unit.Before", "network-pre.target", "shutdown.target")
	u.has(t, "Unit.Wants", "network-pre.target") // nobody else may want it, and then it orders nothing
	u.has(t, "Unit.Conflicts", "shutdown.target")
	u.has(t, "Unit.After", "local-fs.target")
	u.has(t, "Unit.RequiresMountsFor", "/sys/fs/bpf", "/var/lib/bulkhead-agent", "/etc/bulkhead")
	u.is(t, "Install.WantedBy", "sysinit.target")
	for _, late := range u.keys["Unit.After"] {
		if strings.HasPrefix(late, "network") || late == "basic.target" || late == "sysinit.target" {
			t.Errorf("it comes after %s, which comes after the network is prepared", late)
		}
	}
}

// TestAgentMayDoWhatItNeeds: that these capabilities suffice is shown by TestSmoke and TestStandalone of internal/agent/command, which run
// the agent with the bounding set of this unit.
func TestAgentMayDoWhatItNeeds(t *testing.T) {
	u := read(t, "bulkhead-agent.service")
	u.is(t, "Service.CapabilityBoundingSet", "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_RESOURCE", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
	for _, c := range u.keys["Service.CapabilityBoundingSet"] {
		if !strings.Contains(u.comments, "# "+c+": ") {
			t.Errorf("the unit does not say what %s is for", c)
		}
	}
	for key, want := range map[string][]string{
		"NoNewPrivileges": {"yes"}, "ProtectSystem": {"strict"}, "ReadWritePaths": {"/sys/fs/bpf"}, "ProtectHome": {"yes"},
		"RestrictAddressFamilies": {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}, "RestrictNamespaces": {"net"},
		"SystemCallFilter": {"@system-service", "bpf", "perf_event_open", "setns"}, "MemoryDenyWriteExecute": {"yes"},
		"UMask": {"0077"}, "StateDirectoryMode": {"0700"}, "MemoryMax": {"512M"},
	} {
		u.is(t, "Service."+key, want...)
	}
}

// TestUnitsAreSound asks systemd itself, where it is installed.
func TestUnitsAreSound(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd is not installed: ", err)
	}
	names, err := filepath.Glob("*.service")
	if err != nil || len(names) != 2 {
		t.Fatalf("units %v, %v", names, err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// The programs are not installed here, and verify looks for them.
		text := strings.NewReplacer("/usr/bin/bulkhead-agent", "/bin/true", "/usr/bin/bulkhead-controller", "/bin/true").Replace(string(data))
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		// 4.0 is "OK"; systemd 252 says 3.6 of the agent and 1.8 of the controller.
		out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=40", path).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
