package ebpf

import (
	"testing"
	"time"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// TestConversationsWithoutRecall judges flows of many datagrams as on kernels before 6.2, which do not show what a socket is.
func TestConversationsWithoutRecall(t *testing.T) {
	t.Parallel()
	dataplanetest.RunConversations(t, func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		return openAt(t, at, func(c *Config) {
			c.withoutRecall = true
			c.UpdateInterval, c.UDPTimeout, c.UDPStreamTimeout = time.Second, time.Second, time.Second
		})
	})
}

// places counts those that are in use.
func (d *Dataplane) places(t *testing.T) (connections, flows, users int) {
	t.Helper()
	var at uint32
	var tag uint64
	for it := d.maps.RecentConnections.Iterate(); it.Next(&at, &tag); {
		if tag != 0 {
			connections++
		}
	}
	var flow programsRecentFlow
	for it := d.maps.RecentFlows.Iterate(); it.Next(&at, &flow); {
		if flow.Seen.PacketsSent+flow.Seen.PacketsReceived > 0 {
			flows++
		}
	}
	for it := d.maps.RecentUsers.Iterate(); it.Next(&at, &tag); {
		if tag != 0 {
			users++
		}
	}
	return connections, flows, users
}

// TestRecall looks whether what is allowed lately has its places, and whether a connection loses its one when the socket is
// connected to somebody else.
func TestRecall(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	connect := func(to string) string { return l.near.Connect("socket", to, time.Minute) }
	if err := connect(l.allowed.Addr); err != "" {
		t.Fatal(err)
	}
	if c, f, _ := d.places(t); c == 0 || f != 0 {
		t.Errorf("after a connection: %d connections and %d flows have a place", c, f)
	}
	if err := connect(l.denied.Addr); err != "EPERM" {
		t.Errorf("to where it is denied: %q", err)
	}
	if c, _, _ := d.places(t); c != 0 {
		t.Errorf("after the socket was to be connected elsewhere: %d connections have a place", c)
	}
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: dataplanetest.PeersPolicy(10), Units: units}); err != nil {
		t.Fatal(err)
	}
	l.near.ServeMeasures(dataplanetest.Near4, dataplanetest.MeasurePort)
	far := bed.StartFar()
	for range 20 { // each a conversation of its own
		_, n := far.Measure(dataplanetest.UDPTrip, dataplanetest.Near4, dataplanetest.MeasurePort, 50*time.Millisecond)
		if n > 20 {
			break
		}
	}
	if _, f, u := d.places(t); f == 0 || u == 0 {
		t.Errorf("after a conversation: %d flows and %d users of sockets have a place", f, u)
	}
}
