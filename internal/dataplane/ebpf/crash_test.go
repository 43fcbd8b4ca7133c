package ebpf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// bigPolicy makes a policy of n peers in which nothing is as in that of another version: every address has another
// identity, every rule another name, and what one allows the next denies.
func bigPolicy(version, n int) *hostpolicy.Policy {
	flip := version%2 == 0
	verdict := func(on bool) model.Verdict {
		if on == flip {
			return model.Allow
		}
		return model.Deny
	}
	name := func(s string) model.RuleID { return model.RuleID(fmt.Sprintf("v%d/%s", version, s)) }
	p := &hostpolicy.Policy{Host: "h", Revision: uint64(version)}
	table := hostpolicy.Table{Funcs: []hostpolicy.Func{
		cells(cell("any", verdict(false), name("default"))),
		cells(cell("any", verdict(true), name("rest")), cell("tcp/0-8079", verdict(true), name("rest")),
			cell("tcp/8080", verdict(false), name("one")), cell("tcp/8081-8999", verdict(true), name("rest")),
			cell("tcp/9000-9999", verdict(false), name("range")), cell("tcp/10000-65535", verdict(true), name("rest"))),
	}}
	for i := range n {
		id := model.IdentityID(version*1_000_000 + i + 1)
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(peerAddr(i), 32), Identity: id})
		table.Peers = append(table.Peers, hostpolicy.PeerFunc{Peer: id, Func: 1})
	}
	p.Addresses = append(p.Addresses, hostpolicy.Address{
		Prefix: netip.MustParsePrefix("192.168.0.0/16"), Identity: model.IdentityID(version*1_000_000 + 1),
	})
	slices.SortFunc(p.Addresses, func(a, b hostpolicy.Address) int { return hostpolicy.CompareAddresses(&a, &b) })
	set, isolation := hostpolicy.PolicySet{Ingress: table, Egress: table}, hostpolicy.PolicySet{
		Ingress: hostpolicy.Table{Funcs: []hostpolicy.Func{cells(cell("any", model.Deny, model.RuleIsolate))}},
		Egress:  hostpolicy.Table{Funcs: []hostpolicy.Func{cells(cell("any", model.Deny, model.RuleIsolate))}},
	}
	set.ID, isolation.ID = set.ContentID(), isolation.ContentID()
	p.Sets = []hostpolicy.PolicySet{set, isolation}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	p.Subjects = []hostpolicy.Subject{
		{Workload: "h", Identity: model.IdentityID(version + 1), Set: set.ID, Isolation: isolation.ID},
		{Workload: "h/a", Unit: "a", Identity: model.IdentityID(version + 2), Set: set.ID, Isolation: isolation.ID},
		{Workload: "h/b", Unit: "b", Identity: model.IdentityID(version + 3), Set: set.ID, Isolation: isolation.ID},
	}
	return p
}

func peerAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// judgesAs reports how many of many packets the kernel judges as the policy says, for all subjects.
func (p *prober) judgesAs(pol *hostpolicy.Policy, r *rand.Rand) (same, all int) {
	p.t.Helper()
	judge := hostpolicy.NewJudge(pol)
	for i := range 60 {
		for _, s := range pol.Subjects {
			pkt := hostpolicy.Packet{
				Workload: s.Workload, Dir: model.Directions[i%2], Local: netip.MustParseAddr("10.255.0.1"),
				Remote: peerAddr(r.IntN(len(pol.Addresses))), Proto: model.ProtoTCP,
				Port: []uint16{8080, 8079, 9000, 9500, 9999, 443}[i%6],
			}
			if i%10 == 9 {
				pkt.Remote = netip.AddrFrom4([4]byte{192, 168, byte(r.IntN(256)), 7})
			}
			want, wantPeer := judge.Judge(&pkt)
			got, gotPeer := p.ask(&pkt)
			all++
			if want.Verdict == got.Verdict && want.Rule == got.Rule && wantPeer == gotPeer {
				same++
			}
		}
	}
	return same, all
}

