package ebpf

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// TestSubjectGone asks for a verdict on behalf of a subject that is no more, as a program does that found it just before
// policy changed: it is the host's.
func TestSubjectGone(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	p := newProber(t, d)
	with, without := bigPolicy(0, 10), bigPolicy(1, 10)
	without.Subjects = without.Subjects[:1]
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: with, Units: units}); err != nil {
		t.Fatal(err)
	}
	number := uint32(1)
	if name := d.held.subjects[number].name; name != "h/a" {
		t.Fatalf("subject %d is %q", number, name)
	}
	for generation := range 3 {
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: without}); err != nil {
			t.Fatal(err)
		}
		for bank := range d.subjects[number].State {
			if s := d.subjects[number].State[bank].Load(); bank == int(d.gen&1) && s != 0 {
				t.Errorf("generation %d: the subject that is gone has state %x", generation, s)
			}
		}
		pkt := hostpolicy.Packet{
			Workload: "h", Dir: model.Egress, Local: netip.MustParseAddr("10.255.0.1"), Remote: peerAddr(3),
			Proto: model.ProtoTCP, Port: 8080,
		}
		want, _ := p.ask(&pkt)
		if got := p.askAs(number, &pkt); got != want || got.Rule == model.RuleOpen {
			t.Errorf("generation %d: %v instead of the host's %v", generation, got, want)
		}
		without.Addresses[0].Identity++ // so that the next one changes something
	}
}

// askAs returns the verdict for a subject by its number.
func (p *prober) askAs(subject uint32, pkt *hostpolicy.Packet) model.EndVerdict {
	p.t.Helper()
	var q programsProbe
	q.Flow.Laddr, q.Flow.Raddr = addressOf(pkt.Local), addressOf(pkt.Remote)
	q.Flow.Port, q.Flow.Proto, q.Flow.Dir = pkt.Port, uint8(pkt.Proto), uint8(pkt.Dir)
	q.Subject = subject
	if err := p.m.Put(uint32(0), &q); err != nil {
		p.t.Fatal(err)
	}
	if ret, err := p.p.Run(&ebpf.RunOptions{Data: packet}); err != nil || ret != 1 {
		p.t.Fatalf("probe: %d, %v", ret, err)
	}
	if err := p.m.Lookup(uint32(0), &q); err != nil {
		p.t.Fatal(err)
	}
	return model.EndVerdict{Verdict: model.Verdict(q.Decision.Verdict), Rule: p.d.names.Load().rule(q.Decision.Rule)}
}

// TestSweepIsTriedAgain has the reset of connections fail once: whatever is called next resets them.
func TestSweepIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(d *Dataplane, p *hostpolicy.Policy) error{
		"by the same policy": func(d *Dataplane, p *hostpolicy.Policy) error {
			_, err := d.Apply(t.Context(), &dataplane.State{Policy: p})
			return err
		},
		"by the same isolation": func(d *Dataplane, _ *hostpolicy.Policy) error { return d.Isolate(t.Context(), "h", true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, bed := openForTest(t, nil)
			l := newLab(bed)
			p := onePort(l.allowed.Port())
			if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
				t.Fatal(err)
			}
			s := l.near.MustDial("tcp4", l.allowed.Addr)
			good := d.sweepers
			d.sweepers = &iterators{} // as after Close
			next := onePort(1)
			var err error
			if strings.Contains(name, "policy") {
				_, err = d.Apply(t.Context(), &dataplane.State{Policy: next})
			} else {
				next = p
				err = d.Isolate(t.Context(), "h", true)
			}
			if err == nil || !strings.Contains(err.Error(), "in force, but") {
				t.Errorf("the sweep failed, and: %v", err)
			}
			d.sweepers = good
			if err := again(d, next); err != nil {
				t.Error(err)
			}
			if _, err := s.Read(time.Second); err != "ECONNABORTED" {
				t.Errorf("the client sees %q", err)
			}
		})
	}
}

// TestDeadBeforeTheSweep takes over from an agent that died after a policy was in force and before it had reset what that
// policy denies.
func TestDeadBeforeTheSweep(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	s := l.near.MustDial("tcp4", l.allowed.Addr)
	next := onePort(1)
	tr, err := d.plan(&dataplane.State{Policy: next})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.write(tr); err != nil {
		t.Fatal(err)
	}
	d.switchTo(tr)
	d = reopen(t, d, bed)
	if st, err := d.Apply(t.Context(), &dataplane.State{Policy: next}); err != nil || st.Changed || st.Reset != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := s.Read(time.Second); err != "ECONNABORTED" {
		t.Errorf("the client sees %q", err)
	}
}

