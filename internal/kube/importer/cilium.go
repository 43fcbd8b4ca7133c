package importer

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

// Cilium imports CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2), with the CiliumCIDRGroups that they
// name. Other manifests are passed over. The error is of type policy.Errors and holds every problem of the input, what
// Cilium itself refuses among them; then there is no result.
//
// Cilium gives every endpoint the union of what all policies that select it allow, less the union of what they deny
// (docs.cilium.io/en/stable/security/policy/intro, "Rule Basics"; pkg/policy/mapstate.go). So each policy becomes up to
// four one-sided policies, all denials before all else:
//
//	NAME/deny           Admin, what it denies to and from workloads
//	NAME/deny-outside   Admin, what it denies by address
//	NAME/allow-outside  Admin, what it allows by address and host name
//	NAME                Namespace, what it allows to and from workloads, and the default denial
//
// An address means to Cilium what is outside the cluster: a CIDR never selects a pod or a node (pkg/policy/api/cidr.go).
// The two in the middle therefore begin by passing whatever is in the cluster on to the last one.
func Cilium(files []policy.File) (*Result, error) {
	out := &Result{origins: map[string]string{}}
	groups := map[string]*yaml.Node{}
	var problems policy.Errors
	read := func(visit func(*policy.Reader, kube.Object)) {
		problems = append(problems, kube.Walk(files, visit)...)
	}
	// Groups may stand after the policies that name them.
	read(func(r *policy.Reader, o kube.Object) {
		if o.Group == ciliumGroup && o.Kind == "CiliumCIDRGroup" {
			if name := child(child(o.Node, "metadata"), "name"); name != nil {
				groups[name.Value] = o.Node
			}
		}
	})
	if len(problems) > 0 {
		return nil, problems
	}
	seen := map[string]bool{}
	read(func(r *policy.Reader, o kube.Object) {
		if o.Group != ciliumGroup || o.Kind != "CiliumNetworkPolicy" && o.Kind != "CiliumClusterwideNetworkPolicy" {
			return
		}
		s := &source{Reader: r, out: out, kind: o.Kind}
		if o.Version != "v2" {
			s.Fail(o.Node, "%s of %s/%s is not known here; write apiVersion: cilium.io/v2", o.Kind, o.Group, o.Version)
			return
		}
		if _, ok := s.metadata(o.Node, o.Kind == "CiliumNetworkPolicy"); !ok {
			return
		}
		if seen[s.object()] {
			s.Fail(child(child(o.Node, "metadata"), "name"), "%s is there already; remove one", s.object())
			return
		}
		seen[s.object()] = true
		out.Objects++
		s.ciliumPolicy(o.Node, groups)
	})
	if len(problems) > 0 {
		return nil, problems
	}
	out.sort()
	return out, nil
}

const ciliumGroup = "cilium.io"

// Priorities of what is made of Cilium's policies, after every ClusterNetworkPolicy: those must not be passed over.
const (
	ciliumDeny = 2000 + iota
	ciliumDenyOutside
	ciliumAllowOutside
)

// ciliumRule is one api.Rule of Cilium: the spec of a policy, or one of its specs.
type ciliumRule struct {
	*source
	groups map[string]*yaml.Node // CiliumCIDRGroups by name
	host   bool                  // it is for nodes

	// Whom it is for, as far as that can be said: at least those, for what is denied, and at most those, for what is allowed.
	atLeast, atMost []model.Requirement
	nobody          bool // no pod is selected
	noAllow         bool // nothing may be allowed: nobody knows whom it is for

	deny, denyOutside, allowOutside, allow model.OneSided
}

func (s *source) ciliumPolicy(n *yaml.Node, groups map[string]*yaml.Node) {
	base := "cilium/" + s.name
	if s.namespace != "" {
		base = "cilium/" + s.namespace + "/" + s.name
	} else {
		base = "cilium-clusterwide/" + s.name
	}
	specs := 0
	s.fields(n, "the "+s.kind, field("apiVersion", ignore), field("kind", ignore), field("metadata", ignore), field("status", ignore), field("description", ignore),
		field("spec", func(v *yaml.Node) {
			specs++
			s.ciliumSpec(v, "spec", base, groups)
		}),
		field("specs", func(v *yaml.Node) {
			s.each(v, "specs", func(v *yaml.Node, path string) {
				s.ciliumSpec(v, path, fmt.Sprintf("%s/specs/%d", base, specs), groups)
				specs++
			})
		}),
	)
	if specs == 0 {
		s.Fail(n, "the %s says nothing; write spec:", s.kind)
	}
}

