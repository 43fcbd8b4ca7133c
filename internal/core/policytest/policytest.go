// Package policytest makes random but valid worlds for property tests: documents, the inventory they govern, and
// flows that probe the edges of both. It is imported by tests only.
//
// Everything is a function of the seed: the same seed and size give the same world on every machine, so a failing
// property is reproduced by its seed alone.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/model"
)

// Now is the moment at which generated worlds are meant to be judged. Some generated rules have expired by then, some
// expire at that very moment, some later.
var Now = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// Size says how much to generate. Zero of something means none of it.
type Size struct {
	Hosts        int // hosts and devices; units come on top of them
	Services     int
	Networks     int
	Segments     int
	Policies     int
	Rules        int // of each policy, at most
	Guardrails   int
	Expectations int
	Flows        int
	// OneSided is how many policies of Kubernetes to generate, of all tiers. With any, some hosts are pods and nodes.
	// Their documents are not written by policy.Marshal.
	OneSided int
	// Plain leaves out what not every dataplane enforces: domains.
	Plain bool
	// NotYet also generates what the language parses and refuses as not supported yet: guardrails over many hops.
	NotYet bool
}

// Small is a world in which everything is close to everything else; property tests run many of it.
var Small = Size{
	Hosts: 8, Services: 4, Networks: 5, Segments: 4, Policies: 4, Rules: 5, Guardrails: 2, Expectations: 2, Flows: 100,
}

// Kubernetes is Small with policies and pods of Kubernetes.
var Kubernetes = func() Size {
	s := Small
	s.OneSided = 7
	return s
}()

// Alternate returns Small and Kubernetes by turns.
func Alternate(seed uint64) Size {
	if seed%2 == 1 {
		return Kubernetes
	}
	return Small
}

// Large is a world of about a thousand workloads and a thousand rules.
var Large = Size{
	Hosts: 700, Services: 30, Networks: 30, Segments: 25, Policies: 200, Rules: 9, Guardrails: 20, Expectations: 10, Flows: 1000,
}

// Generate returns the world of the seed. The documents pass policy.Parse after policy.Marshal and are normal: lists
// sorted, defaults filled in, no positions. The inventory has hosts, devices, declared and found units, addresses that
// several workloads share, workloads without an address, and every level of quarantine. A few flows name a workload
// that does not exist or an address that several workloads share: judging those is an error.
func Generate(seed uint64, size Size) (*model.Documents, *model.Inventory, []model.Flow) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x6275_6c6b_6865_6164)), size: size, docs: &model.Documents{}}
	g.services()
	g.workloads()
	g.pods()
	g.networks()
	g.segments()
	g.policies()
	g.oneSided()
	g.guardrails()
	g.quarantine()
	g.sort()
	g.expectations()
	flows := make([]model.Flow, 0, size.Flows)
	for range size.Flows {
		flows = append(flows, g.flow())
	}
	return g.docs, &model.Inventory{Instances: g.instances}, flows
}

type generator struct {
	*rand.Rand
	size      Size
	docs      *model.Documents
	instances []model.Instance
	addresses int                  // allocated so far
	prefixes  []netip.Prefix       // that some document names; flows probe their edges
	ranges    []model.PortRange    // that some document names; flows probe their edges
	inUse     []edgeInUse          // flows try them
	owners    map[netip.Addr][]int // indices into instances, once sorted
}

// chance is true in percent of all calls.
func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// some returns between one and limit elements, in their order.
func some[T any](g *generator, from []T, limit int) []T {
	n := 1 + g.IntN(min(limit, len(from)))
	at := g.Perm(len(from))[:n]
	slices.Sort(at)
	out := make([]T, n)
	for i, j := range at {
		out[i] = from[j]
	}
	return out
}

