package ebpf

import (
	"context"
	"errors"
	"fmt"
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
	// lookEvery is how long an event may lie before the reader looks by itself; see submit in bpf/events.h.
	lookEvery = 20 * time.Millisecond
	// flushEvery is how often folded denials are told and silent flows ended.
	flushEvery = time.Second
)

// Events calls fn for each event until ctx ends. It also does what must be done from time to time: it ends silent
// flows, tells what live ones have carried, and resets connections that their own packets have found denied.
func (d *Dataplane) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	d.mu.Lock()
	if err := d.usable(ctx); err != nil {
		d.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	r, err := ringbuf.NewReader(d.maps.Events)
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	cut := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = r.Close() }) // makes Read return
	defer stop()
	g.Go(func() error { return d.read(ctx, r, fn, cut) })
	g.Go(func() error { return d.keep(ctx, cut) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (d *Dataplane) read(ctx context.Context, r *ringbuf.Reader, fn func(*dataplane.Event), cut chan<- struct{}) error {
	var rec ringbuf.Record
	var e dataplane.Event
	clock := newClock()
	for {
		r.SetDeadline(time.Now().Add(lookEvery))
		err := r.ReadInto(&rec)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			clock.refresh()
			continue
		case errors.Is(err, ringbuf.ErrClosed):
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		if len(rec.RawSample) < int(unsafe.Sizeof(event{})) {
			return fmt.Errorf("read events: one has %d bytes", len(rec.RawSample))
		}
		raw := (*event)(unsafe.Pointer(&rec.RawSample[0]))
		d.decode(raw, &e, clock)
		if e.Kind == dataplane.EventDeny && e.Rejudged && e.Proto == model.ProtoTCP {
			select {
			case cut <- struct{}{}:
			default:
			}
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
func (d *Dataplane) keep(ctx context.Context, cut <-chan struct{}) error {
	flush := time.NewTicker(flushEvery)
	defer flush.Stop()
	update := time.NewTicker(d.cfg.UpdateInterval)
	defer update.Stop()
	own := make(chan struct{}, 1)
	if err := d.watchOwn(ctx.Done(), func() {
		select {
		case own <- struct{}{}:
		default:
		}
	}); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-flush.C:
			err = d.flush()
		case <-update.C:
			err = d.update()
		case <-own:
			err = d.refreshOwn()
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

// refresh follows what has been done to the wall clock.
func (c *clock) refresh() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return // keep what was right before
	}
	c.boot = time.Now().Round(0).Add(-time.Duration(ts.Nano()))
}

func (c *clock) time(sinceBoot uint64) time.Time { return c.boot.Add(time.Duration(sinceBoot)) }
