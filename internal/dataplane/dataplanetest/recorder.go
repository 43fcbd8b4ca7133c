package dataplanetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// recorder keeps the events of a dataplane. What a test asks it is asked of the events since the last call of clear;
// what it promises about them is checked at the end of the situation, when what comes late has come.
type recorder struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan error

	mu       sync.Mutex
	events   []dataplane.Event
	since    time.Time
	promises []promise
}

// promise is how many events of one period match.
type promise struct {
	what         string
	m            match
	n            int
	since, until time.Time
}

// late is how long an event may be under way.
const late = 60 * time.Millisecond

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
	r.end()
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("events ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Error("events do not end with their context")
	}
}

// clear forgets what has happened until now. What is told later but happened before does not count either.
func (r *recorder) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = time.Now()
	for i := range r.promises {
		if p := &r.promises[i]; p.until.IsZero() {
			p.until = r.since
		}
	}
}

// end checks what was promised in the situation that ends here, and forgets it.
func (r *recorder) end() {
	r.t.Helper()
	r.mu.Lock()
	promises := r.promises
	r.mu.Unlock()
	if len(promises) > 0 {
		time.Sleep(late)
	}
	r.clear()
	for _, p := range promises {
		found := r.between(p.since, p.until, p.m)
		if len(found) != p.n {
			r.t.Errorf("%s: %d events instead of %d:\n%s", p.what, len(found), p.n, text(found))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events, r.promises = nil, nil
}

func (r *recorder) promise(what string, m match, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promises = append(r.promises, promise{what: what, m: m, n: n, since: r.since})
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
	since := r.since
	r.mu.Unlock()
	return r.between(since, time.Time{}, m)
}

// between returns the events of a period that match; a zero until is the end of time.
func (r *recorder) between(since, until time.Time, m match) []dataplane.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []dataplane.Event
	for i := range r.events {
		if e := &r.events[i]; !e.Time.Before(since) && (until.IsZero() || e.Time.Before(until)) && m(e) {
			found = append(found, *e)
		}
	}
	return found
}

// count returns how many events match, and over how many attempts.
func (r *recorder) count(m match) (events, attempts int) {
	for _, e := range r.find(m) {
		events++
		attempts += int(e.Count)
	}
	return events, attempts
}

// one waits for an event that matches, returns it, and promises that it stays the only one.
func (r *recorder) one(what string, m match) dataplane.Event {
	r.t.Helper()
	r.wait(what, func() bool { return len(r.find(m)) > 0 })
	r.promise(what, m, 1)
	return r.find(m)[0]
}

// none promises that no event matches.
func (r *recorder) none(what string, m match) { r.promise(what, m, 0) }

// patience is how long something that must happen may take on a machine that has much else to do.
const patience = time.Minute

// wait fails the test if the condition does not come true.
func (r *recorder) wait(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
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

// carriedIs compares what flows have carried, as exactly as the dataplane tells it.
func (h *host) carriedIs(got, want traffic) bool {
	if !h.d.Capabilities().ExactBytes && got.packetsRecv == 0 && got.received+1 == want.received {
		got.received++
	}
	return got == want
}

// text lists the events for a person.
func (r *recorder) text() string {
	return text(r.find(func(*dataplane.Event) bool { return true }))
}

// text lists the last of the events.
func text(events []dataplane.Event) string {
	var b strings.Builder
	for _, e := range events[max(0, len(events)-30):] {
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
