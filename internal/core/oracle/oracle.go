// Package oracle is the slow, obvious judge: DESIGN §2 written down as code, one sentence after the other, with no
// index, no cache and no compiled form. It shares nothing with packages compile and verdict but the nouns and the
// list of fixed essentials, so that their tests can hold them to it.
package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/model"
)

// Judge returns what package verdict must return for the flow. It takes time in the order of all documents and all
// workloads.
func Judge(docs *model.Documents, inv *model.Inventory, o compile.Options, f *model.Flow) (model.FlowVerdict, error) {
	j := judge{docs: docs, inv: inv, o: o, proto: f.Proto, port: f.Port}
	from, err := j.find(f.From)
	if err != nil {
		return model.FlowVerdict{}, err
	}
	to, err := j.find(f.To)
	if err != nil {
		return model.FlowVerdict{}, err
	}
	chooseAddresses(&from, &to)
	return model.Join(j.end(model.Egress, from, to), j.end(model.Ingress, to, from)), nil
}

type judge struct {
	docs  *model.Documents
	inv   *model.Inventory
	o     compile.Options
	proto model.Proto
	port  uint16
}

// endpoint is a workload, an address, or a workload at one of its addresses.
type endpoint struct {
	workload *model.Instance
	addr     netip.Addr
	given    bool // the flow gave the address, or it has been chosen
}

// find: an end is the workload of that name, else its address.
func (j *judge) find(e model.End) (endpoint, error) {
	for i := range j.inv.Instances {
		if e.Workload != "" && j.inv.Instances[i].Name == e.Workload {
			return endpoint{workload: &j.inv.Instances[i]}, nil
		}
	}
	if !e.Addr.IsValid() {
		return endpoint{}, fmt.Errorf("no workload is named %q, and it is not an address", e.Workload)
	}
	addr := plain(e.Addr)
	owners := j.owners(addr)
	switch len(owners) {
	case 0:
		return endpoint{addr: addr, given: true}, nil
	case 1:
		return endpoint{workload: owners[0], addr: addr, given: true}, nil
	}
	return endpoint{}, fmt.Errorf("address %s is shared by several workloads", addr)
}

func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func (j *judge) owners(addr netip.Addr) []*model.Instance {
	var out []*model.Instance
	for i := range j.inv.Instances {
		inst := &j.inv.Instances[i]
		if slices.ContainsFunc(inst.Addresses, func(a netip.Addr) bool { return plain(a) == addr }) {
			out = append(out, inst)
		}
	}
	return out
}

// chooseAddresses: workloads given by name talk at the first pair of their addresses, in the order declared, that
// have one family; where there is none, at their first ones.
func chooseAddresses(from, to *endpoint) {
	for _, a := range candidates(from) {
		for _, b := range candidates(to) {
			if a.Is4() == b.Is4() {
				from.addr, to.addr = a, b
				return
			}
		}
	}
	from.addr, to.addr = firstOf(from), firstOf(to)
}

func candidates(e *endpoint) []netip.Addr {
	if e.given {
		return []netip.Addr{e.addr}
	}
	var out []netip.Addr
	for _, a := range e.workload.Addresses {
		out = append(out, plain(a))
	}
	return out
}

func firstOf(e *endpoint) netip.Addr {
	if c := candidates(e); len(c) > 0 {
		return c[0]
	}
	return netip.Addr{}
}

// end judges one end of the flow.
func (j *judge) end(d model.Direction, self, other endpoint) model.EndVerdict {
	if self.workload == nil || !self.workload.Managed {
		return allow(model.RuleUnmanaged)
	}
	// Essentials that the packet, or who talks to whom, tells.
	if rule, ok := essential.Match(j.proto, j.port); ok {
		return allow(rule)
	}
	if self.workload == other.workload {
		return allow(model.RuleSameWorkload)
	}
	if j.isController(d, self, other) {
		return allow(model.RuleController)
	}
	// The far end of a flow between hosts sees an address: it judges for the most permissive of the workloads there.
	var best model.EndVerdict
	for i, face := range j.faces(d, self, other) {
		if v := j.decide(d, self, face); i == 0 || v.Verdict > best.Verdict {
			best = v
		}
	}
	return best
}

func allow(rule model.RuleID) model.EndVerdict {
	return model.EndVerdict{Verdict: model.Allow, Rule: rule}
}

