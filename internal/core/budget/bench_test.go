package budget_test

import (
	"testing"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
)

// BenchmarkCheck asks whether every host of an estate can hold a change.
func BenchmarkCheck(b *testing.B) {
	for _, size := range []estate.Size{
		{Workloads: 10_000, LabelSets: 1_000, Rules: 1_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		b.Run(size.String(), func(b *testing.B) {
			docs, inv := estate.Make(size)
			before, err := compile.Compile(docs, inv, compile.Options{})
			if err != nil {
				b.Fatal(err)
			}
			docs.Policies = docs.Policies[:len(docs.Policies)-1]
			after, err := compile.Compile(docs, inv, compile.Options{})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if problems := budget.Check(before, after, nil); len(problems) > 0 {
					b.Fatal(problems[0].String())
				}
			}
		})
	}
}
