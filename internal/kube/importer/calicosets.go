package importer

import (
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// networkSet is a NetworkSet or GlobalNetworkSet: addresses that selectors find by its labels.
type networkSet struct {
	namespace string // "" of a GlobalNetworkSet
	labels    model.Labels
	nets      []netip.Prefix
}

func (c *calico) set(s *source, n *yaml.Node, labels model.Labels) {
	set := networkSet{namespace: s.namespace, labels: labels}
	s.fields(n, "the "+s.kind, top(field("spec", func(v *yaml.Node) {
		s.fields(v, "spec", field("nets", func(v *yaml.Node) {
			s.texts(v, "spec.nets", func(v *yaml.Node, path, text string) {
				if p, ok := s.cidr(v, path, text); ok {
					set.nets = append(set.nets, p)
				}
			})
		}))
	}))...)
	c.sets = append(c.sets, set)
}

// meets reports whether a selector finds the set. Of the labels of its namespace only the name is known.
func (n *networkSet) meets(e *expr) truth {
	return e.holds(n.namespace == "", func(key string) (string, bool, bool) {
		switch {
		case key == calicoNamespace || key == namespacePrefix+calicoName:
			return n.namespace, n.namespace != "", true
		case strings.HasPrefix(key, namespacePrefix):
			return "", false, n.namespace == ""
		}
		v, ok := n.labels[key]
		return v, ok, true
	})
}