func (g *generator) meta(prefix string, i int) model.Meta {
	m := model.Meta{Name: fmt.Sprintf("%s-%d", prefix, i)}
	if g.chance(20) {
		m.Owner = pick(g, []string{"team-payments", "ops@example.org", "Zoë & the night shift", "null", "12"})
	}
	if g.chance(20) {
		m.Note = pick(g, []string{
			"ticket OPS-4711", "two\nlines: of text\n", "a \"quoted\" word # not a comment", " spaces around ", "- not a list",
			"tab\there, ünï→code, and a \\ backslash", "yes", "0x10", "~",
		})
	}
	return m
}

func (g *generator) portRange() model.PortRange {
	protos := []model.Proto{model.ProtoTCP, model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP}
	ports := []uint16{0, 1, 22, 53, 80, 123, 443, 5432, 8000, 8443, 65534, 65535}
	switch n := g.IntN(100); {
	case n < 50:
		p := pick(g, ports)
		return model.PortRange{Proto: pick(g, protos), Lo: p, Hi: p}
	case n < 72:
		lo, hi := pick(g, ports), pick(g, ports)
		return model.PortRange{Proto: pick(g, protos), Lo: min(lo, hi), Hi: max(lo, hi)}
	case n < 80:
		return model.PortRange{Proto: pick(g, protos), Hi: 65535}
	case n < 95:
		proto, typ := model.ProtoICMP, pick(g, []uint8{0, 3, 8, 13})
		if g.chance(50) {
			proto, typ = model.ProtoICMPv6, pick(g, []uint8{1, 128, 129, 135})
		}
		r := model.PortRange{Proto: proto, Lo: model.ICMPPort(typ, 0), Hi: model.ICMPPort(typ, 255)}
		switch g.IntN(3) {
		case 0:
			r.Lo = model.ICMPPort(typ, uint8(g.IntN(3)))
			r.Hi = r.Lo
		case 1:
			r.Lo, r.Hi = 0, 65535
		}
		return r
	}
	return model.AnyPort
}

func (g *generator) namedRange() model.PortRange {
	r := g.portRange()
	g.ranges = append(g.ranges, r)
	return r
}

func (g *generator) services() {
	for i := range g.size.Services {
		s := model.Service{Meta: g.meta("svc", i)}
		for range 1 + g.IntN(3) {
			if r := g.namedRange(); !slices.Contains(s.Ports, r) {
				s.Ports = append(s.Ports, r)
			}
		}
		g.docs.Services = append(g.docs.Services, s)
	}
}

func (g *generator) ports() []model.PortRef {
	var out []model.PortRef
	for range 1 + g.IntN(3) {
		ref := model.PortRef{}
		if len(g.docs.Services) > 0 && g.chance(30) {
			ref.Service = pick(g, g.docs.Services).Name
		} else {
			ref.Range = g.namedRange()
		}
		if !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	return out
}

func (g *generator) networks() {
	purposes := []model.Purpose{model.PurposeResolvers, model.PurposeTime, model.PurposeForensic}
	for i := range g.size.Networks {
		n := model.Network{Meta: g.meta("net", i)}
		if g.chance(40) {
			n.Purpose = pick(g, purposes)
		}
		for range 1 + g.IntN(3) {
			c := g.prefix()
			if n.Purpose != model.PurposeNone && c.Bits() < 16 {
				c = netip.PrefixFrom(c.Addr(), c.Addr().BitLen()) // an essential for the whole world hides everything else
			}
			if overlaps(n.CIDRs, c) {
				continue
			}
			n.CIDRs = append(n.CIDRs, c)
			if g.chance(40) && c.Bits() < c.Addr().BitLen()-1 {
				n.Except = append(n.Except, g.within(c))
			}
		}
		g.prefixes = append(g.prefixes, n.Except...)
		g.prefixes = append(g.prefixes, n.CIDRs...)
		if g.chance(15) && !g.size.Plain {
			n.Domains = some(g, domains, 2)
		}
		g.docs.Networks = append(g.docs.Networks, n)
	}
}

func overlaps(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, p.Overlaps)
}