func (s *source) ciliumSpec(n *yaml.Node, path, name string, groups map[string]*yaml.Node) {
	c := &ciliumRule{source: s, groups: groups}
	var subject, defaults *yaml.Node
	var lists [2][2]*yaml.Node // by direction, and by whether it denies
	list := func(d model.Direction, deny int) func(*yaml.Node) { return func(v *yaml.Node) { lists[d][deny] = v } }
	selects := 0
	known := s.fields(n, path,
		field("endpointSelector", func(v *yaml.Node) { subject, selects = v, selects+1 }),
		field("nodeSelector", func(v *yaml.Node) { subject, c.host, selects = v, true, selects+1 }),
		field("ingress", list(model.Ingress, 0)), field("ingressDeny", list(model.Ingress, 1)),
		field("egress", list(model.Egress, 0)), field("egressDeny", list(model.Egress, 1)),
		field("enableDefaultDeny", func(v *yaml.Node) { defaults = v }),
		field("labels", ignore), field("description", ignore), field("log", ignore),
	)
	switch {
	case !known:
		return
	case selects != 1:
		s.Fail(n, "%s: a rule has one of endpointSelector and nodeSelector; write endpointSelector: {} for all pods", path)
		return
	case c.host && s.namespace != "":
		s.Fail(subject, "%s.nodeSelector: nodes are in no namespace; write a CiliumClusterwideNetworkPolicy", path)
		return
	}
	c.subject(subject, path)
	at := model.NewSelector(append([]model.Requirement{}, c.atLeast...)...)
	most := model.NewSelector(append([]model.Requirement{}, c.atMost...)...)
	c.deny = model.OneSided{Meta: model.Meta{Name: name + "/deny"}, Tier: model.TierAdmin, Priority: ciliumDeny, Subject: at}
	c.denyOutside = model.OneSided{Meta: model.Meta{Name: name + "/deny-outside"}, Tier: model.TierAdmin, Priority: ciliumDenyOutside, Subject: at}
	c.allowOutside = model.OneSided{Meta: model.Meta{Name: name + "/allow-outside"}, Tier: model.TierAdmin, Priority: ciliumAllowOutside, Subject: most}
	c.allow = model.OneSided{Meta: model.Meta{Name: name}, Tier: model.TierNamespace, Subject: most}
	var isolates [2]bool
	for _, d := range model.Directions {
		for deny, v := range lists[d] {
			if v == nil {
				continue
			}
			what := directionNames[d] + [...]string{"", "Deny"}[deny]
			s.each(v, path+"."+what, func(v *yaml.Node, path string) {
				isolates[d] = true // api.Rule.Sanitize: unless it is said, a direction with a rule is closed
				c.rule(v, path, d, deny == 1, fmt.Sprintf("%s/%s", what, strings.TrimSuffix(path[strings.LastIndexByte(path, '[')+1:], "]")))
			})
		}
	}
	if defaults != nil {
		bit := func(d model.Direction) func(*yaml.Node) {
			return func(v *yaml.Node) {
				if b, ok := s.Boolean(v, directionNames[d]); ok {
					isolates[d] = b
				}
			}
		}
		s.fields(defaults, path+".enableDefaultDeny", field("ingress", bit(model.Ingress)), field("egress", bit(model.Egress)))
	}
	if c.nobody {
		return
	}
	c.emit(name, at, isolates)
}

// emit keeps what the rule became.
func (c *ciliumRule) emit(name string, at model.Selector, isolates [2]bool) {
	c.add(c.deny)
	c.add(guarded(c.denyOutside))
	if !c.noAllow {
		c.add(guarded(c.allowOutside))
	}
	if !c.noAllow && c.allow.Subject.String() == at.String() {
		c.allow.Isolates = isolates
		c.add(c.allow)
		return
	}
	if !c.noAllow {
		c.add(c.allow)
	}
	c.add(model.OneSided{Meta: model.Meta{Name: name + "/default"}, Tier: model.TierNamespace, Subject: at, Isolates: isolates})
}

// guarded returns the policy with rules before the others that pass on what is in the cluster.
func guarded(p model.OneSided) model.OneSided {
	var guards []model.OneSidedRule
	for _, d := range model.Directions {
		for i := range p.Rules {
			if p.Rules[i].Direction == d {
				guards = append(guards, model.OneSidedRule{
					Name: "in-cluster/" + directionNames[d], Direction: d, Action: model.ActionPass, Peers: inCluster, Ports: anyPort,
				})
				break
			}
		}
	}
	p.Rules = append(guards, p.Rules...)
	return p
}

var directionNames = [2]string{model.Ingress: "ingress", model.Egress: "egress"}
