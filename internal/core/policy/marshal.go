package policy

import (
	"net/netip"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Marshal writes the documents in their canonical form: kinds in the order of model.Kinds, each sorted by name,
// fields in a fixed order, defaults left out. Equal documents give equal bytes, and reading them again gives the same
// documents apart from positions and comments.
func Marshal(docs *model.Documents) []byte {
	d := sortedCopy(docs)
	w := &writer{}
	for i := range d.Services {
		w.service(&d.Services[i])
	}
	for i := range d.Networks {
		w.network(&d.Networks[i])
	}
	for i := range d.Workloads {
		w.workload(&d.Workloads[i])
	}
	for i := range d.Segments {
		w.segment(&d.Segments[i])
	}
	for i := range d.Policies {
		w.policy(&d.Policies[i])
	}
	for i := range d.Guardrails {
		w.guardrail(&d.Guardrails[i])
	}
	for i := range d.Expectations {
		w.expectation(&d.Expectations[i])
	}
	return w.out
}

// writer appends YAML: block style down to the fields of a spec, flow style for what fits a line.
type writer struct {
	out []byte
}

// line writes one line of concatenated parts, indented by two spaces a level.
func (w *writer) line(level int, parts ...string) {
	for range level {
		w.out = append(w.out, "  "...)
	}
	for _, p := range parts {
		w.out = append(w.out, p...)
	}
	w.out = append(w.out, '\n')
}

func (w *writer) begin(kind model.Kind, m *model.Meta) {
	if len(w.out) > 0 {
		w.line(0, "---")
	}
	w.line(0, "apiVersion: ", model.APIVersion)
	w.line(0, "kind: ", string(kind))
	fields := []string{"name: " + flow(m.Name)}
	if len(m.Labels) > 0 {
		var labels []string
		for _, k := range m.Labels.Keys() {
			labels = append(labels, flow(k)+": "+flow(m.Labels[k]))
		}
		fields = append(fields, "labels: "+braces(labels))
	}
	if m.Owner != "" {
		fields = append(fields, "owner: "+flow(m.Owner))
	}
	if lines, ok := literal(m.Note); ok {
		w.line(0, "metadata:")
		for _, f := range fields {
			w.line(1, f)
		}
		w.line(1, "note: |-")
		for _, l := range lines {
			w.line(2, l)
		}
		return
	}
	if m.Note != "" {
		fields = append(fields, "note: "+flow(m.Note))
	}
	w.line(0, "metadata: ", braces(fields))
}

func (w *writer) service(s *model.Service) {
	w.begin(model.KindService, &s.Meta)
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = p.String()
	}
	w.line(0, "spec: {ports: ", brackets(ports), "}")
}

func (w *writer) network(n *model.Network) {
	w.begin(model.KindNetwork, &n.Meta)
	w.line(0, "spec:")
	if len(n.CIDRs) > 0 {
		w.line(1, "cidrs: ", brackets(cidrTexts(n.CIDRs)))
	}
	if len(n.Except) > 0 {
		w.line(1, "except: ", brackets(cidrTexts(n.Except)))
	}
	if len(n.Domains) > 0 {
		domains := make([]string, len(n.Domains))
		for i, d := range n.Domains {
			domains[i] = flow(d)
		}
		w.line(1, "domains: ", brackets(domains))
	}
	if n.Purpose != model.PurposeNone {
		w.line(1, "purpose: ", string(n.Purpose))
	}
}

func (w *writer) workload(d *model.Workload) {
	w.begin(model.KindWorkload, &d.Meta)
	var fields []string
	if len(d.Addresses) > 0 {
		addrs := make([]string, len(d.Addresses))
		for i, a := range d.Addresses {
			addrs[i] = address(a.String())
		}
		fields = append(fields, "addresses: "+brackets(addrs))
	}
	if !d.Managed {
		fields = append(fields, "managed: false")
	}
	if d.Unit != nil {
		fields = append(fields, "unit: {host: "+flow(d.Unit.Host)+", name: "+flow(d.Unit.Name)+"}")
	}
	w.line(0, "spec: ", braces(fields))
}

