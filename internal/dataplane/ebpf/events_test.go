package ebpf

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// tally counts what events say, by kind.
type tally struct {
	events   map[dataplane.EventKind]uint64
	attempts uint64 // that were denied
	sent     uint64
}

// listen counts events until there are enough of them, and a little longer for those too many.
func (d *Dataplane) listen(t *testing.T, enough func(*tally) bool) tally {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sum := tally{events: map[dataplane.EventKind]uint64{}}
	var end *time.Timer
	if err := d.Events(ctx, func(e *dataplane.Event) {
		defer func() {
			if end == nil && enough(&sum) {
				end = time.AfterFunc(1500*time.Millisecond, cancel) // denials are folded for a second
			}
		}()
		sum.events[e.Kind]++
		if e.Kind == dataplane.EventDeny {
			sum.attempts += e.Count
		}
		sum.sent += e.BytesSent
	}); err != nil {
		t.Error(err)
	}
	return sum
}

func (d *Dataplane) mustCount(t *testing.T) dataplane.Counters {
	t.Helper()
	c, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLossIsCounted lets nobody read while more happens than the buffer holds: what was not told has been counted.
func TestLossIsCounted(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.EventBuffer = os.Getpagesize() })
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	const opened, refused = 100, 200
	live := l.near.MustDial("tcp4", l.allowed.Addr) // before the buffer is full
	if r := l.near.Burst("tcp4", l.allowed.Addr, opened, 1); r.Bad > 0 {
		t.Fatalf("%v", r)
	}
	if r := l.near.Burst("tcp4", l.denied.Addr, refused, 1); r.Good > 0 {
		t.Fatalf("%v", r)
	}
	if err := live.Exchange("hello", ""); err != "" {
		t.Fatal(err)
	}
	// The kernel could have told what live connections have carried. It does when there is room.
	if err := errors.Join(d.flush(true), d.update()); err != nil {
		t.Fatal(err)
	}
	lost := d.mustCount(t).EventsLost
	told := func(sum *tally) uint64 { return sum.events[dataplane.EventOpen] + sum.events[dataplane.EventClose] }
	sum := d.listen(t, func(sum *tally) bool { return told(sum)+lost >= 1+2*opened && sum.attempts >= refused })
	if told := told(&sum); told+lost != 1+2*opened || lost == 0 {
		t.Errorf("%d events were told and %d lost of %d", told, lost, 1+2*opened)
	}
	if sum.attempts != refused {
		t.Errorf("%d attempts of %d were told", sum.attempts, refused)
	}
	if c := d.mustCount(t); c.EventsLost != lost || c.Denied != refused || c.Allowed != 1+opened {
		t.Errorf("%+v", c)
	}
	live.Close()
	if sum := d.listen(t, func(sum *tally) bool { return sum.events[dataplane.EventClose] > 0 }); sum.events[dataplane.EventClose] != 1 || sum.sent != 5 {
		t.Errorf("its end: %+v", sum)
	}
}

// TestManyKindsOfDenial has more kinds of denials at once than can be folded.
func TestManyKindsOfDenial(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	// Others, an hour ago on a host without an agent.
	type key = programsDenialKey
	type value = programsDenial
	n := int(d.maps.Denials.MaxEntries())
	keys, values := make([]key, n), make([]value, n)
	for i := range keys {
		keys[i].Tgid = uint32(i + 1)
		keys[i].Subject = 0
		values[i].State, values[i].Filled = 1, 1
	}
	if err := putAll(d.maps.Denials, keys, values); err != nil {
		t.Fatal(err)
	}
	const attempts = 150
	if r := l.near.Burst("tcp4", l.denied.Addr, attempts, 1); r.Good > 0 {
		t.Fatalf("%v", r)
	}
	want := uint64(attempts + n)
	sum := d.listen(t, func(sum *tally) bool { return sum.attempts >= want })
	if sum.attempts != want || sum.events[dataplane.EventDeny] != want {
		t.Errorf("%d attempts of %d were told, in %d events", sum.attempts, want, sum.events[dataplane.EventDeny])
	}
	left := n
	for end := time.Now().Add(time.Minute); left != 0 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := d.flush(false); err != nil { // as the reader does every second
			t.Fatal(err)
		}
		left = 0
		var k key
		var v value
		for it := d.maps.Denials.Iterate(); it.Next(&k, &v); {
			left++
		}
	}
	if left != 0 {
		t.Errorf("%d of them are still remembered", left)
	}
	if c := d.mustCount(t); c.EventsLost != 0 {
		t.Errorf("%+v", c)
	}
}

// TestCloseEndsEvents closes and removes under a reader.
func TestCloseEndsEvents(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Dataplane) error{"close": (*Dataplane).Close, "remove": (*Dataplane).Remove} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, _ := openForTest(t, nil)
			done := make(chan error, 1)
			go func() { done <- d.Events(context.Background(), func(*dataplane.Event) {}) }()
			for reads := false; !reads; time.Sleep(time.Millisecond) {
				d.mu.Lock()
				reads = d.reading != nil
				d.mu.Unlock()
			}
			if err := d.Events(t.Context(), nil); err == nil {
				t.Error("two read at once")
			}
			if err := end(d); err != nil {
				t.Error(err)
			}
			select {
			case err := <-done:
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("events ended with %v", err)
				}
			default:
				t.Error("events goes on after the end")
			}
			if _, err := d.Counters(); err == nil {
				t.Error("counters are read from a closed dataplane")
			}
		})
	}
}

// TestNewAddress gives the host another address: a connection to it is judged by who listens there.
func TestNewAddress(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	const addr = "10.77.0.77"
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(1)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Events(ctx, func(*dataplane.Event) {}) }()
	key := addressOf(netip.MustParseAddr(addr))
	known := func() bool { return d.maps.Own.Lookup(key, new(uint8)) == nil }
	change := func(do func(netlink.Link, *netlink.Addr) error) {
		t.Helper()
		if err := d.netns.run(func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr + "/16")
			if err != nil {
				return err
			}
			return do(l, a)
		}); err != nil {
			t.Fatal(err)
		}
	}
	become := func(want bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); known() != want; time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the address is known: %v", known())
			}
		}
	}
	change(netlink.AddrAdd)
	become(true)
	server := bed.Start("").Listen("tcp4", addr+":0")
	// Both ends are the host, which may always talk to itself: the address alone would not tell.
	if s, err := bed.Start("one").Dial("tcp4", server.Addr); err != "" {
		t.Errorf("within the host: %s", err)
	} else {
		s.Close()
	}
	change(netlink.AddrDel)
	become(false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestClock compares the times of events with the time.
func TestClock(t *testing.T) {
	c := newClock()
	for range 200 {
		before := time.Now()
		c.refresh()
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			t.Fatal(err)
		}
		at := c.time(uint64(ts.Nano()))
		if after := time.Now(); at.Before(before.Add(-time.Millisecond)) || at.After(after.Add(time.Millisecond)) {
			t.Fatalf("between %v and %v it was %v", before, after, at)
		}
	}
}
