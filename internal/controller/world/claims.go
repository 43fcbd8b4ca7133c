package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
)

// host is what is known of a host that has an agent. It does not change: what is new makes another one.
type host struct {
	report    inventory.Report
	connected bool
	since     map[netip.Addr]time.Time // since when it has claimed each address
	// generation is the first one of the world that has the report.
	generation uint64
}

// with returns the host, nil if it was not known, with another report. An address that was claimed before keeps its time.
func (h *host) with(r inventory.Report, now time.Time) *host {
	out := &host{report: r, since: make(map[netip.Addr]time.Time, len(r.Addresses))}
	for _, a := range r.Addresses {
		out.since[a] = now
	}
	if h == nil {
		return out
	}
	out.connected = h.connected
	for a := range out.since {
		if before, ok := h.since[a]; ok {
			out.since[a] = before
		}
	}
	return out
}

// An agent's word about its addresses is not enough to take another workload's identity. An address that documents
// give to a workload is that workload's; of hosts that claim one address, a connected one has it before one that is
// not, and else the one that had it first. The others go without, and their agents' problems say so.

// claims says who has which address, and takes changes: settle looks at one host, and dirty are those of which it may say
// something else than before.
type claims struct {
	declared map[netip.Addr]*model.Workload
	hosts    map[string]*host
	by       map[netip.Addr][]string // the hosts that claim it
	dirty    map[string]bool
}

func newClaims() *claims {
	return &claims{declared: map[netip.Addr]*model.Workload{}, hosts: map[string]*host{}, by: map[netip.Addr][]string{}, dirty: map[string]bool{}}
}

// declare takes the workloads of documents in place of those before.
func (c *claims) declare(list []model.Workload) {
	before := c.declared
	c.declared = map[netip.Addr]*model.Workload{}
	for i := range list {
		for _, a := range list[i].Addresses {
			c.declared[a.Unmap()] = &list[i]
		}
	}
	for a, w := range c.declared {
		if old := before[a]; old == nil || !sameOwner(old, w) {
			c.doubt(a)
		}
		delete(before, a)
	}
	for a := range before {
		c.doubt(a)
	}
}

func sameOwner(a, b *model.Workload) bool {
	return a.Name == b.Name && (a.Unit == nil) == (b.Unit == nil) && (a.Unit == nil || a.Unit.Host == b.Unit.Host)
}

// doubt notes that hosts which claim a plain address, in whichever form, must be looked at.
func (c *claims) doubt(a netip.Addr) {
	c.disturb(a)
	if a.Is4() {
		c.disturb(netip.AddrFrom16(a.As16()))
	}
}

func (c *claims) disturb(a netip.Addr) {
	for _, h := range c.by[a] {
		c.dirty[h] = true
	}
}

// set takes what is known of a host in place of what was; nil if it is gone.
func (c *claims) set(name string, h *host) {
	if old := c.hosts[name]; old != nil {
		for _, a := range old.report.Addresses {
			c.disturb(a)
			if left := slices.DeleteFunc(c.by[a], func(x string) bool { return x == name }); len(left) == 0 {
				delete(c.by, a)
			} else {
				c.by[a] = left
			}
		}
	}
	c.dirty[name] = true
	if h == nil {
		delete(c.hosts, name)
		return
	}
	c.hosts[name] = h
	for _, a := range h.report.Addresses {
		c.disturb(a)
		if !slices.Contains(c.by[a], name) {
			c.by[a] = append(c.by[a], name)
		}
	}
}

// settle returns the report of a host without the addresses that belong to somebody else, what was taken from it, and whether
// it depends on who is connected; nil if there is no such host.
func (c *claims) settle(name string) (r *inventory.Report, problems []string, disputed bool) {
	h := c.hosts[name]
	if h == nil {
		return nil, nil, false
	}
	settled := h.report
	settled.Addresses = nil
	for _, a := range h.report.Addresses {
		holder := h
		for _, other := range c.by[a] {
			if x := c.hosts[other]; x != holder && x.before(holder, a) {
				holder = x
			}
		}
		switch w := c.owner(a, name); {
		case w != nil:
			problems = append(problems, takenByDocument(a, w))
		case holder != h:
			problems = append(problems, takenByHost(a, holder))
			disputed = true
		default:
			settled.Addresses = append(settled.Addresses, a)
		}
		if holder == h {
			disputed = disputed || slices.ContainsFunc(c.by[a], func(other string) bool { return other != name && c.owner(a, other) == nil })
		}
	}
	return &settled, problems, disputed
}

// owner returns the workload that has the address by a document, if that is neither the host nor a unit of it.
func (c *claims) owner(a netip.Addr, host string) *model.Workload {
	if w := c.declared[a.Unmap()]; w != nil && !of(w, host) {
		return w
	}
	return nil
}

func takenByDocument(a netip.Addr, w *model.Workload) string {
	return fmt.Sprintf("address %s is taken for that of workload %s, which declares it", a, w.Name)
}

func takenByHost(a netip.Addr, by *host) string {
	return fmt.Sprintf("address %s is taken for that of host %s, which reports it too", a, by.report.Host)
}

// before reports whether h has the address rather than other.
func (h *host) before(other *host, a netip.Addr) bool {
	if h.connected != other.connected {
		return h.connected
	}
	if c := h.since[a].Compare(other.since[a]); c != 0 {
		return c < 0
	}
	return strings.Compare(h.report.Host, other.report.Host) < 0
}

// of reports whether the workload is the host, or a unit of it.
func of(w *model.Workload, host string) bool {
	if w.Unit != nil {
		return w.Unit.Host == host
	}
	return w.Name == host
}
