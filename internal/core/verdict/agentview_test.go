package verdict

import (
	"math/rand/v2"
	"net/netip"
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

// TestAgentsView judges flows as the kernels of both hosts would, from nothing but what each agent is given, and
// compares with the evaluator.
func TestAgentsView(t *testing.T) {
	var pairs, viaOwner, viaShared, local int
	for seed := uint64(0); pairs < 100_000; seed++ {
		docs, inv, flows := policytest.Generate(seed, policytest.Small)
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
			if e.resolve(&flows[i], &c) != nil || !c.from.addr.IsValid() || !c.to.addr.IsValid() {
				continue
			}
			for _, d := range model.Directions {
				self, other := &c.to, &c.from
				if d == model.Egress {
					self, other = other, self
				}
				if !self.managed() {
					continue
				}
				pkt := hostpolicy.Packet{Workload: self.workload.Name, Dir: d, Local: self.addr, Remote: other.addr, Proto: c.proto, Port: c.port}
				if c.sameHost || self.workload == other.workload {
					pkt.RemoteWorkload = other.workload.Name
					local++
				}
				got, peer := judgeOf(self.workload).Judge(&pkt)
				want := e.end(&c, d)
				pairs++
				ambiguous := other.workload != nil && other.at.Seen != other.at.Identity
				if d == model.Egress && ambiguous && pkt.RemoteWorkload == "" && peer != other.at.Identity {
					// The address does not tell the workload: the most permissive there, or the owner of the port.
					viaShared++
					if peer != 0 && peer != other.at.Seen {
						viaOwner++
						continue
					}
					if got.Verdict < want.Verdict {
						t.Fatalf("seed %d flow %d %s: host denies %v, evaluator %v", seed, i, d, got, want)
					}
					continue
				}
				if got != want {
					t.Fatalf("seed %d flow %d %s: host says %v for identity %s, evaluator %v\npacket %+v", seed, i, d, got, peer, want, pkt)
				}
			}
		}
	}
	if viaOwner == 0 || viaShared == 0 || local == 0 {
		t.Errorf("the generated flows never met a shared address (%d), a port's owner (%d) or a socket of the same host (%d)", viaShared, viaOwner, local)
	}
}
