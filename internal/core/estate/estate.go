// Package estate makes estates to measure with: documents and an inventory as an enterprise would have them, in any
// size, the same on every machine.
package estate

import (
	"fmt"
	"net/netip"

	"bulkhead/internal/core/model"
)

// Size says how large an estate is.
type Size struct {
	Workloads int
	LabelSets int // distinct label sets; at least 10
	Rules     int
}

// String returns the size as benchmarks name it.
func (s Size) String() string {
	return fmt.Sprintf("workloads=%d/labelsets=%d/rules=%d", s.Workloads, s.LabelSets, s.Rules)
}

var (
	roles = []string{"web", "api", "db", "cache", "queue"}
	envs  = []string{"prod", "dev"}
	ports = map[string]uint16{"web": 443, "api": 8443, "db": 5432, "cache": 6379, "queue": 5672}
)

const sites = 16 // networks that workloads are in, each a /12 of 10.0.0.0/8

// Make makes the documents and the inventory of an estate: apps of five roles in two environments, spread over
// sites; one in ten hosts runs two units that share its addresses; one in a hundred is a device without an agent. Most
// rules join roles within an app, some join apps, some admit networks, a few deny whole environments.
func Make(s Size) (*model.Documents, *model.Inventory) {
	b := builder{Size: s, apps: max(1, s.LabelSets/(len(roles)*len(envs)))}
	b.services()
	b.networks()
	b.segments()
	b.policies()
	return &b.docs, b.inventory()
}

type builder struct {
	Size
	apps int
	docs model.Documents
}

func app(i int) string { return fmt.Sprintf("app-%05d", i) }

func selector(format string, args ...any) model.Selector {
	return model.MustParseSelector(fmt.Sprintf(format, args...))
}

func workloads(format string, args ...any) []model.Peer {
	return []model.Peer{{Kind: model.PeerWorkloads, Workloads: selector(format, args...)}}
}

func (b *builder) services() {
	for _, r := range []string{"api", "cache", "db", "queue", "web"} {
		b.docs.Services = append(b.docs.Services, model.Service{
			Meta:  model.Meta{Name: r},
			Ports: []model.PortRange{{Proto: model.ProtoTCP, Lo: ports[r], Hi: ports[r]}},
		})
	}
}

func (b *builder) networks() {
	for i := range sites {
		b.docs.Networks = append(b.docs.Networks, model.Network{
			Meta:   model.Meta{Name: fmt.Sprintf("site-%02d", i)},
			CIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i << 4)}), 12)},
			Except: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i<<4 | 15), 255}), 24)},
		})
	}
	b.docs.Networks = append(b.docs.Networks, model.Network{
		Meta:    model.Meta{Name: "zz-resolvers"},
		CIDRs:   []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")},
		Purpose: model.PurposeResolvers,
	})
}

func (b *builder) segments() {
	both := []model.Direction{model.Ingress, model.Egress}
	for i := range min(50, b.apps) {
		b.docs.Segments = append(b.docs.Segments, model.Segment{
			Meta: model.Meta{Name: app(i)}, Selector: selector("app=%s,env=dev", app(i)), Mode: model.ModeSelective,
			Services: []model.PortRef{{Service: "db"}}, Directions: both, MembersOpen: i%2 == 0,
		})
	}
	b.docs.Segments = append(b.docs.Segments,
		model.Segment{Meta: model.Meta{Name: "dev"}, Selector: selector("env=dev"), Mode: model.ModeObserve, Directions: both},
		model.Segment{Meta: model.Meta{Name: "prod"}, Selector: selector("env=prod"), Mode: model.ModeEnforce, Directions: both},
	)
}

func (b *builder) policies() {
	perApp := (b.Rules + b.apps - 1) / b.apps
	left := b.Rules
	for a := 0; a < b.apps && left > 0; a++ {
		p := model.Policy{Meta: model.Meta{Name: app(a)}}
		for r := 0; r < perApp && left > 0; r++ {
			p.Rules = append(p.Rules, b.rule(a, r))
			left--
		}
		b.docs.Policies = append(b.docs.Policies, p)
	}
}

