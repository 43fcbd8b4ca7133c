package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

func openHere(t testing.TB, _ dataplanetest.Place) dataplane.Dataplane {
	t.Helper()
	d, err := Open(DefaultConfig())
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

// TestRulesTamperedWith has somebody change the table in ways that open or close something: it is found, said and put right by the next
// look, and what others do in nftables is nothing to us.
func TestRulesTamperedWith(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	d := bed.Open(openHere).(*Dataplane)
	ctx := context.Background()
	p := probePolicy()
	p.Controllers = nil
	p.Addresses = []hostpolicy.Address{{Prefix: netip.MustParsePrefix("10.1.2.3/32"), Identity: model.IdentityID(7)}}
	state := &dataplane.State{Policy: p}
	if _, err := d.Apply(ctx, state); err != nil {
		t.Fatal(err)
	}
	if err := d.Beat(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.BreakGlass(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	quiet := func(when string) {
		t.Helper()
		for range 2 {
			if found, err := d.Repair(ctx); err != nil || len(found) > 0 {
				t.Fatalf("%s: %v, %v", when, found, err)
			}
		}
	}
	quiet("at first")
	other := func(msg int) {
		t.Helper()
		var a attributes
		a.text(unix.NFTA_TABLE_NAME, "somebody-else")
		var b batch
		b.add(msg, created(msg), a)
		if err := d.ns.commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	other(unix.NFT_MSG_NEWTABLE)
	quiet("after somebody has made a table of his own")
	hosts := d.content.addresses.hosts4
	for name, tamper := range map[string]struct {
		how  func(*batch)
		says string
	}{
		"the table is deleted": {func(b *batch) { b.table(unix.NFT_MSG_DELTABLE) }, "was deleted"},
		"a chain is emptied":   {func(b *batch) { b.flush("output") }, "chain output"},
		"a rule comes first": {func(b *batch) {
			b.ruleFirst("input", &rule{steps: one(accept.expression())})
		}, "chain input"},
		"an address is taken out": {func(b *batch) {
			b.elements(unix.NFT_MSG_DELSETELEM, hosts.baseID, hosts.base, []element{{key: "\x0a\x01\x02\x03"}})
		}, "set " + hosts.baseID},
		"an address is given to somebody else": {func(b *batch) {
			e := element{key: "\x0a\x01\x02\x03"}
			b.elements(unix.NFT_MSG_DELSETELEM, hosts.baseID, hosts.base, []element{e})
			e.value = string(be64(8))
			b.elements(unix.NFT_MSG_NEWSETELEM, hosts.baseID, hosts.base, []element{e})
		}, "set " + hosts.baseID},
	} {
		t.Run(name, func(t *testing.T) {
			var b batch
			tamper.how(&b)
			before := d.ns.seen.Load()
			if err := d.ns.commit(&b); err != nil {
				t.Fatal(err)
			}
			d.ns.seen.Store(before) // as if it had not been us
			found, err := d.Repair(ctx)
			if err != nil || len(found) == 0 || !strings.Contains(strings.Join(found, "; "), tamper.says) {
				t.Errorf("%q, %v; want something about %q", found, err, tamper.says)
			}
			quiet("afterwards")
			for _, set := range []string{setAlive, setGlass} {
				if ms, err := d.ns.left(set); err != nil || ms == 0 {
					t.Errorf("%s lasts %d ms, %v", set, ms, err)
				}
			}
			if st, err := d.Apply(ctx, state); err != nil || st.Changed {
				t.Errorf("the same policy again: %+v, %v", st, err)
			}
		})
	}
	other(unix.NFT_MSG_DELTABLE)
}
