package policy_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata")

// cases runs a test for every txtar file of a folder of testdata. The test gets the YAML files of the archive and
// returns what belongs into its part of that name.
func cases(t *testing.T, folder, part string, run func(t *testing.T, files []policy.File) string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in testdata/%s (%v)", folder, err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var files []policy.File
			want := -1
			for i, f := range archive.Files {
				if f.Name == part {
					want = i
				} else {
					files = append(files, policy.File{Name: f.Name, Data: f.Data})
				}
			}
			got := run(t, files)
			if *update {
				if want < 0 {
					archive.Files = append(archive.Files, txtar.File{Name: part})
					want = len(archive.Files) - 1
				}
				archive.Files[want].Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want < 0 {
				t.Fatalf("%s has no part %q; run the test with -update and read what it writes", path, part)
			}
			if diff := cmp.Diff(string(archive.Files[want].Data), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", part, diff)
			}
		})
	}
}

// TestParseErrors holds every message that a writer of documents may see.
func TestParseErrors(t *testing.T) {
	cases(t, "errors", "errors", func(t *testing.T, files []policy.File) string {
		docs, err := policy.Parse(files)
		if err == nil {
			t.Fatal("accepted")
		}
		if docs != nil {
			t.Error("documents beside an error")
		}
		return err.Error() + "\n"
	})
}

// TestCanonical holds the canonical form of documents written in every way the language allows.
func TestCanonical(t *testing.T) {
	cases(t, "canonical", "canonical", func(t *testing.T, files []policy.File) string {
		docs, err := policy.Parse(files)
		if err != nil {
			t.Fatal(err)
		}
		text := policy.Marshal(docs)
		again, err := policy.Parse([]policy.File{{Name: "again", Data: text}})
		if err != nil {
			t.Fatalf("canonical form does not parse: %v\n%s", err, text)
		}
		if diff := cmp.Diff(docs, again, equalDocuments...); diff != "" {
			t.Errorf("canonical form says something else:\n%s", diff)
		}
		return string(text)
	})
}

// TestRoundTrip is the property that every generated world survives being written and read.
func TestRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		size := policytest.Small
		size.NotYet = seed%2 == 0
		docs, _, _ := policytest.Generate(seed, size)
		text := policy.Marshal(docs)
		again, err := policy.Parse([]policy.File{{Name: "generated.yaml", Data: text}})
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		if diff := cmp.Diff(docs, again, equalDocuments...); diff != "" {
			t.Fatalf("seed %d (-generated +read):\n%s", seed, diff)
		}
		if twice := policy.Marshal(again); string(twice) != string(text) {
			t.Fatalf("seed %d: written differently the second time:\n%s", seed, cmp.Diff(string(text), string(twice)))
		}
	}
}
