package verdict_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
	"bulkhead/internal/core/policytest"
)

// feature is something that the language or an inventory can say. Without returns the world as if it were not said;
// withoutFor, where there is one, as if it were not said about the ends of a flow.
type feature struct {
	name       string
	without    func(w world) world
	withoutFor func(w world, f *model.Flow) world
}

// enough is how many verdicts must hang on a feature, and mostSeeds in how many worlds that must come about.
const (
	enough    = 25
	mostSeeds = 1200 // those of TestOracleAgrees
)

// TestEveryFeatureDecides shows that the pairs of TestOracleAgrees put every feature to the test: for each there are
// verdicts that are others without it. A feature that a generator forgets to make fails here.
func TestEveryFeatureDecides(t *testing.T) {
	worlds := make([]*judgedWorld, mostSeeds)
	for _, x := range features() {
		decided := 0
		seed := 0
		for ; seed < mostSeeds && decided < enough; seed++ {
			if worlds[seed] == nil {
				worlds[seed] = judgeWorld(uint64(seed))
			}
			decided += worlds[seed].changedWithout(&x)
		}
		if decided < enough {
			t.Errorf("%s: %d verdicts of %d worlds hang on it, want %d", x.name, decided, seed, enough)
		}
	}
}

// judgedWorld is a generated world with its verdicts.
type judgedWorld struct {
	world
	options  compile.Options
	flows    []model.Flow // those that can be judged
	verdicts []model.FlowVerdict
}

func judgeWorld(seed uint64) *judgedWorld {
	docs, inv, flows := policytest.Generate(seed, policytest.Small)
	w := &judgedWorld{world: world{docs, inv}, options: options(seed, inv)}
	for i := range flows {
		if v, err := oracle.Judge(docs, inv, w.options, &flows[i]); err == nil {
			w.flows = append(w.flows, flows[i])
			w.verdicts = append(w.verdicts, v)
		}
	}
	return w
}

// changedWithout counts the flows whose verdict, or the rule that decides it, is another one without the feature.
func (w *judgedWorld) changedWithout(x *feature) int {
	n := 0
	var other world
	if x.without != nil {
		other = x.without(w.world)
	}
	for i := range w.flows {
		if x.withoutFor != nil {
			other = x.withoutFor(w.world, &w.flows[i])
		}
		v, err := oracle.Judge(other.docs, other.inv, w.options, &w.flows[i])
		if err == nil && v != w.verdicts[i] {
			n++
		}
	}
	return n
}

func features() []feature {
	return slices.Concat(
		selectorFeatures(), ruleFeatures(), portFeatures(), segmentFeatures(), networkFeatures(), inventoryFeatures(), quarantineFeatures())
}

// selectorFeatures: what a selector requires. Without it the selector selects more.
func selectorFeatures() []feature {
	kinds := map[string]func(r *model.Requirement) bool{
		"=":              func(r *model.Requirement) bool { return r.Op == model.OpIn && len(r.Values) == 1 },
		"in":             func(r *model.Requirement) bool { return r.Op == model.OpIn && len(r.Values) > 1 },
		"!=":             func(r *model.Requirement) bool { return r.Op == model.OpNotIn && len(r.Values) == 1 },
		"notin":          func(r *model.Requirement) bool { return r.Op == model.OpNotIn && len(r.Values) > 1 },
		"exists":         func(r *model.Requirement) bool { return r.Op == model.OpExists },
		"!exists":        func(r *model.Requirement) bool { return r.Op == model.OpNotExists },
		"a prefixed key": func(r *model.Requirement) bool { return strings.HasPrefix(r.Key, "example.org/") },
		"a system label": func(r *model.Requirement) bool { return strings.HasPrefix(r.Key, model.SystemLabelPrefix) },
		"an empty value": func(r *model.Requirement) bool { return slices.Contains(r.Values, "") },
	}
	var out []feature
	for name, is := range kinds {
		drop := func(s *model.Selector) model.Selector {
			return model.Selector{Requirements: slices.DeleteFunc(slices.Clone(s.Requirements), func(r model.Requirement) bool { return is(&r) })}
		}
		out = append(out,
			inRules("selector of a rule with "+name, func(r *model.Rule) {
				r.From, r.To = eachPeer(r.From, func(p *model.Peer) { p.Workloads = drop(&p.Workloads) }),
					eachPeer(r.To, func(p *model.Peer) { p.Workloads = drop(&p.Workloads) })
			}),
			inSegments("selector of a segment with "+name, func(s *model.Segment) { s.Selector = drop(&s.Selector) }),
		)
	}
	slices.SortFunc(out, func(a, b feature) int { return strings.Compare(a.name, b.name) })
	return append(out,
		withoutPeers("a selector of everything", func(p *model.Peer) bool { return p.Kind == model.PeerWorkloads && p.Workloads.Empty() }),
		inSegments("a segment of everything", func(s *model.Segment) {
			if s.Selector.Empty() {
				s.Selector = model.MustParseSelector("never,!never")
			}
		}),
	)
}

