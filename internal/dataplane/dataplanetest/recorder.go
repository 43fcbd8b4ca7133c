package dataplanetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// recorder keeps the events of a dataplane.
type recorder struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	events []dataplane.Event
}

// record begins to listen to events; stop, or the end of the test, ends it.
func record(t testing.TB, d dataplane.Dataplane) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &recorder{t: t, cancel: cancel, done: make(chan error, 1)}
	go func() {
		r.done <- d.Events(ctx, func(e *dataplane.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, *e)
		})
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *recorder) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("events ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		r.t.Error("events do not end with their context")
	}
}

// clear forgets what was recorded.
func (r *recorder) clear() {
	time.Sleep(60 * time.Millisecond) // what is under way belongs to before
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

type match func(*dataplane.Event) bool

// all joins conditions.
func all(ms ...match) match {
	return func(e *dataplane.Event) bool {
		for _, m := range ms {
			if !m(e) {
				return false
			}
		}
		return true
	}
}

func kind(k dataplane.EventKind) match { return func(e *dataplane.Event) bool { return e.Kind == k } }
func workload(w string) match          { return func(e *dataplane.Event) bool { return e.Workload == w } }
func dir(d model.Direction) match      { return func(e *dataplane.Event) bool { return e.Dir == d } }
func proto(p model.Proto) match        { return func(e *dataplane.Event) bool { return e.Proto == p } }
func port(p uint16) match              { return func(e *dataplane.Event) bool { return e.Port == p } }
func rejudged(on bool) match           { return func(e *dataplane.Event) bool { return e.Rejudged == on } }

// find returns the events that match.
func (r *recorder) find(m match) []dataplane.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.events), func(e dataplane.Event) bool { return !m(&e) })
}

// count returns how many events match, and over how many attempts.
func (r *recorder) count(m match) (events, attempts int) {
	for _, e := range r.find(m) {
		events++
		attempts += int(e.Count)
	}
	return events, attempts
}

// one waits for exactly one event that matches, and returns it.
func (r *recorder) one(what string, m match) dataplane.Event {
	r.t.Helper()
	r.wait(what, func() bool { return len(r.find(m)) > 0 })
	time.Sleep(40 * time.Millisecond)
	found := r.find(m)
	if len(found) != 1 {
		r.t.Errorf("%s: %d events instead of one:\n%s", what, len(found), r.text())
	}
	return found[0]
}

// none checks that no event matches.
func (r *recorder) none(what string, m match) {
	r.t.Helper()
	time.Sleep(60 * time.Millisecond)
	if found := r.find(m); len(found) > 0 {
		r.t.Errorf("%s: there are %d events:\n%s", what, len(found), r.text())
	}
}

// wait fails the test if the condition does not come true within some seconds.
func (r *recorder) wait(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	r.t.Fatalf("%s: it did not come; events:\n%s", what, r.text())
}

// traffic is what flows have carried.
type traffic struct{ sent, received, packetsSent, packetsRecv uint64 }

// carried adds up what the matching events say.
func (r *recorder) carried(m match) (sum traffic) {
	for _, e := range r.find(m) {
		sum.sent += e.BytesSent
		sum.received += e.BytesReceived
		sum.packetsSent += e.PacketsSent
		sum.packetsRecv += e.PacketsRecv
	}
	return sum
}

// text lists the events for a person, the last ones if there are many.
func (r *recorder) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.events[max(0, len(r.events)-30):] {
		fmt.Fprintf(&b, "\t%s\n", describe(&e))
	}
	return b.String()
}

func describe(e *dataplane.Event) string {
	kinds := [...]string{"", "open", "deny", "update", "close"}
	s := fmt.Sprintf("%-6s %s %s %s/%d %s > %s(%s) %s by %s", kinds[e.Kind], e.Workload, e.Dir, e.Proto, e.Port, e.Local, e.Remote,
		e.RemoteWorkload, e.Verdict, e.Rule)
	if e.Rejudged {
		s += " rejudged"
	}
	if e.Existing {
		s += " existing"
	}
	return s + fmt.Sprintf(" x%d sent %d/%d received %d/%d by %s[%d]", e.Count, e.BytesSent, e.PacketsSent, e.BytesReceived,
		e.PacketsRecv, e.Process.Name, e.Process.PID)
}
