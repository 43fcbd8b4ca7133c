package policytest

import (
	"fmt"
	"net/netip"
	"slices"

	"bulkhead/internal/core/model"
)

// address returns the i-th address of the family; the two families advance together.
func (g *generator) address(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 7: 3, 13: byte(i >> 12), 14: byte(i >> 5), 15: byte(i<<3 | 1)})
	}
	return netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 5), byte(i<<3 | 1)})
}

func (g *generator) newAddresses() []netip.Addr {
	var out []netip.Addr
	next := func(v6 bool) {
		out = append(out, g.address(g.addresses, v6))
		g.addresses++
	}
	switch n := g.IntN(20); {
	case n < 10:
		next(false)
	case n < 12:
		next(true)
	case n < 15:
		next(false)
		next(true)
	case n < 17:
		next(true)
		next(false)
	case n < 19:
		next(false)
		next(false)
	}
	return out
}

// workloads generates hosts, devices and units: the documents that declare them and the instances they become.
func (g *generator) workloads() {
	for i := range g.size.Hosts {
		name := fmt.Sprintf("host-%d", i)
		labels, addresses := g.labels(), g.newAddresses()
		inst := model.Instance{Name: name, Labels: labels, Addresses: addresses, Managed: true, Host: name}
		switch n := g.IntN(10); {
		case n < 2: // a device
			inst.Managed, inst.Host = false, ""
			g.declare(model.Workload{Meta: g.meta("host", i), Addresses: addresses}, labels)
		case n < 6: // declared; the agent may have told the addresses
			w := model.Workload{Meta: g.meta("host", i), Managed: true}
			if g.chance(70) {
				w.Addresses = addresses
			}
			g.declare(w, labels)
		case n < 7: // declared and managed, but its agent has not come yet
			inst.Host = ""
			g.declare(model.Workload{Meta: g.meta("host", i), Managed: true, Addresses: addresses}, labels)
		default: // reported only
		}
		inst.Listening = g.listeners(addresses)
		g.instances = append(g.instances, inst)
		if inst.Host != "" && g.chance(40) {
			g.units(&inst)
		}
	}
}

func (g *generator) declare(w model.Workload, labels model.Labels) {
	w.Labels = labels
	g.docs.Workloads = append(g.docs.Workloads, w)
}

func (g *generator) units(host *model.Instance) {
	for j := range 1 + g.IntN(3) {
		unit := fmt.Sprintf("app%d.service", j)
		inst := model.Instance{
			Name: host.Name + "/" + unit, Labels: host.Labels, Addresses: host.Addresses,
			Managed: true, Host: host.Name, Unit: unit,
		}
		if g.chance(70) { // declared; the others are found by the agent and have no document
			if g.chance(70) {
				inst.Name = fmt.Sprintf("%s-app%d", host.Name, j)
			}
			own := g.labels()
			w := model.Workload{Managed: true, Unit: &model.Unit{Host: host.Name, Name: unit}}
			w.Meta = g.meta("unit", j)
			w.Name = inst.Name
			if g.chance(10) { // a container with an address of its own beside those of its host
				w.Addresses = []netip.Addr{g.address(g.addresses, false)}
				g.addresses++
				inst.Addresses = append(slices.Clone(host.Addresses), w.Addresses...)
			}
			g.declare(w, own)
			inst.Labels = host.Labels.With(own)
		}
		inst.Listening = g.listeners(inst.Addresses)
		g.instances = append(g.instances, inst)
	}
}

func (g *generator) listeners(addresses []netip.Addr) []model.Listener {
	var out []model.Listener
	for range g.IntN(3) {
		l := model.Listener{
			Addr: netip.IPv4Unspecified(), Process: "server",
			Proto: pick(g, []model.Proto{model.ProtoTCP, model.ProtoTCP, model.ProtoUDP}),
			Port:  pick(g, []uint16{22, 53, 80, 443, 5432, 8443}),
		}
		if len(addresses) > 0 && g.chance(50) {
			l.Addr = pick(g, addresses)
		}
		out = append(out, l)
	}
	return out
}

// quarantine puts leases on some workloads. A unit does not take the lease of its host.
func (g *generator) quarantine() {
	for i := range g.instances {
		if !g.chance(15) {
			continue
		}
		inst := &g.instances[i]
		inst.Quarantine.Level = pick(g, levels)
		inst.Labels = inst.Labels.With(model.Labels{model.QuarantineLabel: inst.Quarantine.Level.String()})
		if inst.Quarantine.Level != model.QuarantineRestrict {
			continue
		}
		for range g.IntN(4) {
			edge := model.InUse{Direction: pick(g, model.Directions[:]), Peer: pick(g, g.instances).Name, Ports: g.namedRange()}
			inst.Quarantine.InUse = append(inst.Quarantine.InUse, edge)
			g.inUse = append(g.inUse, edgeInUse{inst.Name, edge})
		}
	}
}