// prefix returns a prefix around something: an address of a workload, or a range that no workload is in.
func (g *generator) prefix() netip.Prefix {
	around := pick(g, []netip.Addr{
		netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::1"),
		g.address(g.IntN(g.addresses+4), false), g.address(g.IntN(g.addresses+4), false), g.address(g.IntN(g.addresses+4), true),
	})
	bits := []int{0, 8, 16, 23, 24, 24, 28, 30, 31, 32}
	if around.Is6() {
		bits = []int{0, 8, 32, 64, 112, 120, 124, 126, 127, 128}
	}
	return netip.PrefixFrom(around, pick(g, bits)).Masked()
}

// within returns a proper part of the prefix.
func (g *generator) within(c netip.Prefix) netip.Prefix {
	bits := min(c.Bits()+1+g.IntN(8), c.Addr().BitLen())
	a := c.Addr()
	for _, inst := range g.instances { // prefer a part that somebody is in
		for _, x := range inst.Addresses {
			if c.Contains(x) && g.chance(30) {
				a = x
			}
		}
	}
	return netip.PrefixFrom(a, bits).Masked()
}

var (
	labelValues = map[string][]string{
		"app":  {"payments", "portal", "crm"},
		"role": {"api", "db", "web"},
		"env":  {"prod", "dev"},
		"loc":  {"eu-west-1", "us_east.2"},
		"tier": {"", "gold"},
	}
	labelKeys      = []string{"app", "role", "env", "loc", "tier"}
	levels         = []model.QuarantineLevel{model.QuarantineWatch, model.QuarantineRestrict, model.QuarantineIsolate}
	levelNames     = []string{"watch", "restrict", "isolate"}
	unlikelyLabels = []string{"example.org/team", "legacy"}
)

func (g *generator) labels() model.Labels {
	var l model.Labels
	for _, k := range labelKeys {
		if g.chance(60) {
			if l == nil {
				l = model.Labels{}
			}
			l[k] = pick(g, labelValues[k])
		}
	}
	if g.chance(10) {
		l = l.With(model.Labels{pick(g, unlikelyLabels): "1"})
	}
	return l
}

// selector returns a selector that some label set meets.
func (g *generator) selector() model.Selector {
	if g.chance(8) {
		return model.Selector{}
	}
	for {
		var parts []string
		for _, k := range some(g, append(slices.Clone(labelKeys), model.QuarantineLabel, unlikelyLabels[g.IntN(2)]), 3) {
			values := labelValues[k]
			switch k {
			case model.QuarantineLabel:
				values = levelNames
			case unlikelyLabels[0], unlikelyLabels[1]:
				values = []string{"1", "2"}
			}
			for range 1 + g.IntN(8)/7 { // sometimes two conditions on one key
				parts = append(parts, g.requirement(k, values))
			}
		}
		sel := model.MustParseSelector(strings.Join(parts, ","))
		if sel.Contradiction() == "" {
			return sel
		}
	}
}

func (g *generator) requirement(key string, values []string) string {
	list := " (" + strings.Join(some(g, values, 3), ",") + ")"
	switch n := g.IntN(20); {
	case n < 11:
		return key + "=" + pick(g, values)
	case n < 14:
		return key + " in" + list
	case n < 16:
		return key + " notin" + list
	case n < 17:
		return key + "!=" + pick(g, values)
	case n < 19:
		return key
	}
	return "!" + key
}

func (g *generator) segments() {
	for i := range g.size.Segments {
		s := model.Segment{
			Meta:        g.meta("seg", i),
			Selector:    g.selector(),
			Mode:        pick(g, []model.Mode{model.ModeEnforce, model.ModeEnforce, model.ModeSelective, model.ModeObserve}),
			Directions:  pick(g, [][]model.Direction{{model.Ingress, model.Egress}, {model.Ingress, model.Egress}, {model.Ingress}, {model.Egress}}),
			MembersOpen: g.chance(25),
			OnAgentLoss: pick(g, []model.OnAgentLoss{model.LossKeep, model.LossOpen, model.LossClosed}),
			Contain:     model.Contain{Auto: "never"},
		}
		if s.Mode == model.ModeSelective {
			s.Services = g.ports()
		}
		if g.chance(30) {
			s.Contain = model.Contain{
				Auto:  pick(g, []string{"propose", "act"}),
				Level: pick(g, levels),
				TTL:   pick(g, []time.Duration{time.Minute, time.Hour, 36 * time.Hour, 90 * time.Second}),
			}
		}
		g.docs.Segments = append(g.docs.Segments, s)
	}
}

