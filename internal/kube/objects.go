package kube

import (
	"net/netip"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

// pod is a pod, or the template of one, as far as it matters here.
type pod struct {
	*metadata
	node        string // it runs on; "" if it is not known
	hostNetwork bool
	addresses   []netip.Addr
	ports       []containerPort
	over        bool // it ran and ended: its addresses may be another pod's by now
}

// containerPort is a port that a container declares.
type containerPort struct {
	proto model.Proto
	name  string // "" if it has none
	port  uint16
}

// controller is an object that makes pods from a template.
type controller struct {
	*metadata
	kind     string
	template *pod
}

type node struct {
	*metadata
	addresses []netip.Addr
}

// namespace keeps the labels of a namespace.
func (r *reader) namespace(n *yaml.Node) {
	if m := r.metadata("Namespace", false, n); m != nil {
		r.namespaces[m.name] = m.labels
	}
}

// Phases of a pod that has ended.
var ended = []string{"Succeeded", "Failed"}

func (r *reader) pod(n *yaml.Node) {
	m := r.metadata("Pod", true, n)
	if m == nil {
		return
	}
	p := &pod{metadata: m}
	if spec := child(n, "spec"); spec != nil && r.IsMapping(spec, "the Pod's spec") {
		r.podSpec(spec, p)
	}
	phase, _ := scalar(child(n, "status", "phase"))
	p.over = slices.Contains(ended, phase)
	if !p.over {
		p.addresses = r.podAddresses(child(n, "status"))
	}
	r.pods = append(r.pods, p)
}

// podAddresses returns status.podIPs, or status.podIP.
func (r *reader) podAddresses(status *yaml.Node) []netip.Addr {
	var out []netip.Addr
	if list := child(status, "podIPs"); list != nil {
		r.Each(list, "podIPs", true, func(v *yaml.Node) { out = r.address(child(v, "ip"), out) })
	}
	return r.address(child(status, "podIP"), out)
}

// address appends an address, once.
func (r *reader) address(n *yaml.Node, to []netip.Addr) []netip.Addr {
	if n == nil {
		return to
	}
	s, ok := r.Text(n, "an address")
	if !ok || s == "" {
		return to
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.Fail(n, "%q is no address", s)
		return to
	}
	if a = a.Unmap().WithZone(""); slices.Contains(to, a) {
		return to
	}
	return append(to, a)
}

func (r *reader) podSpec(n *yaml.Node, p *pod) {
	p.node, _ = scalar(child(n, "nodeName"))
	if v := child(n, "hostNetwork"); v != nil {
		p.hostNetwork, _ = r.Boolean(v, "hostNetwork")
	}
	if list := child(n, "containers"); list != nil {
		r.Each(list, "containers", true, func(c *yaml.Node) { r.container(c, p) })
	}
	if list := child(n, "initContainers"); list != nil {
		r.Each(list, "initContainers", true, func(c *yaml.Node) {
			// One that restarts always runs beside the others, for as long as they do.
			if policy, _ := scalar(child(c, "restartPolicy")); policy == "Always" {
				r.container(c, p)
			}
		})
	}
}

// container reads the ports that a container declares. Of two ports of one name and protocol in a pod the first counts,
// as for Services.
func (r *reader) container(n *yaml.Node, p *pod) {
	list := child(n, "ports")
	if list == nil {
		return
	}
	r.Each(list, "ports", true, func(v *yaml.Node) {
		port := containerPort{proto: model.ProtoTCP}
		if proto := child(v, "protocol"); proto != nil {
			var ok bool
			if port.proto, ok = r.protocol(proto); !ok {
				return
			}
		}
		number := child(v, "containerPort")
		if number == nil {
			r.Fail(v, "containerPort is missing in the port")
			return
		}
		var ok bool
		if port.port, ok = r.number(number, "containerPort"); !ok {
			return
		}
		if name := child(v, "name"); name != nil {
			if port.name, ok = r.portName(name, "name"); !ok {
				return
			}
		}
		p.ports = append(p.ports, port)
	})
}

// named returns the number of the port of that name.
func (p *pod) named(proto model.Proto, name string) (uint16, bool) {
	for _, x := range p.ports {
		if x.name == name && x.proto == proto {
			return x.port, true
		}
	}
	return 0, false
}

// controller reads an object with a template of pods.
func (r *reader) controller(k kind, n *yaml.Node, path ...string) {
	m := r.metadata(k.name, true, n)
	if m == nil {
		return
	}
	c := &controller{metadata: m, kind: k.name, template: &pod{metadata: &metadata{name: m.name, namespace: m.namespace, pos: m.pos}}}
	template := child(n, path...)
	switch {
	case template == nil:
		r.Fail(n, "the %s has no template of pods", k.name)
	case r.IsMapping(template, "the template"):
		c.template.labels = r.labels(child(template, "metadata", "labels"))
		if spec := child(template, "spec"); spec != nil && r.IsMapping(spec, "the template's spec") {
			r.podSpec(spec, c.template)
		}
	}
	r.controllers = append(r.controllers, c)
}

// Types of a node's addresses by which it is reached.
var nodeAddressTypes = []string{"InternalIP", "ExternalIP"}

func (r *reader) node(n *yaml.Node) {
	m := r.metadata("Node", false, n)
	if m == nil {
		return
	}
	x := &node{metadata: m}
	if list := child(n, "status", "addresses"); list != nil {
		r.Each(list, "addresses", true, func(v *yaml.Node) {
			if t, _ := scalar(child(v, "type")); slices.Contains(nodeAddressTypes, t) {
				x.addresses = r.address(child(v, "address"), x.addresses)
			}
		})
	}
	r.nodes = append(r.nodes, x)
}

// service is a Service with a selector, as far as its target ports go.
type service struct {
	*metadata
	selector model.Labels
	targets  []target
}

// target is the port of the pods that a port of a Service leads to.
type target struct {
	pos   model.Position
	proto model.Proto
	name  string // "" if it is a number
	port  uint16
}

// String returns the target as the manifest has it.
func (t *target) String() string {
	if t.name != "" {
		return t.name
	}
	return strconv.Itoa(int(t.port))
}

// service reads a Service. It changes nothing of what policy says: policies apply to pods, after the Service's address
// and port have been replaced by a pod's.
func (r *reader) service(n *yaml.Node) {
	m := r.metadata("Service", true, n)
	if m == nil {
		return
	}
	spec := child(n, "spec")
	s := &service{metadata: m, selector: r.labels(child(spec, "selector"))}
	list := child(spec, "ports")
	if list == nil || len(s.selector) == 0 {
		return // nothing that could be compared with pods
	}
	r.Each(list, "ports", true, func(v *yaml.Node) {
		t := target{proto: model.ProtoTCP, pos: r.Pos(v)}
		if proto := child(v, "protocol"); proto != nil {
			var ok bool
			if t.proto, ok = r.protocol(proto); !ok {
				return
			}
		}
		at := child(v, "targetPort")
		if at == nil {
			at = child(v, "port")
		}
		if at == nil {
			r.Fail(v, "port is missing in the Service's port")
			return
		}
		t.pos = r.Pos(at)
		if name, ok := scalar(at); ok {
			t.name = name
		} else if t.port, ok = r.number(at, "targetPort"); !ok {
			return
		}
		s.targets = append(s.targets, t)
	})
	r.services = append(r.services, s)
}