func (p *prober) mustJudgeAs(what string, pol *hostpolicy.Policy) {
	p.t.Helper()
	if same, all := p.judgesAs(pol, rand.New(rand.NewPCG(9, 9))); same != all {
		p.t.Errorf("%s: %d of %d packets are judged otherwise", what, all-same, all)
	}
}

// TestDeadBeforeTheSwitch leaves a policy half way.
func TestDeadBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	before, after := bigPolicy(0, 300), bigPolicy(1, 300)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: before}); err != nil {
		t.Fatal(err)
	}
	rows := d.held.size
	tr, err := d.plan(&dataplane.State{Policy: after})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.write(tr); err != nil {
		t.Fatal(err)
	}
	newProber(t, d).mustJudgeAs("written, not switched", before)
	d = reopen(t, d, bed)
	newProber(t, d).mustJudgeAs("taken over", before)
	if got := d.held.size; got != rows {
		t.Errorf("%v instead of %v", got, rows)
	}
	d.mustBeClean(t, before)
	if st, err := d.Apply(t.Context(), &dataplane.State{Policy: before}); err != nil || len(d.held.sets) != 2 {
		t.Errorf("the old one again: %+v, %v", st, err)
	}
	// What was left must not come alive with a later generation.
	for range 3 {
		for _, on := range []bool{true, false} {
			if err := d.Isolate(t.Context(), "h/a", on); err != nil {
				t.Fatal(err)
			}
		}
	}
	newProber(t, d).mustJudgeAs("some generations later", before)
	if st, err := d.Apply(t.Context(), &dataplane.State{Policy: after}); err != nil || st.Rows != d.held.rows() || d.held.size != rows {
		t.Errorf("the new one: %+v, %v", st, err)
	}
	newProber(t, d).mustJudgeAs("applied", after)
	d.mustBeClean(t, after)
}

// TestDeadAfterTheSwitch leaves the old policy behind.
func TestDeadAfterTheSwitch(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	before, after := bigPolicy(0, 300), bigPolicy(1, 200)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: before}); err != nil {
		t.Fatal(err)
	}
	tr, err := d.plan(&dataplane.State{Policy: after})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.write(tr); err != nil {
		t.Fatal(err)
	}
	d.switchTo(tr)
	d = reopen(t, d, bed)
	newProber(t, d).mustJudgeAs("taken over", after)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: after}); err != nil {
		t.Fatal(err)
	}
	newProber(t, d).mustJudgeAs("applied again", after)
	d.mustBeClean(t, after)
}

// reopen forgets a dataplane as if its agent had died, and takes it over.
func reopen(t testing.TB, d *Dataplane, bed *dataplanetest.Bed) *Dataplane {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) }).(*Dataplane)
}

// mustBeClean compares what the maps hold with what the policy needs.
func (d *Dataplane) mustBeClean(t testing.TB, p *hostpolicy.Policy) {
	t.Helper()
	var got, want budget.Cost
	for i := range p.Sets {
		want.Add(budget.OfSet(&p.Sets[i]))
	}
	var addresses int
	if _, err := d.eachRow(func(_ uint32, of budget.Resource) bool { got[of]++; return true }); err != nil {
		t.Fatal(err)
	}
	var a address
	var v versioned
	for it := d.maps.Addresses.Iterate(); it.Next(&a, &v); {
		addresses++
	}
	var n uint32
	var id uint64
	for it := d.maps.PolicySets.Iterate(); it.Next(&n, &id); {
		got[budget.Sets]++
	}
	single := 0
	for _, a := range p.Addresses {
		if a.Prefix.IsSingleIP() {
			single++
		}
	}
	if got != want || addresses != single {
		t.Errorf("the kernel holds %+v and %d addresses instead of %+v and %d", got, addresses, want, single)
	}
	if d.held.size != want {
		t.Errorf("%+v is accounted for instead of %+v", d.held.size, want)
	}
}

const victimEnv = "BULKHEAD_EBPF_VICTIM"

