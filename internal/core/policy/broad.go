package policy

import (
	"net/netip"

	"bulkhead/internal/core/model"
)

// What is too broad to be meant: more ports in one range than a service takes, and more addresses in an essential
// network than there are servers for it.
const (
	widePorts    = 1024
	shortestIPv4 = 16 // bits of a prefix
	shortestIPv6 = 48
)

// broad finds what opens more than anybody can mean.
func (h *hygiene) broad() {
	h.rules(func(id model.RuleID, r *model.Rule) {
		if r.Action == model.ActionAllow {
			h.broadRule(id, r)
		}
	})
	for i := range h.docs.Segments {
		s := &h.docs.Segments[i]
		if s.MembersOpen && s.Selector.Empty() {
			h.add(s.Pos, Warning, CodeTooBroad, "give the segment a selector, or remove members: allow",
				"segment %q lets every workload talk to every other on everything", s.Name)
		}
	}
	for i := range h.docs.Networks {
		n := &h.docs.Networks[i]
		if n.Purpose == model.PurposeNone {
			continue
		}
		for _, c := range n.CIDRs {
			if c.Addr().Is4() && c.Bits() < shortestIPv4 || c.Addr().Is6() && c.Bits() < shortestIPv6 {
				h.add(n.Pos, Warning, CodeTooBroad, "list the addresses of the servers themselves",
					"traffic of purpose %s with all of %s passes every policy and quarantine", n.Purpose, c)
			}
		}
	}
}

func (h *hygiene) broadRule(id model.RuleID, r *model.Rule) {
	everyPort := h.portSet(r.On).every()
	from, to := everybody(r.From), everybody(r.To)
	switch {
	case from && to:
		h.add(r.Pos, Warning, CodeTooBroad, "say by selectors who needs to reach whom", "the rule %s lets everybody reach everybody", id)
	case from && everyPort:
		h.add(r.Pos, Warning, CodeTooBroad, "name the ports, or who may come in", "the rule %s opens every port of %s to everybody", id, words(r.To))
	case to && everyPort:
		h.add(r.Pos, Warning, CodeTooBroad, "name the ports, or where to", "the rule %s lets %s reach everybody on every port", id, words(r.From))
	case everyPort:
		h.add(r.Pos, Notice, CodeTooBroad, "name the ports that are used", "the rule %s opens every port", id)
	default:
		for _, ref := range r.On {
			for _, p := range h.ranges(ref) {
				if n := int(p.Hi) - int(p.Lo) + 1; n > widePorts && !p.Proto.IsICMP() {
					h.add(ref.Pos, Notice, CodeTooBroad, "name the ports that are used", "the rule %s opens %d ports with %s", id, n, p)
				}
			}
		}
	}
}

// everybody reports whether the list holds every endpoint, or every workload, or every address of a family.
func everybody(list []model.Peer) bool {
	for i := range list {
		switch p := &list[i]; p.Kind {
		case model.PeerAny:
			return true
		case model.PeerWorkloads:
			if p.Workloads.Empty() && p.Process == nil {
				return true
			}
		case model.PeerCIDR:
			if p.CIDR != (netip.Prefix{}) && p.CIDR.Bits() == 0 {
				return true
			}
		}
	}
	return false
}
