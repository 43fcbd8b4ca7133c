package nft

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// verdictOnly is a policy of one host with one verdict for everything, of n units beside it.
func verdictOnly(v model.Verdict, units ...string) *hostpolicy.Policy {
	set := hostpolicy.PolicySet{}
	for _, dir := range model.Directions {
		set.Table(dir).Funcs = []hostpolicy.Func{{{Ports: model.AnyPort, Verdict: v, Rule: "test/all"}}}
	}
	set.ID = set.ContentID()
	p := &hostpolicy.Policy{Host: "h", Sets: []hostpolicy.PolicySet{set}, Subjects: []hostpolicy.Subject{{Workload: "h", Set: set.ID, Isolation: set.ID}}}
	for _, u := range units {
		p.Subjects = append(p.Subjects, hostpolicy.Subject{Workload: "h/" + u, Unit: u, Set: set.ID, Isolation: set.ID})
	}
	return p
}

func units(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s%03d", prefix, i))
	}
	return all
}

func mustApply(t *testing.T, d *Dataplane, p *hostpolicy.Policy) dataplane.ApplyStats {
	t.Helper()
	st, err := d.Apply(t.Context(), &dataplane.State{Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func mustRepairNothing(t *testing.T, d *Dataplane) {
	t.Helper()
	for range 2 {
		if found, err := d.Repair(t.Context()); err != nil || len(found) > 0 {
			t.Fatalf("repair: %q, %v", found, err)
		}
	}
}

// TestApplyAfterTampering has somebody change the table so that what differs cannot be written: then all of it is.
func TestApplyAfterTampering(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	for name, tamper := range map[string]func(*batch){
		"the table is deleted": func(b *batch) { b.table(unix.NFT_MSG_DELTABLE) },
		"another table has its name": func(b *batch) {
			b.table(unix.NFT_MSG_DELTABLE)
			b.table(unix.NFT_MSG_NEWTABLE)
			b.newChain("input", &chain{})
		},
		"a chain of theirs needs what we do not": func(b *batch) {
			c := &chain{}
			c.add(loadValue(make([]byte, 8), identity), look(peersName(verdictOnly(model.Allow).Sets[0].ID, model.Egress), identity, function))
			b.newChain("theirs", c)
			b.rule("theirs", &c.rules[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			mustApply(t, d, verdictOnly(model.Allow))
			mustRepairNothing(t, d)
			var b batch
			tamper(&b)
			if err := d.ns.commit(&b); err != nil {
				t.Fatal(err)
			}
			if st := mustApply(t, d, verdictOnly(model.Deny, "a")); !st.Changed {
				t.Error("nothing was changed")
			}
			mustRepairNothing(t, d)
			rec, ok, err := d.ns.readRecord()
			if err != nil || !ok || rec.gen != d.record.gen || rec.flags&flagUnfinished != 0 || len(rec.subjects) != 2 {
				t.Errorf("the kernel has %+v, %v, %v", rec, ok, err)
			}
			now, err := d.ns.picture()
			if found := now.missing(d.table); err != nil || len(found) > 0 {
				t.Errorf("%q, %v", found, err)
			}
			if _, there := now.chains["theirs"]; there {
				t.Error("a chain of somebody else is left in our table")
			}
		})
	}
}

// TestLostAnswer loses the kernel's answer to a transaction: whether it has happened is then read from the table.
func TestLostAnswer(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	mustApply(t, d, verdictOnly(model.Allow))
	lost := fmt.Errorf("commit: %w", errUnanswered)
	next := d.record
	next.gen++
	for _, tt := range []struct {
		record record
		err    error
		want   bool
	}{{d.record, lost, true}, {next, lost, false}, {d.record, io.EOF, false}} {
		if got := d.inForce(&tt.record, tt.err); got != tt.want {
			t.Errorf("generation %d, %v: in force %v", tt.record.gen, tt.err, got)
		}
	}
}

// TestMoreErrorsThanFit has a transaction fail at so many places that the kernel's words do not fit: nothing of it has happened, and
// that is found out.
func TestMoreErrorsThanFit(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	mustApply(t, d, verdictOnly(model.Allow))
	next := d.record
	next.gen++
	var b batch
	b.replace(stateChain, next.rules())
	s := &set{fields: []field{typeAddress6}, value: typeIdentity}
	for i := range 60_000 {
		b.elements(unix.NFT_MSG_NEWSETELEM, "missing", s, []element{{key: string(append(make([]byte, 12), be32(uint32(i))...)), value: string(be64(1))}})
	}
	err := d.ns.commit(&b)
	if !errors.Is(err, errUnanswered) {
		t.Errorf("%v", err)
	}
	if d.inForce(&next, err) {
		t.Error("it is taken to have happened")
	}
}

// TestSubjects has as many units as marks of connections can tell apart, others in their place, and one more than that.
func TestSubjects(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	mustApply(t, d, verdictOnly(model.Allow, units("a", 254)...))
	before := d.record.gen
	_, err := d.Apply(t.Context(), &dataplane.State{Policy: verdictOnly(model.Allow, units("a", 255)...)})
	if !errors.Is(err, dataplane.ErrRefused) || d.record.gen != before {
		t.Errorf("one more: generation %d after %d, %v", d.record.gen, before, err)
	}
	t.Log(err)
	mustApply(t, d, verdictOnly(model.Allow, units("b", 254)...))
	seen := map[uint8]string{}
	for _, s := range d.content.subjects {
		if other := seen[s.number]; other != "" || s.number == 0 {
			t.Errorf("%s has number %d, as %q", s.Workload, s.number, other)
		}
		seen[s.number] = s.Workload
	}
	mustRepairNothing(t, d)
}

// TestManyAddresses is a policy of a hundred thousand addresses, of which a few change.
func TestManyAddresses(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	p := verdictOnly(model.Allow)
	for i := range 100_000 {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(a, 32), Identity: model.IdentityID(1 + i%1000)})
	}
	st := mustApply(t, d, p)
	t.Logf("100,000 addresses: %v", st.Took)
	mustRepairNothing(t, d)
	q := *p
	q.Addresses = append([]hostpolicy.Address{}, p.Addresses...)
	for i := range 100 {
		q.Addresses[i*777].Identity = 5000
	}
	st = mustApply(t, d, &q)
	t.Logf("100 of them others': %v", st.Took)
	if over := d.content.addresses.hosts4.over; over == nil || len(over.members) != 100 {
		t.Error("all of them were written anew")
	}
	mustRepairNothing(t, d)
}
