package kube

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// OneSidedPolicy is the kind of manifest that says all a one-sided policy can say, where the kinds of Kubernetes cannot:
// rules of ingress by address, isolation across namespaces, ICMP, an order between deny and allow. Imports of other
// policy languages write it (docs/import.md); Marshal and Load are each other's inverse on it.
const (
	OneSidedGroup = "kube.bulkhead"
	OneSidedKind  = "OneSidedPolicy"
	oneSidedAPI   = OneSidedGroup + "/v1"
)

// The fields of a OneSidedPolicy, in the order in which they are written.
type (
	oneSidedDoc struct {
		APIVersion string       `yaml:"apiVersion"`
		Kind       string       `yaml:"kind"`
		Metadata   oneSidedMeta `yaml:"metadata,flow"`
		Spec       oneSidedSpec `yaml:"spec"`
	}
	oneSidedMeta struct {
		Name string `yaml:"name"`
	}
	oneSidedSpec struct {
		Tier     string         `yaml:"tier"`
		Priority int            `yaml:"priority,omitempty"`
		Subject  string         `yaml:"subject"`
		Isolates []string       `yaml:"isolates,omitempty,flow"`
		Rules    []oneSidedRule `yaml:"rules,omitempty"`
	}
	oneSidedRule struct {
		Name      string         `yaml:"name"`
		Direction string         `yaml:"direction"`
		Action    string         `yaml:"action"`
		Peers     []oneSidedPeer `yaml:"peers"`
		Ports     []string       `yaml:"ports,omitempty,flow"`
		Named     []string       `yaml:"namedPorts,omitempty,flow"`
	}
	oneSidedPeer struct {
		Workloads *string  `yaml:"workloads,omitempty"`
		CIDR      string   `yaml:"cidr,omitempty"`
		Except    []string `yaml:"except,omitempty,flow"`
		Domain    string   `yaml:"domain,omitempty"`
		Any       bool     `yaml:"any,omitempty"`
	}
)

var (
	oneSidedTiers   = []string{"Admin", "Namespace", "Baseline"} // in the order of model.Tier
	oneSidedActions = []string{model.ActionDeny.String(), model.ActionAllow.String(), model.ActionPass.String()}
	oneSidedName    = regexp.MustCompile(`^[A-Za-z0-9]([-_./A-Za-z0-9]*[A-Za-z0-9])?$`)
)

const (
	maxOneSidedName     = 600
	maxOneSidedPriority = 1_000_000
)

// Marshal writes one-sided policies as manifests of the kind OneSidedPolicy, in the order in which they are given; what
// comment returns for one, if there is a comment, stands above it. Reading them again gives the same policies, apart
// from positions. Peers are of the kinds that one-sided policies have: workloads, CIDR, domain and any.
func Marshal(policies []model.OneSided, comment func(*model.OneSided) string) ([]byte, error) {
	var out bytes.Buffer
	for i := range policies {
		p := &policies[i]
		d := oneSidedDoc{oneSidedAPI, OneSidedKind, oneSidedMeta{p.Name}, oneSidedSpec{
			Tier: oneSidedTiers[p.Tier], Priority: p.Priority, Subject: p.Subject.String(),
		}}
		for _, dir := range model.Directions {
			if p.Isolates[dir] {
				d.Spec.Isolates = append(d.Spec.Isolates, dir.String())
			}
		}
		for k := range p.Rules {
			d.Spec.Rules = append(d.Spec.Rules, writtenRule(&p.Rules[k]))
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		if comment != nil {
			for line := range strings.Lines(comment(p)) {
				out.WriteString("# " + strings.TrimRight(line, "\n") + "\n")
			}
		}
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if err := enc.Encode(&d); err != nil {
			return nil, fmt.Errorf("write %s: %w", p.Name, err)
		}
		if err := enc.Close(); err != nil {
			return nil, fmt.Errorf("write %s: %w", p.Name, err)
		}
	}
	return out.Bytes(), nil
}

func writtenRule(r *model.OneSidedRule) oneSidedRule {
	out := oneSidedRule{Name: r.Name, Direction: r.Direction.String(), Action: r.Action.String(), Peers: []oneSidedPeer{}}
	for i := range r.Peers {
		var w oneSidedPeer
		switch p := &r.Peers[i]; p.Kind {
		case model.PeerWorkloads:
			s := p.Workloads.String()
			w.Workloads = &s
		case model.PeerCIDR:
			w.CIDR = p.CIDR.String()
			for _, x := range p.Except {
				w.Except = append(w.Except, x.String())
			}
		case model.PeerDomain:
			w.Domain = p.Domain
		case model.PeerAny:
			w.Any = true
		}
		out.Peers = append(out.Peers, w)
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, p.String())
	}
	for _, n := range r.Named {
		out.Named = append(out.Named, n.Proto.String()+"/"+n.Name)
	}
	return out
}

