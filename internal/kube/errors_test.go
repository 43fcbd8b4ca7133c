package kube

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/policy"
)

var update = flag.Bool("update", false, "write testdata/errors as it is now")

// TestErrors reads testdata/errors/*.txtar: NAME.yaml and NAME.want, every error as line:column: text, in order, or the
// findings where there is no error, as line:column: severity: text.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archive := txtar.Parse(data)
		parts := archive.Files
		if len(parts)%2 != 0 {
			t.Fatalf("%s: a case lacks its half", file)
		}
		for i := 0; i < len(parts); i += 2 {
			name, ok := strings.CutSuffix(parts[i].Name, ".yaml")
			if !ok || parts[i+1].Name != name+".want" {
				t.Fatalf("%s: want NAME.yaml and NAME.want, not %s and %s", file, parts[i].Name, parts[i+1].Name)
			}
			t.Run(name, func(t *testing.T) {
				got := said(parts[i].Data)
				if *update {
					parts[i+1].Data = []byte(got)
				} else if want := string(parts[i+1].Data); got != want {
					t.Errorf("got\n%swant\n%s", got, want)
				}
			})
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// said returns what Load says of a file: errors, else findings.
func said(data []byte) string {
	_, findings, err := Load([]policy.File{{Name: "f", Data: data}})
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	} else {
		for _, f := range findings {
			lines = append(lines, f.Pos.String()+": "+f.Severity.String()+": "+f.Msg+"; "+f.Fix)
		}
	}
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "f:") + "\n"
	}
	if len(lines) == 0 {
		return "good\n"
	}
	return strings.Join(lines, "")
}