func ruleFeatures() []feature {
	expires := func(name string, is func(at time.Time) bool, instead time.Time) feature {
		return inRules(name, func(r *model.Rule) {
			if !r.Expires.IsZero() && is(r.Expires) {
				r.Expires = instead
			}
		})
	}
	return []feature{
		withoutRules("deny rules", func(r *model.Rule) bool { return r.Action == model.ActionDeny }),
		withoutRules("allow rules", func(r *model.Rule) bool { return r.Action == model.ActionAllow }),
		expires("a rule that has expired", func(at time.Time) bool { return at.Before(policytest.Now) }, time.Time{}),
		expires("a rule that expires at this moment", func(at time.Time) bool { return at.Equal(policytest.Now) }, time.Time{}),
		expires("a rule that expires later", func(at time.Time) bool { return at.After(policytest.Now) }, policytest.Now),
		withoutPeers("a peer by labels", func(p *model.Peer) bool { return p.Kind == model.PeerWorkloads }),
		withoutPeers("a peer by network", func(p *model.Peer) bool { return p.Kind == model.PeerNetwork }),
		withoutPeers("a peer by CIDR", func(p *model.Peer) bool { return p.Kind == model.PeerCIDR }),
		withoutPeers("a peer by IPv6 CIDR", func(p *model.Peer) bool { return p.Kind == model.PeerCIDR && p.CIDR.Addr().Is6() }),
		withoutPeers("any peer", func(p *model.Peer) bool { return p.Kind == model.PeerAny }),
		inRules("a second peer", func(r *model.Rule) { r.From, r.To = r.From[:1], r.To[:1] }),
		inDocs("the order of policies", func(d *model.Documents) {
			d.Policies = slices.Clone(d.Policies)
			for i := range d.Policies {
				d.Policies[i].Name = string(rune('z'-i)) + d.Policies[i].Name
			}
		}),
		inDocs("the order of rules", func(d *model.Documents) {
			d.Policies = slices.Clone(d.Policies)
			for i := range d.Policies {
				d.Policies[i].Rules = slices.Clone(d.Policies[i].Rules)
				slices.Reverse(d.Policies[i].Rules)
			}
		}),
	}
}

func portFeatures() []feature {
	protocol := func(p model.Proto) func(*model.PortRange) bool {
		return func(r *model.PortRange) bool { return r.Proto == p }
	}
	kinds := map[string]func(r *model.PortRange) bool{
		"tcp": protocol(model.ProtoTCP), "udp": protocol(model.ProtoUDP), "sctp": protocol(model.ProtoSCTP),
		"icmp": protocol(model.ProtoICMP), "icmpv6": protocol(model.ProtoICMPv6), "any": protocol(model.ProtoAny),
		"a range":      func(r *model.PortRange) bool { return !r.Proto.IsICMP() && r.Lo < r.Hi && (r.Lo > 0 || r.Hi < 65535) },
		"an ICMP type": func(r *model.PortRange) bool { return r.Proto.IsICMP() && r.Lo < r.Hi && (r.Lo > 0 || r.Hi < 65535) },
		"an ICMP code": func(r *model.PortRange) bool { return r.Proto.IsICMP() && r.Lo == r.Hi },
		"port 0":       func(r *model.PortRange) bool { return !r.Proto.IsICMP() && r.Lo == 0 && r.Hi == 0 },
		"port 65535":   func(r *model.PortRange) bool { return !r.Proto.IsICMP() && r.Lo == 65535 },
	}
	var out []feature
	for name, is := range kinds {
		out = append(out, inDocs("ports: "+name, func(d *model.Documents) {
			withoutPorts(d, func(ref *model.PortRef) bool { return ref.Service == "" && is(&ref.Range) })
			d.Services = slices.Clone(d.Services)
			for i := range d.Services {
				d.Services[i].Ports = slices.DeleteFunc(slices.Clone(d.Services[i].Ports), func(r model.PortRange) bool { return is(&r) })
			}
		}))
	}
	slices.SortFunc(out, func(a, b feature) int { return strings.Compare(a.name, b.name) })
	return append(out, inRules("ports: a service", func(r *model.Rule) {
		r.On = slices.DeleteFunc(slices.Clone(r.On), func(ref model.PortRef) bool { return ref.Service != "" })
	}))
}

