package kube

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// protocols are those that Kubernetes knows, and what they are.
var (
	protocols      = []string{"TCP", "UDP", "SCTP"}
	protocolValues = []model.Proto{model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP}
)

// ports are the ports of a rule: numbers, and names that each destination gives a number.
type ports struct {
	ranges []model.PortRange
	named  []model.NamedPort
}

// anyPort is what a rule without ports is about.
func anyPort() ports { return ports{ranges: []model.PortRange{model.AnyPort}} }

func (r *reader) protocol(n *yaml.Node) (model.Proto, bool) {
	i, ok := r.Choice(n, "protocol", protocols)
	return protocolValues[i], ok
}

const (
	minPort = 1
	maxPort = 65535
)

func (r *reader) number(n *yaml.Node, what string) (uint16, bool) {
	v, ok := r.Integer(n, what, minPort, maxPort)
	return uint16(v), ok
}

var portName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// portName reads the name of a port by the rules of the API server.
func (r *reader) portName(n *yaml.Node, what string) (string, bool) {
	s, ok := r.Text(n, what)
	if !ok {
		return "", false
	}
	if !isPortName(s) {
		r.Fail(n, "%s %q: a port's name has up to 15 lower-case letters, digits and single '-', with a letter among them; write a number without quotes", what, s)
		return "", false
	}
	return s, true
}

func isPortName(s string) bool {
	return len(s) <= 15 && portName.MatchString(s) && strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") && !strings.Contains(s, "--")
}

// policyPorts reads the ports of a rule of a NetworkPolicy; nothing in them means every port.
func (r *reader) policyPorts(n *yaml.Node) ports {
	if n == nil {
		return anyPort()
	}
	var out ports
	r.Each(n, "ports", true, func(v *yaml.Node) { r.policyPort(v, &out) })
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		return anyPort()
	}
	return out
}

func (r *reader) policyPort(n *yaml.Node, out *ports) {
	proto, ok := model.ProtoTCP, true
	var port, end *yaml.Node
	known := r.fields(n, "the port",
		policy.Field{Name: "protocol", Read: func(v *yaml.Node) { proto, ok = r.protocol(v) }},
		policy.Field{Name: "port", Read: func(v *yaml.Node) { port = v }},
		policy.Field{Name: "endPort", Read: func(v *yaml.Node) { end = v }},
	)
	if !known || !ok {
		return
	}
	switch {
	case port == nil && end != nil:
		r.Fail(end, "endPort needs port: the range begins there")
	case port == nil:
		out.ranges = append(out.ranges, model.PortRange{Proto: proto, Lo: 0, Hi: maxPort})
	case port.Kind == yaml.ScalarNode && port.Tag == "!!str":
		name, ok := r.portName(port, "port")
		switch {
		case !ok:
		case end != nil:
			r.Fail(end, "endPort goes with a number, and port is the name %q; write the number, or remove endPort", name)
		default:
			out.named = append(out.named, model.NamedPort{Proto: proto, Name: name})
		}
	default:
		lo, ok := r.number(port, "port")
		hi := lo
		if end != nil {
			var isNumber bool
			hi, isNumber = r.number(end, "endPort")
			ok = ok && isNumber
			if ok && hi < lo {
				r.Fail(end, "endPort %d is before port %d; a range ends at or after its beginning", hi, lo)
				ok = false
			}
		}
		if ok {
			out.ranges = append(out.ranges, model.PortRange{Proto: proto, Lo: lo, Hi: hi})
		}
	}
}
