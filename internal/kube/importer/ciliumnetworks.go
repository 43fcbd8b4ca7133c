package importer

import (
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/policy"
)

// cidrSet reads an element of fromCIDRSet or toCIDRSet: a range, or a group of them, without the exceptions.
func (p *ciliumPeers) cidrSet(n *yaml.Node, path string) {
	c := p.c
	var ranges, except []netip.Prefix
	forms := 0
	ok := true
	known := c.fields(n, path,
		field("cidr", func(v *yaml.Node) {
			forms++
			if text, is := c.Text(v, path+".cidr"); is {
				if r, is := c.source.cidr(v, path+".cidr", text); is {
					ranges = append(ranges, r)
				}
			}
		}),
		field("except", func(v *yaml.Node) {
			c.texts(v, path+".except", func(v *yaml.Node, path, text string) {
				if x, is := c.source.cidr(v, path, text); is {
					except = append(except, x)
				}
			})
		}),
		field("cidrGroupRef", func(v *yaml.Node) {
			forms++
			name, is := c.Text(v, path+".cidrGroupRef")
			if !is {
				return
			}
			group := c.groups[name]
			if group == nil {
				ok = false
				p.unknown(v, path+".cidrGroupRef", "add its manifest to the files", "the CiliumCIDRGroup %q is not in the files", name)
				return
			}
			ranges = append(ranges, p.group(v, path+".cidrGroupRef", group)...)
		}),
		field("cidrGroupSelector", func(v *yaml.Node) {
			forms++
			ok = false
			p.unknown(v, path+".cidrGroupSelector", "name the group under cidrGroupRef", "groups are taken by name only")
		}),
	)
	if !known || !ok {
		return
	}
	if forms != 1 {
		c.Fail(n, "%s: write one of cidr, cidrGroupRef and cidrGroupSelector", path)
		return
	}
	for _, r := range ranges {
		if own, some := less(r, except); some {
			p.outside = append(p.outside, addresses(r, own...))
		}
	}
}

// group returns the ranges of a CiliumCIDRGroup. Its problems are reported where it is named.
func (p *ciliumPeers) group(at *yaml.Node, path string, group *yaml.Node) []netip.Prefix {
	var out []netip.Prefix
	list := child(child(group, "spec"), "externalCIDRs")
	if list == nil || list.Kind != yaml.SequenceNode {
		p.c.Fail(at, "%s: the CiliumCIDRGroup lists no externalCIDRs", path)
		return nil
	}
	for _, v := range list.Content {
		if r, ok := p.c.source.cidr(at, path, v.Value); ok {
			out = append(out, r)
		}
	}
	return out
}

// domain reads an element of toFQDNs. In a pattern of Cilium's "*" stands for characters of one label, and "**." at the
// beginning for one or more labels (pkg/fqdn/matchpattern); here "*." at the beginning is the latter.
func (p *ciliumPeers) domain(n *yaml.Node, path string) {
	c := p.c
	add := func(v *yaml.Node, path, name string) {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if err := policy.CheckDomain(name); err != nil {
			c.Fail(v, "%s: %v", path, err)
			return
		}
		p.outside = append(p.outside, domainPeer(name))
	}
	forms := 0
	c.fields(n, path,
		field("matchName", func(v *yaml.Node) {
			forms++
			if s, ok := c.Text(v, path+".matchName"); ok {
				if strings.Contains(s, "*") {
					c.Fail(v, "%s.matchName: %q has a *; write it under matchPattern", path, s)
					return
				}
				add(v, path+".matchName", s)
			}
		}),
		field("matchPattern", func(v *yaml.Node) {
			forms++
			s, ok := c.Text(v, path+".matchPattern")
			rest, deep := strings.CutPrefix(s, "**.")
			switch {
			case !ok:
			case !strings.Contains(s, "*"):
				add(v, path+".matchPattern", s)
			case deep && rest != "" && !strings.Contains(rest, "*"):
				add(v, path+".matchPattern", "*."+rest)
			default:
				c.say(Narrower, v, path+".matchPattern", "list the names under matchName, or write **. if every depth is meant",
					"in %q a * stands for a part of one label, which cannot be said: it was left out", s)
			}
		}),
	)
	if forms == 0 {
		c.Fail(n, "%s: write matchName or matchPattern", path)
	}
}
