package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// told are the sockets by which the kernel tells what happens. They are open as long as the dataplane is, so what happens
// between two calls of Events waits in them.
type told struct {
	log, connections, sockets *netlink.Conn
}

func (d *Dataplane) listen() (err error) {
	if d.told.log, err = d.ns.listenLog(d.cfg.LogGroup); err != nil {
		return err
	}
	if d.told.connections, err = d.ns.dial(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if err = d.told.connections.JoinGroup(groupDestroy); err != nil {
		return fmt.Errorf("listen to the ends of flows: %w", err)
	}
	if d.told.sockets, err = d.ns.dial(unix.NETLINK_SOCK_DIAG); err != nil {
		return err
	}
	for _, group := range []uint32{groupsDiagTCP4, groupsDiagTCP6} {
		if err = d.told.sockets.JoinGroup(group); err != nil {
			return fmt.Errorf("listen to the ends of sockets: %w", err)
		}
	}
	return nil
}

func (t *told) all() (open []*netlink.Conn) {
	for _, c := range []*netlink.Conn{t.log, t.connections, t.sockets} {
		if c != nil {
			open = append(open, c)
		}
	}
	return open
}

// reading is a call of Events that Close can end.
type reading struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// afterCut is how long what the kernel has told of a connection may be under way when the connection is reset.
const afterCut = 5 * time.Millisecond

// Events calls fn for each event until ctx ends. It also has the kernel forget flows that are silent.
func (d *Dataplane) Events(ctx context.Context, fn func(*dataplane.Event)) error {
	if ctx.Err() != nil {
		return nil
	}
	me, err := d.beginReading(&ctx)
	if err != nil {
		return err
	}
	err = d.read(ctx, fn)
	closed := d.endReading(me)
	switch {
	case err != nil && ctx.Err() == nil:
		return err
	case closed:
		return fmt.Errorf("read events: %w", os.ErrClosed)
	}
	return nil
}

func (d *Dataplane) beginReading(ctx *context.Context) (*reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(*ctx); err != nil {
		return nil, err
	}
	if d.reading != nil {
		return nil, errors.New("events are being read already")
	}
	me := &reading{done: make(chan struct{})}
	*ctx, me.cancel = context.WithCancel(*ctx)
	d.reading = me
	return me, nil
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

func (d *Dataplane) read(ctx context.Context, fn func(*dataplane.Event)) error {
	select { // what the kernel tells means nothing without the policy by which it judges
	case <-ctx.Done():
		return nil
	case <-d.flows.judges.first:
	}
	g, ctx := errgroup.WithContext(ctx)
	var clear time.Time
	for _, c := range d.told.all() {
		if err := c.SetReadDeadline(clear); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range d.told.all() {
			_ = c.SetReadDeadline(time.Unix(1, 0)) // makes Receive return
		}
	})
	defer stop()
	messages := make(chan message, 1024)
	for kind, c := range map[messageKind]*netlink.Conn{ofLog: d.told.log, ofConnections: d.told.connections, ofSockets: d.told.sockets} {
		g.Go(func() error { return d.receive(ctx, kind, c, messages) })
	}
	g.Go(func() error { return d.handle(ctx, messages, fn) })
	g.Go(func() error { return d.look(ctx, messages) })
	return g.Wait()
}

type messageKind int

const (
	ofLog messageKind = iota
	ofConnections
	ofSockets
	ofLook
)

type message struct {
	kind messageKind
	data []byte
	at   time.Time
	open map[flowKey]bool // ofLook: every flow that the kernel tracks
}

func (d *Dataplane) receive(ctx context.Context, kind messageKind, c *netlink.Conn, to chan<- message) error {
	for {
		all, err := c.Receive()
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			if kind != ofLog { // those of the log have numbers: gaps are counted there
				d.flows.lost.Add(1)
			}
			if kind == ofConnections { // ends of flows: what is not there any more the next look tells
				d.flows.unsure.Store(true)
			}
			continue
		case err != nil:
			return fmt.Errorf("read events: %w", plain(err))
		}
		for _, m := range all {
			data := m.Data
			if kind != ofSockets {
				if len(data) < 4 {
					continue
				}
				data = data[4:]
			}
			select {
			case to <- message{kind: kind, data: data, at: now}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// handle makes events of messages, one after the other.
func (d *Dataplane) handle(ctx context.Context, from <-chan message, fn func(*dataplane.Event)) error {
	flush := time.NewTicker(100 * time.Millisecond)
	defer flush.Stop()
	var cuts <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-from:
			d.take(&m, fn)
		case <-d.flows.wake:
			cuts = time.After(afterCut)
		case <-cuts:
			d.flows.tellCuts(fn)
		case now := <-flush.C:
			d.flows.flush(now, fn)
		}
	}
}

func (d *Dataplane) take(m *message, fn func(*dataplane.Event)) {
	switch m.kind {
	case ofSockets:
		s, ok := parseSocket(m.data)
		if !ok || !s.remote.IsValid() || s.remote.Port() == 0 {
			return
		}
		c, tracked, err := d.ns.connection(tuple{model.ProtoTCP, s.local, s.remote})
		if err != nil {
			d.log.Debug("a connection that has ended", "error", err)
		}
		fin := tracked && (c.state == ctTCPLastACK || c.state == ctTCPTimeWait)
		d.flows.tellCuts(fn) // that it was denied comes before its end
		d.flows.endTCP(ended{s, m.at, fin}, fn)
	case ofConnections:
		c := parseConnection(m.data)
		d.flows.endOther(&c, m.at, fn)
	case ofLook:
		d.flows.reconcile(m.open, m.at, fn)
	case ofLog:
		l, sequence, ok := parseLogged(m.data)
		if d.sequence != nil && sequence > *d.sequence+1 {
			d.flows.lost.Add(uint64(sequence - *d.sequence - 1))
		}
		d.sequence = &sequence
		if ok {
			d.decided(&l, m.at, fn)
		}
	}
}

// decided makes the event of a packet that the kernel has decided about.
func (d *Dataplane) decided(l *logged, at time.Time, fn func(*dataplane.Event)) {
	j := d.flows.judges.of(l.gen)
	if j == nil {
		d.flows.lost.Add(1)
		return
	}
	numbers := map[model.Direction]uint8{
		model.Egress:  uint8(l.mark >> (d.layout.shift + 8)),
		model.Ingress: uint8(l.mark >> (d.layout.shift + 16)),
	}
	p := packetOf(l)
	p.Workload = j.content.name(numbers[l.dir])
	if l.local {
		p.RemoteWorkload = j.content.name(numbers[opposite(l.dir)])
	}
	v, peer := j.get().Judge(&p)
	e := dataplane.Event{
		Kind: dataplane.EventOpen, Time: at, Workload: p.Workload, Dir: p.Dir, Proto: p.Proto, Port: p.Port,
		Local: l.flow.client, Remote: l.flow.server, RemoteWorkload: p.RemoteWorkload, RemoteIdentity: peer, Rule: v.Rule,
	}
	if l.dir == model.Ingress {
		e.Local, e.Remote = l.flow.server, l.flow.client
	}
	if p.Proto.IsICMP() {
		e.Local, e.Remote = netip.AddrPortFrom(e.Local.Addr(), 0), netip.AddrPortFrom(e.Remote.Addr(), 0)
	}
	switch l.decided {
	case 'g':
		e.Verdict, e.Rule = model.Allow, model.RuleBreakGlass
	case 'l':
		e.Verdict, e.Rule = model.Allow, model.RuleAgentLost
	case 'c':
		e.Verdict, e.Rule = model.Deny, model.RuleAgentLost
	default:
		e.Verdict = model.Verdict(l.decided - '0')
		if e.Verdict != v.Verdict { // never, unless somebody has changed the table
			d.flows.errors.Add(1)
			d.log.Error("the kernel has decided otherwise than policy says", "workload", p.Workload, "direction", p.Dir,
				"local", e.Local, "remote", e.Remote, "protocol", p.Proto, "port", p.Port, "kernel", e.Verdict, "policy", v.Verdict)
			e.Rule = ruleUnknown
		}
	}
	if e.Verdict == model.Deny {
		e.Kind, e.Count = dataplane.EventDeny, 1
	}
	d.flows.decided(endKey{l.flow, l.dir}, &e, l.sequence, l.opens, fn)
}

// ruleUnknown stands for the rule where the kernel has decided otherwise than the policy says.
const ruleUnknown model.RuleID = "dataplane/unknown"

// look has the kernel take out flows that have ended by their silence: it does so itself only once in a while, or when
// somebody looks. Where ends of flows have been lost it also says what is still there.
func (d *Dataplane) look(ctx context.Context, to chan<- message) error {
	tick := time.NewTicker(d.cfg.LookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		m := message{kind: ofLook, at: time.Now()}
		if d.flows.unsure.Swap(false) {
			m.open = map[flowKey]bool{}
		}
		if err := d.ns.connections(func(c *connection) {
			if m.open != nil {
				m.open[c.flow()] = true
			}
		}); err != nil {
			if m.open != nil {
				d.flows.unsure.Store(true)
			}
			d.log.Error("looking after the dataplane", "error", err)
			continue
		}
		if m.open == nil {
			continue
		}
		select {
		case to <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
