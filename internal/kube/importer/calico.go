package importer

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube"
)

// Calico imports NetworkPolicy, GlobalNetworkPolicy, Tier, NetworkSet and GlobalNetworkSet (projectcalico.org/v3 and
// crd.projectcalico.org/v1), and the NetworkPolicies of Kubernetes beside them, which Calico puts into the same order. The
// error is of type policy.Errors and holds every problem of the input; then there is no result.
//
// Calico asks tier by tier, policy by policy, rule by rule; the first that applies decides, Pass goes on with the next
// tier, and at the end of a tier whoever one of its policies selects is denied
// (docs.tigera.io/calico/latest/reference/resources/tier; felix/calc/policy_sorter.go). All of it becomes rules of the
// Admin tier in one order. What a rule passes goes through the rules of the later tiers at the place of the rule, cut
// down to what it passes; and what no tier decides leaves the Admin tier.
func Calico(files []policy.File) (*Result, error) {
	out := &Result{origins: map[string]string{}}
	c := &calico{out: out, tiers: map[string]*calicoTier{}, seen: map[string]bool{}}
	// Tiers and sets may stand after the policies that they are for.
	problems := kube.Walk(files, func(r *policy.Reader, o kube.Object) { c.prepare(r, o) })
	if len(problems) > 0 {
		return nil, problems
	}
	problems = kube.Walk(files, func(r *policy.Reader, o kube.Object) { c.object(r, o) })
	if len(problems) > 0 {
		return nil, problems
	}
	if err := c.kubernetes(files); err != nil {
		return nil, err
	}
	c.order()
	if err := c.flatten(); err != nil {
		return nil, err
	}
	out.sort()
	return out, nil
}

// calicoGroups are the groups of Calico's API, and of what it keeps in a cluster.
var calicoGroups = []string{"projectcalico.org", "crd.projectcalico.org"}

// defaultTier is where policies are that name no tier, with the order that it always has
// (libcalico-go/lib/apis/v3, DefaultTierOrder).
const (
	defaultTier      = "default"
	defaultTierOrder = 1_000_000
	// kubernetesOrder is that of NetworkPolicies of Kubernetes in it (libcalico-go/lib/backend/k8s/conversion).
	kubernetesOrder = 1000
)

type calicoTier struct {
	name     string
	order    float64
	pass     bool // defaultAction: Pass
	policies []*calicoPolicy
}

// calicoPolicy is a policy of any kind.
type calicoPolicy struct {
	*source
	at          *yaml.Node // for diagnostics; nil of Kubernetes
	tier, label string
	order       float64
	// Whom it is for: at least those, for what is denied, and at most those, for what is allowed.
	over, under alternatives
	types       [2]bool
	rules       [2][]calicoRule
}

type calicoRule struct {
	at          *yaml.Node
	path, name  string
	pos         model.Position
	action      string
	over, under []box // what it matches at least, and at most; equal if it is exact
	exact       bool
}

type calico struct {
	out    *Result
	tiers  map[string]*calicoTier
	sets   []networkSet
	seen   map[string]bool
	list   []*calicoPolicy
	sorted []*calicoTier
}

// prepare reads what policies refer to.
func (c *calico) prepare(r *policy.Reader, o kube.Object) {
	if !slices.Contains(calicoGroups, o.Group) {
		return
	}
	s := &source{Reader: r, out: c.out, kind: o.Kind}
	switch o.Kind {
	case "Tier":
		if _, ok := s.metadata(o.Node, false); ok && c.first(s, o.Node) {
			c.tier(s, o.Node)
		}
	case "NetworkSet", "GlobalNetworkSet":
		if labels, ok := s.metadata(o.Node, o.Kind == "NetworkSet"); ok && c.first(s, o.Node) {
			c.set(s, o.Node, labels)
		}
	}
}

// first reports whether no object of the name was there before.
func (c *calico) first(s *source, n *yaml.Node) bool {
	if c.seen[s.object()] {
		s.Fail(child(child(n, "metadata"), "name"), "%s is there already; remove one", s.object())
		return false
	}
	c.seen[s.object()] = true
	return true
}

func (c *calico) tier(s *source, n *yaml.Node) {
	t := &calicoTier{name: s.name, order: math.Inf(1)}
	if s.name == defaultTier {
		t.order = defaultTierOrder
	}
	s.fields(n, "the Tier", top(field("spec", func(v *yaml.Node) {
		s.fields(v, "spec",
			field("order", func(v *yaml.Node) { t.order = s.number(v, "spec.order", t.order) }),
			field("defaultAction", func(v *yaml.Node) {
				i, _ := s.Choice(v, "defaultAction", []string{"Deny", "Pass"})
				t.pass = i == 1
			}),
		)
	}))...)
	c.tiers[t.name] = t
}

// top are the fields that every object has, and more.
func top(more ...fieldOf) []fieldOf {
	return append(more, field("apiVersion", ignore), field("kind", ignore), field("metadata", ignore), field("status", ignore))
}

