package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

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
