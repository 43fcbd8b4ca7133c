package nft

import (
	"errors"
	"strings"
	"testing"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// withUnit is a policy of the host and one unit, at a place of the lab.
func withUnit(bed *dataplanetest.Bed) *dataplane.State {
	p := probePolicy()
	unit := p.Subjects[0]
	unit.Workload, unit.Unit = "probe/one", "one"
	p.Subjects = append(p.Subjects, unit)
	return &dataplane.State{Policy: p, Units: map[string][]string{"one": {bed.Unit("one")}}}
}

// TestKernelWithoutTproxy takes away what a kernel may lack: everything else is written, and what it costs is said. An agent that finds
// more, or less, than the one before writes the table anew.
func TestKernelWithoutTproxy(t *testing.T) {
	bed := dataplanetest.NewBed(t)
	state := withUnit(bed)
	open := func(can bool) *Dataplane {
		t.Helper()
		d := bed.Open(openHere).(*Dataplane)
		if !d.can.reopen {
			dataplanetest.Cannot(t, "nftables", errors.New("the kernel has no nft_tproxy"))
		}
		d.can.reopen = can
		return d
	}
	for i, can := range []bool{true, false, true} {
		d := open(can)
		st, err := d.Apply(t.Context(), state)
		if err != nil || !st.Changed {
			t.Fatalf("%d: changed %v, %v", i, st.Changed, err)
		}
		if _, found := d.table.chains["reopened"]; found != can {
			t.Errorf("%d: the rules for TIME_WAIT are there: %v", i, found)
		}
		if said := strings.Contains(strings.Join(d.Capabilities().Limits, "\n"), "nft_tproxy"); said == can {
			t.Errorf("%d: the limit is said: %v", i, said)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
