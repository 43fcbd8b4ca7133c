package verdict_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/verdict"
	"bulkhead/internal/corpus"
)

const corpusDir = "../../corpus/testdata"

// TestAgentsAgreeOnCorpus holds the flows of every case of the corpus against what the agents of both ends would do. That
// the evaluator gives the expected verdicts is for package corpus to test.
func TestAgentsAgreeOnCorpus(t *testing.T) {
	flows := 0
	err := filepath.WalkDir(corpusDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".txtar" {
			return err
		}
		c := readCase(t, path)
		lines, err := c.Flows()
		if err != nil || len(lines) == 0 {
			return err
		}
		e := evaluator(t, c)
		for _, l := range lines {
			flows++
			if why := verdict.AgentsDisagree(e, &l.Flow); why != "" {
				t.Errorf("%s: %s\n  %s", path, l.FlowText(), why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if flows < 500 {
		t.Errorf("only %d flows", flows)
	}
}

func readCase(t *testing.T, path string) *corpus.Case {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := corpus.Parse(path, data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func evaluator(t *testing.T, c *corpus.Case) *verdict.Evaluator {
	t.Helper()
	w, err := c.World()
	if err != nil {
		t.Fatal(err)
	}
	world, err := compile.Compile(w.Docs, w.Inventory, w.Options)
	if err != nil {
		t.Fatal(err)
	}
	return verdict.New(world)
}

// TestExplanationIsJSON: lists are there when they are empty, and what was decided survives the way through JSON.
func TestExplanationIsJSON(t *testing.T) {
	l, err := corpus.ParseFlowLine("203.0.113.1 -> host-a on tcp/443")
	if err != nil {
		t.Fatal(err)
	}
	x, err := evaluator(t, readCase(t, corpusDir+"/verdicts/ends.txtar")).Explain(&l.Flow)
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
	var back verdict.Explanation
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back.Text() != x.Text() {
		t.Errorf("through JSON\n%s\nbecomes\n%s", x.Text(), back.Text())
	}
}
