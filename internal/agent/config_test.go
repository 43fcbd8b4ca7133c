package agent

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/config"
)

var update = flag.Bool("update", false, "write what configurations give into testdata")

// TestConfigurations reads every configuration of testdata/config and compares what it gives with the file beside it.
func TestConfigurations(t *testing.T) {
	dirs, err := filepath.Glob("testdata/config/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no configurations: %v", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, "agent.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := ParseConfig("agent.yaml", data)
			got := describe(cfg)
			if err != nil {
				got = err.Error() + "\n"
			}
			want := filepath.Join(dir, "want.txt")
			if *update {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			expected, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(expected), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPackagedConfiguration reads the examples that are shipped, also with the keys that they leave out.
func TestPackagedConfiguration(t *testing.T) {
	d := DefaultConfig()
	for file, policy := range map[string]func(*Config) bool{
		"agent.yaml":      func(c *Config) bool { return c.Controller != "" && c.TokenFile != "" },
		"standalone.yaml": func(c *Config) bool { return c.Standalone != "" && c.Confirm == d.Confirm },
	} {
		data, err := os.ReadFile("../../packaging/" + file)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := ParseConfig(file, data)
		if err != nil || !policy(&cfg) || len(cfg.Units) != 1 {
			t.Errorf("%s gives %+v, %v", file, cfg, err)
		}
		for line := range strings.Lines(string(data)) {
			option, ok := strings.CutPrefix(line, "# ")
			key, value, isKey := strings.Cut(strings.TrimSpace(option), ":")
			if !ok || !isKey || keys[key] == nil {
				continue
			}
			value, _, _ = strings.Cut(strings.TrimSpace(value), "  ")
			want := map[string]any{
				"data": d.Data, "bpffs": d.BPFFS, "socket": d.Socket, "flowWindow": d.FlowWindow, "units": `["` + d.Units[0] + `"]`, "confirm": "2m",
			}[key]
			if want != nil && fmt.Sprint(want) != value {
				t.Errorf("%s says that %s is %s by default; it is %v", file, key, value, want)
			}
		}
	}
	if d.Confirm != 2*time.Minute {
		t.Errorf("confirm is %v by default; the example says 2m", d.Confirm)
	}
}

func describe(c Config) string {
	var b strings.Builder
	for _, line := range []struct {
		key   string
		value any
	}{
		{"controller", c.Controller}, {"standalone", c.Standalone}, {"labels", c.Labels}, {"confirm", c.Confirm}, {"token", c.Token}, {"tokenFile", c.TokenFile}, {"host", c.Host}, {"data", c.Data},
		{"dataplane", c.Dataplane}, {"cgroupRoot", c.CgroupRoot}, {"bpffs", c.BPFFS}, {"interfaces", c.Interfaces}, {"units", c.Units}, {"flowWindow", c.FlowWindow},
		{"socket", c.Socket}, {"logLevel", c.LogLevel},
	} {
		fmt.Fprintf(&b, "%s: %v\n", line.key, line.value)
	}
	return b.String()
}

func FuzzParseConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/config/*/agent.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := ParseConfig("f", data)
		var p config.Problems
		if cfg.check(&p); err == nil && p.Any() {
			t.Fatalf("%+v was taken", cfg)
		}
	})
}