func (j *judge) isController(d model.Direction, self, other endpoint) bool {
	if j.proto != model.ProtoTCP {
		return false
	}
	at := self.addr
	if d == model.Egress {
		if self.workload.Unit != "" {
			return false
		}
		at = other.addr
	}
	for _, c := range j.o.Controllers {
		if plain(c.Addr()) == at && c.Port() == j.port {
			return true
		}
	}
	return false
}

// faces returns the workloads that the other end may be, as far as this end can tell, in the order of their labels.
func (j *judge) faces(d model.Direction, self, other endpoint) []endpoint {
	sameHost := other.workload != nil && self.workload.Host != "" && self.workload.Host == other.workload.Host
	if d == model.Egress || sameHost || other.workload == nil || !other.addr.IsValid() {
		return []endpoint{other}
	}
	var out []endpoint
	for _, w := range j.owners(other.addr) {
		out = append(out, endpoint{workload: w, addr: other.addr})
	}
	slices.SortStableFunc(out, func(a, b endpoint) int {
		return strings.Compare(a.workload.Labels.String(), b.workload.Labels.String())
	})
	return out
}

// decide asks, in order: essentials by address, quarantine, deny rules, allow rules, the default.
func (j *judge) decide(d model.Direction, self, other endpoint) model.EndVerdict {
	server := other
	if d == model.Ingress {
		server = self
	}
	if j.serves(server, model.PurposeResolvers) && j.port == 53 && (j.proto == model.ProtoTCP || j.proto == model.ProtoUDP) {
		return allow(model.RuleDNS)
	}
	if j.serves(server, model.PurposeTime) && j.port == 123 && j.proto == model.ProtoUDP {
		return allow(model.RuleTime)
	}
	switch self.workload.Quarantine.Level {
	case model.QuarantineIsolate:
		if j.serves(other, model.PurposeForensic) {
			return allow(model.RuleForensic)
		}
		return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleIsolate}
	case model.QuarantineRestrict:
		if other.workload != nil && !j.inUse(d, self, other) {
			return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleRestrict}
		}
	}
	segments := j.segments(self.workload)
	if rule, ok := j.firstRule(model.ActionDeny, d, self, other); ok {
		return model.EndVerdict{Verdict: denialByRule(segments), Rule: rule}
	}
	if rule, ok := j.firstRule(model.ActionAllow, d, self, other); ok {
		return allow(rule)
	}
	if rule, ok := j.membersRule(self, other); ok {
		return allow(rule)
	}
	return j.byDefault(d, segments)
}

// serves: the endpoint's address is in a network of that purpose.
func (j *judge) serves(e endpoint, purpose model.Purpose) bool {
	for i := range j.docs.Networks {
		if n := &j.docs.Networks[i]; n.Purpose == purpose && e.addr.IsValid() && n.Contains(e.addr) {
			return true
		}
	}
	return false
}

// inUse: one of the edges in use leads to, or comes from, a workload that policy cannot tell from the other end.
func (j *judge) inUse(d model.Direction, self, other endpoint) bool {
	for _, edge := range self.workload.Quarantine.InUse {
		if edge.Direction != d || !edge.Ports.Contains(j.proto, j.port) {
			continue
		}
		for i := range j.inv.Instances {
			peer := &j.inv.Instances[i]
			if peer.Name != edge.Peer || peer.Labels.String() != other.workload.Labels.String() {
				continue
			}
			for _, a := range append(slices.Clone(peer.Addresses), netip.Addr{}) {
				if !a.IsValid() && len(peer.Addresses) > 0 {
					continue
				}
				if slices.Equal(j.networksOf(plain(a)), j.networksOf(other.addr)) {
					return true
				}
			}
		}
	}
	return false
}

