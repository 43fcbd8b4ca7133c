package corpus_test

import (
	"path/filepath"
	"testing"
)

// TestProofAndDiffCases: so many cases say what is proved and what a change does.
func TestProofAndDiffCases(t *testing.T) {
	const least = 60
	n := 0
	for _, dir := range []string{"proof", "diff"} {
		cases, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
		if err != nil {
			t.Fatal(err)
		}
		n += len(cases)
	}
	if n < least {
		t.Errorf("%d cases of proof and diff, fewer than %d", n, least)
	}
}
