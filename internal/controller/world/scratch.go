package world

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// inputs are all that a world is made of at one moment, hosts and leases sorted by name.
type inputs struct {
	docs        *model.Documents
	hosts       []*host
	leases      []inventory.Lease
	controllers []netip.AddrPort
	now         time.Time
	generation  uint64
}

// inputs returns what the world is made of at this moment, with other documents in place of the present ones.
func (w *World) inputs(docs *model.Documents) *inputs {
	w.mu.Lock()
	in := &inputs{
		docs: docs, generation: w.generation, now: w.cfg.Now(), controllers: w.cfg.Controllers,
		hosts: slices.Collect(maps.Values(w.hosts)), leases: slices.Collect(maps.Values(w.leases)),
	}
	w.mu.Unlock()
	slices.SortFunc(in.hosts, func(a, b *host) int { return strings.Compare(a.report.Host, b.report.Host) })
	slices.SortFunc(in.leases, func(a, b inventory.Lease) int { return strings.Compare(a.Workload, b.Workload) })
	return in
}

// compile compiles the inputs from scratch. It is what documents are tried with, and what tests hold the compiler against,
// which takes changes one by one.
func (in *inputs) compile() (*compile.World, error) {
	reports, _, _ := settle(in.docs, in.hosts)
	inv, _, err := inventory.Accept(in.docs, reports, in.leases)
	if err != nil {
		return nil, err
	}
	return compile.Compile(in.docs, inv, compile.Options{Now: in.now, Controllers: in.controllers})
}

// settle is claims for all hosts at once.
func settle(docs *model.Documents, hosts []*host) (reports []inventory.Report, problems map[string][]string, disputed map[string]bool) {
	declared := map[netip.Addr]*model.Workload{}
	for i := range docs.Workloads {
		for _, a := range docs.Workloads[i].Addresses {
			declared[a.Unmap()] = &docs.Workloads[i]
		}
	}
	holder := map[netip.Addr]*host{}
	for _, h := range hosts {
		for _, a := range h.report.Addresses {
			if other := holder[a]; other == nil || h.before(other, a) {
				holder[a] = h
			}
		}
	}
	problems, disputed = map[string][]string{}, map[string]bool{}
	reports = make([]inventory.Report, len(hosts))
	for i, h := range hosts {
		r := h.report
		r.Addresses = slices.DeleteFunc(slices.Clone(r.Addresses), func(a netip.Addr) bool {
			if w := declared[a.Unmap()]; w != nil && !of(w, r.Host) {
				problems[r.Host] = append(problems[r.Host], takenByDocument(a, w))
				return true
			}
			if by := holder[a]; by != h {
				problems[r.Host] = append(problems[r.Host], takenByHost(a, by))
				disputed[r.Host], disputed[by.report.Host] = true, true
				return true
			}
			return false
		})
		reports[i] = r
	}
	return reports, problems, disputed
}
