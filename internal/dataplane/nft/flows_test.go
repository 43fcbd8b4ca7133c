package nft

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// TestLostEnds has the kernel's word of ends of flows lost: a look tells of those that are not there any more, and of no other.
func TestLostEnds(t *testing.T) {
	f := newFlows(nil)
	at := func(a string) netip.AddrPort { return netip.MustParseAddrPort(a) }
	begun := time.Unix(1000, 0)
	flow := func(server string, since time.Time) endKey {
		k := endKey{flowKey{model.ProtoUDP, at("10.0.0.1:5000"), at(server)}, model.Egress}
		e := dataplane.Event{Kind: dataplane.EventOpen, Time: since, Remote: k.server, Verdict: model.Allow}
		f.decided(k, &e, 0, false, func(*dataplane.Event) {})
		return k
	}
	gone, open, young := flow("10.0.0.2:53", begun), flow("10.0.0.3:53", begun), flow("10.0.0.4:53", begun.Add(time.Minute))
	var ended []netip.AddrPort
	f.reconcile(map[flowKey]bool{open.flowKey: true}, begun.Add(time.Second), func(e *dataplane.Event) {
		if e.Kind != dataplane.EventClose {
			t.Errorf("%+v", e)
		}
		ended = append(ended, e.Remote)
	})
	if !slices.Equal(ended, []netip.AddrPort{gone.server}) {
		t.Errorf("ended: %v", ended)
	}
	if f.known[gone] != nil || f.known[open] == nil || f.known[young] == nil {
		t.Errorf("known: %v", f.known)
	}
}