// networksOf returns everything of the policy that contains the address: what, with labels, makes an identity.
func (j *judge) networksOf(a netip.Addr) []string {
	var out []string
	if !a.IsValid() {
		return nil
	}
	add := func(p *model.Peer) {
		switch p.Kind {
		case model.PeerCIDR:
			if plainPrefix(p.CIDR).Contains(a) {
				out = append(out, plainPrefix(p.CIDR).String())
			}
		case model.PeerNetwork:
			if n := j.network(p.Network); n != nil && n.Contains(a) {
				out = append(out, n.Name)
			}
		}
	}
	for i := range j.docs.Policies {
		for k := range j.docs.Policies[i].Rules {
			r := &j.docs.Policies[i].Rules[k]
			for m := range r.From {
				add(&r.From[m])
			}
			for m := range r.To {
				add(&r.To[m])
			}
		}
	}
	for i := range j.docs.Networks {
		if n := &j.docs.Networks[i]; n.Purpose != model.PurposeNone && n.Contains(a) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (j *judge) network(name string) *model.Network {
	for i := range j.docs.Networks {
		if j.docs.Networks[i].Name == name {
			return &j.docs.Networks[i]
		}
	}
	return nil
}

func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func (j *judge) segments(w *model.Instance) []*model.Segment {
	var out []*model.Segment
	for i := range j.docs.Segments {
		if s := &j.docs.Segments[i]; s.Selector.Matches(w.Labels) {
			out = append(out, s)
		}
	}
	return out
}

// denialByRule: a deny rule drops where any of the segments is selective or enforce.
func denialByRule(segments []*model.Segment) model.Verdict {
	for _, s := range segments {
		if s.Mode != model.ModeObserve {
			return model.Deny
		}
	}
	return model.WouldDeny
}

// byDefault: denied where a segment closes the direction, and dropped where one that does is enforce, or selective
// with this port among its services.
func (j *judge) byDefault(d model.Direction, segments []*model.Segment) model.EndVerdict {
	closed, drops := false, false
	for _, s := range segments {
		if !s.Closes(d) {
			continue
		}
		closed = true
		if s.Mode == model.ModeEnforce || s.Mode == model.ModeSelective && j.on(s.Services) {
			drops = true
		}
	}
	switch {
	case drops:
		return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleDefaultDeny}
	case closed:
		return model.EndVerdict{Verdict: model.WouldDeny, Rule: model.RuleDefaultDeny}
	}
	return allow(model.RuleOpen)
}

// firstRule returns the first rule with that action that applies: policies by name, rules as written.
func (j *judge) firstRule(action model.Action, d model.Direction, self, other endpoint) (model.RuleID, bool) {
	from, to := other, self
	if d == model.Egress {
		from, to = self, other
	}
	policies := slices.Clone(j.docs.Policies)
	slices.SortStableFunc(policies, func(a, b model.Policy) int { return strings.Compare(a.Name, b.Name) })
	for i := range policies {
		for k := range policies[i].Rules {
			r := &policies[i].Rules[k]
			expired := !r.Expires.IsZero() && !j.o.Now.Before(r.Expires)
			if r.Action == action && !expired && j.any(r.From, from) && j.any(r.To, to) && j.on(r.On) {
				return model.NamedRule(policies[i].Name, r.Name), true
			}
		}
	}
	return "", false
}

// membersRule: members: allow is an allow rule from the segment to itself on everything, asked after the policies.
func (j *judge) membersRule(self, other endpoint) (model.RuleID, bool) {
	var names []string
	for i := range j.docs.Segments {
		s := &j.docs.Segments[i]
		if s.MembersOpen && other.workload != nil && s.Selector.Matches(self.workload.Labels) && s.Selector.Matches(other.workload.Labels) {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return model.MembersRule(names[0]), true
}

func (j *judge) any(peers []model.Peer, e endpoint) bool {
	return slices.ContainsFunc(peers, func(p model.Peer) bool {
		switch p.Kind {
		case model.PeerWorkloads:
			return e.workload != nil && p.Workloads.Matches(e.workload.Labels)
		case model.PeerNetwork:
			n := j.network(p.Network)
			return n != nil && e.addr.IsValid() && n.Contains(e.addr)
		case model.PeerCIDR:
			return e.addr.IsValid() && plainPrefix(p.CIDR).Contains(e.addr)
		case model.PeerAny:
			return true
		}
		return false
	})
}

func (j *judge) on(ports []model.PortRef) bool {
	return slices.ContainsFunc(ports, func(p model.PortRef) bool {
		if p.Service == "" {
			return p.Range.Contains(j.proto, j.port)
		}
		for i := range j.docs.Services {
			if s := &j.docs.Services[i]; s.Name == p.Service {
				return slices.ContainsFunc(s.Ports, func(r model.PortRange) bool { return r.Contains(j.proto, j.port) })
			}
		}
		return false
	})
}
