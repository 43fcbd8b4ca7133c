package flowline_test

import (
	"fmt"
	"testing"

	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

func lines() [][]byte {
	_, _, flows := policytest.Generate(1, policytest.Large)
	var out [][]byte
	for i, f := range flows {
		if f.Proto.IsICMP() {
			out = append(out, fmt.Appendf(nil, `{"from": %q, "to": %q, "proto": %q, "icmp_type": %d, "icmp_code": %d}`, f.From, f.To, f.Proto, f.Port>>8, f.Port&255))
			continue
		}
		out = append(out, fmt.Appendf(nil, `{"from": %q, "to": %q, "proto": %q, "port": %d}`, flows[i].From, f.To, f.Proto, f.Port))
	}
	return out
}

func benchmark(b *testing.B, lines [][]byte, parse func(line []byte) error) {
	b.ReportAllocs()
	total := 0
	for _, l := range lines {
		total += len(l)
	}
	b.SetBytes(int64(total / len(lines)))
	for i := 0; b.Loop(); i++ {
		if err := parse(lines[i%len(lines)]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

func BenchmarkParse(b *testing.B) {
	var p flowline.Parser
	var f model.Flow
	benchmark(b, lines(), func(line []byte) error { return p.Parse(line, &f) })
}

func BenchmarkParseAlone(b *testing.B) {
	var f model.Flow
	benchmark(b, lines(), func(line []byte) error { return flowline.Parse(line, &f) })
}

func BenchmarkParseRecord(b *testing.B) {
	_, _, flows := policytest.Generate(1, policytest.Large)
	var records [][]byte
	for i, f := range flows {
		r := record(i, f)
		records = append(records, flowline.AppendRecord(nil, &r))
	}
	var p flowline.Parser
	var r model.RecordedFlow
	benchmark(b, records, func(line []byte) error { return p.ParseRecord(line, &r) })
}

func BenchmarkAppendVerdict(b *testing.B) {
	v := model.Join(model.EndVerdict{Verdict: model.Allow, Rule: "payments/api-reads-db"}, model.EndVerdict{Rule: model.RuleDefaultDeny})
	b.ReportAllocs()
	var out []byte
	for b.Loop() {
		out = flowline.AppendVerdict(out[:0], v)
	}
}
