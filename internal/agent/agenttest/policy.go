package agenttest

import (
	"net/netip"
	"slices"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// Policy returns a policy of the host node-1 that differs with the revision. units become subjects "node-1/UNIT".
func Policy(revision uint64, units ...string) *hostpolicy.Policy {
	open := set(model.Allow, model.RuleID("p/"+string(rune('a'+revision%20))))
	isolation := set(model.Deny, model.RuleIsolate)
	p := &hostpolicy.Policy{
		Revision: revision, Host: "node-1",
		Subjects: []hostpolicy.Subject{{Workload: "node-1", Identity: 1, Set: open.ID, Isolation: isolation.ID}},
		Sets:     []hostpolicy.PolicySet{open, isolation},
		Addresses: []hostpolicy.Address{{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(revision >> 8), byte(revision)}), 32), Identity: 7,
		}},
		Controllers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7443")},
	}
	slices.Sort(units)
	for i, u := range units {
		p.Subjects = append(p.Subjects, hostpolicy.Subject{
			Workload: "node-1/" + u, Unit: u, Identity: model.IdentityID(2 + i), Set: open.ID, Isolation: isolation.ID,
		})
	}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	return p
}

// Quarantined returns the policy with the workload isolated by it.
func Quarantined(p *hostpolicy.Policy, workload string) *hostpolicy.Policy {
	q := *p
	q.Revision++
	q.Subjects = slices.Clone(p.Subjects)
	for i := range q.Subjects {
		if s := &q.Subjects[i]; s.Workload == workload {
			s.Set, s.Quarantine = s.Isolation, model.QuarantineIsolate
		}
	}
	return &q
}

func set(v model.Verdict, rule model.RuleID) hostpolicy.PolicySet {
	t := hostpolicy.Table{Funcs: []hostpolicy.Func{{{Ports: model.AnyPort, Verdict: v, Rule: rule}}}}
	s := hostpolicy.PolicySet{Ingress: t, Egress: t}
	s.ID = s.ContentID()
	return s
}
