package wire

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// randomPolicy returns a well-formed policy of host h with up to a dozen entries of each kind, drawn from small
// ranges so that two of them have much in common.
func randomPolicy(r *rand.Rand) *hostpolicy.Policy {
	p := &hostpolicy.Policy{Revision: r.Uint64N(100), Host: "h"}
	for range 1 + r.IntN(4) {
		s := hostpolicy.PolicySet{Ingress: randomTable(r), Egress: randomTable(r)}
		s.ID = s.ContentID()
		p.Sets = append(p.Sets, s)
	}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	p.Sets = slices.CompactFunc(p.Sets, func(a, b hostpolicy.PolicySet) bool { return a.ID == b.ID })
	set := func() hostpolicy.PolicySetID { return p.Sets[r.IntN(len(p.Sets))].ID }

	for i := range 6 {
		if r.IntN(3) == 0 {
			continue
		}
		s := hostpolicy.Subject{
			Workload:    "w" + strconv.Itoa(i),
			Identity:    model.IdentityID(r.Uint64N(3)),
			Set:         set(),
			Isolation:   set(),
			Quarantine:  model.QuarantineLevel(r.IntN(4)),
			OnAgentLoss: model.OnAgentLoss(r.IntN(3)),
		}
		if r.IntN(2) == 0 {
			s.Unit = "u" + strconv.Itoa(i)
		}
		if r.IntN(4) == 0 {
			s.Local = []hostpolicy.LocalSet{{Addr: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Identity: 7, Set: set()}}
		}
		p.Subjects = append(p.Subjects, s)
	}
	slices.SortFunc(p.Subjects, func(a, b hostpolicy.Subject) int { return hostpolicy.CompareSubjects(&a, &b) })

	for i := range 8 {
		bits := []int{8, 24, 32}[r.IntN(3)]
		prefix, _ := netip.AddrFrom4([4]byte{10, byte(i % 3), 0, byte(i)}).Prefix(bits)
		if i > 4 {
			prefix, _ = netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}).Prefix([]int{64, 128}[r.IntN(2)])
		}
		p.Addresses = append(p.Addresses, hostpolicy.Address{
			Prefix: prefix, Identity: model.IdentityID(r.Uint64N(3)), Shared: r.IntN(3) == 0,
		})
	}
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	p.Addresses = slices.CompactFunc(p.Addresses, func(a, b hostpolicy.Address) bool { return a.Prefix == b.Prefix })

	for i := range 5 {
		if r.IntN(2) == 0 {
			continue
		}
		p.Ports = append(p.Ports, hostpolicy.PortOwner{
			Addr:     netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(2))}),
			Proto:    model.ProtoTCP,
			Port:     uint16(80 + i),
			Identity: model.IdentityID(r.Uint64N(3)),
		})
	}
	slices.SortFunc(p.Ports, func(a, b hostpolicy.PortOwner) int { return hostpolicy.ComparePorts(&a, &b) })

	for i := range r.IntN(3) {
		p.Controllers = append(p.Controllers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7443))
	}
	for i := range r.IntN(3) {
		p.Domains = append(p.Domains, hostpolicy.Domain{
			Pattern: []string{"*.example.org", "api.example.org"}[i], Base: model.IdentityID(r.Uint64N(3)), Identity: model.IdentityID(r.Uint64N(3)),
		})
	}
	return p
}

func randomTable(r *rand.Rand) hostpolicy.Table {
	var t hostpolicy.Table
	for range 1 + r.IntN(3) {
		t.Funcs = append(t.Funcs, randomFunc(r))
	}
	for i := range 4 {
		if r.IntN(2) == 0 {
			t.Peers = append(t.Peers, hostpolicy.PeerFunc{
				Peer: model.IdentityID(i + 1), Func: uint32(r.IntN(len(t.Funcs))),
			})
		}
	}
	return t
}

func randomFunc(r *rand.Rand) hostpolicy.Func {
	verdict := func() model.Verdict { return model.Verdict(r.IntN(3)) }
	rule := func() model.RuleID { return model.NamedRule("p", "r"+strconv.Itoa(r.IntN(3))) }
	f := hostpolicy.Func{{Ports: model.AnyPort, Verdict: verdict(), Rule: rule()}}
	for _, p := range []model.Process{{Unit: "a.service"}, {Path: "/bin/a", User: "a"}} {
		if r.IntN(4) == 0 {
			f[0].When = append(f[0].When, hostpolicy.Alternative{Process: p, Verdict: verdict(), Rule: rule()})
		}
	}
	for _, proto := range []model.Proto{model.ProtoTCP, model.ProtoUDP} {
		if r.IntN(2) == 0 {
			continue
		}
		split := uint16(r.IntN(65535))
		f = append(f,
			hostpolicy.Cell{Ports: model.PortRange{Proto: proto, Lo: 0, Hi: split}, Verdict: verdict(), Rule: rule()},
			hostpolicy.Cell{Ports: model.PortRange{Proto: proto, Lo: split + 1, Hi: 65535}, Verdict: verdict(), Rule: rule()})
	}
	return f
}

// overTheWire encodes and decodes m, as the stream does.
func overTheWire[M proto.Message](t testing.TB, m, empty M) M {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, empty); err != nil {
		t.Fatal(err)
	}
	return empty
}

func TestPolicyRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		p := randomPolicy(r)
		got, err := PolicyFromProto(overTheWire(t, PolicyToProto(p), &pb.HostPolicy{}))
		if err != nil {
			t.Fatalf("%v\npolicy: %+v", err, p)
		}
		if diff := cmp.Diff(p, got, compareAddrs); diff != "" {
			t.Fatalf("policy changed on the way (-sent +received):\n%s", diff)
		}
		if got.Hash() != p.Hash() {
			t.Fatal("the hash changed on the way")
		}
	}
}

