package world

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
	"bulkhead/internal/wire"
)

// life is a world to which things happen, and the agents of its hosts.
type life struct {
	*rand.Rand
	t     *testing.T
	what  string // the step, for messages
	world *World
	now   time.Time
	pool  []*model.Documents
	parts []model.Instance // to take parts of reports from
	units []string
	done  map[string]int

	revision uint64
	agents   map[string]*follower
}

// follower is the agent of a host: it holds what it was sent.
type follower struct {
	poked bool
	stop  func()
	has   *Outline // what it acknowledged last
	sent  *Draft   // not answered yet
	holds *hostpolicy.Policy
	slow  int // steps until it answers
}

func newLife(t *testing.T, seed uint64) *life {
	l := &life{Rand: rand.New(rand.NewPCG(seed, 11)), t: t, now: policytest.Now, done: map[string]int{}, agents: map[string]*follower{}, revision: 1}
	for k := range uint64(3) {
		docs, inv, _ := policytest.Generate(seed*3+k, policytest.Alternate(seed))
		docs.OneSided = nil // Kubernetes' do not come to the controller
		l.pool = append(l.pool, docs)
		l.parts = append(l.parts, inv.Instances...)
	}
	l.units = []string{"a.service", "b.service", "u/x"}
	for _, d := range l.pool {
		for i := range d.Workloads {
			if u := d.Workloads[i].Unit; u != nil {
				l.units = append(l.units, u.Name)
			}
		}
	}
	l.world = New(Config{
		Now: func() time.Time { return l.now }, Controllers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:443")},
	}, slog.New(slog.DiscardHandler))
	l.world.compiler.maxFunctions = 50 // so that the compiler is renewed now and then
	var reports []inventory.Report
	for range 4 {
		reports = append(reports, l.report())
	}
	if err := l.world.Load(l.documents(l.pool[0]), reports, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *life) documents(docs *model.Documents) *Documents {
	d, err := NewDocuments(l.revision, fmt.Sprint(l.revision), string(policy.Marshal(docs)))
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

func choose[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// hostNames are few, so that the same come again; some are those of units, found or declared.
func (l *life) hostName() string {
	if l.IntN(4) == 0 {
		return choose(l.Rand, []string{"new-1", "new-2", "new-1/a.service", "new-1/u"})
	}
	return choose(l.Rand, l.parts).Name
}

func (l *life) report() inventory.Report {
	r := inventory.Report{Host: l.hostName(), Labels: choose(l.Rand, l.parts).Labels}
	for range l.IntN(3) {
		r.Addresses = append(r.Addresses, choose(l.Rand, l.parts).Addresses...)
	}
	slices.SortFunc(r.Addresses, netip.Addr.Compare)
	r.Addresses = slices.Compact(r.Addresses)
	l.Shuffle(len(r.Addresses), func(i, j int) { r.Addresses[i], r.Addresses[j] = r.Addresses[j], r.Addresses[i] })
	for range l.IntN(3) {
		r.Units = append(r.Units, inventory.UnitReport{Name: choose(l.Rand, l.units)})
	}
	for range l.IntN(3) {
		r.Listeners = append(r.Listeners, inventory.ListenerReport{Unit: choose(l.Rand, l.units), Listener: model.Listener{Proto: model.ProtoTCP, Port: uint16(1 + l.IntN(500))}})
	}
	return r
}

// happen lets one thing happen.
func (l *life) happen() {
	w := l.world
	switch n := l.IntN(100); {
	case n < 30:
		l.done["report"]++
		w.SetReport(l.report())
	case n < 38:
		l.done["drop"]++
		w.DropReport(l.hostName())
	case n < 55:
		l.done["connect"]++
		w.SetConnected(l.hostName(), l.IntN(2) == 0)
	case n < 65:
		l.done["lease"]++
		x := inventory.Lease{Workload: l.hostName(), Level: model.QuarantineLevel(l.IntN(4))}
		if x.Level == model.QuarantineRestrict {
			x.InUse = []model.InUse{{Direction: choose(l.Rand, model.Directions[:]), Peer: l.hostName(), Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 1, Hi: 443}}}
		}
		w.SetLease(x)
	case n < 72:
		l.done["lift"]++
		w.DropLease(l.hostName())
	case n < 80:
		l.done["clock"]++
		l.now = l.now.Add(choose(l.Rand, []time.Duration{1, time.Minute, 2 * time.Hour}))
	default:
		l.apply()
	}
}

// apply applies other documents, with things that happen between trial and adoption, or finds that they are refused.
func (l *life) apply() {
	docs := *l.world.Snapshot().Documents().Parsed
	from := choose(l.Rand, l.pool)
	switch l.IntN(8) {
	case 0:
		docs = *from
	case 1:
		docs.Workloads = from.Workloads
	case 2:
		docs.Segments = with(docs.Segments, from.Segments, l.Rand, func(s *model.Segment) string { return s.Name })
	case 3:
		docs.Networks = with(docs.Networks, from.Networks, l.Rand, func(n *model.Network) string { return n.Name })
	case 4:
		docs.Services = with(docs.Services, from.Services, l.Rand, func(s *model.Service) string { return s.Name })
	case 5:
		docs.Workloads = with(docs.Workloads, from.Workloads, l.Rand, func(s *model.Workload) string { return s.Name })
	default:
		docs.Policies = with(docs.Policies, from.Policies, l.Rand, func(p *model.Policy) string { return p.Name })
	}
	if len(policy.Validate(&docs)) > 0 {
		l.done["invalid"]++
		return
	}
	l.revision++
	d := l.documents(&docs)
	before := l.world.Snapshot()
	c, err := l.world.Try(d)
	if err != nil {
		l.done["refused"]++
		return
	}
	if l.world.Snapshot() != before {
		l.t.Fatalf("%s: a trial is published", l.what)
	}
	if l.IntN(3) == 0 {
		l.done["between"]++
		l.world.SetReport(l.report())
	}
	l.done["apply"]++
	if err := l.world.Adopt(c, l.revision); err != nil {
		l.t.Fatalf("%s: %v", l.what, err)
	}
	if l.world.Snapshot().Revision() != l.revision {
		l.t.Fatalf("%s: revision %d, want %d", l.what, l.world.Snapshot().Revision(), l.revision)
	}
}

func with[T any](list, from []T, r *rand.Rand, name func(*T) string) []T {
	if len(from) == 0 || len(list) > 0 && r.IntN(4) == 0 {
		if len(list) == 0 {
			return list
		}
		at := r.IntN(len(list))
		return slices.Delete(slices.Clone(list), at, at+1)
	}
	x := choose(r, from)
	list = slices.Clone(list)
	at, found := slices.BinarySearchFunc(list, name(&x), func(a T, n string) int { return strings.Compare(name(&a), n) })
	if found {
		list[at] = x
		return list
	}
	return slices.Insert(list, at, x)
}

// serve lets agents come and go, draw and answer; all that were told to look do so if all is set.
func (l *life) serve(all bool) {
	for _, host := range slices.Sorted(maps.Keys(l.agents)) {
		a := l.agents[host]
		if a.stop == nil {
			continue
		}
		if a.sent != nil {
			if a.slow--; a.slow <= 0 || all {
				l.answer(host, a)
			}
		}
		if a.sent == nil && (all || l.IntN(2) == 0) {
			l.look(host, a)
		}
		if all && a.sent != nil {
			l.answer(host, a)
			l.look(host, a)
		}
	}
}

// look is what a stream does when it was told to look.
func (l *life) look(host string, a *follower) {
	if !a.poked {
		return
	}
	a.poked = false
	want := l.world.Wanted(host)
	if want == nil || a.holds != nil && want.Sum == a.holds.Hash() {
		if want != nil {
			a.has = want
		}
		return
	}
	a.sent, a.slow = l.world.Draw(host, a.has), l.IntN(6)
}

// answer lets an agent apply what it was sent: over the wire, as agents do, or not at all.
func (l *life) answer(host string, a *follower) {
	d := a.sent
	a.sent, a.poked = nil, true
	if l.IntN(10) == 0 {
		l.done["refused by the agent"]++
		a.has = nil
		return
	}
	var err error
	if d.Step != nil {
		l.done["steps"]++
		a.holds, err = wire.ApplyDelta(a.holds, wire.StepToProto(d.Step))
	} else {
		l.done["whole"]++
		a.holds, err = wire.PolicyFromProto(wire.PolicyToProto(d.Whole))
	}
	if err != nil {
		l.t.Fatalf("%s, host %s: %v", l.what, host, err)
	}
	if a.holds.Hash() != d.Want.Sum || a.holds.Revision != d.Want.Revision {
		l.t.Fatalf("%s, host %s: it holds %s of revision %d, and should %s of %d", l.what, host, a.holds.Hash().Short(), a.holds.Revision, d.Want.Sum.Short(), d.Want.Revision)
	}
	a.has = d.Want
}

// connect lets agents come and go.
func (l *life) connect() {
	for _, host := range judged(l.t, l.world).Hosts() {
		if l.agents[host] == nil && l.IntN(2) == 0 {
			l.agents[host] = &follower{}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(l.agents)) {
		a := l.agents[host]
		switch {
		case a.stop == nil && l.IntN(2) == 0:
			l.done["stream"]++
			a.poked = true
			a.stop = l.world.Watch(host, func() { a.poked = true })
		case a.stop != nil && l.IntN(12) == 0:
			l.done["stream ends"]++
			a.stop()
			a.stop, a.sent = nil, nil
		}
	}
}

func judged(t *testing.T, w *World) *compile.World {
	t.Helper()
	c, err := w.Snapshot().Compiled()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check compares all that the world says with the same inputs compiled from scratch.
func (l *life) check() {
	w, s := l.world, l.world.Snapshot()
	in := w.inputs(w.docs.Parsed)
	reports, problems, disputed := settle(in.docs, in.hosts)
	inv, refused, err := inventory.Accept(in.docs, reports, in.leases)
	if err != nil {
		l.t.Fatal(err)
	}
	for host, why := range refused {
		problems[host] = append(problems[host], "the report is not taken: "+why.Error())
		l.done["report refused"]++
	}
	l.done["problems"] += len(problems)
	if !reflect.DeepEqual(problems, s.Problems) {
		l.t.Fatalf("%s: problems %v, want %v", l.what, s.Problems, problems)
	}
	if !maps.Equal(disputed, s.disputed) {
		l.t.Fatalf("%s: disputed %v, want %v", l.what, s.disputed, disputed)
	}
	want, err := in.compile()
	if err != nil {
		l.t.Fatal(err)
	}
	judge := judged(l.t, w)
	for _, host := range append(want.Hosts(), "nobody", l.hostName()) {
		p, ok := want.HostPolicy(host)
		got, err := w.HostPolicy(host)
		if err != nil {
			l.t.Fatal(err)
		}
		if !ok {
			if got != nil {
				l.t.Fatalf("%s: host %s is there", l.what, host)
			}
			continue
		}
		p.Revision = l.revision
		if got == nil || got.Sum != p.Hash() || !bytes.Equal(encode(got.Policy), encode(p)) {
			l.t.Fatalf("%s, host %s:\ngot  %+v\nwant %+v", l.what, host, got, p)
		}
		if want.Workload(host).Host == "" { // it has no agent
			l.done["declared"]++
			continue
		}
		if o := w.Wanted(host); o.Sum != got.Sum || o.Revision != l.revision || !reflect.DeepEqual(o.Subjects, p.Subjects) {
			l.t.Fatalf("%s, host %s: outline %+v of %+v", l.what, host, o, p)
		}
		if again, _ := judge.HostPolicy(host); again.Hash() != got.Sum {
			l.t.Fatalf("%s, host %s: the snapshot judges by another policy", l.what, host)
		}
	}
	if n := len(want.Hosts()); n != len(w.compiler.live.Hosts()) {
		l.t.Fatalf("%s: %d hosts, want %d", l.what, len(w.compiler.live.Hosts()), n)
	}
	for host, a := range l.agents {
		if a.stop == nil || want.Workload(host) == nil || want.Workload(host).Host == "" {
			continue
		}
		if p, ok := want.HostPolicy(host); ok && !a.poked && a.sent == nil && a.holds.Hash() != p.Hash() {
			l.t.Fatalf("%s, host %s: nobody told its agent that it should have something else", l.what, host)
		}
	}
	l.checkSnapshot(s, want, inv)
}

func encode(p *hostpolicy.Policy) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(wire.PolicyToProto(p))
	if err != nil {
		panic(err)
	}
	return b
}

// checkSnapshot compares what readers see.
func (l *life) checkSnapshot(s *Snapshot, want *compile.World, inv *model.Inventory) {
	i := 0
	for inst := range s.Instances() {
		if i == len(inv.Instances) || fmt.Sprint(*inst) != fmt.Sprint(inv.Instances[i]) || s.Instance(inst.Name) != inst {
			l.t.Fatalf("%s: workload %d is %v", l.what, i, *inst)
		}
		for _, a := range inst.Addresses {
			var names, owners []string
			for _, o := range want.Owners(a) {
				names = append(names, o.Name)
			}
			for _, o := range s.Owners(a) {
				owners = append(owners, o.Name)
			}
			if !slices.Equal(owners, names) {
				l.t.Fatalf("%s: %s is of %v, want %v", l.what, a, owners, names)
			}
		}
		i++
	}
	if i != len(inv.Instances) || s.Len() != i || s.Instance("nobody") != nil {
		l.t.Fatalf("%s: %d workloads, want %d", l.what, s.Len(), len(inv.Instances))
	}
	at, ok := want.NextExpiry()
	if ok != !s.nextExpiry.IsZero() || ok && !at.Equal(s.nextExpiry) {
		l.t.Fatalf("%s: next expiry %v, want %v", l.what, s.nextExpiry, at)
	}
}

// TestWorldIsCompile: whatever happens, in whatever order, every host should have what the same inputs compiled from scratch
// give it, to the byte; readers see the same; and agents that take steps, skip some, refuse some, come and go, end there too.
func TestWorldIsCompile(t *testing.T) {
	seeds, steps := uint64(40), 40
	if testing.Short() {
		seeds = 10
	}
	done := map[string]int{}
	for seed := range seeds {
		l := newLife(t, seed)
		for k := range steps {
			l.what = fmt.Sprintf("seed %d, step %d", seed, k)
			for range 1 + l.IntN(3) {
				l.happen()
			}
			if err := l.world.Flush(); err != nil {
				t.Fatalf("%s: %v", l.what, err)
			}
			l.connect()
			l.serve(false)
			if l.IntN(3) == 0 {
				l.check()
			}
		}
		l.what = fmt.Sprintf("seed %d, in the end", seed)
		for range 5 {
			l.serve(true)
		}
		l.check()
		for what, n := range l.done {
			done[what] += n
		}
	}
	t.Log(done)
	for _, what := range []string{
		"report", "drop", "connect", "lease", "lift", "clock", "apply", "between", "problems", "report refused", "declared",
		"steps", "whole", "refused by the agent", "stream", "stream ends",
	} {
		if done[what] < 10 {
			t.Errorf("too few of kind %q", what)
		}
	}
}
