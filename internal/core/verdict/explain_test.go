package verdict

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/compile/compiletest"
)

var update = flag.Bool("update", false, "write what testdata should expect")

// TestExplanationText compares explanations with testdata/explain/*.txtar. Each file "explain FROM -> TO PORT" of a
// case is the text for that flow, and "essentials" is the list of essentials.
func TestExplanationText(t *testing.T) {
	files, err := filepath.Glob("testdata/explain/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c, err := compiletest.ParseCase(data)
		if err != nil {
			t.Fatal(err)
		}
		w, err := compile.Compile(c.Docs, c.Inventory, c.Options)
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.Archive.Files {
			f := &c.Archive.Files[i]
			var got string
			if flow, ok := strings.CutPrefix(f.Name, "explain "); ok {
				got = explain(t, New(w), flow)
			} else if f.Name == "essentials" {
				got = New(w).ExplainEssentials().Text()
			} else {
				continue
			}
			if *update {
				f.Data = []byte(got)
			} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
				t.Errorf("%s: %s says something else (-want +got, -update writes it):\n%s", file, f.Name, diff)
			}
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(c.Archive), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func explain(t *testing.T, e *Evaluator, flow string) string {
	t.Helper()
	f, err := parseFlow(flow)
	if err != nil {
		t.Fatal(err)
	}
	x, err := e.Explain(f)
	if err != nil {
		t.Fatalf("%s: %v", flow, err)
	}
	return x.Text()
}

// TestExplanationIsJSON: lists are there when they are empty, and what was decided survives the way through JSON.
func TestExplanationIsJSON(t *testing.T) {
	data, err := os.ReadFile("testdata/ends.txtar")
	if err != nil {
		t.Fatal(err)
	}
	c, err := compiletest.ParseCase(data)
	if err != nil {
		t.Fatal(err)
	}
	w, err := compile.Compile(c.Docs, c.Inventory, c.Options)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseFlow("203.0.113.1 -> host-a tcp/443")
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(w).Explain(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "null") {
		t.Errorf("an empty list is null: %s", text)
	}
	var back Explanation
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Text() != x.Text() {
		t.Errorf("through JSON\n%s\nbecomes\n%s", x.Text(), back.Text())
	}
}