func (g *generator) policies() {
	for i := range g.size.Policies {
		p := model.Policy{Meta: g.meta("pol", i)}
		for j := range 1 + g.IntN(max(g.size.Rules, 1)) {
			r := model.Rule{
				Name: fmt.Sprintf("rule-%d", j), Action: model.ActionAllow,
				From: g.peers(false), To: g.peers(true), On: g.ports(),
			}
			if g.chance(25) {
				r.Action = model.ActionDeny
			}
			if g.chance(25) {
				r.Expires = pick(g, []time.Time{
					Now.Add(-time.Hour), Now.Add(-time.Nanosecond), Now, Now.Add(time.Nanosecond), Now.Add(time.Hour),
				})
			}
			p.Rules = append(p.Rules, r)
		}
		g.docs.Policies = append(g.docs.Policies, p)
	}
}

func (g *generator) peers(to bool) []model.Peer {
	n := 1
	if g.chance(25) {
		n += 1 + g.IntN(2)
	}
	out := make([]model.Peer, 0, n)
	for range n {
		out = append(out, g.peer(to))
	}
	return out
}

func (g *generator) peer(to bool) model.Peer {
	switch n := g.IntN(100); {
	case n < 15 && len(g.docs.Networks) > 0:
		return model.Peer{Kind: model.PeerNetwork, Network: pick(g, g.docs.Networks).Name}
	case n < 25:
		c := g.prefix()
		g.prefixes = append(g.prefixes, c)
		return model.Peer{Kind: model.PeerCIDR, CIDR: c}
	case n < 30:
		return model.Peer{Kind: model.PeerAny}
	case n < 35 && to && !g.size.Plain:
		return model.Peer{Kind: model.PeerDomain, Domain: pick(g, domains)}
	}
	p := model.Peer{Kind: model.PeerWorkloads, Workloads: g.selector()}
	if g.chance(12) {
		p.Process = g.process()
	}
	return p
}

// domains are the patterns that documents name; flows go to hosts that one, several or none of them cover.
var domains = []string{"*.stripe.com", "*.api.stripe.com", "eu.api.stripe.com", "example.org", "api.example.net"}

// process returns a constraint, or what one process is.
func (g *generator) process() *model.Process {
	p := &model.Process{}
	for *p == (model.Process{}) {
		if g.chance(50) {
			p.Unit = pick(g, []string{"payapi.service", "cron.service"})
		}
		if g.chance(40) {
			p.Path = pick(g, []string{"/usr/bin/curl", "/usr/bin/python3"})
		}
		if g.chance(40) {
			p.User = pick(g, []string{"www-data", "1000"})
		}
	}
	return p
}

func (g *generator) guardrails() {
	for i := range g.size.Guardrails {
		r := model.Guardrail{Meta: g.meta("guard", i), From: g.peers(false), To: g.peers(true), On: g.ports()}
		if g.size.NotYet && g.chance(40) {
			r.Via = model.ViaAny
		}
		g.docs.Guardrails = append(g.docs.Guardrails, r)
	}
}

// sort puts every list into the order of the model.
func (g *generator) sort() {
	d := g.docs
	byName := func(a, b model.Meta) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(d.Services, func(a, b model.Service) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.Networks, func(a, b model.Network) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.Workloads, func(a, b model.Workload) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.Segments, func(a, b model.Segment) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.Policies, func(a, b model.Policy) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.Guardrails, func(a, b model.Guardrail) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(d.OneSided, func(a, b model.OneSided) int { return byName(a.Meta, b.Meta) })
	slices.SortFunc(g.instances, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) })
	g.owners = map[netip.Addr][]int{}
	for i := range g.instances {
		for _, a := range g.instances[i].Addresses {
			g.owners[a] = append(g.owners[a], i)
		}
	}
}
