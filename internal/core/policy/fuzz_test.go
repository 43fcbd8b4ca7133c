package policy_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// FuzzParse checks that any text is either refused with errors that have a place in it, or means documents that can
// be written and read again, and that hygiene has no trouble with.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join("testdata", "*", "*.txtar"))
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range txtar.Parse(data).Files {
			f.Add(file.Data)
		}
	}
	size := policytest.Small
	size.NotYet = true
	for seed := range uint64(5) {
		docs, _, _ := policytest.Generate(seed, size)
		f.Add(policy.Marshal(docs))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := policy.Read([]policy.File{{Name: "fuzz", Data: data}})
		if err != nil {
			var errs policy.Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("an error of type %T: %v", err, err)
			}
			lines := bytes.Count(data, []byte("\n")) + 1
			for i, e := range errs {
				last := i == len(errs)-1 && e.Pos.File == "" // "and n more"
				if e.Msg == "" || !last && (e.Pos.File != "fuzz" || e.Pos.Line < 1 || e.Pos.Column < 1) {
					t.Fatalf("an error without a place or a text: %+v", *e)
				}
				if e.Pos.Line > lines && !bytes.ContainsAny(data, "\r\u0085\u2028\u2029") {
					t.Fatalf("%v is beyond the last line, %d", e, lines)
				}
			}
			return
		}
		text := policy.Marshal(docs)
		again, err := policy.Read([]policy.File{{Name: "again", Data: text}})
		if err != nil {
			t.Fatalf("written form is refused: %v\n%s", err, text)
		}
		if diff := cmp.Diff(docs, again, equalDocuments...); diff != "" {
			t.Fatalf("written form says something else:\n%s\n%s", diff, text)
		}
		if policy.Validate(docs) == nil {
			policy.Hygiene(docs, nil, policytest.Now)
		}
	})
}
