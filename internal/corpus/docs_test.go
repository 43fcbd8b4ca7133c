package corpus_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"bulkhead/internal/corpus"
)

// TestExamplesInDocs runs the examples of documentation pages. A fenced block whose first line is
//
//	```SECTION case=NAME
//
// is a section of the test file NAME; blocks of yaml become its documents 1.yaml, 2.yaml and so on. Every block of yaml must
// belong to a case, and every case must expect something.
func TestExamplesInDocs(t *testing.T) {
	for page, least := range map[string]int{"policy.md": 12, "standalone.md": 1} {
		data, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		names, cases := examples(t, page, string(data))
		if len(names) < least {
			t.Errorf("%s has %d examples, fewer than %d", page, len(names), least)
		}
		for _, name := range names {
			t.Run(page+"/"+name, func(t *testing.T) {
				c, err := corpus.Parse(page+", example "+name, txtar.Format(cases[name]))
				if err != nil {
					t.Fatal(err)
				}
				r := c.Run()
				for _, p := range r.Problems {
					t.Error(p)
				}
				if r.Checks == 0 {
					t.Error("nothing is checked")
				}
			})
		}
	}
}

// examples returns the test files in a page, and their names in order.
func examples(t *testing.T, page, text string) ([]string, map[string]*txtar.Archive) {
	t.Helper()
	var names []string
	cases := map[string]*txtar.Archive{}
	lines := strings.SplitAfter(text, "\n")
	for i := 0; i < len(lines); i++ {
		info, ok := strings.CutPrefix(strings.TrimSpace(lines[i]), "```")
		if !ok {
			continue
		}
		end := i + 1 + slices.IndexFunc(lines[i+1:], func(l string) bool { return strings.TrimSpace(l) == "```" })
		body := strings.Join(lines[i+1:end], "")
		section, name, isCase := strings.Cut(info, " case=")
		switch {
		case isCase:
			if cases[name] == nil {
				cases[name] = &txtar.Archive{}
				names = append(names, name)
			}
			a := cases[name]
			if section == "yaml" {
				n := 1
				for _, f := range a.Files {
					if strings.HasSuffix(f.Name, ".yaml") {
						n++
					}
				}
				section = fmt.Sprintf("%d.yaml", n)
			}
			a.Files = append(a.Files, txtar.File{Name: section, Data: []byte(body)})
		case strings.HasPrefix(info, "yaml"):
			t.Errorf("%s:%d: the example belongs to no case, so nobody runs it", page, i+1)
		}
		i = end
	}
	return names, cases
}
