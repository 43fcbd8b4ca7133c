package verdict_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

// randomFlows returns flows between random workloads of an estate, by name or by address, on ports that rules name.
func randomFlows(inv *model.Inventory, byAddress bool, n int) []model.Flow {
	r := rand.New(rand.NewPCG(1, 2))
	ports := []uint16{443, 8443, 5432, 6379, 5672, 8080}
	shared := map[string]bool{}
	for i := range inv.Instances {
		if inst := &inv.Instances[i]; inst.IsUnit() {
			shared[inst.Host] = true
		}
	}
	end := func() model.End {
		for {
			inst := &inv.Instances[r.IntN(len(inv.Instances))]
			if !byAddress {
				return model.End{Workload: inst.Name}
			}
			if !shared[inst.Host] && len(inst.Addresses) > 0 {
				return model.End{Workload: inst.Addresses[0].String(), Addr: inst.Addresses[0]}
			}
		}
	}
	flows := make([]model.Flow, 0, n)
	for range n {
		flows = append(flows, model.Flow{From: end(), To: end(), Proto: model.ProtoTCP, Port: ports[r.IntN(len(ports))]})
	}
	return flows
}

// BenchmarkJudge judges random flows, by name and by address, one by one and in batches: 4,096 distinct ones again and
// again, as a log of real traffic has them, and 65,536 that no cache holds in a large estate.
func BenchmarkJudge(b *testing.B) {
	for _, s := range []estate.Size{
		{Workloads: 1_000, LabelSets: 100, Rules: 1_000},
		{Workloads: 10_000, LabelSets: 1_000, Rules: 1_000},
		{Workloads: 100_000, LabelSets: 5_000, Rules: 10_000},
	} {
		docs, inv := estate.Make(s)
		w, err := compile.Compile(docs, inv, compile.Options{})
		if err != nil {
			b.Fatal(err)
		}
		e := verdict.New(w)
		for _, by := range []string{"name", "address"} {
			flows := randomFlows(inv, by == "address", 1<<16)
			for _, distinct := range []int{1 << 12, 1 << 16} {
				b.Run(fmt.Sprintf("%s/by=%s/distinct=%d", s, by, distinct), func(b *testing.B) {
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						if _, err := e.Judge(&flows[i&(distinct-1)]); err != nil {
							b.Fatal(err)
						}
						i++
					}
				})
				b.Run(fmt.Sprintf("%s/by=%s/distinct=%d/batch", s, by, distinct), func(b *testing.B) {
					b.ReportAllocs()
					batch, at := e.NewBatch(), 0
					part, judged := make([]*model.Flow, verdict.BatchSize), make([]verdict.Judged, verdict.BatchSize)
					for n := 0; n < b.N; n += len(part) {
						for i := range part {
							part[i] = &flows[(at+i)&(distinct-1)]
						}
						at += len(part)
						if batch.Judge(judged, part); judged[0].Err != nil {
							b.Fatal(judged[0].Err)
						}
					}
				})
			}
		}
	}
}

func TestJudgeAllocatesNothing(t *testing.T) {
	docs, inv := estate.Make(estate.Size{Workloads: 1_000, LabelSets: 100, Rules: 1_000})
	w, err := compile.Compile(docs, inv, compile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := verdict.New(w)
	b, judged := e.NewBatch(), make([]verdict.Judged, verdict.BatchSize)
	for _, byAddress := range []bool{false, true} {
		var together []*model.Flow
		for _, f := range randomFlows(inv, byAddress, verdict.BatchSize) {
			together = append(together, &f)
		}
		if n := testing.AllocsPerRun(10, func() { b.Judge(judged, together) }); n != 0 {
			t.Fatalf("judging a batch allocates %v times", n)
		}
		for _, f := range randomFlows(inv, byAddress, 500) {
			if n := testing.AllocsPerRun(10, func() { _, _ = e.Judge(&f) }); n != 0 {
				t.Fatalf("judging %v allocates %v times", f, n)
			}
		}
	}
}
