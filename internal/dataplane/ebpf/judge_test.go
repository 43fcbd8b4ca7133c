package ebpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/essential"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// openForTest opens a dataplane in a lab of its own.
func openForTest(t testing.TB, change func(*Config)) (*Dataplane, *dataplanetest.Bed) {
	t.Helper()
	b := dataplanetest.NewBed(t)
	d := b.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, change) })
	return d.(*Dataplane), b
}

func openAt(t testing.TB, at dataplanetest.Place, change func(*Config)) *Dataplane {
	t.Helper()
	cfg := DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS = at.CgroupRoot, at.BPFFS
	cfg.MaxConnections = 4096
	if change != nil {
		change(&cfg)
	}
	d, err := Open(cfg)
	if errors.Is(err, dataplane.ErrUnsupported) {
		dataplanetest.Cannot(t, "bpf", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// prober asks the programs for verdicts.
type prober struct {
	t testing.TB
	d *Dataplane
	p *ebpf.Program
	m *ebpf.Map
}

func newProber(t testing.TB, d *Dataplane) *prober {
	t.Helper()
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	d.resize(spec)
	all := map[string]*ebpf.Map{
		programsMapConfig: d.maps.Config, programsMapActive: d.maps.Active, programsMapSubjects: d.maps.Subjects,
		programsMapSubjectInfo: d.maps.SubjectInfo, programsMapAddresses: d.maps.Addresses,
		programsMapPrefixes: d.maps.Prefixes, programsMapPorts: d.maps.Ports, programsMapControllers: d.maps.Controllers,
		programsMapLocalSets: d.maps.LocalSets, programsMapLocalIdentities: d.maps.LocalIdentities,
		programsMapRows: d.maps.Rows, programsMapRanges: d.maps.Ranges, programsMapCounters: d.maps.Counters,
		programsMapProbes: d.maps.Probes, programsMapAlternatives: d.maps.Alternatives, programsMapUnits: d.maps.Units,
		programsMapExecutables: d.maps.Executables, programsMapLearnt: d.maps.Learnt, programsMapDomains: d.maps.Domains,
		programsMapMemories: d.maps.Memories,
	}
	for name := range spec.Maps {
		if all[name] == nil && name[0] != '.' { // constants stay
			delete(spec.Maps, name)
		}
	}
	p, err := loadOne(spec, programsProgBulkheadProbe, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &prober{t, d, p, d.maps.Probes}
}

var packet = make([]byte, 64)

// testUsers are the users that policytest names.
var testUsers = users{"www-data": 33}

// learn makes these the names of an address, as answers of resolvers would.
func (p *prober) learn(addr netip.Addr, names []string) {
	p.t.Helper()
	key := learntKey{Addr: addressOf(addr), Epoch: p.d.held.epoch}
	if err := p.d.maps.Learnt.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		p.t.Fatal(err)
	}
	var v addressNames
	n := 0
	for _, name := range names {
		if i := mostSpecific(p.d.held.patterns, name); i >= 0 {
			v.Slots[n] = uint64(i+1)<<32 | (sinceBoot()/1e9 + 3600)
			n++
		}
	}
	if n == 0 {
		return
	}
	if err := p.d.maps.Learnt.Put(&key, &v); err != nil {
		p.t.Fatal(err)
	}
}

// mostSpecific returns the index of the longest pattern that covers the name, or -1.
func mostSpecific(patterns []string, name string) int {
	best := -1
	for i, pattern := range patterns {
		suffix, wild := strings.CutPrefix(pattern, "*")
		if (pattern == name || wild && strings.HasSuffix(name, suffix)) &&
			(best < 0 || pattern == name || patterns[best] != name && len(pattern) > len(patterns[best])) {
			best = i
		}
	}
	return best
}

// ask returns the verdict on a packet to an address that has these names, and the identity it was judged for.
func (p *prober) ask(pkt *hostpolicy.Packet, names ...string) (model.EndVerdict, model.IdentityID) {
	p.t.Helper()
	v, peer, _ := p.put(pkt, false, names...)
	return v, peer
}

// askAgain does the same by way of what the programs remember, and keeps it in mind. It reports whether they did remember.
func (p *prober) askAgain(pkt *hostpolicy.Packet, names ...string) (v model.EndVerdict, peer model.IdentityID, recalled bool) {
	p.t.Helper()
	return p.put(pkt, true, names...)
}

func (p *prober) put(pkt *hostpolicy.Packet, recall bool, names ...string) (model.EndVerdict, model.IdentityID, bool) {
	p.t.Helper()
	number := func(w string) int {
		return slices.IndexFunc(p.d.held.subjects, func(s heldSubject) bool { return s.used && s.name == w })
	}
	var q programsProbe
	q.Flow.Laddr, q.Flow.Raddr = addressOf(pkt.Local), addressOf(pkt.Remote)
	q.Flow.Port, q.Flow.Proto, q.Flow.Dir = pkt.Port, uint8(pkt.Proto), uint8(pkt.Dir)
	q.Subject = uint32(number(pkt.Workload))
	p.learn(pkt.Remote, names)
	if pkt.RemoteWorkload != "" {
		q.Rsubject = uint16(number(pkt.RemoteWorkload) + 1)
	}
	q.User = nobody
	if recall {
		q.Recall = 1
	}
	if a := pkt.Process; a != nil {
		q.Unit, q.Path, q.User = numberOf(a.Unit), p.d.pathHash(a.Path), uint64(testUsers.number(a.User))
	}
	if err := p.m.Put(uint32(0), &q); err != nil {
		p.t.Fatal(err)
	}
	if ret, err := p.p.Run(&ebpf.RunOptions{Data: packet}); err != nil || ret != 1 {
		p.t.Fatalf("probe: %d, %v", ret, err)
	}
	if err := p.m.Lookup(uint32(0), &q); err != nil {
		p.t.Fatal(err)
	}
	v := model.EndVerdict{Verdict: model.Verdict(q.Decision.Verdict), Rule: p.d.names.Load().rule(q.Decision.Rule)}
	return v, model.IdentityID(q.Decision.Peer), q.Recalled != 0
}

// question is a packet about which the kernel was asked, and what it said.
type question struct {
	pkt   hostpolicy.Packet
	names []string
	v     model.EndVerdict
	peer  model.IdentityID
}

// TestJudgesLikeTheReference applies compiled policies of random worlds, one after the other, isolates some workloads,
// and asks the kernel and hostpolicy.Judge about the same packets; the kernel several times, as it remembers what it was asked.
func TestJudgesLikeTheReference(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	p := newProber(t, d)
	worlds, perHost := 40, 250
	if testing.Short() {
		worlds = 5
	}
	asked := 0
	verdicts := map[model.Verdict]int{}
	rules := map[model.RuleID]int{}
	forProcess, forName, again, recalled := 0, 0, 0, 0
	size := policytest.Small
	for seed := range worlds {
		docs, inv, _ := policytest.Generate(uint64(seed), size)
		w, err := compile.Compile(docs, inv, compile.Options{Now: policytest.Now, Controllers: []netip.AddrPort{
			netip.MustParseAddrPort("10.0.0.1:9443"), netip.MustParseAddrPort("[fd00::1]:9443"),
		}})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		for _, host := range w.Hosts() {
			pol, ok := w.HostPolicy(host)
			if !ok {
				t.Fatalf("seed %d: host %s has no policy", seed, host)
			}
			if _, err := d.Apply(t.Context(), &dataplane.State{Policy: pol, Users: testUsers}); err != nil {
				t.Fatalf("seed %d, host %s: %v", seed, host, err)
			}
			var isolated []string
			if r.IntN(3) == 0 {
				s := pol.Subjects[r.IntN(len(pol.Subjects))]
				isolated = append(isolated, s.Workload)
				if err := d.Isolate(t.Context(), s.Workload, true); err != nil {
					t.Fatal(err)
				}
			}
			judge := hostpolicy.NewJudge(pol.Isolated(isolated...))
			var before []question
			for range perHost {
				pkt := randomPacket(r, pol)
				names := randomNames(r, d.held.patterns, &pkt)
				pkt.Domain = names[0]
				want, wantPeer := judge.Judge(&pkt)
				for _, name := range names[1:] { // the most permissive counts
					other := pkt
					other.Domain = name
					v, peer := judge.Judge(&other)
					if v.Verdict > want.Verdict || v.Verdict == want.Verdict && peer < wantPeer {
						want, wantPeer = v, peer
					}
				}
				got, gotPeer := p.ask(&pkt, names...)
				if fixed := slices.Index(fixedRules, want.Rule); fixed > 0 && want.Rule != model.RuleOpen && pkt.Domain != "" {
					wantPeer = gotPeer // for what is essential no name is looked up
				}
				nameless := pkt
				nameless.Domain = ""
				if other, _ := judge.Judge(&nameless); other != want {
					forName++
				}
				asked++
				verdicts[want.Verdict]++
				rules[want.Rule]++
				unknown := pkt
				unknown.Process = nil
				if other, _ := judge.Judge(&unknown); other != want && len(names) == 1 {
					forProcess++
				}
				if got != want || gotPeer != wantPeer {
					t.Fatalf("seed %d, host %s, isolated %v, %+v:\nkernel    %v for %s\nreference %v for %s",
						seed, host, isolated, pkt, got, gotPeer, want, wantPeer)
				}
				before = append(before, question{pkt, names, got, gotPeer})
				for _, q := range []question{before[len(before)-1], before[r.IntN(len(before))], before[r.IntN(len(before))]} {
					v, peer, remembered := p.askAgain(&q.pkt, q.names...)
					if v != q.v || peer != q.peer {
						t.Fatalf("seed %d, host %s, isolated %v, %+v: %v for %s; again, remembered %v: %v for %s",
							seed, host, isolated, q.pkt, q.v, q.peer, remembered, v, peer)
					}
					again++
					if remembered {
						recalled++
					}
				}
			}
			for _, w := range isolated {
				if err := d.Isolate(t.Context(), w, false); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Logf("%d packets, verdicts %v, %d rules, %d decided by the process, %d by a name; %d of %d remembered",
		asked, verdicts, len(rules), forProcess, forName, recalled, again)
	if recalled < again/50 {
		t.Errorf("only %d of %d verdicts were remembered: the test shows little", recalled, again)
	}
	if forName < asked/500 {
		t.Errorf("only %d of %d packets were decided by a name: the test shows little", forName, asked)
	}
	if forProcess < asked/500 {
		t.Errorf("only %d of %d packets were decided by their process: the test shows little", forProcess, asked)
	}
	if !testing.Short() && asked < 50000 {
		t.Errorf("only %d packets", asked)
	}
	for _, v := range []model.Verdict{model.Allow, model.WouldDeny, model.Deny} {
		if verdicts[v] < asked/50 {
			t.Errorf("only %d of %d packets were %s: the test shows little", verdicts[v], asked, v)
		}
	}
	if c, err := d.Counters(); err != nil || c.Errors != 0 {
		t.Errorf("counters: %+v, %v", c, err)
	}
}

// randomPacket aims at what the policy tells apart: its addresses and the edges of its ranges.
func randomPacket(r *rand.Rand, p *hostpolicy.Policy) hostpolicy.Packet {
	s := p.Subjects[r.IntN(len(p.Subjects))]
	pkt := hostpolicy.Packet{Workload: s.Workload, Dir: model.Directions[r.IntN(2)]}
	v6 := r.IntN(3) == 0
	any := func() netip.Addr {
		for range 8 {
			if len(p.Addresses) == 0 {
				break
			}
			if a := inside(r, p.Addresses[r.IntN(len(p.Addresses))].Prefix); a.Is6() == v6 {
				return a
			}
		}
		if v6 {
			return netip.AddrFrom16([16]byte{0xfd, 1: byte(r.IntN(3)), 15: byte(r.IntN(9))})
		}
		return netip.AddrFrom4([4]byte{byte(r.IntN(224)), byte(r.IntN(2)), 0, byte(r.IntN(256))})
	}
	pkt.Local, pkt.Remote = any(), any()
	if len(s.Local) > 0 && r.IntN(2) == 0 {
		pkt.Local = s.Local[r.IntN(len(s.Local))].Addr
	}
	if r.IntN(4) == 0 {
		pkt.RemoteWorkload = p.Subjects[r.IntN(len(p.Subjects))].Workload
	}
	protos := []model.Proto{model.ProtoTCP, model.ProtoTCP, model.ProtoUDP, model.ProtoSCTP, model.ProtoICMP, model.ProtoICMPv6, 2, 255}
	pkt.Proto, pkt.Port = protos[r.IntN(len(protos))], uint16(r.IntN(65536))
	if set := p.Set(s.Set); r.IntN(8) != 0 {
		t := set.Table(pkt.Dir)
		row := hostpolicy.PeerFunc{} // nobody in particular
		if len(t.Peers) > 0 && r.IntN(4) != 0 {
			row = t.Peers[r.IntN(len(t.Peers))]
			for _, a := range p.Addresses {
				if a.Identity == row.Peer && r.IntN(2) == 0 {
					pkt.Remote = inside(r, a.Prefix)
				}
			}
		}
		f := t.Funcs[row.Func]
		i := r.IntN(len(f))
		if k := slices.IndexFunc(f, func(c hostpolicy.Cell) bool { return len(c.When) > 0 }); k >= 0 && r.IntN(2) == 0 {
			i = k
		}
		if c := f[i].Ports; c.Proto != model.ProtoAny {
			edges := []uint16{c.Lo, c.Hi, c.Lo - 1, c.Hi + 1, c.Lo + (c.Hi-c.Lo)/2}
			pkt.Proto, pkt.Port = c.Proto, edges[r.IntN(len(edges))]
		}
	}
	if r.IntN(20) == 0 && len(p.Controllers) > 0 {
		c := p.Controllers[r.IntN(len(p.Controllers))]
		pkt.Proto, pkt.Port = model.ProtoTCP, c.Port()
		if pkt.Dir == model.Egress {
			pkt.Remote = c.Addr()
		} else {
			pkt.Local = c.Addr()
		}
	}
	if len(p.Ports) > 0 && r.IntN(10) == 0 {
		o := p.Ports[r.IntN(len(p.Ports))]
		pkt.Remote, pkt.Proto, pkt.Port, pkt.Dir = o.Addr, o.Proto, o.Port, model.Egress
	}
	if r.IntN(4) != 0 {
		any := func(of ...string) string { return of[r.IntN(len(of))] }
		pkt.Process = &model.Process{
			Unit: any("payapi.service", "cron.service", "ssh.service"), Path: any("/usr/bin/curl", "/usr/bin/python3", "/bin/sh"),
			User: any("www-data", "1000", "0"),
		}
	}
	return pkt
}

// randomNames returns names of the remote address: at least one, of which "" is none. Several are all of patterns that the
// policy knows.
func randomNames(r *rand.Rand, patterns []string, pkt *hostpolicy.Packet) []string {
	if len(patterns) == 0 || pkt.Dir != model.Egress || r.IntN(2) == 0 {
		return []string{""}
	}
	name := func() string {
		p := patterns[r.IntN(len(patterns))]
		if suffix, wild := strings.CutPrefix(p, "*"); wild {
			return []string{"x", "a.b"}[r.IntN(2)] + suffix
		}
		return p
	}
	if r.IntN(3) != 0 {
		return []string{[]string{"unknown.invalid", name(), name(), name()}[r.IntN(4)]}
	}
	var out []string
	var of []int
	for range 2 + r.IntN(2) {
		n := name()
		if i := mostSpecific(patterns, n); !slices.Contains(of, i) {
			out, of = append(out, n), append(of, i)
		}
	}
	return out
}

// inside returns an address of the prefix, often its first or last, or one just outside.
func inside(r *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	fill := byte(r.IntN(3)) * 0x7f
	for i := range b {
		host := min(max(8*(i+1)-p.Bits(), 0), 8)
		b[i] |= fill & byte(1<<host-1)
	}
	a, _ := netip.AddrFromSlice(b)
	switch r.IntN(8) {
	case 0:
		if next := a.Next(); next.IsValid() {
			return next
		}
	case 1:
		if prev := a.Prev(); prev.IsValid() {
			return prev
		}
	}
	return a
}

// TestFixedEssentials compares the programs' list of essentials with the one that everybody else uses.
func TestFixedEssentials(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	p := newProber(t, d)
	deny := model.EndVerdict{Verdict: model.Deny, Rule: model.RuleDefaultDeny}
	table := hostpolicy.Table{Funcs: []hostpolicy.Func{{{Ports: model.AnyPort, Verdict: deny.Verdict, Rule: deny.Rule}}}}
	set := hostpolicy.PolicySet{Ingress: table, Egress: table}
	set.ID = set.ContentID()
	pol := &hostpolicy.Policy{
		Host: "h", Sets: []hostpolicy.PolicySet{set},
		Subjects: []hostpolicy.Subject{{Workload: "h", Identity: 1, Set: set.ID, Isolation: set.ID}},
	}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: pol}); err != nil {
		t.Fatal(err)
	}
	found := map[model.RuleID]bool{}
	try := func(proto model.Proto, port uint16) {
		pkt := hostpolicy.Packet{
			Workload: "h", Dir: model.Egress, Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2"),
			Proto: proto, Port: port,
		}
		want := deny
		if rule, ok := essential.Match(proto, port); ok {
			want = model.EndVerdict{Verdict: model.Allow, Rule: rule}
			found[rule] = true
		}
		if got, _ := p.ask(&pkt); got != want {
			t.Errorf("%s: %v instead of %v", model.PortRange{Proto: proto, Lo: port, Hi: port}, got, want)
		}
	}
	for typ := range 256 {
		try(model.ProtoICMP, model.ICMPPort(uint8(typ), 0))
		try(model.ProtoICMPv6, model.ICMPPort(uint8(typ), 3))
	}
	for port := range uint16(600) {
		try(model.ProtoUDP, port)
		try(model.ProtoTCP, port)
	}
	for _, e := range essential.Fixed {
		if !found[e.Rule] {
			t.Errorf("%s was never met", e.Rule)
		}
	}
}

func ExampleConfig() {
	cfg := DefaultConfig()
	fmt.Println(cfg.MaxRows, cfg.UDPTimeout)
	// Output: 524288 30s
}
