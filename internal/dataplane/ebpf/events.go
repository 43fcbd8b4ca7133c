package ebpf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

const (
	// lookEvery is how long an event may lie while others come; see submit in bpf/events.h. The reader is woken by an
	// event that follows no other closely, so where nothing happens it looks by itself only to be sure.
	lookEvery = 20 * time.Millisecond
	lookIdle  = time.Second
	// flushEvery is how often folded denials are told and silent flows ended.
	flushEvery = time.Second
	// touchEvery is how often live connections that are judged by a name keep it from being forgotten, where update does not:
	// more often than NAME_KEPT in bpf/types.h.
	touchEvery = 4 * time.Minute
	// behindEvery is how often is looked whose network stacks are behind interfaces: a process that goes to another
	// namespace, and an address in one, tell nobody.
	behindEvery = 15 * time.Second
)

// reading is a call of Events that Close can end.
type reading struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Events calls fn for each event until ctx ends. It also does what must be done from time to time: it ends silent
// flows, tells what live ones have carried, and resets connections that their own packets have found denied.
func (d *Dataplane) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	if ctx.Err() != nil {
		return nil
	}
	events, me, err := d.beginReading(&ctx)
	if err != nil {
		return err
	}
	cut, own, links := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = events.Close() }) // makes Read return
	defer stop()
	g.Go(func() error { return d.read(ctx, events, fn, cut, links) })
	g.Go(func() error { return d.keep(ctx, cut, own, links) })
	g.Go(func() error { return d.watchOwn(ctx, own) })
	if d.cfg.Guard != GuardNone {
		g.Go(func() error { return d.watchLinks(ctx, links) })
	}
	err = g.Wait()
	closed := d.endReading(me)
	switch {
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return err
	case closed:
		return fmt.Errorf("read events: %w", os.ErrClosed)
	}
	return nil
}

// beginReading makes the one reader of events, and a context that Close can end.
func (d *Dataplane) beginReading(ctx *context.Context) (*ringbuf.Reader, *reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(*ctx); err != nil {
		return nil, nil, err
	}
	if d.reading != nil {
		return nil, nil, errors.New("events are being read already")
	}
	events, err := ringbuf.NewReader(d.maps.Events)
	if err != nil {
		return nil, nil, fmt.Errorf("read events: %w", err)
	}
	me := &reading{done: make(chan struct{})}
	*ctx, me.cancel = context.WithCancel(*ctx)
	d.reading = me
	return events, me, nil
}

// endReading lets Close go on. It reports whether that is what ended the reading.
func (d *Dataplane) endReading(me *reading) (closed bool) {
	me.cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reading = nil
	close(me.done)
	return d.closed
}

func (d *Dataplane) read(ctx context.Context, r *ringbuf.Reader, fn func(*dataplane.Event), cut, links chan<- struct{}) error {
	var rec ringbuf.Record
	var e dataplane.Event
	clock := newClock()
	busy := true // events have been read since the last time that none came
	r.SetDeadline(time.Now().Add(lookEvery))
	for {
		err := r.ReadInto(&rec)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			wait := lookIdle
			if busy {
				wait = lookEvery
			}
			busy = false
			r.SetDeadline(clock.refresh().Add(wait))
			continue
		case errors.Is(err, ringbuf.ErrClosed):
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		if !busy {
			busy = true
			r.SetDeadline(time.Now().Add(lookEvery))
		}
		if len(rec.RawSample) < int(unsafe.Sizeof(event{})) {
			return fmt.Errorf("read events: one has %d bytes", len(rec.RawSample))
		}
		raw := (*event)(unsafe.Pointer(&rec.RawSample[0]))
		d.decode(raw, &e, clock)
		if e.Kind == dataplane.EventDeny && (e.Rejudged || e.Existing) && e.Proto == model.ProtoTCP {
			ask(cut)
		}
		if e.Rule == ruleSpoofed {
			ask(links) // addresses move, and nobody tells in whose namespace
		}
		fn(&e)
	}
}

// decode turns an event of the programs into one of the port.
func (d *Dataplane) decode(raw *event, e *dataplane.Event, c *clock) {
	n := d.names.Load()
	f := &raw.Flow
	*e = dataplane.Event{
		Kind:           dataplane.EventKind(raw.Kind),
		Time:           c.time(raw.Time),
		Workload:       n.subject(raw.Subject),
		Dir:            model.Direction(f.Dir),
		Proto:          model.Proto(f.Proto),
		Port:           f.Port,
		RemoteIdentity: model.IdentityID(raw.Peer),
		Verdict:        model.Verdict(raw.Verdict),
		Rule:           n.rule(raw.Rule),
		Rejudged:       raw.Flags&eventRejudged != 0,
		Existing:       raw.Flags&eventExisting != 0,
		Process: dataplane.Process{
			PID: raw.Process.Tgid, UID: raw.Process.Uid, Name: text(raw.Process.Comm[:]),
			Cgroup: raw.Process.Cgroup, Start: raw.Process.Start,
		},
		Count:         raw.Count,
		BytesSent:     raw.Sent,
		BytesReceived: raw.Received,
		PacketsSent:   raw.PacketsSent,
		PacketsRecv:   raw.PacketsReceived,
	}
	lport, rport := f.Lport, f.Rport
	if e.Proto.IsICMP() {
		lport, rport = 0, 0 // the programs tell echoes apart by them
	}
	e.Local = netip.AddrPortFrom(addrOf(f.Laddr), lport)
	e.Remote = netip.AddrPortFrom(addrOf(f.Raddr), rport)
	if raw.Rsubject != 0 {
		e.RemoteWorkload = n.subject(raw.Rsubject - 1)
	}
}

// keep does what must be done from time to time. An error is logged and tried again: events must go on.
func (d *Dataplane) keep(ctx context.Context, cut, own, links <-chan struct{}) error {
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	update := time.NewTicker(d.cfg.UpdateInterval)
	defer update.Stop()
	names := time.NewTicker(touchEvery)
	defer names.Stop()
	behind := time.NewTicker(behindEvery)
	defer behind.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-flush.C:
			err = d.flush(false)
		case <-update.C:
			err = errors.Join(d.flush(true), d.update())
		case <-names.C:
			err = d.touchNames()
		case <-own:
			err = errors.Join(d.refreshOwn(), d.lookAtLinks())
		case <-links:
			err = d.lookAtLinks()
		case <-behind.C:
			err = d.lookAtLinks()
		case <-cut:
			_, err = d.sweep()
		}
		if err != nil && ctx.Err() == nil {
			d.log.Error("looking after the dataplane", "error", err)
		}
	}
}

// clock turns the kernel's time since boot into wall time.
type clock struct{ boot time.Time }

func newClock() *clock {
	c := &clock{}
	c.refresh()
	return c
}

// refresh follows what has been done to the wall clock, and returns the time. The two clocks are read one after the
// other: what comes in between must be short, or they are read again.
func (c *clock) refresh() time.Time {
	const short, tries = 20 * time.Microsecond, 10
	best := time.Duration(math.MaxInt64)
	now := time.Now()
	for range tries {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			break // what was right before is kept
		}
		before := now
		now = time.Now()
		if between := now.Sub(before); between < best {
			best = between
			c.boot = before.Round(0).Add(between / 2).Add(-time.Duration(ts.Nano()))
		}
		if best < short {
			break
		}
	}
	return now
}

func (c *clock) time(sinceBoot uint64) time.Time { return c.boot.Add(time.Duration(sinceBoot)) }
