package oracle

import (
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
)

// Place is an end as policy sees it: a workload at one of its addresses, or an address that nobody has.
type Place struct {
	Workload *model.Instance // nil: nobody's
	Addr     netip.Addr      // zero: of a workload without addresses
	Process  *model.Process  // nil: not known
	Domain   string          // of nobody's: the host name that it was found by
}

func (p *Place) endpoint() endpoint {
	return endpoint{workload: p.Workload, addr: plain(p.Addr), given: true, process: p.Process, domain: p.Domain}
}

// Decide returns what policy says at a managed end about traffic with another one: all of what Judge asks except what a
// policy set does not hold, which is whatever a single packet or the ends' hosts tell. If the other end is one of
// several, for all that can be known, the most permissive of them counts.
func Decide(docs *model.Documents, inv *model.Inventory, o compile.Options, d model.Direction, self Place, other []Place, proto model.Proto, port uint16) model.EndVerdict {
	j := judge{docs: docs, inv: inv, o: o, proto: proto, port: port}
	if len(other) > 1 {
		other = slices.Clone(other)
		slices.SortStableFunc(other, func(a, b Place) int { return strings.Compare(labelsOf(a.Workload), labelsOf(b.Workload)) })
	}
	var best model.EndVerdict
	for i := range other {
		if v := j.decide(d, self.endpoint(), other[i].endpoint()); i == 0 || v.Verdict > best.Verdict {
			best = v
		}
	}
	return best
}
