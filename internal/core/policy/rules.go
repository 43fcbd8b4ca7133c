package policy

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

func (r *reader) policy(meta model.Meta, n *yaml.Node) model.Policy {
	p := model.Policy{Meta: meta}
	r.mapping(n, "the Policy's spec",
		field{"rules", "list them, such as - {name: web, allow: {from: …, to: …, on: [tcp/443]}}", func(v *yaml.Node) {
			r.each(v, "rules", true, func(v *yaml.Node) { p.Rules = append(p.Rules, r.rule(v)) })
		}},
	)
	return p
}

func (r *reader) rule(n *yaml.Node) model.Rule {
	rule := model.Rule{Pos: r.pos(n)}
	var actions int
	action := func(a model.Action) func(*yaml.Node) {
		return func(v *yaml.Node) {
			if actions++; actions > 1 {
				r.fail(v, "a rule either allows or denies; make two rules of it")
				return
			}
			rule.Action = a
			rule.From, rule.To, rule.On = r.traffic(v, a.String())
		}
	}
	known := r.mapping(n, "the rule",
		field{"name", "every rule has a name of its own, by which verdicts cite it", func(v *yaml.Node) {
			if s, ok := r.free(v, "name"); ok {
				if why := checkName("rule", s); why != "" {
					r.fail(v, "%s", why)
				} else {
					rule.Name = s
				}
			}
		}},
		field{"allow", "", action(model.ActionAllow)},
		field{"deny", "", action(model.ActionDeny)},
		field{"expires", "", func(v *yaml.Node) { rule.Expires = r.expires(v) }},
	)
	if known && actions == 0 {
		r.fail(n, "the rule does nothing; write allow: or deny: with from, to and on")
	}
	return rule
}

// traffic reads what allow, deny and never share.
func (r *reader) traffic(n *yaml.Node, what string) (from, to []model.Peer, on []model.PortRef) {
	r.mapping(n, what,
		field{"from", "write a selector of workloads, or {any: true} for every endpoint", func(v *yaml.Node) { from = r.peers(v, "from") }},
		field{"to", "write a selector of workloads, or {any: true} for every endpoint", func(v *yaml.Node) { to = r.peers(v, "to") }},
		field{"on", "list ports such as [tcp/443], or write on: any", func(v *yaml.Node) { on = r.ports(v, "on", false) }},
	)
	return from, to, on
}

func (r *reader) expires(n *yaml.Node) time.Time {
	const form = "write a moment such as 2026-12-31T00:00:00Z"
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "!!timestamp" {
		r.fail(n, "expires must be a moment, not %s; %s", kindOf(n), form)
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, n.Value)
	if err != nil {
		if day, err := time.Parse(time.DateOnly, n.Value); err == nil {
			r.fail(n, "expires needs the time of the day as well; write %s", day.Format(time.RFC3339))
		} else {
			r.fail(n, "%q is no moment; %s", clip(n.Value), form)
		}
		return time.Time{}
	}
	if t.Year() < 1970 {
		r.fail(n, "expires is before 1970; %s", form)
		return time.Time{}
	}
	return t.UTC()
}

func (r *reader) guardrail(meta model.Meta, n *yaml.Node) model.Guardrail {
	g := model.Guardrail{Meta: meta}
	r.mapping(n, "the Guardrail's spec",
		field{"never", "write what must never be allowed, such as never: {from: env=dev, to: env=prod, on: any}", func(v *yaml.Node) {
			g.From, g.To, g.On = r.traffic(v, "never")
		}},
		field{"via", "", func(v *yaml.Node) {
			i, _ := r.choice(v, "via", viaNames)
			g.Via = model.Via(i)
		}},
	)
	return g
}

func (r *reader) expectation(meta model.Meta, n *yaml.Node) model.Expectation {
	e := model.Expectation{Meta: meta}
	r.mapping(n, "an Expectation's spec",
		field{"cases", "list them, such as - {from: portal-1, to: pay-db-1, on: tcp/5432, expect: deny}", func(v *yaml.Node) {
			r.each(v, "cases", false, func(v *yaml.Node) { e.Cases = append(e.Cases, r.expectationCase(v)) })
		}},
	)
	return e
}

func (r *reader) expectationCase(n *yaml.Node) model.ExpectationCase {
	c := model.ExpectationCase{Pos: r.pos(n)}
	end := func(name string, set *string) field {
		return field{name, "name a workload or an address", func(v *yaml.Node) {
			s, ok := r.filled(v, name, maxName)
			switch {
			case !ok:
			case strings.ContainsAny(s, "=!(), "):
				r.fail(v, "%q is a selector; a case names one workload or one address", clip(s))
			case checkWorkloadName(s) != "":
				r.fail(v, "%q is neither the name of a workload nor an address", clip(s))
			default:
				*set = s
			}
		}}
	}
	r.mapping(n, "the case", end("from", &c.From), end("to", &c.To),
		field{"on", "write one port, such as on: tcp/5432", func(v *yaml.Node) { c.On = r.singlePort(v) }},
		field{"expect", "write expect: allow, deny or would-deny", func(v *yaml.Node) {
			i, _ := r.choice(v, "verdict", verdictNames)
			c.Expect = model.Verdict(i)
		}},
	)
	return c
}

// singlePort reads the port of a case: one flow has one port. An ICMP type without a code stands for code 0.
func (r *reader) singlePort(n *yaml.Node) model.PortRange {
	s, ok := r.portText(n)
	if !ok {
		return model.PortRange{}
	}
	p, err := model.ParsePortRange(s)
	switch {
	case err != nil && plainName(s, "-_."):
		r.fail(n, "%q is no port; a case names one, such as tcp/5432, not a Service", clip(s))
	case err != nil:
		r.fail(n, "%s", explainPort(s, err))
	case p.Proto.IsICMP() && p.Lo&0xff == 0 && p.Hi == p.Lo|0xff:
		return model.PortRange{Proto: p.Proto, Lo: p.Lo, Hi: p.Lo}
	case !p.Single():
		r.fail(n, "%q is more than one port; a case tests one, such as tcp/5432 or icmp/8", s)
	default:
		return p
	}
	return model.PortRange{}
}