func (w *writer) segment(s *model.Segment) {
	w.begin(model.KindSegment, &s.Meta)
	w.line(0, "spec:")
	w.line(1, "selector: ", block(s.Selector.String()))
	w.line(1, "mode: ", s.Mode.String())
	if len(s.Services) > 0 {
		w.line(1, "services: ", brackets(portTexts(s.Services)))
	}
	if len(s.Directions) == 1 {
		w.line(1, "directions: [", s.Directions[0].String(), "]")
	}
	if s.MembersOpen {
		w.line(1, "members: allow")
	}
	if s.OnAgentLoss != model.LossKeep {
		w.line(1, "onAgentLoss: ", s.OnAgentLoss.String())
	}
	if c := s.Contain; c.Auto != "" && c.Auto != containNever {
		w.line(1, "contain: {auto: ", c.Auto, ", level: ", c.Level.String(), ", ttl: ", duration(c.TTL), "}")
	}
}

func (w *writer) policy(p *model.Policy) {
	w.begin(model.KindPolicy, &p.Meta)
	if len(p.Rules) == 0 {
		w.line(0, "spec: {rules: []}")
		return
	}
	w.line(0, "spec:")
	w.line(1, "rules:")
	for i := range p.Rules {
		r := &p.Rules[i]
		w.line(2, "- name: ", block(r.Name))
		w.line(3, r.Action.String(), ":")
		w.traffic(4, r.From, r.To, r.On)
		if !r.Expires.IsZero() {
			w.line(3, "expires: ", r.Expires.UTC().Format(time.RFC3339Nano))
		}
	}
}

func (w *writer) guardrail(g *model.Guardrail) {
	w.begin(model.KindGuardrail, &g.Meta)
	w.line(0, "spec:")
	w.line(1, "never:")
	w.traffic(2, g.From, g.To, g.On)
	if g.Via == model.ViaAny {
		w.line(1, "via: any")
	}
}

func (w *writer) expectation(e *model.Expectation) {
	w.begin(model.KindExpectation, &e.Meta)
	w.line(0, "spec:")
	w.line(1, "cases:")
	for _, c := range e.Cases {
		w.line(2, "- {from: ", flow(c.From), ", to: ", flow(c.To), ", on: ", c.On.String(), ", expect: ", c.Expect.String(), "}")
	}
}

func (w *writer) traffic(level int, from, to []model.Peer, on []model.PortRef) {
	w.peers(level, "from", from)
	w.peers(level, "to", to)
	w.line(level, "on: ", brackets(portTexts(on)))
}

func (w *writer) peers(level int, name string, list []model.Peer) {
	if len(list) == 1 {
		if p := &list[0]; p.Kind == model.PeerWorkloads && p.Process == nil {
			w.line(level, name, ": ", block(p.Workloads.String()))
		} else {
			w.line(level, name, ": ", peerText(p))
		}
		return
	}
	w.line(level, name, ":")
	for i := range list {
		w.line(level+1, "- ", peerText(&list[i]))
	}
}

// peerText returns the peer as a mapping in flow style.
func peerText(p *model.Peer) string {
	switch p.Kind {
	case model.PeerNetwork:
		return "{network: " + flow(p.Network) + "}"
	case model.PeerCIDR:
		return "{cidr: " + address(p.CIDR.String()) + "}"
	case model.PeerDomain:
		return "{domain: " + flow(p.Domain) + "}"
	case model.PeerAny:
		return "{any: true}"
	}
	text := "{workloads: " + flow(p.Workloads.String())
	if p.Process != nil {
		var fields []string
		for _, f := range []struct{ name, value string }{
			{"unit", p.Process.Unit}, {"path", p.Process.Path}, {"user", p.Process.User},
		} {
			if f.value != "" {
				fields = append(fields, f.name+": "+flow(f.value))
			}
		}
		text += ", process: " + braces(fields)
	}
	return text + "}"
}

func portTexts(list []model.PortRef) []string {
	out := make([]string, len(list))
	for i, p := range list {
		if p.Service != "" {
			out[i] = flow(p.Service)
		} else {
			out[i] = p.Range.String()
		}
	}
	return out
}

func cidrTexts(list []netip.Prefix) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = address(p.String())
	}
	return out
}

// duration writes a duration without the zero parts that time.Duration adds: 1h, not 1h0m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