func segmentFeatures() []feature {
	mode := func(name string, from, to model.Mode) feature {
		return inSegments(name, func(s *model.Segment) {
			if s.Mode == from {
				s.Mode = to
			}
		})
	}
	directions := func(name string, is func(s *model.Segment) bool, instead ...model.Direction) feature {
		return inSegments(name, func(s *model.Segment) {
			if is(s) {
				s.Directions = instead
			}
		})
	}
	only := func(d model.Direction) func(s *model.Segment) bool {
		return func(s *model.Segment) bool { return len(s.Directions) == 1 && s.Directions[0] == d }
	}
	both := func(s *model.Segment) bool { return len(s.Directions) == 2 }
	return []feature{
		mode("enforce, which drops", model.ModeEnforce, model.ModeObserve),
		mode("enforce, which drops on every port", model.ModeEnforce, model.ModeSelective),
		mode("selective, which drops on some ports", model.ModeSelective, model.ModeObserve),
		mode("selective, which does not drop on others", model.ModeSelective, model.ModeEnforce),
		mode("observe, which does not drop", model.ModeObserve, model.ModeEnforce),
		inSegments("the services of selective", func(s *model.Segment) { s.Services = nil }),
		inSegments("a named service of selective", func(s *model.Segment) {
			s.Services = slices.DeleteFunc(slices.Clone(s.Services), func(ref model.PortRef) bool { return ref.Service != "" })
		}),
		directions("ingress alone", only(model.Ingress), model.Ingress, model.Egress),
		directions("egress alone", only(model.Egress), model.Ingress, model.Egress),
		directions("both directions, ingress", both, model.Egress),
		directions("both directions, egress", both, model.Ingress),
		inSegments("members", func(s *model.Segment) { s.MembersOpen = false }),
		inDocs("segments beyond the first", func(d *model.Documents) { d.Segments = d.Segments[:1] }),
	}
}

func networkFeatures() []feature {
	purpose := func(p model.Purpose) feature {
		return inNetworks("purpose "+string(p), func(n *model.Network) {
			if n.Purpose == p {
				n.Purpose = model.PurposeNone
			}
		})
	}
	return []feature{
		purpose(model.PurposeResolvers), purpose(model.PurposeTime), purpose(model.PurposeForensic),
		inNetworks("except", func(n *model.Network) { n.Except = nil }),
		inNetworks("cidrs beyond the first", func(n *model.Network) { n.CIDRs = n.CIDRs[:1] }),
		inNetworks("an IPv6 cidr", func(n *model.Network) {
			n.CIDRs = slices.DeleteFunc(slices.Clone(n.CIDRs), func(c netip.Prefix) bool { return c.Addr().Is6() })
		}),
		// Overlaps: an address in two of them, of which one decides. Excepts of one are no holes in another.
		inDocs("overlapping networks", func(d *model.Documents) {
			d.Networks = slices.Clone(d.Networks)
			for i := range d.Networks {
				for _, before := range d.Networks[:i] {
					d.Networks[i].CIDRs = slices.DeleteFunc(slices.Clone(d.Networks[i].CIDRs), func(c netip.Prefix) bool {
						return slices.ContainsFunc(before.CIDRs, c.Overlaps)
					})
				}
			}
		}),
		inDocs("an except inside another network", func(d *model.Documents) {
			d.Networks = slices.Clone(d.Networks)
			for i := range d.Networks {
				for k, other := range d.Networks {
					if k != i {
						d.Networks[i].Except = slices.Concat(d.Networks[i].Except, other.Except)
					}
				}
			}
		}),
	}
}

func inventoryFeatures() []feature {
	return []feature{
		inInstances("an unmanaged workload", func(i *model.Instance) { i.Managed = true }),
		inInstances("a managed workload", func(i *model.Instance) { i.Managed = false }),
		inInstances("a second address", func(i *model.Instance) {
			if len(i.Addresses) > 1 && len(i.Addresses) == len(slices.Compact(slices.Clone(i.Addresses))) {
				i.Addresses = []netip.Addr{i.Addresses[0]}
			}
		}),
		inInstances("the order of addresses", func(i *model.Instance) {
			i.Addresses = slices.Clone(i.Addresses)
			slices.Reverse(i.Addresses)
		}),
		inInstances("IPv6", func(i *model.Instance) {
			i.Addresses = slices.DeleteFunc(slices.Clone(i.Addresses), netip.Addr.Is6)
		}),
		inInstances("units, which are on a host together", func(i *model.Instance) {
			if i.IsUnit() {
				i.Host = i.Name
			}
		}),
		{name: "several workloads at the address of the source", withoutFor: func(w world, f *model.Flow) world {
			from := slices.IndexFunc(w.inv.Instances, func(i model.Instance) bool { return i.Name == f.From.Workload })
			if from < 0 {
				return w
			}
			source := &w.inv.Instances[from]
			return world{w.docs, &model.Inventory{Instances: slices.DeleteFunc(slices.Clone(w.inv.Instances), func(i model.Instance) bool {
				return i.Name != source.Name && i.Name != f.To.Workload && slices.ContainsFunc(i.Addresses, func(a netip.Addr) bool {
					return slices.Contains(source.Addresses, a)
				})
			})}}
		}},
	}
}