func TestDeltaLeadsToNewPolicy(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 1000 {
		old, new := randomPolicy(r), randomPolicy(r)
		before := old.Hash()
		got, err := ApplyDelta(old, overTheWire(t, Diff(old, new), &pb.HostPolicyDelta{}))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(new, got, compareAddrs); diff != "" {
			t.Fatalf("delta leads elsewhere (-want +got):\n%s", diff)
		}
		if old.Hash() != before {
			t.Fatal("applying a delta changed its base")
		}
	}
}

func TestDeltaOfEqualPoliciesCarriesTheRevisionAlone(t *testing.T) {
	old := randomPolicy(rand.New(rand.NewPCG(3, 3)))
	next := *old
	next.Revision = old.Revision + 7
	d := Diff(old, &next)
	h := old.Hash()
	want := &pb.HostPolicyDelta{Revision: next.Revision, Base: h[:], Result: h[:]}
	if !proto.Equal(d, want) {
		t.Errorf("delta %v, want %v", d, want)
	}
	got, err := ApplyDelta(old, d)
	if err != nil || got.Revision != next.Revision {
		t.Errorf("revision %d, error %v; want revision %d", got.Revision, err, next.Revision)
	}
}

func TestDeltaNamesOnlyWhatChanged(t *testing.T) {
	old := randomPolicy(rand.New(rand.NewPCG(4, 4)))
	next := *old
	next.Addresses = slices.Clone(old.Addresses)
	next.Addresses[2].Identity += 100
	d := Diff(old, &next)
	if len(d.UpsertAddresses) != 1 || len(d.RemoveAddresses)+len(d.UpsertSets)+len(d.UpsertSubjects)+len(d.UpsertPorts) != 0 {
		t.Errorf("delta for one changed address: %v", d)
	}
}

func TestChainOfDeltas(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	here, there := randomPolicy(r), (*hostpolicy.Policy)(nil)
	there = here
	for step := range 200 {
		next := randomPolicy(r)
		got, err := ApplyDelta(here, Diff(there, next))
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		here, there = got, next
	}
	if here.Hash() != there.Hash() {
		t.Error("both ends differ after a chain of deltas")
	}
}

func TestAddresses(t *testing.T) {
	for _, s := range []string{"10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "::1"} {
		a := netip.MustParseAddr(s)
		got, err := AddrFromProto(AddrToProto(a))
		if err != nil || got != a.Unmap() {
			t.Errorf("%s came back as %v, %v", s, got, err)
		}
	}
	mapped := netip.MustParseAddr("::ffff:10.1.2.3").As16()
	if got, err := AddrFromProto(mapped[:]); err != nil || !got.Is4() {
		t.Errorf("16 bytes of a mapped address: %v, %v; want IPv4", got, err)
	}
	for _, n := range []int{0, 3, 5, 15, 17} {
		if a, err := AddrFromProto(make([]byte, n)); err == nil {
			t.Errorf("%d bytes are address %v, want an error", n, a)
		}
	}
	if a, err := OptionalAddrFromProto(nil); err != nil || a.IsValid() {
		t.Errorf("no bytes: %v, %v; want the invalid address", a, err)
	}
}

func TestEnumerations(t *testing.T) {
	for _, v := range []model.Verdict{model.Deny, model.WouldDeny, model.Allow} {
		if got, err := VerdictFromProto(VerdictToProto(v)); err != nil || got != v {
			t.Errorf("verdict %s came back as %s, %v", v, got, err)
		}
	}
	for _, d := range model.Directions {
		if got, err := DirectionFromProto(DirectionToProto(d)); err != nil || got != d {
			t.Errorf("direction %s came back as %s, %v", d, got, err)
		}
	}
	for l := model.QuarantineNone; l <= model.QuarantineIsolate; l++ {
		if got, err := LevelFromProto(LevelToProto(l)); err != nil || got != l {
			t.Errorf("level %s came back as %s, %v", l, got, err)
		}
	}
	for _, n := range []int32{-1, 4, 99} {
		if v, err := VerdictFromProto(pb.Verdict(n)); err == nil {
			t.Errorf("verdict %d is %s, want an error", n, v)
		}
		if l, err := LevelFromProto(pb.QuarantineLevel(n)); err == nil {
			t.Errorf("level %d is %s, want an error", n, l)
		}
		if l, err := LossFromProto(pb.OnAgentLoss(n)); err == nil {
			t.Errorf("on-agent-loss %d is %s, want an error", n, l)
		}
		if d, err := DirectionFromProto(pb.Direction(n)); err == nil {
			t.Errorf("direction %d is %s, want an error", n, d)
		}
	}
	if _, err := HashFromProto(bytes.Repeat([]byte{1}, 31)); err == nil {
		t.Error("a hash of 31 bytes was taken")
	}
}

func BenchmarkApplyDelta(b *testing.B) {
	r := rand.New(rand.NewPCG(6, 6))
	old := randomPolicy(r)
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)})
		old.Addresses = append(old.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(a, 32), Identity: 1})
	}
	slices.SortFunc(old.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	next := *old
	next.Addresses = slices.Clone(old.Addresses)
	next.Addresses[5000].Identity = 2
	d := Diff(old, &next)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ApplyDelta(old, d); err != nil {
			b.Fatal(err)
		}
	}
}
