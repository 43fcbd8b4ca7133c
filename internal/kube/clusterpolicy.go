package kube

import (
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// dialect is how a version of the cluster-wide kinds spells things (policy.networking.k8s.io: ClusterNetworkPolicy
// v1alpha2, and AdminNetworkPolicy and BaselineAdminNetworkPolicy v1alpha1 before it).
type dialect struct {
	kind     string
	tier     model.Tier // if the kind implies it
	inSpec   bool       // the tier is written in the spec
	priority bool       // there is one
	actions  []string
	does     []model.Action // what each of actions is
	ports    string         // the field of a rule that lists ports
	limit    int            // of rules, peers and ports in a list
	domains  bool
	readPort func(*reader, *yaml.Node, *ports)
}

var dialects = map[string]*dialect{
	"ClusterNetworkPolicy": {
		kind: "ClusterNetworkPolicy", inSpec: true, priority: true, domains: true, limit: 25,
		actions: []string{"Accept", "Deny", "Pass"}, does: []model.Action{model.ActionAllow, model.ActionDeny, model.ActionPass},
		ports: "protocols", readPort: (*reader).protocolPort,
	},
	"AdminNetworkPolicy": {
		kind: "AdminNetworkPolicy", tier: model.TierAdmin, priority: true, domains: true, limit: 100,
		actions: []string{"Allow", "Deny", "Pass"}, does: []model.Action{model.ActionAllow, model.ActionDeny, model.ActionPass},
		ports: "ports", readPort: (*reader).adminPort,
	},
	"BaselineAdminNetworkPolicy": {
		kind: "BaselineAdminNetworkPolicy", tier: model.TierBaseline, limit: 100,
		actions: []string{"Allow", "Deny"}, does: []model.Action{model.ActionAllow, model.ActionDeny},
		ports: "ports", readPort: (*reader).adminPort,
	},
}

var (
	tierNames = []string{"Admin", "Baseline"}
	tiers     = []model.Tier{model.TierAdmin, model.TierBaseline}
)

// Priorities are from 0 to maxPriority; the one BaselineAdminNetworkPolicy has none and is asked after all others of
// its tier.
const (
	maxPriority  = 1000
	lastPriority = maxPriority + 1
)

// clusterPolicy reads a policy for the whole cluster.
func (r *reader) clusterPolicy(k kind, n *yaml.Node) {
	d := dialects[k.name]
	meta, spec := r.strict(d.kind, false, n)
	if meta == nil {
		meta = &metadata{} // reported; its spec may have more to report
	}
	if spec == nil {
		r.Fail(n, "spec is missing in the %s", d.kind)
		return
	}
	if d.kind == "BaselineAdminNetworkPolicy" && meta.name != "" && meta.name != "default" {
		r.FailAt(meta.pos, "the one BaselineAdminNetworkPolicy there may be is named default; rename it")
	}
	p := model.OneSided{
		Meta: model.Meta{Name: strings.ToLower(d.kind) + "/" + meta.name, Pos: meta.pos},
		Tier: d.tier, Priority: lastPriority,
	}
	fields := []policy.Field{
		{Name: "subject", Required: "write whom it is for, such as subject: {namespaces: {}}", Read: func(v *yaml.Node) {
			if peer, ok := r.oneOf(v, "subject", podForms); ok {
				p.Subject = peer[0].Workloads
			}
		}},
		{Name: "ingress", Read: func(v *yaml.Node) { r.clusterRules(d, model.Ingress, v, &p) }},
		{Name: "egress", Read: func(v *yaml.Node) { r.clusterRules(d, model.Egress, v, &p) }},
	}
	if d.inSpec {
		fields = append(fields, policy.Field{Name: "tier", Required: "write tier: Admin or Baseline", Read: func(v *yaml.Node) {
			i, _ := r.Choice(v, "tier", tierNames)
			p.Tier = tiers[i]
		}})
	}
	if d.priority {
		fields = append(fields, policy.Field{Name: "priority", Required: "write one from 0, which is asked first, to 1000", Read: func(v *yaml.Node) {
			p.Priority, _ = r.Integer(v, "priority", 0, maxPriority)
		}})
	}
	r.fields(spec, "the "+d.kind+"'s spec", fields...)
	nameRules(&p)
	r.policies = append(r.policies, p)
}

// nameRules gives rules without a name of their own the place where they stand. So it does where the name is there
// twice, or could not be told from the rest of an identity.
func nameRules(p *model.OneSided) {
	at := [2]int{}
	taken := map[string]bool{}
	for i := range p.Rules {
		rule := &p.Rules[i]
		place := fmt.Sprintf("%s/%d", directionFields[rule.Direction], at[rule.Direction])
		at[rule.Direction]++
		if rule.Name == "" || strings.ContainsAny(rule.Name, "/ \t\r\n") || taken[rule.Name] {
			rule.Name = place
		}
		taken[rule.Name] = true
	}
}

func (r *reader) clusterRules(d *dialect, dir model.Direction, n *yaml.Node, p *model.OneSided) {
	r.limited(n, directionFields[dir], 0, d.limit, func(v *yaml.Node) {
		p.Rules = append(p.Rules, r.clusterRule(d, dir, v))
	})
}

// limited reads a list of least to limit elements.
func (r *reader) limited(n *yaml.Node, what string, least, limit int, f func(*yaml.Node)) {
	if n.Kind == yaml.SequenceNode && len(n.Content) > limit {
		r.Fail(n, "%s has %d elements, more than %d; split the policy", what, len(n.Content), limit)
		return
	}
	r.Each(n, what, least == 0, f)
}

func (r *reader) clusterRule(d *dialect, dir model.Direction, n *yaml.Node) model.OneSidedRule {
	rule := model.OneSidedRule{Direction: dir, Pos: r.Pos(n)}
	what := anyPort()
	var portList *yaml.Node
	r.fields(n, "the "+directionFields[dir]+" rule",
		policy.Field{Name: "name", Read: func(v *yaml.Node) {
			var ok bool
			if rule.Name, ok = r.Text(v, "name"); ok && len(rule.Name) > 100 {
				r.Fail(v, "the rule's name has %d bytes, more than 100", len(rule.Name))
			}
		}},
		policy.Field{Name: "action", Required: "write action: " + policy.Alternatives(d.actions), Read: func(v *yaml.Node) {
			i, _ := r.Choice(v, "action", d.actions)
			rule.Action = d.does[i]
		}},
		policy.Field{Name: peerFields[dir], Required: "write whom it is about, such as " + peerFields[dir] + ": [{namespaces: {}}]", Read: func(v *yaml.Node) {
			forms := podForms
			if dir == model.Egress {
				forms = egressForms
				if d.domains {
					forms = append(forms[:len(forms):len(forms)], domainForm)
				}
			}
			r.limited(v, peerFields[dir], 1, d.limit, func(v *yaml.Node) {
				if peers, ok := r.oneOf(v, "the peer in "+peerFields[dir], forms); ok {
					rule.Peers = append(rule.Peers, peers...)
				}
			})
		}},
		policy.Field{Name: d.ports, Read: func(v *yaml.Node) {
			portList, what = v, ports{}
			r.limited(v, d.ports, 1, d.limit, func(v *yaml.Node) { d.readPort(r, v, &what) })
		}},
	)
	rule.Ports, rule.Named = what.ranges, what.named
	for i := range rule.Peers {
		switch peer := &rule.Peers[i]; {
		case peer.Kind == model.PeerDomain && rule.Action != model.ActionAllow:
			r.FailAt(peer.Pos, "domainNames go with action %s only; name the addresses under networks", d.actions[0])
		case len(rule.Named) > 0 && dir == model.Egress && !selectsPods(peer):
			r.Fail(portList, "ports by name are a pod's; nodes, networks and domainNames have none: write the number, or a rule of its own for them")
			return rule
		}
	}
	return rule
}

func selectsPods(p *model.Peer) bool {
	if p.Kind != model.PeerWorkloads {
		return false
	}
	for _, q := range p.Workloads.Requirements {
		if q.Key == model.PodLabel {
			return true
		}
	}
	return false
}

// form is one way to write a peer.
type form struct {
	name string
	read func(*reader, *yaml.Node) ([]model.Peer, bool)
}

var (
	podForms    = []form{{"namespaces", (*reader).namespacesPeer}, {"pods", (*reader).podsPeer}}
	egressForms = append(podForms[:len(podForms):len(podForms)], form{"nodes", (*reader).nodesPeer}, form{"networks", (*reader).networksPeer})
	domainForm  = form{"domainNames", (*reader).domainsPeer}
)

// oneOf reads a mapping that has exactly one of the forms.
func (r *reader) oneOf(n *yaml.Node, what string, forms []form) (out []model.Peer, ok bool) {
	fields := make([]policy.Field, len(forms))
	for i, f := range forms {
		fields[i] = policy.Field{Name: f.name, Read: func(v *yaml.Node) { out, ok = f.read(r, v) }}
	}
	r.exactlyOne(n, what, fields...)
	return out, ok
}

func (r *reader) namespacesPeer(n *yaml.Node) ([]model.Peer, bool) {
	s := r.selector(n, "namespaces", model.NamespaceLabelPrefix)
	return []model.Peer{{Kind: model.PeerWorkloads, Workloads: podsWhere(s), Pos: r.Pos(n)}}, true
}

func (r *reader) podsPeer(n *yaml.Node) ([]model.Peer, bool) {
	var selected []model.Requirement
	there := 0
	r.fields(n, "pods",
		policy.Field{Name: "namespaceSelector", Required: "write namespaceSelector: {} for all namespaces", Read: func(v *yaml.Node) {
			there++
			selected = append(selected, r.selector(v, "namespaceSelector", model.NamespaceLabelPrefix)...)
		}},
		policy.Field{Name: "podSelector", Required: "write podSelector: {} for all pods", Read: func(v *yaml.Node) {
			there++
			selected = append(selected, r.selector(v, "podSelector", "")...)
		}},
	)
	return []model.Peer{{Kind: model.PeerWorkloads, Workloads: podsWhere(selected), Pos: r.Pos(n)}}, there == 2
}

func (r *reader) nodesPeer(n *yaml.Node) ([]model.Peer, bool) {
	s := model.NewSelector(append(r.selector(n, "nodes", model.NodeLabelPrefix), isNode)...)
	return []model.Peer{{Kind: model.PeerWorkloads, Workloads: s, Pos: r.Pos(n)}}, true
}

// maxNetworks is how many networks, or domain names, one peer may list.
const maxNetworks = 25

func (r *reader) networksPeer(n *yaml.Node) ([]model.Peer, bool) {
	var out []model.Peer
	r.limited(n, "networks", 1, maxNetworks, func(v *yaml.Node) {
		if p, ok := r.cidr(v); ok {
			out = append(out, model.Peer{Kind: model.PeerCIDR, CIDR: p, Pos: r.Pos(v)})
		}
	})
	return out, true
}

func (r *reader) domainsPeer(n *yaml.Node) ([]model.Peer, bool) {
	var out []model.Peer
	r.limited(n, "domainNames", 1, maxNetworks, func(v *yaml.Node) {
		s, ok := r.Text(v, "a domain name")
		if !ok {
			return
		}
		name := strings.ToLower(strings.TrimSuffix(s, "."))
		if err := policy.CheckDomain(name); err != nil {
			r.Fail(v, "%v", err)
			return
		}
		out = append(out, model.Peer{Kind: model.PeerDomain, Domain: name, Pos: r.Pos(v)})
	})
	return out, true
}

// namedOf returns the port by that name, of whichever protocol the destination gives it.
func namedOf(name string) []model.NamedPort {
	out := make([]model.NamedPort, len(protocolValues))
	for i, p := range protocolValues {
		out[i] = model.NamedPort{Proto: p, Name: name}
	}
	return out
}

// anyPortName is looser than the name of a container's port: a name that no container can have is no error of the API.
var anyPortName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$`)

func (r *reader) clusterPortName(n *yaml.Node, out *ports) {
	s, ok := r.Text(n, "the port's name")
	switch {
	case !ok:
	case !isPortName(s) && !anyPortName.MatchString(s):
		r.Fail(n, "%q is no port's name; write the one that a container gives its port", s)
	case !isPortName(s):
		r.note(r.Pos(n), policy.Warning, "write the name that a container gives its port", "no container can name a port %q", s)
	default:
		out.named = append(out.named, namedOf(s)...)
	}
}

// adminPort reads a port of v1alpha1: portNumber, portRange or namedPort.
func (r *reader) adminPort(n *yaml.Node, out *ports) {
	r.exactlyOne(n, "the port",
		policy.Field{Name: "portNumber", Read: func(v *yaml.Node) {
			proto, ok := model.ProtoTCP, true
			var port uint16
			r.fields(v, "portNumber",
				policy.Field{Name: "protocol", Read: func(v *yaml.Node) { proto, ok = r.protocol(v) }},
				policy.Field{Name: "port", Required: "write the number", Read: func(v *yaml.Node) { port, _ = r.number(v, "port") }},
			)
			if ok && port != 0 {
				out.ranges = append(out.ranges, model.PortRange{Proto: proto, Lo: port, Hi: port})
			}
		}},
		policy.Field{Name: "portRange", Read: func(v *yaml.Node) {
			proto, ok := model.ProtoTCP, true
			p, isRange := r.portRange(v, "portRange", policy.Field{Name: "protocol", Read: func(v *yaml.Node) { proto, ok = r.protocol(v) }})
			if p.Proto = proto; ok && isRange {
				out.ranges = append(out.ranges, p)
			}
		}},
		policy.Field{Name: "namedPort", Read: func(v *yaml.Node) { r.clusterPortName(v, out) }},
	)
}

// protocolPort reads an element of protocols in v1alpha2: tcp, udp or sctp with a destinationPort, or
// destinationNamedPort.
func (r *reader) protocolPort(n *yaml.Node, out *ports) {
	fields := []policy.Field{{Name: "destinationNamedPort", Read: func(v *yaml.Node) { r.clusterPortName(v, out) }}}
	for i, name := range protocols {
		fields = append(fields, policy.Field{Name: strings.ToLower(name), Read: func(v *yaml.Node) {
			r.fields(v, strings.ToLower(name),
				policy.Field{Name: "destinationPort", Required: "write it as {number: 80} or {range: {start: 1, end: 65535}}", Read: func(v *yaml.Node) {
					r.destinationPort(v, protocolValues[i], out)
				}})
		}})
	}
	r.exactlyOne(n, "the protocol", fields...)
}

func (r *reader) destinationPort(n *yaml.Node, proto model.Proto, out *ports) {
	r.exactlyOne(n, "destinationPort",
		policy.Field{Name: "number", Read: func(v *yaml.Node) {
			if p, ok := r.number(v, "number"); ok {
				out.ranges = append(out.ranges, model.PortRange{Proto: proto, Lo: p, Hi: p})
			}
		}},
		policy.Field{Name: "range", Read: func(v *yaml.Node) {
			if p, ok := r.portRange(v, "range"); ok {
				p.Proto = proto
				out.ranges = append(out.ranges, p)
			}
		}},
	)
}

// portRange reads start and end, which must not be one port.
func (r *reader) portRange(n *yaml.Node, what string, more ...policy.Field) (model.PortRange, bool) {
	var p model.PortRange
	var lo, hi bool
	r.fields(n, what, append(more,
		policy.Field{Name: "start", Required: "write the first port", Read: func(v *yaml.Node) { p.Lo, lo = r.number(v, "start") }},
		policy.Field{Name: "end", Required: "write the last port", Read: func(v *yaml.Node) { p.Hi, hi = r.number(v, "end") }},
	)...)
	if lo && hi && p.Lo >= p.Hi {
		r.Fail(n, "%s must start before it ends, not from %d to %d", what, p.Lo, p.Hi)
		return p, false
	}
	return p, lo && hi
}

// exactlyOne reads a mapping that has one of the fields.
func (r *reader) exactlyOne(n *yaml.Node, what string, fields ...policy.Field) {
	there := 0
	names := make([]string, len(fields))
	for i := range fields {
		read := fields[i].Read
		names[i] = fields[i].Name
		fields[i].Read = func(v *yaml.Node) {
			there++
			read(v)
		}
	}
	switch known := r.fields(n, what, fields...); {
	case !known:
	case there == 0:
		r.Fail(n, "%s is empty; write %s", what, policy.Alternatives(names))
	case there > 1:
		r.Fail(n, "%s has %d fields; write each as one of its own", what, there)
	}
}
