// Package inventory merges what documents declare, agents report and quarantine leases add into the workloads that
// exist. It holds no state and decides nothing about traffic.
package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// Report is what one agent says about its host. The controller binds Host and Labels to the agent's token; only
// Addresses, Units and Listeners are the agent's own word.
type Report struct {
	Host      string
	Labels    model.Labels
	Addresses []netip.Addr
	Units     []UnitReport // units that the agent was told to find
	Listeners []ListenerReport
}

// UnitReport is a unit that an agent found on its host.
type UnitReport struct {
	Name string
}

// ListenerReport is a socket that accepts traffic on a host. Unit is empty if no unit owns it.
type ListenerReport struct {
	Unit string
	model.Listener
}

// Lease is a quarantine in force. Of several for one workload the strictest counts; the edges in use add up.
type Lease struct {
	Workload string
	Level    model.QuarantineLevel
	InUse    []model.InUse
}

// Build returns every workload there is, sorted by name.
//
// Reports nil means that there are no agents to ask, as offline: then every managed workload is judged as a host of
// its own. With reports, a workload of which no agent reports the host has Host "".
//
// A document of the name of a host or of a found unit ("host/unit") adds labels and addresses and wins over the
// report. A unit has its host's labels and addresses beside its own. Leases of workloads that do not exist have no
// effect, so that one which outlives its workload does no harm. The error names two documents or reports that claim
// one workload.
func Build(docs *model.Documents, reports []Report, leases []Lease) (*model.Inventory, error) {
	b := builder{
		offline: reports == nil,
		byName:  make(map[string]*model.Instance, len(docs.Workloads)+len(reports)),
		byUnit:  make(map[unitKey]*model.Instance),
	}
	if err := b.declare(docs.Workloads); err != nil {
		return nil, err
	}
	for i := range reports {
		if err := b.report(&reports[i]); err != nil {
			return nil, err
		}
	}
	b.inherit()
	for i := range reports {
		b.listen(&reports[i])
	}
	b.quarantine(leases)
	inv := &model.Inventory{Instances: make([]model.Instance, 0, len(b.byName))}
	for _, inst := range b.byName {
		// Agents and leases come in any order; the result has one.
		slices.SortFunc(inst.Listening, compareListeners)
		inst.Listening = slices.Compact(inst.Listening)
		slices.SortFunc(inst.Quarantine.InUse, compareInUse)
		inst.Quarantine.InUse = slices.Compact(inst.Quarantine.InUse)
		inv.Instances = append(inv.Instances, *inst)
	}
	slices.SortFunc(inv.Instances, func(x, y model.Instance) int { return strings.Compare(x.Name, y.Name) })
	return inv, nil
}

type unitKey struct{ host, unit string }

type builder struct {
	offline  bool
	byName   map[string]*model.Instance
	byUnit   map[unitKey]*model.Instance
	reported map[string]bool
}

func (b *builder) declare(workloads []model.Workload) error {
	for i := range workloads {
		w := &workloads[i]
		if b.byName[w.Name] != nil {
			return fmt.Errorf("%s: workload %q is declared twice", w.Pos, w.Name)
		}
		inst := &model.Instance{
			Name:      w.Name,
			Labels:    w.Labels,
			Addresses: distinct(w.Addresses),
			Managed:   w.Managed,
			Node:      w.Node,
		}
		switch {
		case w.Unit != nil:
			inst.Host, inst.Unit = w.Unit.Host, w.Unit.Name
			key := unitKey{inst.Host, inst.Unit}
			if other := b.byUnit[key]; other != nil {
				return fmt.Errorf("%s: unit %q of host %q is workload %q already", w.Pos, inst.Unit, inst.Host, other.Name)
			}
			b.byUnit[key] = inst
		case b.offline && w.Managed:
			inst.Host = inst.Name
		}
		b.byName[w.Name] = inst
	}
	return nil
}