// TestVictim is not a test of its own: it is the agent that TestAgentCrash kills.
func TestVictim(t *testing.T) {
	place := os.Getenv(victimEnv)
	if place == "" {
		t.Skip("only as a part of TestAgentCrash")
	}
	cgroup, bpffs, _ := strings.Cut(place, "|")
	cfg := DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS, cfg.MaxConnections = cgroup, bpffs, 4096
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for version := 0; ; version++ {
		if _, err := d.Apply(context.Background(), &dataplane.State{Policy: bigPolicy(version%2, 2000)}); err != nil {
			t.Fatal(err)
		}
		if version == 1 {
			fmt.Println("ready")
		}
	}
}

// TestAgentCrash kills agents in the middle of applying policies: the kernel judges by the old one or by the new
// one, and the next agent finds its way.
func TestAgentCrash(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	policies := []*hostpolicy.Policy{bigPolicy(0, 2000), bigPolicy(1, 2000)}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	seen := map[int]int{}
	for round := range rounds {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		dataplanetest.KillVictim(t, victimEnv+"="+bed.Place.CgroupRoot+"|"+bed.Place.BPFFS, time.Duration(r.IntN(60))*time.Millisecond)

		// Verdicts as they are before any agent cleans up: the maps speak for themselves.
		d = bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) }).(*Dataplane)
		p := newProber(t, d)
		which := -1
		for i, pol := range policies {
			if same, all := p.judgesAs(pol, r); same == all {
				which = i
			}
		}
		if which < 0 {
			a, all := p.judgesAs(policies[0], r)
			b, _ := p.judgesAs(policies[1], r)
			t.Fatalf("round %d: of %d packets %d are judged by one policy and %d by the other", round, all, a, b)
		}
		seen[which]++
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: policies[1-which]}); err != nil {
			t.Fatal(err)
		}
		p.mustJudgeAs("the next agent's policy", policies[1-which])
		d.mustBeClean(t, policies[1-which])
	}
	t.Logf("found in force: %v", seen)
}