// oneSided reads a OneSidedPolicy.
func (r *reader) oneSided(k kind, n *yaml.Node) {
	if k.name != OneSidedKind || k.version != "v1" {
		r.Fail(n, "%s of %s is not known; write apiVersion: %s and kind: %s", k.name, k.apiVersion(), oneSidedAPI, OneSidedKind)
		return
	}
	var p model.OneSided
	p.Pos = r.Pos(n)
	r.fields(n, "the "+OneSidedKind,
		policy.Field{Name: "apiVersion", Read: ignore},
		policy.Field{Name: "kind", Read: ignore},
		policy.Field{Name: "metadata", Required: "write metadata: {name: …}", Read: func(v *yaml.Node) {
			r.fields(v, "metadata", policy.Field{Name: "name", Required: "it is cited under its name", Read: func(v *yaml.Node) {
				p.Pos = r.Pos(v)
				p.Name = r.oneSidedName(v)
			}})
		}},
		policy.Field{Name: "spec", Required: "write what it says under spec:", Read: func(v *yaml.Node) { r.oneSidedSpec(v, &p) }},
	)
	if p.Name != "" {
		r.policies = append(r.policies, p)
		r.ordered[p.Name] = true
	}
}

func (r *reader) oneSidedName(n *yaml.Node) string {
	name, ok := r.Text(n, "name")
	if !ok {
		return ""
	}
	if len(name) > maxOneSidedName || !oneSidedName.MatchString(name) {
		r.Fail(n, "name %q: use up to %d letters, digits, '-', '_', '.' and '/', beginning and ending with a letter or digit", name, maxOneSidedName)
		return ""
	}
	for known := range policyKinds {
		if prefix := strings.ToLower(known) + "/"; strings.HasPrefix(name, prefix) {
			r.Fail(n, "name %q: names under %s are those of the kind %s; use another one", name, prefix, known)
			return ""
		}
	}
	key := OneSidedKind + " " + name
	if before, ok := r.seen[key]; ok {
		r.Fail(n, "the %s is there already, at %s; remove one", key, before)
		return ""
	}
	r.seen[key] = r.Pos(n)
	return name
}

func (r *reader) oneSidedSpec(n *yaml.Node, p *model.OneSided) {
	var priority, isolates *yaml.Node
	p.Tier = model.TierNamespace
	r.fields(n, "the "+OneSidedKind+"'s spec",
		policy.Field{Name: "tier", Required: "write tier: Admin, Namespace or Baseline", Read: func(v *yaml.Node) {
			i, _ := r.Choice(v, "tier", oneSidedTiers)
			p.Tier = model.Tier(i)
		}},
		policy.Field{Name: "priority", Read: func(v *yaml.Node) {
			priority = v
			p.Priority, _ = r.Integer(v, "priority", 0, maxOneSidedPriority)
		}},
		policy.Field{Name: "subject", Required: `write whom it is for, such as subject: "` + model.PodLabel + `=` + model.PodValue + `"`, Read: func(v *yaml.Node) {
			p.Subject, _ = r.wordSelector(v, "subject")
		}},
		policy.Field{Name: "isolates", Read: func(v *yaml.Node) {
			isolates = v
			r.Each(v, "isolates", true, func(v *yaml.Node) {
				if i, ok := r.Choice(v, "direction", directionFields[:]); ok {
					p.Isolates[i] = true
				}
			})
		}},
		policy.Field{Name: "rules", Read: func(v *yaml.Node) {
			r.Each(v, "rules", true, func(v *yaml.Node) { p.Rules = append(p.Rules, r.oneSidedRule(v)) })
		}},
	)
	taken := map[string]bool{}
	for i := range p.Rules {
		rule := &p.Rules[i]
		if rule.Name != "" && taken[rule.Name] {
			r.FailAt(rule.Pos, "a rule named %q is there already; give each a name of its own", rule.Name)
		}
		taken[rule.Name] = true
		if p.Tier == model.TierNamespace && rule.Action != model.ActionAllow {
			r.FailAt(rule.Pos, "rules of the Namespace tier allow only; write the rule into a policy of tier: Admin")
		}
	}
	switch {
	case p.Tier == model.TierNamespace && priority != nil:
		r.Fail(priority, "policies of the Namespace tier have no order; remove priority")
	case p.Tier != model.TierNamespace && isolates != nil:
		r.Fail(isolates, "only policies of tier: Namespace isolate; write a deny rule")
	}
}

// wordSelector reads a selector as documents write it.
func (r *reader) wordSelector(n *yaml.Node, what string) (model.Selector, bool) {
	text, ok := r.Text(n, what)
	if !ok {
		return model.Selector{}, false
	}
	s, err := model.ParseSelector(text)
	if err != nil {
		r.Fail(n, "%v", err)
		return model.Selector{}, false
	}
	return s, true
}