func (b *builder) report(r *Report) error {
	host := b.byName[r.Host]
	switch {
	case host == nil:
		host = &model.Instance{Name: r.Host, Managed: true}
		b.byName[r.Host] = host
	case host.IsUnit():
		return fmt.Errorf("host %q has an agent, but the workload of that name is unit %q of host %q: rename one of them",
			r.Host, host.Unit, host.Host)
	case b.reported[r.Host]:
		return fmt.Errorf("host %q is reported twice", r.Host)
	}
	if b.reported == nil {
		b.reported = make(map[string]bool)
	}
	b.reported[r.Host] = true
	host.Host = host.Name
	host.Labels = r.Labels.With(host.Labels)
	host.Addresses = distinct(host.Addresses, slices.DeleteFunc(slices.Clone(r.Addresses), ambiguous))
	for _, u := range r.Units {
		if err := b.found(r.Host, u.Name); err != nil {
			return err
		}
	}
	return nil
}

// found adds a unit that an agent found and no document declares.
func (b *builder) found(host, unit string) error {
	key := unitKey{host, unit}
	if unit == "" || b.byUnit[key] != nil {
		return nil
	}
	name := unitName(host, unit)
	inst := b.byName[name]
	switch {
	case inst == nil:
		inst = &model.Instance{Name: name, Managed: true}
		b.byName[name] = inst
	case inst.IsUnit() || b.reported[name]:
		return fmt.Errorf("unit %q of host %q would be workload %q, which is something else already: declare the unit under another name",
			unit, host, name)
	}
	inst.Host, inst.Unit = host, unit
	b.byUnit[key] = inst
	return nil
}

// unitName returns the name of the workload that a found unit is, if no document declares it.
func unitName(host, unit string) string { return host + "/" + unit }

// inherit gives units their host's labels and addresses. It comes before leases, which say something of one workload.
func (b *builder) inherit() {
	for _, inst := range b.byUnit {
		host := b.byName[inst.Host]
		if host == nil || host.IsUnit() {
			continue
		}
		inst.Labels = host.Labels.With(inst.Labels)
		inst.Addresses = distinct(inst.Addresses, host.Addresses)
	}
}

func (b *builder) listen(r *Report) {
	for _, l := range r.Listeners {
		inst := b.byName[r.Host]
		if l.Unit != "" {
			if unit := b.byUnit[unitKey{r.Host, l.Unit}]; unit != nil {
				inst = unit
			}
		}
		l.Listener.Addr = l.Listener.Addr.Unmap().WithZone("")
		inst.Listening = append(inst.Listening, l.Listener)
	}
}

func (b *builder) quarantine(leases []Lease) {
	for i := range leases {
		l := &leases[i]
		inst := b.byName[l.Workload]
		if inst == nil || l.Level == model.QuarantineNone {
			continue
		}
		q := &inst.Quarantine
		q.Level = max(q.Level, l.Level)
		q.InUse = append(q.InUse, l.InUse...)
		inst.Labels = inst.Labels.With(model.Labels{model.QuarantineLabel: q.Level.String()})
	}
}

// distinct joins lists of addresses without repetition, as plain IPv4 or IPv6 without zones.
func distinct(lists ...[]netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, list := range lists {
		for _, a := range list {
			a = a.Unmap().WithZone("")
			if a.IsValid() && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// ambiguous reports whether an address means another machine on every host or link, so that owning it says nothing.
func ambiguous(a netip.Addr) bool {
	a = a.Unmap()
	return !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

func compareListeners(a, b model.Listener) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), strings.Compare(a.Process, b.Process))
}

func compareInUse(a, b model.InUse) int {
	return cmp.Or(strings.Compare(a.Peer, b.Peer), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Ports.Proto, b.Ports.Proto),
		cmp.Compare(a.Ports.Lo, b.Ports.Lo), cmp.Compare(a.Ports.Hi, b.Ports.Hi))
}
