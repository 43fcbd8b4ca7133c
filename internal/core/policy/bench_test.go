package policy_test

import (
	"testing"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// The benchmarks work on about 10,000 rules and 10,000 workloads.
func large(b *testing.B) []byte {
	size := policytest.Large
	size.Hosts, size.Policies, size.Rules, size.Flows = 10_000, 1000, 19, 0
	docs, _, _ := policytest.Generate(1, size)
	return policy.Marshal(docs)
}

func BenchmarkParse(b *testing.B) {
	text := large(b)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := policy.Parse([]policy.File{{Name: "large.yaml", Data: text}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	docs, err := policy.Parse([]policy.File{{Name: "large.yaml", Data: large(b)}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		policy.Marshal(docs)
	}
}
