package prove_test

import (
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/prove"
)

// BenchmarkGuardrails proves 100 guardrails over 10,000 rules. It reports how many hold and how many only labels that nobody has could
// break, so that work not done shows.
func BenchmarkGuardrails(b *testing.B) {
	for _, size := range []estate.Size{
		{Workloads: 1000, LabelSets: 100, Rules: 1000},
		{Workloads: 10_000, LabelSets: 1000, Rules: 10_000},
		{Workloads: 100_000, LabelSets: 5000, Rules: 10_000},
	} {
		b.Run(size.String(), func(b *testing.B) {
			docs, inv := estate.Make(size)
			docs.Guardrails = estate.Guardrails(100)
			w, err := compile.Compile(docs, inv, compile.Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			hold, could := 0, 0
			for range b.N {
				hold, could = 0, 0
				for _, g := range prove.Guardrails(w) {
					switch {
					case g.Undecided != "":
						b.Fatalf("%s is undecided: %s", g.Name, g.Undecided)
					case g.Holds:
						hold++
					case g.Counterexample.Hypothetical:
						could++
					}
				}
			}
			if hold < 25 || hold > 90 { // what estate.Make makes; else something was not looked at
				b.Fatalf("%d of 100 guardrails hold", hold)
			}
			b.ReportMetric(float64(hold), "hold")
			b.ReportMetric(float64(could), "could-break")
		})
	}
}
