package cli

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/internal/corpus"
)

// testFilesView is what `test TEST -o json` prints.
type testFilesView struct {
	OK     bool           `json:"ok"`
	Passed int            `json:"passed"`
	Checks int            `json:"checks"` // flows and sections that were compared
	Tests  []testFileView `json:"tests"`
}

type testFileView struct {
	File     string            `json:"file"`
	Pass     bool              `json:"pass"`
	Checks   int               `json:"checks"`
	Updated  bool              `json:"updated,omitempty"` // --update has rewritten it, so that it passes now
	Problems []testProblemView `json:"problems"`
}

type testProblemView struct {
	At      string `json:"at"` // file:line
	Message string `json:"message"`
}

// testFiles runs test files, which bring their own documents.
func (a *app) testFiles(cmd *cobra.Command, paths []string, update bool) error {
	for _, flag := range []string{"file", "workloads", "quarantine", "at", "controller-at"} {
		if cmd.Flags().Changed(flag) {
			return usagef("--%s does not go with a test file, which says itself what it is about; to test documents leave out %s", flag, paths[0])
		}
	}
	files, err := testPaths(paths)
	if err != nil {
		return err
	}
	v := &testFilesView{Tests: []testFileView{}}
	for _, file := range files {
		t, err := runTestFile(file, update)
		if err != nil {
			return err
		}
		v.Checks += t.Checks
		if t.Pass {
			v.Passed++
		}
		v.Tests = append(v.Tests, *t)
	}
	v.OK = v.Passed == len(v.Tests)
	if err := a.print(cmd, v, v.text); err != nil {
		return err
	}
	return answer(v.OK)
}

// testPaths returns the files that are meant, those of a directory in the order of their names.
func testPaths(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, cannotRead(err)
		}
		if !info.IsDir() {
			if filepath.Ext(path) != ".txtar" {
				return nil, usagef("%s is no test file, whose names end in .txtar; to test documents write bulkhead test -f %s", path, path)
			}
			out = append(out, path)
			continue
		}
		before := len(out)
		err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && filepath.Ext(name) == ".txtar" {
				out = append(out, name)
			}
			return err
		})
		if err != nil {
			return nil, cannotRead(err)
		}
		if len(out) == before {
			return nil, usagef("%s holds no test: there is no *.txtar file in it; to test documents write bulkhead test -f %s", path, path)
		}
	}
	return out, nil
}

func runTestFile(file string, update bool) (*testFileView, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, cannotRead(err)
	}
	t := &testFileView{File: file, Problems: []testProblemView{}}
	c, err := corpus.Parse(file, data)
	if err != nil {
		at, message, _ := strings.Cut(err.Error(), ": ")
		t.Problems = append(t.Problems, testProblemView{at, message})
		return t, nil
	}
	r := c.Run()
	t.Checks = r.Checks
	if update && r.Updated != nil && !bytes.Equal(r.Updated, data) {
		if err := os.WriteFile(file, r.Updated, 0o644); err != nil {
			return nil, cannotf("write %s: %w", file, err)
		}
		t.Updated, t.Pass = true, true
		return t, nil
	}
	for _, p := range r.Problems {
		t.Problems = append(t.Problems, testProblemView{p.At, p.Msg})
	}
	t.Pass = len(t.Problems) == 0
	return t, nil
}

func (v *testFilesView) text(p *page) {
	for i := range v.Tests {
		t := &v.Tests[i]
		for _, x := range t.Problems {
			first, rest, more := strings.Cut(x.Message, "\n")
			p.line("%s: %s %s", x.At, p.paint("FAIL", red), first)
			if more {
				p.difference(rest)
			}
		}
		if t.Updated {
			p.line("%s: %s", t.File, p.paint("updated", yellow))
		}
	}
	p.line("%d of %s, %s", v.Passed, count(len(v.Tests), "test"), count(v.Checks, "check"))
}

// difference prints the lines of a difference, or of anything else that belongs to the line above it.
func (p *page) difference(text string) {
	for l := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.HasPrefix(l, "- "):
			l = p.paint(l, red)
		case strings.HasPrefix(l, "+ "):
			l = p.paint(l, green)
		}
		p.line("    %s", l)
	}
}
