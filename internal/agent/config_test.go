package agent

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// describe lists what the file sets, a line each.
func describe(c Config) string {
	var b strings.Builder
	for _, line := range []struct {
		key   string
		value any
	}{
		{"controller", c.Controller}, {"token", c.Token}, {"tokenFile", c.TokenFile}, {"host", c.Host}, {"data", c.Data},
		{"cgroupRoot", c.CgroupRoot}, {"bpffs", c.BPFFS}, {"units", c.Units}, {"flowWindow", c.FlowWindow},
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
		if err == nil && len(cfg.check()) != 0 {
			t.Fatalf("%+v was taken", cfg)
		}
	})
}