// peers reads from and to: a selector, a mapping, or a list of both.
func (r *reader) peers(n *yaml.Node, what string) []model.Peer {
	var out []model.Peer
	one := func(v *yaml.Node) {
		if p, ok := r.peer(v, what); ok {
			out = append(out, p)
		}
	}
	if n.Kind == yaml.SequenceNode {
		r.each(n, what, false, one)
	} else {
		one(n)
	}
	return out
}

func (r *reader) peer(n *yaml.Node, what string) (model.Peer, bool) {
	p := model.Peer{Pos: r.pos(n)}
	if n.Kind == yaml.ScalarNode {
		var ok bool
		p.Workloads, ok = r.selector(n, what)
		return p, ok
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a selector, a mapping such as {network: corp-vpn}, or a list of these, not %s", what, kindOf(n))
		return p, false
	}
	var named []string
	good := true
	kind := func(name string, k model.PeerKind, read func(v *yaml.Node) bool) field {
		return field{name, "", func(v *yaml.Node) {
			named = append(named, name)
			p.Kind = k
			good = read(v) && good
		}}
	}
	known := r.mapping(n, what,
		kind("workloads", model.PeerWorkloads, func(v *yaml.Node) (ok bool) {
			p.Workloads, ok = r.selector(v, "workloads")
			return ok
		}),
		field{"process", "", func(v *yaml.Node) {
			p.Process = r.process(v)
		}},
		kind("network", model.PeerNetwork, func(v *yaml.Node) (ok bool) {
			p.Network, ok = r.text(v, "network")
			if ok && p.Network == "" {
				r.fail(v, "network is empty; name a Network")
				return false
			}
			return ok
		}),
		kind("cidr", model.PeerCIDR, func(v *yaml.Node) (ok bool) {
			p.CIDR, ok = r.cidr(v)
			return ok
		}),
		kind("domain", model.PeerDomain, func(v *yaml.Node) (ok bool) {
			p.Domain, ok = r.domain(v)
			if ok && what != "to" {
				r.fail(v, "domain stands in to only: names are resolved by who connects; name the source by workloads, network or cidr")
				return false
			}
			return ok
		}),
		kind("any", model.PeerAny, func(v *yaml.Node) bool {
			b, ok := r.boolean(v, "any")
			if ok && !b {
				r.fail(v, "any: false says nothing; write any: true, or name who is meant")
			}
			return ok && b
		}),
	)
	switch {
	case len(named) > 1:
		r.fail(n, "%s names %s at once; write a list of mappings if either may match", what, both(named))
		return p, false
	case len(named) == 0 && !known:
		return p, false
	case len(named) == 0:
		if p.Process != nil {
			r.fail(n, `%s has a process but no workloads; add workloads: "" for all of them`, what)
		} else {
			r.fail(n, "%s names nobody; write workloads, network, cidr or any: true", what)
		}
		return p, false
	case p.Process != nil && p.Kind != model.PeerWorkloads:
		r.fail(n, "a process can be seen on workloads only; name them by workloads, not by %s", named[0])
		return p, false
	}
	return p, good
}

func (r *reader) process(n *yaml.Node) *model.Process {
	p := &model.Process{}
	set := func(name string, to *string) field {
		return field{name, "", func(v *yaml.Node) { *to, _ = r.filled(v, name, 4096) }}
	}
	known := r.mapping(n, "process", set("unit", &p.Unit), set("path", &p.Path), set("user", &p.User))
	switch {
	case !known:
	case len(n.Content) == 0:
		r.fail(n, "process constrains nothing; write unit, path or user")
	case p.Path != "" && p.Path[0] != '/':
		r.fail(n, "the path %q is not absolute; write the whole path of the executable", clip(p.Path))
	default:
		return p
	}
	return nil
}

// selector reads a label selector, and refuses what is one by accident only.
func (r *reader) selector(n *yaml.Node, what string) (model.Selector, bool) {
	s, ok := r.text(n, what)
	if !ok {
		return model.Selector{}, false
	}
	if why := notSelector(strings.TrimSpace(s)); why != "" {
		r.fail(n, "%s", why)
		return model.Selector{}, false
	}
	sel, err := model.ParseSelector(s)
	if err != nil {
		var at *model.SelectorError
		if errors.As(err, &at) {
			r.failWithin(n, at.Column, "selector %q: %s", clip(s), at.Reason)
		} else {
			r.fail(n, "%v", err)
		}
		return sel, false
	}
	if why := sel.Contradiction(); why != "" {
		r.fail(n, "selector %q can never match: %s", clip(s), why)
		return sel, false
	}
	return sel, true
}

// notSelector returns what to write instead of text that reads as a selector but surely is not meant as one.
func notSelector(s string) string {
	switch {
	case s == "any":
		return `"any" would select the workloads that have a label named any; write {any: true} for every endpoint, "" for every workload`
	case s == "*" || s == "all":
		return `"` + s + `" is no selector; write {any: true} for every endpoint, "" for every workload`
	case isAddress(s):
		a := netip.MustParseAddr(s).Unmap().WithZone("")
		return `"` + s + `" is an address, not a selector; write {cidr: "` + netip.PrefixFrom(a, a.BitLen()).String() + `"}`
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return `"` + s + `" is a CIDR, not a selector; write {cidr: "` + s + `"}`
	}
	return ""
}
