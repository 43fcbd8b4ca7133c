package policy

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// listOrOne is each for a list that may be written as its only element.
func (r *reader) listOrOne(n *yaml.Node, what string, mayBeEmpty bool, f func(*yaml.Node)) {
	if n.Kind == yaml.ScalarNode && n.Tag != "!!null" {
		f(n)
		return
	}
	r.each(n, what, mayBeEmpty, f)
}

// ports reads a list of ports and names of services.
func (r *reader) ports(n *yaml.Node, what string, mayBeEmpty bool) []model.PortRef {
	var out []model.PortRef
	r.listOrOne(n, what, mayBeEmpty, func(v *yaml.Node) {
		s, ok := r.portText(v)
		if !ok {
			return
		}
		ref := model.PortRef{Pos: r.pos(v)}
		p, err := model.ParsePortRange(s)
		switch {
		case err == nil:
			ref.Range = p
		case plainName(s, "-_.") && len(s) <= maxName:
			ref.Service = s
		default:
			r.fail(v, "%s", explainPort(s, err))
			return
		}
		out = append(out, ref)
	})
	return out
}

// portText returns the text of a port. A bare number, the most likely slip, gets an answer of its own.
func (r *reader) portText(n *yaml.Node) (string, bool) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		r.fail(n, "the port %s has no protocol; write tcp/%s or udp/%s", n.Value, n.Value, n.Value)
		return "", false
	}
	return r.text(n, "a port")
}

// explainPort adds to what is wrong with a port how it is written.
func explainPort(s string, err error) string {
	for _, sep := range []string{":", " ", "-"} {
		if proto, rest, ok := strings.Cut(s, sep); ok && !strings.Contains(proto, "/") {
			if p, err := model.ParsePortRange(proto + "/" + rest); err == nil {
				return fmt.Sprintf("port %q: write %s", clip(s), p)
			}
		}
	}
	if port, proto, ok := strings.Cut(s, "/"); ok {
		if p, err := model.ParsePortRange(proto + "/" + port); err == nil {
			return fmt.Sprintf("port %q: the protocol comes first; write %s", clip(s), p)
		}
		names := []string{"tcp", "udp", "sctp", "icmp", "icmpv6"}
		if best := nearest(port, names); best != "" && !strings.EqualFold(best, port) {
			return fmt.Sprintf("%v; did you mean %s/%s?", err, best, clip(proto))
		}
		return err.Error()
	}
	return fmt.Sprintf("port %q: write protocol and number, such as tcp/443", clip(s))
}
