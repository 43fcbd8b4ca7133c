package prove_test

import (
	"fmt"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/prove"
)

// guardrails are what an enterprise would promise itself: about environments, about the data of single apps, about
// administration ports.
func guardrails(n int) []model.Guardrail {
	peer := func(format string, args ...any) []model.Peer {
		return []model.Peer{{Kind: model.PeerWorkloads, Workloads: model.MustParseSelector(fmt.Sprintf(format, args...))}}
	}
	any := []model.PortRef{{Range: model.AnyPort}}
	tcp := func(port uint16) []model.PortRef {
		return []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}}}
	}
	var out []model.Guardrail
	for i := range n {
		g := model.Guardrail{Meta: model.Meta{Name: fmt.Sprintf("guardrail-%03d", i)}}
		switch i % 4 {
		case 0:
			g.From, g.To, g.On = peer("env=dev"), peer("env=prod,role=db"), any
		case 1:
			g.From, g.To, g.On = peer("env=dev"), peer("app=app-%05d,env=prod", i), any
		case 2:
			g.From, g.To, g.On = []model.Peer{{Kind: model.PeerAny}}, peer("env=prod"), tcp(uint16(22+i))
		case 3:
			g.From, g.To, g.On = peer("env=prod,role=web"), peer("env=prod,role=db"), tcp(3306)
		}
		out = append(out, g)
	}
	return out
}

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
			docs.Guardrails = guardrails(100)
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
