package corpus_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/internal/corpus"
)

var update = flag.Bool("update", false, "rewrite what the cases in testdata expect")

// leastCases is how many cases there are at least; a corpus that shrinks without anybody noticing tests nothing.
const leastCases = 300

// TestCorpus runs every case below testdata.
func TestCorpus(t *testing.T) {
	paths := caseFiles(t)
	if len(paths) < leastCases {
		t.Errorf("%d cases, fewer than %d", len(paths), leastCases)
	}
	for _, path := range paths {
		name := filepath.ToSlash(strings.TrimSuffix(strings.TrimPrefix(path, "testdata"+string(filepath.Separator)), ".txtar"))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := corpus.Parse(path, data)
			if err != nil {
				t.Fatal(err)
			}
			r := c.Run()
			if *update && r.Updated != nil {
				if err := os.WriteFile(path, r.Updated, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, p := range r.Problems {
				t.Error(p)
			}
			if r.Checks == 0 {
				t.Errorf("%s checks nothing", path)
			}
			if len(r.Problems) == 0 && string(r.Updated) != string(data) {
				t.Errorf("%s passes, but an update would change it:\n%s", path, corpus.Diff(string(data), string(r.Updated)))
			}
		})
	}
}

func caseFiles(t testing.TB) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir("testdata", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".txtar" {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
