package importer

import (
	"net/netip"
	"slices"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
)

var calicoActions = []string{"Allow", "Deny", "Log", "Pass"}

// entity is the source or the destination of a rule.
type entity struct {
	at                            *yaml.Node
	path                          string
	selector, notSelector, spaces *expr
	account                       bool // a service account is asked for
	services                      *yaml.Node
	nets, notNets                 []netip.Prefix
	hasNets, hasNotNets           bool
	ports, notPorts               *yaml.Node
}

// rule reads a rule of a policy.
func (c *calico) rule(p *calicoPolicy, n *yaml.Node, path string, d model.Direction) calicoRule {
	r := calicoRule{at: n, path: path, pos: p.Pos(n), action: "Log"}
	ends := map[string]*entity{"source": {path: path + ".source"}, "destination": {path: path + ".destination"}}
	ports := &calicoPorts{p: p, path: path}
	hasAction, http := false, false
	read := func(name string) fieldOf { return field(name, func(v *yaml.Node) { c.entity(p, v, ends[name]) }) }
	known := p.fields(n, path,
		field("action", func(v *yaml.Node) {
			var i int
			i, hasAction = p.Choice(v, "action", calicoActions)
			r.action = calicoActions[i]
		}),
		read("source"), read("destination"),
		field("protocol", func(v *yaml.Node) { ports.protocol = v }),
		field("notProtocol", func(v *yaml.Node) { ports.notProtocol = v }),
		field("icmp", func(v *yaml.Node) { ports.icmp = v }),
		field("notICMP", func(v *yaml.Node) { ports.notICMP = v }),
		field("ipVersion", func(v *yaml.Node) {
			var ok bool
			if ports.version, ok = p.Integer(v, path+".ipVersion", 4, 6); ok && ports.version == 5 {
				p.Fail(v, "%s.ipVersion is 4 or 6", path)
			}
		}),
		field("http", func(v *yaml.Node) { http = true }),
		field("metadata", ignore),
	)
	if !known {
		return r
	}
	if !hasAction {
		p.Fail(n, "%s: action is missing; write Allow, Deny, Log or Pass", path)
		return r
	}
	own, peer := ends["destination"], ends["source"]
	if d == model.Egress {
		own, peer = peer, own
	}
	ports.list, ports.not = ends["destination"].ports, ends["destination"].notPorts
	if r.action == "Log" {
		return r
	}
	m := &matching{c: c, p: p, r: &r, d: d}
	if http {
		m.inexact(n, path+".http", "remove http, if the port is to be open for everything", "HTTP is judged above the network")
	}
	for _, e := range []struct {
		at   *yaml.Node
		name string
	}{{ends["source"].ports, "ports"}, {ends["source"].notPorts, "notPorts"}} {
		if e.at != nil {
			m.inexact(e.at, path+".source."+e.name, "name the port of the destination", "the port of the source is not judged here")
		}
	}
	m.own(own)
	m.peers(peer, ports.version)
	m.ports(ports)
	m.finish()
	return r
}

func (c *calico) entity(p *calicoPolicy, n *yaml.Node, e *entity) {
	e.at = n
	text := func(into **expr, name string) fieldOf {
		return field(name, func(v *yaml.Node) {
			if x := p.selector(v, e.path+"."+name); x != nil && v.Value != "" {
				*into = x
			}
		})
	}
	nets := func(into *[]netip.Prefix, there *bool, name string) fieldOf {
		return field(name, func(v *yaml.Node) {
			p.texts(v, e.path+"."+name, func(v *yaml.Node, path, text string) {
				*there = true
				if x, ok := p.cidr(v, path, text); ok {
					*into = append(*into, x)
				}
			})
		})
	}
	list := func(into **yaml.Node, name string) fieldOf {
		return field(name, func(v *yaml.Node) {
			if v.Kind != yaml.SequenceNode || len(v.Content) > 0 {
				*into = v
			}
		})
	}
	p.fields(n, e.path,
		text(&e.selector, "selector"), text(&e.notSelector, "notSelector"), text(&e.spaces, "namespaceSelector"),
		nets(&e.nets, &e.hasNets, "nets"), nets(&e.notNets, &e.hasNotNets, "notNets"),
		list(&e.ports, "ports"), list(&e.notPorts, "notPorts"),
		field("serviceAccounts", func(v *yaml.Node) {
			p.fields(v, e.path+".serviceAccounts",
				field("names", func(v *yaml.Node) { e.account = e.account || len(v.Content) > 0 }),
				field("selector", func(v *yaml.Node) { e.account = e.account || v.Value != "" }))
		}),
		field("services", func(v *yaml.Node) { e.services = v }),
		field("domains", func(v *yaml.Node) {
			p.Fail(v, "%s.domains is of Calico Enterprise, and not known here; write the addresses under nets", e.path)
		}),
	)
}

