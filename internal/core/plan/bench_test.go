package plan_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
)

// recorded makes flows between workloads of an inventory, half of them on ports that rules name.
func recorded(inv *model.Inventory, n int) []model.RecordedFlow {
	rng := rand.New(rand.NewPCG(1, 2))
	ports := []uint16{443, 8443, 5432, 6379, 5672, 22, 9100, 8080}
	out := make([]model.RecordedFlow, n)
	for i := range out {
		from, to := &inv.Instances[rng.IntN(len(inv.Instances))], &inv.Instances[rng.IntN(len(inv.Instances))]
		out[i] = model.RecordedFlow{
			Flow: model.Flow{
				From: model.End{Workload: from.Name}, To: model.End{Workload: to.Name},
				Proto: model.ProtoTCP, Port: ports[rng.IntN(len(ports))],
			},
			Connections: 1,
		}
	}
	return out
}

// BenchmarkMake plans three changes of an estate against recorded flows: one rule, one segment, every segment.
func BenchmarkMake(b *testing.B) {
	for _, size := range []estate.Size{
		{Workloads: 1000, LabelSets: 100, Rules: 1000},
		{Workloads: 10_000, LabelSets: 1000, Rules: 1000},
		{Workloads: 100_000, LabelSets: 5000, Rules: 10_000},
	} {
		docs, inv := estate.Make(size)
		before, err := compile.Compile(docs, inv, compile.Options{})
		if err != nil {
			b.Fatal(err)
		}
		flows := recorded(inv, 1_000_000)
		for _, c := range []struct {
			name   string
			change func(*model.Documents)
		}{
			{"one rule", func(d *model.Documents) {
				d.Policies = slices.Clone(d.Policies)
				d.Policies[0].Rules = d.Policies[0].Rules[1:]
			}},
			{"one segment", func(d *model.Documents) {
				d.Segments = slices.Clone(d.Segments)
				d.Segments[0].Mode = model.ModeEnforce
			}},
			{"every segment", func(d *model.Documents) {
				d.Segments = slices.Clone(d.Segments)
				for i := range d.Segments {
					d.Segments[i].Mode = model.ModeEnforce
				}
			}},
		} {
			changed := *docs
			c.change(&changed)
			after, err := compile.Compile(&changed, inv, compile.Options{})
			if err != nil {
				b.Fatal(err)
			}
			for _, n := range []int{0, len(flows)} {
				if n > 0 && size.Workloads > 10_000 && c.name == "every segment" {
					continue // flows cost what they do for one segment, and the rest takes long
				}
				b.Run(fmt.Sprintf("%s/%s/flows=%d", size, c.name, n), func(b *testing.B) {
					b.ReportAllocs()
					for range b.N {
						p, err := plan.Make(before, after, flows[:n], plan.Options{})
						if err != nil {
							b.Fatal(err)
						}
						if p.Flows.Judged != n || !p.Changes() {
							b.Fatalf("%d flows judged, changes %v", p.Flows.Judged, p.Changes())
						}
						b.ReportMetric(float64(len(p.Opened)+len(p.Closed)+len(p.WouldClose)+len(p.WouldOpen)), "communications")
						b.ReportMetric(float64(len(p.Flows.Changed)+p.Flows.Omitted), "flows-changed")
					}
				})
			}
		}
	}
}
