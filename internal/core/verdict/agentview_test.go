package verdict

import (
	"math/rand/v2"
	"net/netip"
	"sort"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
)

// controllersOf picks controller addresses: some at workloads, one that nobody owns.
func controllersOf(seed uint64, inv *model.Inventory) []netip.AddrPort {
	r := rand.New(rand.NewPCG(seed, 1))
	out := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.5:8443")}
	for range r.IntN(3) {
		i := inv.Instances[r.IntN(len(inv.Instances))]
		if len(i.Addresses) > 0 {
			out = append(out, netip.AddrPortFrom(i.Addresses[r.IntN(len(i.Addresses))], []uint16{443, 8443, 5432}[r.IntN(3)]))
		}
	}
	return out
}

func indexOf(w *compile.World, id model.IdentityID) int32 {
	for i := int32(0); ; i++ {
		if w.IdentityID(i) == id {
			return i
		}
	}
}

// seatOf returns the workload at the address.
func seatOf(w *compile.World, wl *compile.Workload, addr netip.Addr) *compile.Seat {
	seat := *w.Find(wl.Name)
	at := wl.At(addr)
	seat.Exact, seat.Seen = indexOf(w, at.Identity), indexOf(w, at.Seen)
	return &seat
}

// ownerOf returns the workload at the remote address that the destination port tells: the one with the most exactly
// bound socket, if workloads of one identity have it.
func ownerOf(w *compile.World, pkt *hostpolicy.Packet) *compile.Workload {
	for _, bound := range []func(at netip.Addr) bool{
		func(at netip.Addr) bool { return at == pkt.Remote },
		func(at netip.Addr) bool { return at.IsUnspecified() && at.Is4() == pkt.Remote.Is4() },
		func(at netip.Addr) bool { return at == netip.IPv6Unspecified() },
	} {
		var found *compile.Workload
		for _, wl := range w.Owners(pkt.Remote) {
			for _, l := range wl.Listening {
				if l.Proto != pkt.Proto || l.Port != pkt.Port || !bound(l.Addr) {
					continue
				}
				if found != nil && found.At(pkt.Remote).Identity != wl.At(pkt.Remote).Identity {
					return nil
				}
				found = wl
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// towards judges the egress end as if the destination were the workload of that seat.
func (e *Evaluator) towards(c *connection, seat *compile.Seat) model.EndVerdict {
	to := *c
	to.to = party{end: &model.End{Addr: e.address(&c.to)}, seat: seat, given: true}
	return e.end(&to, model.Egress)
}

func (e *Evaluator) mostPermissive(c *connection, owners []*compile.Workload, at netip.Addr) model.EndVerdict {
	sort.SliceStable(owners, func(i, k int) bool { return owners[i].Labels.String() < owners[k].Labels.String() })
	var best model.EndVerdict
	for i, o := range owners {
		if v := e.towards(c, seatOf(e.world, o, at)); i == 0 || v.Verdict > best.Verdict {
			best = v
		}
	}
	return best
}

// TestAgentsView judges flows as the kernels of both hosts would, from nothing but what each agent is given, and
// compares with the evaluator.
func TestAgentsView(t *testing.T) {
	var pairs, viaOwner, viaShared, local int
	for seed := uint64(0); pairs < 100_000; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Alternate(seed))
		o := compile.Options{Now: policytest.Now, Controllers: controllersOf(seed, inv)}
		w, err := compile.Compile(docs, inv, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		e := New(w)
		judges := map[string]*hostpolicy.Judge{}
		judgeOf := func(wl *compile.Workload) *hostpolicy.Judge {
			host := wl.Host
			if host == "" {
				host = wl.Name
			}
			if judges[host] == nil {
				p, ok := w.HostPolicy(host)
				if !ok {
					t.Fatalf("seed %d: no policy for host %q", seed, host)
				}
				if err := p.Check(); err != nil {
					t.Fatalf("seed %d host %q: %v", seed, host, err)
				}
				judges[host] = hostpolicy.NewJudge(p)
			}
			return judges[host]
		}
		for i := range flows {
			var c connection
			if e.resolve(&flows[i], &c) != nil || !e.address(&c.from).IsValid() || !e.address(&c.to).IsValid() {
				continue
			}
			for _, d := range model.Directions {
				self, other := &c.to, &c.from
				if d == model.Egress {
					self, other = other, self
				}
				if self.seat == nil || !self.seat.Managed {
					continue
				}
				pkt := hostpolicy.Packet{
					Workload: w.Of(self.seat).Name, Dir: d, Local: e.address(self), Remote: e.address(other), Proto: c.flow.Proto, Port: c.flow.Port,
					Process: c.process(d), Domain: c.flow.ToDomain,
				}
				if c.sameHost || other.seat != nil && self.seat.Workload == other.seat.Workload {
					pkt.RemoteWorkload = w.Of(other.seat).Name
					local++
				}
				got, peer := judgeOf(w.Of(self.seat)).Judge(&pkt)
				want := e.end(&c, d)
				if want.Rule == model.RuleOwnNode {
					continue // what runs on a node is what its agent finds there, not what it is told
				}
				pairs++
				if d == model.Egress && other.seat != nil && pkt.RemoteWorkload == "" && other.seat.Seen != other.seat.Exact {
					// The address does not tell the workload: the owner of the port counts, or the most permissive there.
					viaShared++
					if owner := ownerOf(w, &pkt); owner != nil {
						viaOwner++
						want = e.towards(&c, seatOf(w, owner, pkt.Remote))
					} else {
						want = e.mostPermissive(&c, w.Owners(pkt.Remote), pkt.Remote)
					}
				}
				if got != want && want.Rule != model.RuleOwnNode {
					t.Fatalf("seed %d flow %d %s: host says %v for identity %s, evaluator %v\npacket %+v", seed, i, d, got, peer, want, pkt)
				}
			}
		}
	}
	if viaOwner == 0 || viaShared == 0 || local == 0 {
		t.Errorf("the generated flows never met a shared address (%d), a port's owner (%d) or a socket of the same host (%d)", viaShared, viaOwner, local)
	}
}