// number reads an order.
func (s *source) number(n *yaml.Node, path string, otherwise float64) float64 {
	var v float64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&v) != nil || math.IsNaN(v) {
		s.Fail(n, "%s must be a number, not %s", path, policy.Describe(n))
		return otherwise
	}
	return v
}

// object reads policies, and tells of what is none and decides about traffic all the same.
func (c *calico) object(r *policy.Reader, o kube.Object) {
	s := &source{Reader: r, out: c.out, kind: o.Kind}
	if !slices.Contains(calicoGroups, o.Group) {
		if o.Group == "policy.networking.k8s.io" {
			if _, ok := s.metadata(o.Node, false); ok {
				s.say(Refused, o.Node, "kind", "import without it, and write it as a GlobalNetworkPolicy",
					"Calico has an order of it and the tiers, which is lost: the output may allow what it denies")
			}
		}
		return
	}
	namespaced := false
	switch o.Kind {
	case "NetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy":
		namespaced = true
	case "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "HostEndpoint", "Profile":
	default:
		return
	}
	if _, ok := s.metadata(o.Node, namespaced); !ok || !c.first(s, o.Node) {
		return
	}
	switch {
	case strings.HasPrefix(o.Kind, "Staged"):
		c.out.Objects++
		s.say(Note, o.Node, "kind", "commit the staged policy to have it imported", "a staged policy is not enforced: it was left out")
	case o.Kind == "HostEndpoint":
		s.say(Refused, o.Node, "kind", "write rules for nodes by hand", "policies at the interfaces of a node are not imported: the node stays as open as it is")
	case o.Kind == "Profile":
		s.say(Note, o.Node, "kind", "nothing is to be done if Calico made it", "profiles are taken to be those of Kubernetes, which allow what no policy decides")
	default:
		c.out.Objects++
		c.policy(s, o.Node)
	}
}

// kubernetes adds the NetworkPolicies of Kubernetes.
func (c *calico) kubernetes(files []policy.File) error {
	docs, _, err := kube.Load(files)
	if err != nil {
		return err
	}
	for i := range docs.OneSided {
		o := &docs.OneSided[i]
		rest, ok := strings.CutPrefix(o.Name, "networkpolicy/")
		if !ok {
			continue
		}
		namespace, name, _ := strings.Cut(rest, "/")
		own := alternatives{o.Subject.Requirements}
		p := &calicoPolicy{
			source: &source{out: c.out, kind: "NetworkPolicy of Kubernetes", namespace: namespace, name: name, pos: o.Pos},
			tier:   defaultTier, label: "Kubernetes/" + rest, order: kubernetesOrder, over: own, under: own, types: o.Isolates,
		}
		for k := range o.Rules {
			r := &o.Rules[k]
			all := boxes(alternatives{nil}, r.Peers, calicoMatch{r.Ports, r.Named}, r.Direction, false)
			_, index, _ := strings.Cut(r.Name, "/")
			p.rules[r.Direction] = append(p.rules[r.Direction], calicoRule{
				name: index, path: "spec." + directionNames[r.Direction] + "[" + index + "]", pos: r.Pos, action: "Allow", over: all, under: all, exact: true,
			})
		}
		c.out.Objects++
		c.list = append(c.list, p)
	}
	return nil
}

// order puts policies into their tiers and all into the order in which they are asked.
func (c *calico) order() {
	for _, p := range c.list {
		t := c.tiers[p.tier]
		if t == nil {
			t = &calicoTier{name: p.tier, order: defaultTierOrder}
			c.tiers[p.tier] = t
		}
		t.policies = append(t.policies, p)
	}
	for _, t := range c.tiers {
		slices.SortFunc(t.policies, func(a, b *calicoPolicy) int {
			return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.sortName(), b.sortName()), strings.Compare(a.namespace, b.namespace))
		})
		for i, p := range t.policies {
			for k := i - 1; k >= 0 && t.policies[k].order == p.order && t.policies[k].sortName() == p.sortName(); k-- {
				q := t.policies[k]
				if p.at != nil && p.namespace != q.namespace && (p.namespace == "" || q.namespace == "") && disagree(p, q) {
					p.say(Refused, p.at, "spec.order", "give one of them another order", "it has the name and the order of %s: Calico does not say which is asked first", q.object())
				}
			}
		}
		if len(t.policies) > 0 {
			c.sorted = append(c.sorted, t)
		}
	}
	slices.SortFunc(c.sorted, func(a, b *calicoTier) int {
		return cmp.Or(cmp.Compare(a.order, b.order), strings.Compare(a.name, b.name))
	})
}

// disagree reports whether it matters which of two policies is asked first.
func disagree(p, q *calicoPolicy) bool {
	for _, d := range model.Directions {
		for _, a := range p.rules[d] {
			if slices.ContainsFunc(q.rules[d], func(b calicoRule) bool { return a.action != b.action }) {
				return true
			}
		}
	}
	return false
}

func (p *calicoPolicy) sortName() string {
	if p.at == nil {
		return "knp.default." + p.name
	}
	return p.tier + "." + p.name
}
