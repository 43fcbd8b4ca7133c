package suggest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	madeup "bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
)

// recorded makes flows as an estate has them: web calls api, api calls db, cache and queue of its app; devices and
// addresses outside call web; half of the workloads carry no role.
func recorded(inv *model.Inventory, n int) []model.RecordedFlow {
	rng := rand.New(rand.NewPCG(1, 2))
	byRole := map[string][]int{}
	for i := range inv.Instances {
		l := inv.Instances[i].Labels
		key := l["app"] + l["env"] + l["role"]
		byRole[key] = append(byRole[key], i)
	}
	calls := map[string][]string{"web": {"api"}, "api": {"db", "cache", "queue"}, "queue": {"db"}}
	ports := map[string]uint16{"api": 8443, "db": 5432, "cache": 6379, "queue": 5672, "web": 443}
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	out := make([]model.RecordedFlow, 0, n)
	for len(out) < n {
		from := &inv.Instances[rng.IntN(len(inv.Instances))]
		f := model.RecordedFlow{Verdict: model.Allow, Connections: 1 + uint64(rng.IntN(100)), First: start.Add(time.Duration(rng.IntN(86400)) * time.Second)}
		f.Last = f.First.Add(time.Hour)
		f.Proto = model.ProtoTCP
		f.From = model.End{Workload: from.Name}
		to := calls[from.Labels["role"]]
		if len(to) == 0 {
			if from.Labels["role"] != "web" {
				f.From = model.End{Addr: netip.AddrFrom4([4]byte{172, 16, byte(rng.IntN(4)), byte(rng.IntN(256))})}
				f.To, f.Port = model.End{Workload: from.Name}, 9100
				out = append(out, f)
			}
			continue
		}
		role := to[rng.IntN(len(to))]
		peers := byRole[from.Labels["app"]+from.Labels["env"]+role]
		if len(peers) == 0 {
			continue
		}
		f.To, f.Port = model.End{Workload: inv.Instances[peers[rng.IntN(len(peers))]].Name}, ports[role]
		out = append(out, f)
	}
	return out
}

// BenchmarkSuggest reports what came out, so that work not done shows.
func BenchmarkSuggest(b *testing.B) {
	for _, c := range []struct {
		size  madeup.Size
		flows int
	}{
		{madeup.Size{Workloads: 1000, LabelSets: 100}, 100_000},
		{madeup.Size{Workloads: 10_000, LabelSets: 1000}, 1_000_000},
	} {
		_, inv := madeup.Make(c.size)
		flows := recorded(inv, c.flows)
		for i := range inv.Instances {
			if i%2 == 0 {
				delete(inv.Instances[i].Labels, "role") // label sets are shared: half of the sets lose it
			}
		}
		b.Run(fmt.Sprintf("workloads=%d/flows=%d", c.size.Workloads, c.flows), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				p, err := Suggest(flows, inv, Options{})
				if err != nil {
					b.Fatal(err)
				}
				if p.Stats.Covered == 0 || p.Stats.Covered != p.Stats.Distinct-p.Stats.Suspicious {
					b.Fatalf("%+v", p.Stats)
				}
				b.ReportMetric(float64(p.Stats.Distinct), "distinct")
				b.ReportMetric(float64(p.Stats.Rules), "rules")
				b.ReportMetric(float64(p.Stats.Labels), "labels")
			}
		})
	}
}