// TestRefused offers what does not fit or cannot be expressed: the old policy stays, whole.
func TestRefused(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) {
		c.MaxRows, c.MaxRanges, c.MaxAddresses, c.MaxPrefixes, c.MaxSubjects = 2000, 40000, 1200, 16, 3
	})
	p := newProber(t, d)
	old := bigPolicy(0, 300)
	state := func(pol *hostpolicy.Policy) *dataplane.State { return &dataplane.State{Policy: pol} }
	if _, err := d.Apply(t.Context(), state(old)); err != nil {
		t.Fatal(err)
	}
	prefixes := bigPolicy(1, 10)
	for i := range 20 {
		prefixes.Addresses = append(prefixes.Addresses, hostpolicy.Address{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{200, byte(i), 0, 0}), 16), Identity: 1,
		})
	}
	subjects := bigPolicy(1, 10)
	subjects.Subjects = append(subjects.Subjects, hostpolicy.Subject{
		Workload: "h/c", Unit: "c", Set: subjects.Sets[0].ID, Isolation: subjects.Sets[0].ID,
	})
	long := bigPolicy(1, 10)
	long.Subjects[1].Workload += strings.Repeat("x", 300)
	twoHosts := bigPolicy(1, 10)
	twoHosts.Subjects = twoHosts.Subjects[1:]
	for name, tt := range map[string]struct {
		state *dataplane.State
		says  string
	}{
		"rows":      {state(bigPolicy(1, 900)), "policy rows do not fit"},
		"addresses": {state(bigPolicy(1, 1000)), "do not fit"},
		"prefixes":  {state(prefixes), "prefixes"},
		"subjects":  {state(subjects), "subjects do not fit"},
		"names":     {state(long), "longer than"},
		"no host":   {state(twoHosts), "the host itself"},
		"a cgroup elsewhere": {&dataplane.State{
			Policy: bigPolicy(1, 10), Units: map[string][]string{"a": {filepath.Dir(bed.Place.CgroupRoot)}},
		}, "is not below"},
		"a cgroup of two": {&dataplane.State{
			Policy: bigPolicy(1, 10), Units: map[string][]string{"a": {bed.Unit("one")}, "b": {bed.Unit("one")}},
		}, "another unit"},
		"no cgroup at all": {&dataplane.State{
			Policy: bigPolicy(1, 10), Units: map[string][]string{"a": {t.TempDir()}},
		}, "not a cgroup"},
	} {
		st, err := d.Apply(t.Context(), tt.state)
		if !errors.Is(err, dataplane.ErrRefused) || !strings.Contains(err.Error(), tt.says) || st.Changed {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
	p.mustJudgeAs("after refusals", old)
	d.mustBeClean(t, old)
	if st, err := d.Apply(t.Context(), state(old)); err != nil || st.Changed {
		t.Errorf("the old one again: %+v, %v", st, err)
	}
}

// TestKernelRefuses makes a map full behind the dataplane's back, so that writing fails half way.
func TestKernelRefuses(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, func(c *Config) { c.MaxRows, c.MaxAddresses = 4000, 4000 })
	p := newProber(t, d)
	old := bigPolicy(0, 300)
	var next *hostpolicy.Policy
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: old}); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]struct {
		fill, empty func() error
	}{
		"addresses": {
			func() error {
				var keys []address
				for i := range 4000 - 400 {
					keys = append(keys, address{9, 9, 9, uint32(i)})
				}
				return putAll(d.maps.Addresses, keys, make([]versioned, len(keys)))
			},
			func() error {
				for i := range 4000 - 400 {
					if err := d.maps.Addresses.Delete(address{9, 9, 9, uint32(i)}); err != nil {
						return err
					}
				}
				return nil
			},
		},
		"rows": {
			func() error {
				for i := range 4000 - d.held.size[budget.Rows] - 100 {
					if err := d.maps.Rows.Put(rowKey{Pset: 1 << 20, Peer: uint64(i)}, row{}); err != nil {
						return err
					}
				}
				return nil
			},
			func() error {
				_, err := countRows[rowKey, row](d.maps.Rows, func(k rowKey) bool { return k.Pset != 1<<20 })
				return err
			},
		},
	} {
		if err := m.fill(); err != nil {
			t.Fatal(err)
		}
		if name == "addresses" {
			// 300 are there already and keep their keys, so it takes new ones to fail.
			next = bigPolicy(1, 900)
		} else {
			next = bigPolicy(1, 300)
		}
		st, err := d.Apply(t.Context(), &dataplane.State{Policy: next})
		if !errors.Is(err, dataplane.ErrRefused) || st.Changed {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
		p.mustJudgeAs(name+" full", old)
		if err := m.empty(); err != nil {
			t.Fatal(err)
		}
		d.mustBeClean(t, old)
		if err := d.Isolate(t.Context(), "h/a", true); err != nil {
			t.Fatal(err)
		}
		if err := d.Isolate(t.Context(), "h/a", false); err != nil {
			t.Fatal(err)
		}
		p.mustJudgeAs(name+", some generations later", old)
	}
	next = bigPolicy(1, 300)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: next}); err != nil {
		t.Fatal(err)
	}
	p.mustJudgeAs("with room again", next)
	d.mustBeClean(t, next)
}

// TestRemoveLeavesNothing looks for what is left of links, pins and programs.
func TestRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: bigPolicy(0, 10)}); err != nil {
		t.Fatal(err)
	}
	var ids []link.ID
	for _, l := range d.links {
		info, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, info.ID)
	}
	if len(ids) != len(attachments) {
		t.Errorf("%d links instead of %d", len(ids), len(attachments))
	}
	if entries, err := os.ReadDir(bed.Place.BPFFS); err != nil || len(entries) != 1 {
		t.Errorf("pinned: %v, %v", entries, err)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if l, err := link.NewFromID(id); err == nil {
			t.Errorf("link %d is still there", id)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := os.Stat(bed.Place.BPFFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of pins: %v", err)
	}
	if err := Uninstall(bed.Place.BPFFS); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}