// expr returns what selects workloads, without notSelector; nil if nothing does. As soon as something is selected by a policy
// of a namespace, it is selected in that namespace (libcalico-go/lib/backend/syncersv1/updateprocessors, getEndpointSelector).
func (e *entity) expr(namespace string) *expr {
	var list []*expr
	if e.selector != nil {
		list = append(list, e.selector)
	}
	if e.account {
		list = append(list, &expr{op: exprUnknown})
	}
	switch {
	case e.spaces != nil:
		list = append(list, e.spaces.inNamespaces())
	case namespace != "" && (len(list) > 0 || e.notSelector != nil):
		list = append(list, &expr{op: exprIn, key: calicoNamespace, values: []string{namespace}})
	}
	if len(list) == 0 {
		return nil
	}
	return both(list...)
}

// matching collects what a rule matches, at least and at most.
type matching struct {
	c           *calico
	p           *calicoPolicy
	r           *calicoRule
	d           model.Direction
	gone        bool // nothing is matched for sure
	over, under struct {
		own   alternatives
		peers []model.Peer
		ports calicoMatch
	}
}

// inexact says that an element cannot be said, and that nothing is matched for sure.
func (m *matching) inexact(n *yaml.Node, path, fix, format string, args ...any) {
	m.gone = true
	m.tell(n, path, fix, format, args...)
}

func (m *matching) tell(n *yaml.Node, path, fix, format string, args ...any) {
	consequence := map[string]string{
		"Allow": ": what it is about is not allowed", "Deny": ": it denies at least what it did", "Pass": ": what is not passed for sure is denied",
	}[m.r.action]
	m.p.say(Narrower, n, path, fix, format+consequence, args...)
}

// own reads the end at which the policy's own pods are.
func (m *matching) own(e *entity) {
	m.over.own, m.under.own = alternatives{nil}, alternatives{nil}
	x := e.expr(m.p.namespace)
	if e.notSelector != nil {
		x = both(x, notExpr(e.notSelector))
		m.excludes(e)
	}
	if x != nil {
		m.over.own, m.under.own = x.alternatives(false, true), x.alternatives(false, false)
		m.selectors(e, x)
		if slices.ContainsFunc(m.c.sets, func(s networkSet) bool { return len(s.nets) > 0 && s.meets(x) != no }) {
			m.over.own = alternatives{nil}
			m.tell(e.at, e.path, "select the pods in the policy's own selector", "it means pods in a network set too, by their address")
		}
	}
	for _, f := range []struct {
		there bool
		name  string
	}{{e.hasNets, "nets"}, {e.hasNotNets, "notNets"}, {e.services != nil, "services"}} {
		if f.there {
			m.inexact(e.at, e.path+"."+f.name, "select the pods by labels", "which of its own pods it is for is said by address")
		}
	}
}

// excludes: what notSelector finds are addresses, those of network sets too, in which a pod may be that its labels do not exclude.
func (m *matching) excludes(e *entity) {
	if e.notSelector == nil {
		return
	}
	for i := range m.c.sets {
		if s := &m.c.sets[i]; len(s.nets) > 0 && s.meets(e.notSelector) != no {
			m.inexact(e.at, e.path+".notSelector", "exclude pods by labels that no network set has", "it excludes the addresses of a network set too, in which pods may be")
			return
		}
	}
}

// selectors tells why a selector is not exact, if it is not.
func (m *matching) selectors(e *entity, x *expr) {
	if what := x.strange(); what != "" {
		m.tell(e.at, e.path, "select by labels of the pods", "%s cannot be said", what)
		return
	}
	a, b := x.alternatives(false, true), x.alternatives(false, false)
	if !slices.EqualFunc(a, b, sameRequirements) {
		m.tell(e.at, e.path, "make the selector simpler", "the selector needs more than %d alternatives", maxAlternatives)
	}
}

// peers reads the other end.
func (m *matching) peers(e *entity, version int) {
	x := e.expr(m.p.namespace)
	over, under := &m.over.peers, &m.under.peers
	switch {
	case e.services != nil:
		m.inexact(e.services, e.path+".services", "select the pods behind the Service", "who is behind a Service is not in its manifest")
		*over = everybody
	case x == nil && e.notSelector != nil && !e.hasNets && !e.hasNotNets:
		m.tell(e.at, e.path+".notSelector", "write namespaceSelector: all() beside it, if pods are meant",
			"everybody but some pods, addresses outside too, cannot be said")
		*over = everybody
		for _, a := range (alternatives{{isPod}}).and(e.notSelector.alternatives(true, false)) {
			*under = append(*under, workloads(a...))
		}
		m.excludes(e)
		if version != 0 {
			m.gone = true // labels and an IP version cannot be said together
		}
	case x == nil && e.notSelector == nil && !e.hasNets && !e.hasNotNets:
		if version == 0 {
			*over, *under = everybody, everybody
			return
		}
		all := []model.Peer{addresses(allIPv4)}
		if version == 6 {
			all = []model.Peer{addresses(allIPv6)}
		}
		*over, *under = all, all
	case x == nil && e.notSelector == nil:
		nets := e.nets
		if !e.hasNets {
			nets = []netip.Prefix{allIPv4, allIPv6}
		}
		for _, n := range inFamily(nets, version) {
			if except, left := less(n, e.notNets); left {
				*over = append(*over, addresses(n, except...))
			}
		}
		*under = *over
	default:
		m.selected(e, x, version)
	}
}