func (b *builder) rule(a, r int) model.Rule {
	out := model.Rule{Name: fmt.Sprintf("rule-%03d", r), Action: model.ActionAllow, On: []model.PortRef{{Service: roles[(r+1)%5]}}}
	env := envs[r/5%2]
	switch n := (a*7 + r*3) % 100; {
	case n < 60: // between roles of the app
		out.From = workloads("app=%s,role=%s,env=%s", app(a), roles[r%5], env)
		out.To = workloads("app=%s,role=%s,env=%s", app(a), roles[(r+1)%5], env)
	case n < 85: // to another app
		out.From = workloads("app=%s,role in (api,queue)", app(a))
		out.To = workloads("app=%s,role=%s", app((a*31+r*17)%b.apps), roles[(r+1)%5])
	case n < 90: // from a site
		out.From = []model.Peer{{Kind: model.PeerNetwork, Network: fmt.Sprintf("site-%02d", (a+r)%sites)}}
		out.To = workloads("app=%s,role=web", app(a))
	case n < 95: // to a partner's addresses
		out.From = workloads("app=%s,role=api", app(a))
		out.To = []model.Peer{{Kind: model.PeerCIDR, CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(a), byte(r) &^ 3}), 30)}}
		out.On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: 8000, Hi: 8100}}}
	case n < 97 && a%50 == 0: // everybody writes logs
		out.From = []model.Peer{{Kind: model.PeerAny}}
		out.To = workloads("app=%s,role=queue", app(a))
	case n < 98 && a%100 == 7: // no way from one environment to the data of the other
		out.Action = model.ActionDeny
		out.From = workloads("env=dev")
		out.To = workloads("env=prod,role=%s", roles[2+r%3])
		out.On = []model.PortRef{{Range: model.AnyPort}}
	default: // monitoring
		out.From = workloads("app=%s,role=cache", app(a))
		out.To = workloads("app=%s", app(a))
		out.On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: uint16(9000 + r), Hi: uint16(9000 + r)}}}
	}
	return out
}

func (b *builder) inventory() *model.Inventory {
	inv := &model.Inventory{Instances: make([]model.Instance, 0, b.Workloads)}
	labels := make([]model.Labels, b.apps*len(roles)*len(envs))
	for i := range labels {
		labels[i] = model.Labels{
			"app": app(i / 10), "role": roles[i%5], "env": envs[i/5%2], "loc": fmt.Sprintf("loc-%d", i/10%7),
		}
	}
	var used [sites]int // addresses of each site
	for host := 0; len(inv.Instances) < b.Workloads; host++ {
		set := host % len(labels)
		name := fmt.Sprintf("host-%06d", host)
		site := (set/10 + host/len(labels)%2) % sites // an app is at two sites
		used[site]++
		n := used[site] + 2 // the first ones are resolvers
		addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, byte(site<<4) | byte(n>>16&15), byte(n >> 8), byte(n)})}
		if host%10 == 3 {
			addrs = append(addrs, netip.AddrFrom16([16]byte{0: 0xfd, 5: byte(site), 13: byte(host >> 16), 14: byte(host >> 8), 15: byte(host)}))
		}
		inst := model.Instance{Name: name, Labels: labels[set], Addresses: addrs, Managed: host%100 != 99, Host: name}
		if !inst.Managed {
			inst.Host = ""
		}
		inv.Instances = append(inv.Instances, inst)
		for u := 0; u < 2 && host%10 == 5 && len(inv.Instances) < b.Workloads; u++ {
			of := labels[(set+1+u)%len(labels)]
			port := ports[of["role"]]
			inv.Instances = append(inv.Instances, model.Instance{
				Name: fmt.Sprintf("%s/unit-%d", name, u), Labels: of, Addresses: addrs, Managed: true, Host: name,
				Unit:      fmt.Sprintf("unit-%d", u),
				Listening: []model.Listener{{Addr: netip.IPv4Unspecified(), Proto: model.ProtoTCP, Port: port, Process: "server"}},
			})
		}
	}
	return inv
}
