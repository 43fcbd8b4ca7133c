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
	from.process, to.process = f.FromProcess, f.ToProcess
	if to.workload == nil {
		to.domain = f.ToDomain
	}
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
	process  *model.Process
	domain   string // the host name that the source resolved to the address
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
	if self.workload.Node != "" && other.workload != nil && self.workload.Node == other.workload.Node && self.workload.IsPod() != other.workload.IsPod() {
		return allow(model.RuleOwnNode)
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
		out = append(out, endpoint{workload: w, addr: other.addr, process: other.process})
	}
	slices.SortStableFunc(out, func(a, b endpoint) int {
		return strings.Compare(labelsOf(a.workload), labelsOf(b.workload))
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
	if v, ok := j.tier(model.TierAdmin, d, self, other); ok {
		return v
	}
	if rule, ok := j.firstRule(model.ActionDeny, d, self, other); ok {
		return model.EndVerdict{Verdict: denialByRule(segments), Rule: rule}
	}
	if rule, ok := j.firstRule(model.ActionAllow, d, self, other); ok {
		return allow(rule)
	}
	if v, ok := j.tier(model.TierNamespace, d, self, other); ok {
		return v
	}
	if rule, ok := j.membersRule(self, other); ok {
		return allow(rule)
	}
	if j.isolated(d, self) {
		return model.EndVerdict{Verdict: model.Deny, Rule: model.RuleDefaultDeny}
	}
	if v, ok := j.tier(model.TierBaseline, d, self, other); ok {
		return v
	}
	return j.byDefault(d, segments)
}

// tier asks the one-sided policies of a tier: by priority, then by name, and the rules of each as they stand. The first
// rule that applies decides; if it passes, nothing of the tier does.
func (j *judge) tier(t model.Tier, d model.Direction, self, other endpoint) (model.EndVerdict, bool) {
	policies := slices.Clone(j.docs.OneSided)
	slices.SortStableFunc(policies, func(a, b model.OneSided) int { return strings.Compare(a.Name, b.Name) })
	if t != model.TierNamespace {
		slices.SortStableFunc(policies, func(a, b model.OneSided) int { return a.Priority - b.Priority })
	}
	for i := range policies {
		p := &policies[i]
		if p.Tier != t || !p.Subject.Matches(self.workload.Labels) {
			continue
		}
		for k := range p.Rules {
			r := &p.Rules[k]
			if r.Direction != d || !j.oneSided(r, self, other) {
				continue
			}
			v := model.EndVerdict{Rule: model.OneSidedRuleID(p.Name, r.Name)}
			switch r.Action {
			case model.ActionPass:
				return v, false
			case model.ActionAllow:
				v.Verdict = model.Allow
			}
			return v, true
		}
	}
	return model.EndVerdict{}, false
}

// oneSided: the rule means the other end, on this port.
func (j *judge) oneSided(r *model.OneSidedRule, self, other endpoint) bool {
	if slices.ContainsFunc(r.Ports, func(p model.PortRange) bool { return p.Contains(j.proto, j.port) }) && j.any(r.Peers, other, false) {
		return true
	}
	for _, n := range r.Named {
		destination, peers := self, r.Peers
		if r.Direction == model.Egress {
			// Who has no named ports is not meant by one.
			destination = other
			peers = slices.DeleteFunc(slices.Clone(peers), func(p model.Peer) bool {
				return p.Kind != model.PeerWorkloads && p.Kind != model.PeerAny
			})
		}
		if destination.workload != nil && j.proto == n.Proto && destination.workload.Labels[n.PortLabel()] == fmt.Sprint(j.port) && j.any(peers, other, false) {
			return true
		}
	}
	return false
}

// isolated: a one-sided policy that closes the direction selects the workload.
func (j *judge) isolated(d model.Direction, self endpoint) bool {
	return slices.ContainsFunc(j.docs.OneSided, func(p model.OneSided) bool {
		return p.Isolates[d] && p.Subject.Matches(self.workload.Labels)
	})
}

// labelsOf: policy tells workloads apart by their labels, and by whether anything enforces on them.
func labelsOf(w *model.Instance) string {
	if w.Managed {
		return w.Labels.String()
	}
	return w.Labels.With(model.Labels{"bulkhead/unmanaged": ""}).String()
}

// serves: the endpoint's address is in a network of that purpose.
func (j *judge) serves(e endpoint, purpose model.Purpose) bool {
	for i := range j.docs.Networks {
		if n := &j.docs.Networks[i]; n.Purpose == purpose && inNetwork(n, e) {
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
			if peer.Name != edge.Peer || labelsOf(peer) != labelsOf(other.workload) {
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
			if j.any([]model.Peer{*p}, endpoint{addr: a}, false) {
				out = append(out, model.CIDRName(plainPrefix(p.CIDR), p.Except...))
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
	for i := range j.docs.OneSided {
		for k := range j.docs.OneSided[i].Rules {
			for m := range j.docs.OneSided[i].Rules[k].Peers {
				add(&j.docs.OneSided[i].Rules[k].Peers[m])
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
			if r.Action != action || expired || !j.on(r.On) {
				continue
			}
			nearFrom, nearTo := d == model.Egress, d == model.Ingress
			listFrom, listTo := visible(action, r.From, nearFrom), visible(action, r.To, nearTo)
			if j.any(listFrom, from, nearFrom) && j.any(listTo, to, nearTo) {
				return model.NamedRule(policies[i].Name, r.Name), true
			}
		}
	}
	return "", false
}

// visible: a rule that denies does not mean a process where it cannot be seen.
func visible(action model.Action, peers []model.Peer, near bool) []model.Peer {
	if near || action == model.ActionAllow {
		return peers
	}
	return slices.DeleteFunc(slices.Clone(peers), func(p model.Peer) bool { return p.Process != nil })
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

// any: one of the peers means the endpoint. Near, its process must meet the constraint; far, somebody must be there who
// sees the process.
func (j *judge) any(peers []model.Peer, e endpoint, near bool) bool {
	return slices.ContainsFunc(peers, func(p model.Peer) bool {
		switch p.Kind {
		case model.PeerWorkloads:
			if e.workload == nil || !p.Workloads.Matches(e.workload.Labels) {
				return false
			}
			if p.Process != nil && near {
				return p.Process.Admits(e.process)
			}
			return p.Process == nil || e.workload.Managed
		case model.PeerNetwork:
			n := j.network(p.Network)
			return n != nil && inNetwork(n, e)
		case model.PeerCIDR:
			return e.addr.IsValid() && plainPrefix(p.CIDR).Contains(e.addr) &&
				!slices.ContainsFunc(p.Except, func(x netip.Prefix) bool { return plainPrefix(x).Contains(e.addr) })
		case model.PeerDomain:
			return named(p.Domain, e.domain)
		case model.PeerAny:
			return true
		}
		return false
	})
}

// inNetwork: its address is in the network, or the name that it was found by is.
func inNetwork(n *model.Network, e endpoint) bool {
	return e.addr.IsValid() && n.Contains(e.addr) ||
		slices.ContainsFunc(n.Domains, func(pattern string) bool { return named(pattern, e.domain) })
}

// named: the pattern is the host name, or "*." and a suffix of it.
func named(pattern, name string) bool {
	if suffix, ok := strings.CutPrefix(pattern, "*."); ok {
		return strings.HasSuffix(name, "."+suffix)
	}
	return name != "" && pattern == name
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