// TestGenerationsWrap lets the generations run through all of their numbers.
func TestGenerationsWrap(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	p := newProber(t, d)
	policies := []*hostpolicy.Policy{bigPolicy(0, 50), bigPolicy(1, 50)}
	units := map[string][]string{"a": {bed.Unit("one")}}
	apply := func(i int) {
		t.Helper()
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: policies[i], Units: units}); err != nil {
			t.Fatal(err)
		}
	}
	isolate := func() {
		t.Helper()
		for _, on := range []bool{true, false} {
			if err := d.Isolate(t.Context(), "h/b", on); err != nil {
				t.Fatal(err)
			}
		}
	}
	apply(0)
	wrapped := false
	for step := range 14 {
		p.mustJudgeAs(fmt.Sprintf("generation %d", d.gen), policies[0])
		// Isolating is the only change for a long time: what was applied is not written again.
		before := d.gen
		end := (uint64(before)/maxAge + 1) * maxAge // of the age; the banks stay as they are:
		d.gen = uint32(end-2) | before&1            // the parity is the same
		d.active.Store(uint64(d.gen))
		isolate()
		wrapped = wrapped || d.gen < before
		if step%3 == 2 {
			p.mustJudgeAs("before the next agent", policies[0])
			if d.gen == 0 {
				t.Fatal("generation 0 is in force")
			}
		}
	}
	if !wrapped {
		t.Errorf("the generations have not wrapped around: %d", d.gen)
	}
	apply(1)
	p.mustJudgeAs("another policy", policies[1])
	d.mustBeClean(t, policies[1])
	d = reopen(t, d, bed)
	newProber(t, d).mustJudgeAs("taken over", policies[1])
}

// TestCleaningFails deletes from a map that refuses: what is still there is still known, and goes the next time.
func TestCleaningFails(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	tab := &d.held.addresses
	key := addressOf(netip.MustParseAddr("192.0.2.1"))
	add := tab.diff(maps.All(map[address]value{key: {id: 7}}), nil, nil)
	if err := tab.write(add, 2); err != nil {
		t.Fatal(err)
	}
	if err := tab.finish(add); err != nil {
		t.Fatal(err)
	}
	if err := d.maps.Addresses.Freeze(); err != nil { // the agent may not change it any more
		t.Fatal(err)
	}
	gone := tab.diff(maps.All(map[address]value{}), nil, nil)
	if err := tab.finish(gone); err == nil {
		t.Fatal("a frozen map was changed")
	}
	if v, ok := tab.held[key]; !ok || v != (value{}) {
		t.Errorf("what could not be deleted is held as %+v, %v", v, ok)
	}
	if again := tab.diff(maps.All(map[address]value{}), nil, nil); len(again) != 1 || !again[0].isGone {
		t.Errorf("the next time: %+v", again)
	}
}

// TestLevels checks that depths survive being packed.
func TestLevels(t *testing.T) {
	for _, levels := range [][]uint8{nil, {1}, {9, 3, 1}, {255, 8, 7, 6, 5, 4, 3, 2}} {
		got := unpackLevels(packLevels(levels))
		if fmt.Sprint(got) != fmt.Sprint(levels) {
			t.Errorf("%v became %v", levels, got)
		}
	}
}

// TestNamesOfTheLastPolicies looks for the names of rules that policies have left behind.
func TestNamesOfTheLastPolicies(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, nil)
	const rounds = keepRetired + 4
	for v := range rounds {
		if _, err := d.Apply(t.Context(), &dataplane.State{Policy: bigPolicy(v, 3)}); err != nil {
			t.Fatal(err)
		}
	}
	name := func(v int) model.RuleID { return model.RuleID(fmt.Sprintf("v%d/rest", v)) }
	for v := range rounds {
		got := d.names.Load().rule(ruleNumber(name(v)))
		if known := got == name(v); known != (v >= rounds-keepRetired-2) {
			t.Errorf("policy %d of %d: its rule is called %s", v, rounds, got)
		}
	}
	if n := len(d.held.rules); n > 10 {
		t.Errorf("%d rules are held", n)
	}
}