// selected reads an end that is selected by labels, and perhaps by addresses too.
func (m *matching) selected(e *entity, x *expr, version int) {
	if e.hasNets || e.hasNotNets {
		m.inexact(e.at, e.path, "write the labels and the addresses into rules of their own", "labels and addresses of one end cannot be said together")
	}
	if x == nil { // notSelector, with addresses
		for _, n := range inFamily(e.nets, version) {
			if except, left := less(n, e.notNets); left {
				m.over.peers = append(m.over.peers, addresses(n, except...))
			}
		}
		if !e.hasNets {
			m.over.peers = everybody
		}
		return
	}
	whole := x
	if e.notSelector != nil {
		whole = both(x, notExpr(e.notSelector))
	}
	for over, into := range map[bool]*[]model.Peer{true: &m.over.peers, false: &m.under.peers} {
		for _, a := range (alternatives{{isPod}}).and(whole.alternatives(false, over)) {
			*into = append(*into, workloads(a...))
		}
	}
	m.selectors(e, whole)
	m.excludes(e)
	if version != 0 && m.over.peers != nil {
		m.inexact(e.at, e.path, "remove ipVersion", "labels and an IP version cannot be said together")
	}
	for i := range m.c.sets {
		set := &m.c.sets[i]
		h := set.meets(x)
		if h == no {
			continue
		}
		if h == yes && set.namespace == "" && e.spaces != nil && e.spaces.compares() {
			// "team != 'a'" is true of what is in no namespace, as Calico evaluates it; its documentation says that a
			// namespaceSelector means what is in a namespace.
			h = perhaps
		}
		excluded := no // whether an address of the set may be that of somebody who is excluded
		if e.notSelector != nil {
			excluded = perhaps
		}
		for _, n := range inFamily(set.nets, version) {
			m.over.peers = append(m.over.peers, addresses(n))
			if h == yes && excluded == no {
				m.under.peers = append(m.under.peers, addresses(n))
			}
		}
		if (h == perhaps || excluded != no) && len(set.nets) > 0 {
			m.tell(e.at, e.path, "name the addresses under nets", "whether it means the addresses of a network set is not known")
		}
	}
}

// ports reads protocols and ports.
func (m *matching) ports(ports *calicoPorts) {
	over, under, why := ports.read()
	if why != nil {
		m.tell(why.at, why.path, why.fix, "%s", why.msg)
	}
	m.over.ports, m.under.ports = over, under
}

// finish makes boxes of what was collected.
func (m *matching) finish() {
	m.r.over = boxes(m.over.own, m.over.peers, m.over.ports, m.d, true)
	if !m.gone {
		m.r.under = boxes(m.under.own, m.under.peers, m.under.ports, m.d, false)
	}
	m.r.exact = !m.gone && slices.EqualFunc(m.r.over, m.r.under, sameBoxes)
	if !m.r.exact && len(m.under.ports.named) > 0 && m.d == model.Egress && slices.ContainsFunc(m.over.peers, func(p model.Peer) bool { return p.Kind == model.PeerCIDR }) {
		m.tell(m.r.at, m.r.path+".destination.ports", "write the number of the port", "a port by name is a pod's, and addresses have none")
	}
}

// boxes multiplies out. Who is meant by the name of a port at the destination is a pod.
func boxes(own alternatives, peers []model.Peer, ports calicoMatch, d model.Direction, over bool) []box {
	var out []box
	for _, o := range own {
		for _, p := range peers {
			b := box{own: o, peer: p, ranges: ports.ranges, named: ports.named}
			if d == model.Ingress || len(ports.named) == 0 || p.Kind == model.PeerWorkloads {
				if len(b.ranges)+len(b.named) > 0 {
					out = append(out, b)
				}
				continue
			}
			b.named = nil
			if p.Kind == model.PeerCIDR && over {
				for _, n := range ports.named {
					b.ranges = append(slices.Clip(b.ranges), wholeProto(n.Proto))
				}
			}
			if len(b.ranges) > 0 {
				out = append(out, b)
			}
			if p.Kind == model.PeerAny {
				out = append(out, box{own: o, peer: workloads(isPod), named: ports.named})
			}
		}
	}
	return out
}

func sameBoxes(a, b box) bool {
	return sameRequirements(a.own, b.own) && slices.Equal(a.ranges, b.ranges) && slices.Equal(a.named, b.named) && samePeers(a.peer, b.peer)
}

func samePeers(a, b model.Peer) bool {
	return a.Kind == b.Kind && a.CIDR == b.CIDR && slices.Equal(a.Except, b.Except) && a.Domain == b.Domain &&
		sameRequirements(a.Workloads.Requirements, b.Workloads.Requirements)
}