func (r *reader) oneSidedRule(n *yaml.Node) model.OneSidedRule {
	rule := model.OneSidedRule{Pos: r.Pos(n)}
	r.fields(n, "the rule",
		policy.Field{Name: "name", Required: "verdicts cite a rule by its name", Read: func(v *yaml.Node) {
			var ok bool
			if rule.Name, ok = r.Text(v, "name"); ok && !oneSidedName.MatchString(rule.Name) {
				r.Fail(v, "name %q: use letters, digits, '-', '_', '.' and '/', beginning and ending with a letter or digit", rule.Name)
			}
		}},
		policy.Field{Name: "direction", Required: "write direction: ingress or egress", Read: func(v *yaml.Node) {
			i, _ := r.Choice(v, "direction", directionFields[:])
			rule.Direction = model.Direction(i)
		}},
		policy.Field{Name: "action", Required: "write action: allow, deny or pass", Read: func(v *yaml.Node) {
			i, _ := r.Choice(v, "action", oneSidedActions)
			rule.Action = model.Action(i)
		}},
		policy.Field{Name: "peers", Required: "write whom it is about, such as peers: [{any: true}]", Read: func(v *yaml.Node) {
			r.Each(v, "peers", false, func(v *yaml.Node) {
				if p, ok := r.oneSidedPeer(v); ok {
					rule.Peers = append(rule.Peers, p)
				}
			})
		}},
		policy.Field{Name: "ports", Read: func(v *yaml.Node) {
			r.Each(v, "ports", true, func(v *yaml.Node) {
				text, ok := r.Text(v, "a port")
				if !ok {
					return
				}
				p, err := model.ParsePortRange(text)
				if err != nil {
					r.Fail(v, "%v", err)
					return
				}
				rule.Ports = append(rule.Ports, p)
			})
		}},
		policy.Field{Name: "namedPorts", Read: func(v *yaml.Node) {
			r.Each(v, "namedPorts", true, func(v *yaml.Node) {
				text, ok := r.Text(v, "a named port")
				if !ok {
					return
				}
				proto, name, _ := strings.Cut(text, "/")
				i := slices.Index(protocols, strings.ToUpper(proto))
				if i < 0 || !isPortName(name) {
					r.Fail(v, "%q is no named port; write it as in tcp/http", text)
					return
				}
				rule.Named = append(rule.Named, model.NamedPort{Proto: protocolValues[i], Name: name})
			})
		}},
	)
	return rule
}

func (r *reader) oneSidedPeer(n *yaml.Node) (model.Peer, bool) {
	p := model.Peer{Pos: r.Pos(n)}
	there, ok := 0, true
	var except []*yaml.Node
	is := func(k model.PeerKind) { p.Kind, there = k, there+1 }
	known := r.fields(n, "the peer",
		policy.Field{Name: "workloads", Read: func(v *yaml.Node) {
			is(model.PeerWorkloads)
			p.Workloads, ok = r.wordSelector(v, "workloads")
		}},
		policy.Field{Name: "cidr", Read: func(v *yaml.Node) {
			is(model.PeerCIDR)
			p.CIDR, ok = r.cidr(v)
		}},
		policy.Field{Name: "except", Read: func(v *yaml.Node) {
			r.Each(v, "except", true, func(v *yaml.Node) { except = append(except, v) })
		}},
		policy.Field{Name: "domain", Read: func(v *yaml.Node) {
			is(model.PeerDomain)
			if p.Domain, ok = r.Text(v, "domain"); !ok {
				return
			}
			if err := policy.CheckDomain(p.Domain); err != nil {
				r.Fail(v, "%v", err)
				ok = false
			}
		}},
		policy.Field{Name: "any", Read: func(v *yaml.Node) {
			is(model.PeerAny)
			if b, isBool := r.Boolean(v, "any"); isBool && !b {
				r.Fail(v, "any: false means nobody; remove the peer")
				ok = false
			}
		}},
	)
	switch {
	case !known || !ok:
		return p, false
	case there != 1:
		r.Fail(n, "a peer is one of workloads, cidr, domain and any")
		return p, false
	case len(except) > 0 && p.Kind != model.PeerCIDR:
		r.Fail(n, "except goes with cidr")
		return p, false
	}
	for _, v := range except {
		x, isCIDR := r.cidr(v)
		if isCIDR && !within(x, p.CIDR) {
			r.Fail(v, "%s is not a part of %s; except takes ranges within cidr that are smaller", x, p.CIDR)
			isCIDR = false
		}
		if !isCIDR {
			return p, false
		}
		p.Except = append(p.Except, x)
	}
	return p, true
}

// within reports whether x is a smaller range in cidr.
func within(x, cidr netip.Prefix) bool { return cidr.Overlaps(x) && x.Bits() > cidr.Bits() }