func quarantineFeatures() []feature {
	level := func(q model.QuarantineLevel) feature {
		return inInstances("quarantine "+q.String(), func(i *model.Instance) {
			if i.Quarantine.Level == q {
				i.Quarantine = model.Quarantine{}
				i.Labels = i.Labels.With(nil)
				delete(i.Labels, model.QuarantineLabel)
			}
		})
	}
	return []feature{
		level(model.QuarantineWatch), level(model.QuarantineRestrict), level(model.QuarantineIsolate),
		inInstances("edges in use", func(i *model.Instance) { i.Quarantine.InUse = nil }),
		inInstances("the ports of edges in use", func(i *model.Instance) {
			i.Quarantine.InUse = slices.Clone(i.Quarantine.InUse)
			for k := range i.Quarantine.InUse {
				i.Quarantine.InUse[k].Ports = model.AnyPort
			}
		}),
	}
}

func inDocs(name string, change func(d *model.Documents)) feature {
	return feature{name: name, without: func(w world) world {
		d := *w.docs
		change(&d)
		return world{&d, w.inv}
	}}
}

func inRules(name string, change func(r *model.Rule)) feature {
	return inDocs(name, func(d *model.Documents) {
		d.Policies = slices.Clone(d.Policies)
		for i := range d.Policies {
			d.Policies[i].Rules = slices.Clone(d.Policies[i].Rules)
			for k := range d.Policies[i].Rules {
				change(&d.Policies[i].Rules[k])
			}
		}
	})
}

func withoutRules(name string, is func(r *model.Rule) bool) feature {
	return inDocs(name, func(d *model.Documents) {
		d.Policies = slices.Clone(d.Policies)
		for i := range d.Policies {
			d.Policies[i].Rules = slices.DeleteFunc(slices.Clone(d.Policies[i].Rules), func(r model.Rule) bool { return is(&r) })
		}
	})
}

func eachPeer(peers []model.Peer, change func(p *model.Peer)) []model.Peer {
	peers = slices.Clone(peers)
	for i := range peers {
		change(&peers[i])
	}
	return peers
}

func withoutPeers(name string, is func(p *model.Peer) bool) feature {
	drop := func(peers []model.Peer) []model.Peer {
		return slices.DeleteFunc(slices.Clone(peers), func(p model.Peer) bool { return is(&p) })
	}
	return inRules(name, func(r *model.Rule) { r.From, r.To = drop(r.From), drop(r.To) })
}

func withoutPorts(d *model.Documents, is func(ref *model.PortRef) bool) {
	drop := func(on []model.PortRef) []model.PortRef {
		return slices.DeleteFunc(slices.Clone(on), func(ref model.PortRef) bool { return is(&ref) })
	}
	d.Policies, d.Segments = slices.Clone(d.Policies), slices.Clone(d.Segments)
	for i := range d.Policies {
		d.Policies[i].Rules = slices.Clone(d.Policies[i].Rules)
		for k := range d.Policies[i].Rules {
			d.Policies[i].Rules[k].On = drop(d.Policies[i].Rules[k].On)
		}
	}
	for i := range d.Segments {
		d.Segments[i].Services = drop(d.Segments[i].Services)
	}
}

func inSegments(name string, change func(s *model.Segment)) feature {
	return inDocs(name, func(d *model.Documents) {
		d.Segments = slices.Clone(d.Segments)
		for i := range d.Segments {
			change(&d.Segments[i])
		}
	})
}

func inNetworks(name string, change func(n *model.Network)) feature {
	return inDocs(name, func(d *model.Documents) {
		d.Networks = slices.Clone(d.Networks)
		for i := range d.Networks {
			change(&d.Networks[i])
		}
	})
}

func inInstances(name string, change func(i *model.Instance)) feature {
	return feature{name: name, without: func(w world) world {
		instances := slices.Clone(w.inv.Instances)
		for i := range instances {
			change(&instances[i])
		}
		return world{w.docs, &model.Inventory{Instances: instances}}
	}}
}
