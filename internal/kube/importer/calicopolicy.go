package importer

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// policy reads a NetworkPolicy or GlobalNetworkPolicy.
func (c *calico) policy(s *source, n *yaml.Node) {
	p := &calicoPolicy{source: s, at: n, tier: defaultTier, order: math.Inf(1)}
	var spec, tierAt *yaml.Node
	s.fields(n, "the "+s.kind, top(field("spec", func(v *yaml.Node) { spec = v }))...)
	if spec == nil {
		s.Fail(n, "the %s says nothing; write spec:", s.kind)
		return
	}
	var (
		lists   [2]*yaml.Node
		types   *yaml.Node
		only    []string // fields by which it is for host endpoints only
		forward *yaml.Node
		exprs   []*expr
	)
	if s.namespace != "" {
		exprs = append(exprs, &expr{op: exprIn, key: calicoNamespace, values: []string{s.namespace}})
	}
	selector := func(what string, namespaces bool) func(*yaml.Node) {
		return func(v *yaml.Node) {
			if e := s.selector(v, "spec."+what); e != nil {
				if namespaces {
					e = e.inNamespaces()
				}
				exprs = append(exprs, e)
			}
		}
	}
	bit := func(what string) func(*yaml.Node) {
		return func(v *yaml.Node) {
			if b, ok := s.Boolean(v, what); ok && b {
				if what == "applyOnForward" {
					forward = v
				} else {
					only = append(only, what)
				}
			}
		}
	}
	fields := []fieldOf{
		field("tier", func(v *yaml.Node) {
			tierAt = v
			if text, ok := s.Text(v, "spec.tier"); ok && text != "" {
				p.tier = text
			}
		}),
		field("order", func(v *yaml.Node) { p.order = s.number(v, "spec.order", p.order) }),
		field("selector", selector("selector", false)),
		field("serviceAccountSelector", func(v *yaml.Node) {
			if e := s.selector(v, "spec.serviceAccountSelector"); e != nil && (e.op != exprTrue) {
				exprs = append(exprs, &expr{op: exprUnknown})
			}
		}),
		field("types", func(v *yaml.Node) { types = v }),
		field("ingress", func(v *yaml.Node) { lists[model.Ingress] = v }),
		field("egress", func(v *yaml.Node) { lists[model.Egress] = v }),
		field("performanceHints", ignore),
	}
	if s.namespace == "" {
		fields = append(fields, field("namespaceSelector", selector("namespaceSelector", true)),
			field("doNotTrack", bit("doNotTrack")), field("preDNAT", bit("preDNAT")), field("applyOnForward", bit("applyOnForward")))
	}
	if !s.fields(spec, "spec", fields...) {
		return
	}
	if c.tiers[p.tier] == nil && p.tier != defaultTier {
		s.Fail(tierAt, "the Tier %q is not in the files; add it: its order decides", p.tier)
		return
	}
	p.name = strings.TrimPrefix(s.name, p.tier+".") // the API server writes the tier before the name
	p.label = p.name
	if s.namespace != "" {
		p.label = s.namespace + "/" + p.name
	} else {
		p.label = "Global/" + p.name // no namespace has such a name
	}
	if len(only) > 0 {
		s.say(Refused, spec, "spec."+only[0], "write rules for nodes by hand", "it is for host endpoints only: it was left out")
		return
	}
	if forward != nil {
		s.say(Refused, forward, "spec.applyOnForward", "write rules for nodes by hand", "what nodes forward is not judged here: it is imported for pods only")
	}
	all := both(exprs...)
	if all == nil || len(exprs) == 0 {
		all = &expr{op: exprTrue}
	}
	pods := alternatives{{isPod}}
	p.over, p.under = pods.and(all.alternatives(false, true)), pods.and(all.alternatives(false, false))
	if what := all.strange(); what != "" {
		s.say(Narrower, spec, "spec.selector", "select the pods by labels of their own", "whom it is for is not exactly known: %s cannot be said. What is denied holds for all who may be meant, what is allowed for those who are meant for sure", what)
	} else if !slices.EqualFunc(p.over, p.under, sameRequirements) {
		s.say(Narrower, spec, "spec.selector", "make it simpler", "the selector needs more than %d alternatives: what is denied holds for all who may be meant, what is allowed was left out", maxAlternatives)
	}
	p.typesOf(types, lists)
	for _, d := range model.Directions {
		if lists[d] == nil {
			continue
		}
		i := 0
		s.each(lists[d], "spec."+directionNames[d], func(v *yaml.Node, path string) {
			r := c.rule(p, v, path, d)
			r.name = itoa(i)
			i++
			if p.types[d] && r.action != "Log" {
				p.rules[d] = append(p.rules[d], r)
			}
		})
		if i > 0 && !p.types[d] {
			s.say(Note, lists[d], "spec."+directionNames[d], "add the direction to types, or remove the rules", "the rules have no effect: types leaves the direction out")
		}
	}
	c.list = append(c.list, p)
}

// typesOf: what types lists; if there is none, ingress, and egress if there is a rule for it, which then is the only one if
// there is none for ingress (libcalico-go/lib/clientv3, defaultPolicyTypesField).
func (p *calicoPolicy) typesOf(types *yaml.Node, lists [2]*yaml.Node) {
	listed := false
	if types != nil {
		p.each(types, "spec.types", func(v *yaml.Node, _ string) {
			listed = true
			if i, ok := p.Choice(v, "type", []string{"Ingress", "Egress"}); ok {
				p.types[i] = true
			}
		})
	}
	if !listed {
		some := func(d model.Direction) bool { return lists[d] != nil && len(lists[d].Content) > 0 }
		p.types[model.Egress] = some(model.Egress)
		p.types[model.Ingress] = some(model.Ingress) || !some(model.Egress)
	}
}

// selector reads a selector; nil if it is none.
func (s *source) selector(n *yaml.Node, path string) *expr {
	text, ok := s.Text(n, path)
	if !ok {
		return nil
	}
	e, err := parseExpr(text)
	if err != nil {
		s.Fail(n, "%s: %v", path, fmt.Errorf("selector %q, %w", text, err))
		return nil
	}
	return e
}

func sameRequirements(a, b []model.Requirement) bool {
	return slices.EqualFunc(a, b, func(x, y model.Requirement) bool {
		return x.Key == y.Key && x.Op == y.Op && slices.Equal(x.Values, y.Values)
	})
}
