// Package full writes the policy of a world out in full, for tests: what compression, sharing and lowering must not change.
package full

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
)

// Written is the policy of a world: for each subject a row for every peer there is, with a function
// of its own, which has a cell for every stretch of ports that no document cuts, and an alternative for every kind of
// process that some document tells from others. Each verdict is the oracle's. Nothing is merged, shared or left out, and
// nothing of package compile is asked but the numbers of identities.
type Written struct {
	docs      *model.Documents
	inv       *model.Inventory
	o         compile.Options
	peers     []peer
	ranges    []model.PortRange // those that no document cuts, of every protocol that one names, sorted
	processes []model.Process   // the most particular first
}

// peer is everybody who has an identity: who they may be, as far as the other end can tell.
type peer struct {
	id     model.IdentityID
	places []oracle.Place
}

// Write prepares the world that w was compiled from.
func Write(w *compile.World) *Written {
	x := &Written{docs: w.Documents(), inv: w.Inventory(), o: w.Options()}
	x.ranges = uncut(x.docs, x.inv)
	x.processes = kinds(x.docs)
	x.findPeers(w)
	return x
}

// Peers returns the identities that a peer may have in that direction, sorted. Zero is among them if some address is in
// no network.
func (x *Written) Peers(d model.Direction) []model.IdentityID {
	var out []model.IdentityID
	for i := range x.peers {
		if x.peers[i].places[0].Domain == "" || d == model.Egress {
			out = append(out, x.peers[i].id)
		}
	}
	return out
}

// Set writes out the policy set of a workload at one of its addresses. It counts the verdicts in it.
func (x *Written) Set(workload *model.Instance, addr netip.Addr) (set *hostpolicy.PolicySet, verdicts int) {
	return x.write([]oracle.Place{{Workload: workload, Addr: addr}})
}

// Isolation writes out the policy set of an isolated workload. It leaves open what is essential at any address.
func (x *Written) Isolation(workload *model.Instance) (set *hostpolicy.PolicySet, verdicts int) {
	isolated := *workload
	isolated.Quarantine = model.Quarantine{Level: model.QuarantineIsolate}
	selves := []oracle.Place{{Workload: &isolated}}
	for i, a := range workload.Addresses {
		if i == 0 {
			selves = nil
		}
		selves = append(selves, oracle.Place{Workload: &isolated, Addr: a})
	}
	return x.write(selves)
}

func (x *Written) write(selves []oracle.Place) (*hostpolicy.PolicySet, int) {
	set := &hostpolicy.PolicySet{}
	verdicts := 0
	for _, d := range model.Directions {
		t := set.Table(d)
		t.Funcs = []hostpolicy.Func{{{Ports: model.AnyPort}}} // which stays if nobody is judged by it
		for i := range x.peers {
			p := &x.peers[i]
			if p.places[0].Domain != "" && d == model.Ingress {
				continue // a name is what the source has resolved
			}
			f := x.function(d, selves, p.places)
			for k := range f {
				verdicts += 1 + len(f[k].When)
			}
			if p.id == 0 {
				t.Funcs[0] = f
				continue
			}
			t.Peers = append(t.Peers, hostpolicy.PeerFunc{Peer: p.id, Func: uint32(len(t.Funcs))})
			t.Funcs = append(t.Funcs, f)
		}
	}
	return set, verdicts
}

func (x *Written) function(d model.Direction, selves, others []oracle.Place) hostpolicy.Func {
	f := make(hostpolicy.Func, 0, 1+len(x.ranges))
	for _, r := range append([]model.PortRange{model.AnyPort}, x.ranges...) {
		proto := r.Proto
		if proto == model.ProtoAny {
			proto = unnamed
		}
		decide := func(p *model.Process) (best model.EndVerdict) {
			for i, self := range selves {
				self.Process = p
				v := oracle.Decide(x.docs, x.inv, x.o, d, self, others, proto, r.Lo)
				if i == 0 || v.Verdict > best.Verdict || v.Verdict == best.Verdict && essential(v.Rule) {
					best = v
				}
			}
			return best
		}
		v := decide(nil)
		c := hostpolicy.Cell{Ports: r, Verdict: v.Verdict, Rule: v.Rule}
		for i := range x.processes {
			v := decide(&x.processes[i])
			c.When = append(c.When, hostpolicy.Alternative{Process: x.processes[i], Verdict: v.Verdict, Rule: v.Rule})
		}
		f = append(f, c)
	}
	return f
}

// essential: what is so at any address of the subject comes first.
func essential(rule model.RuleID) bool { return rule == model.RuleDNS || rule == model.RuleTime }

// unnamed is a protocol that documents never name.
const unnamed model.Proto = 253

