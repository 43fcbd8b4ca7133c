package importer

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

const (
	// calicoFirst is the priority of the first policy, after every ClusterNetworkPolicy.
	calicoFirst = 3000
	// maxCalicoRules is how many rules the tiers may become: each Pass repeats the tiers after it.
	maxCalicoRules = 20_000
)

// flattening writes the tiers in the order in which they are asked, for one direction.
type flattening struct {
	c     *calico
	d     model.Direction
	tiers []*calicoTier // with a policy of the direction
	out   []model.OneSided
	from  []*source      // of each of out
	base  string         // name of the last of out, without what makes it unique
	names map[string]int // how many of out have a base
	count int
	// decided are the pods about which everything is decided by now: what is asked later about them says nothing. The key
	// is the first of their requirements; "" if they have none.
	decided map[string][][]model.Requirement
	full    *calicoRule // the rule at which there were too many
	told    map[*calicoRule]bool
}

// flatten makes one-sided policies of all tiers.
func (c *calico) flatten() error {
	for _, d := range model.Directions {
		f := &flattening{c: c, d: d, names: map[string]int{}, told: map[*calicoRule]bool{}, decided: map[string][][]model.Requirement{}}
		for _, t := range c.sorted {
			if slices.ContainsFunc(t.policies, func(p *calicoPolicy) bool { return p.types[d] }) {
				f.tiers = append(f.tiers, t)
			}
		}
		f.tiersFrom(0, everything)
		if f.full != nil {
			return policy.Errors{&policy.Error{Pos: f.full.pos, Msg: fmt.Sprintf(
				"the tiers are more than %d rules, since each Pass repeats the tiers after it; pass fewer things, or import fewer policies at once", maxCalicoRules)}}
		}
		for i := range f.out {
			f.out[i].Priority = calicoFirst + i
			f.from[i].add(f.out[i])
		}
	}
	return nil
}

// tiersFrom writes the tiers from the i-th on, as far as they are about the scope.
func (f *flattening) tiersFrom(i int, scope box) {
	for ; i < len(f.tiers) && f.full == nil; i++ {
		t := f.tiers[i]
		for _, p := range t.policies {
			if !p.types[f.d] {
				continue
			}
			if !slices.EqualFunc(p.over, p.under, sameRequirements) {
				f.policy(i, p, p.over, p.under, scope)
				continue
			}
			for _, s := range p.over { // whoever is in two of them meets the same rules twice
				one := alternatives{s}
				f.policy(i, p, one, one, scope)
			}
		}
		if t.pass {
			continue
		}
		for _, p := range t.policies {
			if p.types[f.d] {
				f.write(p, "calico/"+t.name+"/End-Of-Tier/"+p.label, "deny", model.ActionDeny, p.cut(p.over, []box{everything}, scope, true, nil))
			}
		}
	}
}

// policy writes the rules of a policy for the pods in over, at least, and under, at most.
func (f *flattening) policy(i int, p *calicoPolicy, over, under alternatives, scope box) {
	base := "calico/" + p.tier + "/" + p.label
	for k := range p.rules[f.d] {
		r := &p.rules[f.d][k]
		if f.count > maxCalicoRules {
			if f.full == nil {
				f.full = r
			}
			return
		}
		exact := r.exact && slices.EqualFunc(over, under, sameRequirements)
		switch r.action {
		case "Allow":
			boxes := p.cut(under, r.under, scope, false, &exact)
			f.write(p, base, r.name, model.ActionAllow, boxes)
		case "Deny":
			f.write(p, base, r.name, model.ActionDeny, p.cut(over, r.over, scope, true, &exact))
		case "Pass":
			passed := p.cut(under, r.under, scope, false, &exact)
			if i+1 < len(f.tiers) {
				for _, b := range passed {
					f.tiersFrom(i+1, b)
				}
			}
			f.write(p, base, r.name, model.ActionPass, passed)
			if !exact {
				f.write(p, base, r.name+"/not-passed", model.ActionDeny, p.cut(over, r.over, scope, true, nil))
			}
		}
		if !exact && r.exact && !f.told[r] && slices.EqualFunc(over, under, sameRequirements) {
			f.told[r] = true
			p.sayAt(Narrower, r.pos, r.path, "pass by labels alone, or by addresses alone",
				"a tier before passes a part of it, by address where this goes by labels, or the other way round: the two cannot be said together")
		}
	}
}

// cut returns the boxes for the pods, as far as they are in the scope: at least that if over, else at most. exact, if not nil,
// becomes false if it is more or less.
func (p *calicoPolicy) cut(pods alternatives, boxes []box, scope box, over bool, exact *bool) []box {
	var out []box
	for _, s := range pods {
		for k := range boxes {
			b := boxes[k]
			b.own = slices.Concat(s, b.own)
			x, same := b.and(&scope, over)
			if !same && exact != nil {
				*exact = false
			}
			out = append(out, x...)
		}
	}
	return out
}

// write adds boxes to the policies.
func (f *flattening) write(p *calicoPolicy, base, name string, action model.Action, boxes []box) {
	base += "/" + directionNames[f.d]
	for i := 0; i < len(boxes); {
		b := &boxes[i]
		rule := model.OneSidedRule{Name: name, Direction: f.d, Action: action, Ports: b.ranges, Named: b.named}
		same := func(o *box) bool {
			return sameRequirements(o.own, b.own) && slices.Equal(o.ranges, b.ranges) && slices.Equal(o.named, b.named)
		}
		for ; i < len(boxes) && same(&boxes[i]); i++ {
			rule.Peers = append(rule.Peers, boxes[i].peer)
		}
		if f.isDecided(b.own) {
			continue
		}
		subject := model.Selector{Requirements: b.own}
		last := len(f.out) - 1
		if last < 0 || f.base != base || f.out[last].Subject.String() != subject.String() {
			f.base = base
			unique := base
			if f.names[base]++; f.names[base] > 1 {
				unique += "/" + itoa(f.names[base])
			}
			f.out = append(f.out, model.OneSided{Meta: model.Meta{Name: unique}, Tier: model.TierAdmin, Subject: subject})
			f.from = append(f.from, p.source)
			last++
		}
		into := &f.out[last]
		for n := 2; slices.ContainsFunc(into.Rules, func(r model.OneSidedRule) bool { return r.Name == rule.Name }); n++ {
			rule.Name = strings.TrimSuffix(name, "/") + "/" + itoa(n)
		}
		into.Rules = append(into.Rules, rule)
		f.count++
		if slices.Equal(rule.Ports, anyPort) && slices.ContainsFunc(rule.Peers, func(p model.Peer) bool { return p.Kind == model.PeerAny }) {
			key := ""
			if len(b.own) > 0 {
				key = b.own[0].String()
			}
			f.decided[key] = append(f.decided[key], b.own)
		}
	}
}

// isDecided reports whether all pods that meet the requirements are decided about.
func (f *flattening) isDecided(own []model.Requirement) bool {
	if len(f.decided[""]) > 0 {
		return true
	}
	has := map[string]bool{}
	for i := range own {
		has[own[i].String()] = true
	}
	for key := range has {
		for _, d := range f.decided[key] {
			if !slices.ContainsFunc(d, func(r model.Requirement) bool { return !has[r.String()] }) {
				return true
			}
		}
	}
	return false
}
