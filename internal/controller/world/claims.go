package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// host is what is known of a host that has an agent.
type host struct {
	report    inventory.Report
	connected bool
	since     map[netip.Addr]time.Time // since when it has claimed each address; not changed once it is there
}

func newHost(r inventory.Report, now time.Time) *host {
	h := &host{}
	h.update(r, now)
	return h
}

// update takes another report. An address that was claimed before keeps its time.
func (h *host) update(r inventory.Report, now time.Time) {
	since := make(map[netip.Addr]time.Time, len(r.Addresses))
	for _, a := range r.Addresses {
		since[a] = now
		if before, ok := h.since[a]; ok {
			since[a] = before
		}
	}
	h.report, h.since = r, since
}

// An agent's word about its addresses is not enough to take another workload's identity. An address that documents
// give to a workload is that workload's; of hosts that claim one address, a connected one has it before one that is
// not, and else the one that had it first. The others go without, and their agents' problems say so.

// settle returns the reports without the addresses that belong to somebody else, and what was taken from whom.
func settle(docs *model.Documents, hosts []host) (reports []inventory.Report, problems map[string][]string, disputed map[string]bool) {
	declared := map[netip.Addr]*model.Workload{}
	for i := range docs.Workloads {
		for _, a := range docs.Workloads[i].Addresses {
			declared[a.Unmap()] = &docs.Workloads[i]
		}
	}
	holder := map[netip.Addr]*host{}
	for i := range hosts {
		h := &hosts[i]
		for _, a := range h.report.Addresses {
			if other := holder[a]; other == nil || h.before(other, a) {
				holder[a] = h
			}
		}
	}
	problems, disputed = map[string][]string{}, map[string]bool{}
	reports = make([]inventory.Report, len(hosts))
	for i := range hosts {
		h := &hosts[i]
		r := h.report
		r.Addresses = slices.Clone(r.Addresses)
		r.Addresses = slices.DeleteFunc(r.Addresses, func(a netip.Addr) bool {
			if w := declared[a.Unmap()]; w != nil && !of(w, r.Host) {
				problems[r.Host] = append(problems[r.Host], fmt.Sprintf("address %s is taken for that of workload %s, which declares it", a, w.Name))
				return true
			}
			if by := holder[a]; by != h {
				problems[r.Host] = append(problems[r.Host], fmt.Sprintf("address %s is taken for that of host %s, which reports it too", a, by.report.Host))
				disputed[r.Host], disputed[by.report.Host] = true, true
				return true
			}
			return false
		})
		reports[i] = r
	}
	return reports, problems, disputed
}

// before reports whether h has the address rather than other.
func (h *host) before(other *host, a netip.Addr) bool {
	if h.connected != other.connected {
		return h.connected
	}
	if c := h.since[a].Compare(other.since[a]); c != 0 {
		return c < 0
	}
	return strings.Compare(h.report.Host, other.report.Host) < 0
}

// of reports whether the workload is the host, or a unit of it.
func of(w *model.Workload, host string) bool {
	if w.Unit != nil {
		return w.Unit.Host == host
	}
	return w.Name == host
}