// uncut returns, for every protocol that something names, the longest ranges of ports that begin or end in none of
// those that documents and quarantines name.
func uncut(docs *model.Documents, inv *model.Inventory) []model.PortRange {
	edges := map[model.Proto][]int{}
	cut := func(r model.PortRange) {
		if r.Proto != model.ProtoAny {
			edges[r.Proto] = append(edges[r.Proto], int(r.Lo), int(r.Hi)+1)
		}
	}
	refs := func(list []model.PortRef) {
		for _, p := range list {
			if p.Service == "" {
				cut(p.Range)
			}
		}
	}
	cut(model.PortRange{Proto: model.ProtoTCP, Lo: 53, Hi: 53})
	cut(model.PortRange{Proto: model.ProtoUDP, Lo: 53, Hi: 53})
	cut(model.PortRange{Proto: model.ProtoUDP, Lo: 123, Hi: 123})
	for i := range docs.Services {
		for _, r := range docs.Services[i].Ports {
			cut(r)
		}
	}
	for i := range docs.Segments {
		refs(docs.Segments[i].Services)
	}
	for i := range docs.Policies {
		for k := range docs.Policies[i].Rules {
			refs(docs.Policies[i].Rules[k].On)
		}
	}
	for i := range docs.OneSided {
		for k := range docs.OneSided[i].Rules {
			r := &docs.OneSided[i].Rules[k]
			for _, p := range r.Ports {
				cut(p)
			}
			for _, n := range r.Named {
				for m := range inv.Instances {
					if port, err := strconv.ParseUint(inv.Instances[m].Labels[n.PortLabel()], 10, 16); err == nil {
						cut(model.PortRange{Proto: n.Proto, Lo: uint16(port), Hi: uint16(port)})
					}
				}
			}
		}
	}
	for i := range inv.Instances {
		for _, edge := range inv.Instances[i].Quarantine.InUse {
			cut(edge.Ports)
		}
	}
	var out []model.PortRange
	for proto, list := range edges {
		list = append(list, 0, 1<<16)
		slices.Sort(list)
		list = slices.Compact(list)
		for i, lo := range list[:len(list)-1] {
			out = append(out, model.PortRange{Proto: proto, Lo: uint16(lo), Hi: uint16(list[i+1] - 1)})
		}
	}
	slices.SortFunc(out, func(a, b model.PortRange) int { return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Lo, b.Lo)) })
	return out
}

// kinds returns a process for each set of constraints that some process meets and that documents name, but for those
// that meet none: what a process is judged by is which constraints it meets.
func kinds(docs *model.Documents) []model.Process {
	all := map[model.Process]bool{}
	add := func(peers []model.Peer) {
		for i := range peers {
			if peers[i].Process != nil {
				for p := range all {
					if both, ok := p.And(*peers[i].Process); ok {
						all[both] = true
					}
				}
				all[*peers[i].Process] = true
			}
		}
	}
	for i := range docs.Policies {
		for k := range docs.Policies[i].Rules {
			add(docs.Policies[i].Rules[k].From)
			add(docs.Policies[i].Rules[k].To)
		}
	}
	delete(all, model.Process{})
	var out []model.Process
	for p := range all {
		out = append(out, p)
	}
	fields := func(p model.Process) int {
		n := 0
		for _, f := range []string{p.Unit, p.Path, p.User} {
			if f != "" {
				n++
			}
		}
		return n
	}
	slices.SortFunc(out, func(a, b model.Process) int {
		return cmp.Or(fields(b)-fields(a), strings.Compare(a.String(), b.String()))
	})
	return out
}

// findPeers finds somebody for every identity that anybody has.
func (x *Written) findPeers(w *compile.World) {
	known := map[model.IdentityID]bool{}
	add := func(id model.IdentityID, places ...oracle.Place) {
		if !known[id] {
			known[id] = true
			x.peers = append(x.peers, peer{id, places})
		}
	}
	for i := range x.inv.Instances {
		inst := &x.inv.Instances[i]
		for _, at := range w.Workload(inst.Name).Points {
			add(at.Identity, oracle.Place{Workload: inst, Addr: at.Addr})
			if at.Seen != at.Identity {
				var all []oracle.Place
				for _, owner := range w.Owners(at.Addr) {
					all = append(all, oracle.Place{Workload: owner.Instance, Addr: at.Addr})
				}
				add(at.Seen, all...)
			}
		}
	}
	addrs := edgesOfNetworks(x.docs)
	for _, a := range addrs {
		if len(w.Owners(a)) == 0 {
			add(w.Unowned(a), oracle.Place{Addr: a})
		}
	}
	for _, a := range addrs {
		if len(w.Owners(a)) > 0 {
			continue
		}
		for _, pattern := range w.Domains() {
			name := pattern
			if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
				name = "zz-nobody" + suffix
			}
			if id := w.IdentityID(w.UnownedByName(a, name)); id != w.Unowned(a) {
				add(id, oracle.Place{Addr: a, Domain: name})
			}
		}
	}
	slices.SortFunc(x.peers, func(a, b peer) int { return cmp.Compare(a.id, b.id) })
}

// edgesOfNetworks returns addresses at which the networks that documents name begin, end, and are left, in both families.
func edgesOfNetworks(docs *model.Documents) []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("2001:db8:ffff::77")}
	add := func(list []netip.Prefix) {
		for _, p := range list {
			if p.Addr().Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			first := p.Masked().Addr()
			last := first.AsSlice()
			for bit := p.Bits(); bit < 8*len(last); bit++ {
				last[bit/8] |= 1 << (7 - bit%8)
			}
			end, _ := netip.AddrFromSlice(last)
			for _, a := range []netip.Addr{first, end, first.Prev(), end.Next(), first.Next(), end.Prev()} {
				if a.IsValid() {
					out = append(out, a.Unmap())
				}
			}
		}
	}
	for i := range docs.Networks {
		add(docs.Networks[i].CIDRs)
		add(docs.Networks[i].Except)
	}
	peers := func(list []model.Peer) {
		for i := range list {
			if list[i].Kind == model.PeerCIDR {
				add([]netip.Prefix{list[i].CIDR})
				add(list[i].Except)
			}
		}
	}
	for i := range docs.Policies {
		for k := range docs.Policies[i].Rules {
			peers(docs.Policies[i].Rules[k].From)
			peers(docs.Policies[i].Rules[k].To)
		}
	}
	for i := range docs.OneSided {
		for k := range docs.OneSided[i].Rules {
			peers(docs.OneSided[i].Rules[k].Peers)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
