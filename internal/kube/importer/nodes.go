package importer

import (
	"fmt"
	"net/netip"
	"regexp"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/policy"
)

var nameLike = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)

func isNull(n *yaml.Node) bool {
	return n == nil || n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// child returns the value of a field of a mapping; nil if there is none, or nothing in it.
func child(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name && !isNull(n.Content[i+1]) {
			return n.Content[i+1]
		}
	}
	return nil
}

func ignore(*yaml.Node) {}

// field is a shorthand for a field that may be left out.
func field(name string, read func(*yaml.Node)) policy.Field {
	return policy.Field{Name: name, Read: read}
}

// fields reads the fields of a mapping strictly. A field with nothing in it is not there, as to the API server.
func (s *source) fields(n *yaml.Node, what string, fields ...policy.Field) bool {
	if n.Kind != yaml.MappingNode {
		return s.IsMapping(n, what)
	}
	there := *n
	there.Content = nil
	for i := 0; i+1 < len(n.Content); i += 2 {
		known := false
		for _, f := range fields {
			known = known || f.Name == n.Content[i].Value
		}
		if !known || !isNull(n.Content[i+1]) {
			there.Content = append(there.Content, n.Content[i], n.Content[i+1])
		}
	}
	return s.Mapping(&there, what, fields...)
}

// each calls f for every element of a list with the path of the element.
func (s *source) each(n *yaml.Node, path string, f func(v *yaml.Node, path string)) {
	i := 0
	s.Each(n, path, true, func(v *yaml.Node) {
		f(v, fmt.Sprintf("%s[%d]", path, i))
		i++
	})
}

// texts reads a list of texts.
func (s *source) texts(n *yaml.Node, path string, f func(v *yaml.Node, path, text string)) {
	s.each(n, path, func(v *yaml.Node, path string) {
		if text, ok := s.Text(v, path); ok {
			f(v, path, text)
		}
	})
}

// cidr reads a range of addresses, or one address.
func (s *source) cidr(n *yaml.Node, what, text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, notAddr := netip.ParseAddr(text)
		if notAddr != nil || a.Zone() != "" {
			s.Fail(n, "%s: %q is no CIDR and no address; write it as in 10.9.0.0/16", what, text)
			return p, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		s.Fail(n, "%s: %q is IPv4 written as IPv6; write it as IPv4", what, text)
		return p, false
	}
	return p.Masked(), true
}

// fieldOf is a field of a mapping.
type fieldOf = policy.Field
