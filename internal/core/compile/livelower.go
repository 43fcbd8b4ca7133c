package compile

import (
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// A Live lowers only the documents that changed: the rules of others are those of before, the same in memory, which is
// also how plan knows that they need not be compared.

// lowered are documents as rules. It is made before a change does anything, so that documents with an error change
// nothing.
type lowered struct {
	docs       *model.Documents
	opts       Options
	values     portValues
	rules      [2][]*Rule
	nextExpiry time.Time
	memo       loweredMemo
	*lowering
}

// loweredMemo are the rules that each document in force was lowered to.
type loweredMemo struct {
	now      time.Time
	policies []loweredPolicy // by name
	members  [2][]*Rule      // of segments
	oneSided [2][]*Rule      // in the order in which they are asked
}

// loweredPolicy is a policy with its rules.
type loweredPolicy struct {
	name    string
	source  []model.Rule
	expires []time.Time
	// rules, by direction: those that deny and those that allow.
	rules [2][2][]*Rule
}

func (l *Live) lower(docs *model.Documents, o Options) (*lowered, error) {
	x := &lowered{docs: docs, opts: o, values: l.portValuesOf(docs)}
	x.lowering = newLowering(docs, x.values, o.Now)
	// What a document lowers to depends on the services and on which networks there are.
	same := sameList(docs.Services, l.docs.Services) && sameList(docs.Networks, l.docs.Networks)
	if !same || !sameList(docs.Guardrails, l.docs.Guardrails) {
		x.guardrails(docs)
	}
	var known []loweredPolicy
	if same {
		known = l.memo.policies
	}
	x.memo.now = o.Now
	x.policies(known, l.memo.now)
	was := &l.memo
	x.memo.members, x.memo.oneSided = was.members, was.oneSided
	sameSegments := same && sameList(docs.Segments, l.docs.Segments)
	if !sameSegments || !sameList(docs.OneSided, l.docs.OneSided) || !x.values.equal(l.portValues) {
		x.lowering.rules = [2][]Rule{}
		x.segmentsAndOneSided(docs)
		for d, list := range rulePointers(&x.lowering.rules) {
			// Those of segments come first.
			n := 0
			for n < len(list) && list[n].Stage == StageAllow && list[n].Priority == membersPriority {
				n++
			}
			x.memo.members[d], x.memo.oneSided[d] = list[:n:n], list[n:]
			slices.SortStableFunc(x.memo.oneSided[d], (*Rule).compare)
		}
	}
	if len(x.errs) == 0 && !sameSegments {
		for _, s := range byName(docs.Segments, func(s *model.Segment) string { return s.Name }) {
			if s.Mode == model.ModeSelective {
				x.ports("", s.Services)
			}
		}
	}
	if len(x.errs) > 0 {
		return nil, x.errs
	}
	x.order(&l.rules)
	return x, nil
}

// policies lowers the policies that are not among the known ones, which were lowered at another time.
func (x *lowered) policies(known []loweredPolicy, then time.Time) {
	for _, p := range byName(x.docs.Policies, policyName) {
		for len(known) > 0 && strings.Compare(known[0].name, p.Name) < 0 {
			known = known[1:]
		}
		if len(known) > 0 && known[0].is(p, then, x.opts.Now) {
			x.memo.policies = append(x.memo.policies, known[0])
			known = known[1:]
		} else {
			x.memo.policies = append(x.memo.policies, x.policy(p))
		}
		for _, at := range x.memo.policies[len(x.memo.policies)-1].expires {
			if !expired(at, x.opts.Now) && (x.nextExpiry.IsZero() || at.Before(x.nextExpiry)) {
				x.nextExpiry = at
			}
		}
	}
}

// is reports whether the policy lowers to these rules still.
func (m *loweredPolicy) is(p *model.Policy, then, now time.Time) bool {
	return m.name == p.Name && sameList(m.source, p.Rules) &&
		!slices.ContainsFunc(m.expires, func(at time.Time) bool { return expired(at, then) != expired(at, now) })
}

func (x *lowered) policy(p *model.Policy) loweredPolicy {
	m := loweredPolicy{name: p.Name, source: p.Rules}
	x.lowering.rules = [2][]Rule{}
	for i := range p.Rules {
		r := &p.Rules[i]
		x.native(p, r)
		if !r.Expires.IsZero() {
			m.expires = append(m.expires, r.Expires)
		}
	}
	for d, list := range rulePointers(&x.lowering.rules) {
		for _, r := range list {
			k := 0
			if r.Stage == StageAllow {
				k = 1
			}
			m.rules[d][k] = append(m.rules[d][k], r)
		}
	}
	return m
}

// order puts all rules into the order in which lower puts them.
func (x *lowered) order(before *[2][]*Rule) {
	for d := range x.rules {
		native := make([]*Rule, 0, len(before[d])+16)
		for k := range 2 {
			for i := range x.memo.policies {
				native = append(native, x.memo.policies[i].rules[d][k]...)
			}
		}
		native = append(native, x.memo.members[d]...)
		others := x.memo.oneSided[d]
		if len(others) == 0 {
			x.rules[d] = native
			continue
		}
		out := make([]*Rule, 0, len(native)+len(others))
		for len(native) > 0 && len(others) > 0 {
			if native[0].compare(others[0]) <= 0 {
				out, native = append(out, native[0]), native[1:]
			} else {
				out, others = append(out, others[0]), others[1:]
			}
		}
		x.rules[d] = append(append(out, native...), others...)
	}
}
