package nft

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// flowKey is a flow by the addresses of the sockets at its ends.
type flowKey struct {
	proto          model.Proto
	client, server netip.AddrPort
}

// endKey is one end of a flow.
type endKey struct {
	flowKey
	dir model.Direction
}

// known is what has been told of a flow at one end.
type known struct {
	dataplane.Event // the last that was told
	since           time.Time
	sequence        uint32            // of the packet that opened the connection, if that was told
	earlier         []dataplane.Event // connections with the same ports, of which the end has not been read yet
}

// kind is what denials have in common that are told as one.
type kind struct {
	workload, remoteWorkload string
	dir                      model.Direction
	proto                    model.Proto
	port                     uint16
	remote                   netip.Addr
	rule                     model.RuleID
	rejudged                 bool
}

// folded are denials of one kind that are still to be told.
type folded struct {
	event dataplane.Event
	until time.Time
}

// Bounds of what is remembered. What does not fit is told as if it were new, or counted as lost.
const (
	maxKnown   = 1 << 17
	maxDenied  = 1 << 16
	maxPending = 1 << 12
	maxCut     = 1 << 16
	maxEarlier = 8
)

// flows turns what the kernel tells into events: each flow is told once at each end, and again when what was decided
// changes.
type flows struct {
	d      *Dataplane
	judges judges
	lost   atomic.Uint64
	errors atomic.Uint64
	unsure atomic.Bool // ends of flows may have been lost

	mu      sync.Mutex
	before  map[endKey]bool // open before there was a policy
	cuts    []cutFlow
	wake    chan struct{}
	known   map[endKey]*known
	denied  map[deniedKey]time.Time // attempts that were told, by their first packet
	over    map[endKey]time.Time    // TCP connections whose end was told: what is still under way of them is none of another
	forgot  time.Time               // when what is too old was last dropped
	folding map[kind]*folded
	pending []ended // ends of flows whose beginning has not been read yet
}

// lingers is how long packets of a TCP connection may come after its end: as long as the kernel remembers its ports.
const lingers = time.Minute

// forgetEvery is how often old attempts and ended connections are dropped.
const forgetEvery = 10 * time.Second

type deniedKey struct {
	endKey
	sequence uint32
}

type cutFlow struct {
	packet  hostpolicy.Packet
	socket  tcpSocket
	verdict model.EndVerdict
	peer    model.IdentityID
	at      time.Time
}

// ended is the end of a TCP connection at this host.
type ended struct {
	socket tcpSocket
	at     time.Time
	fin    bool
}

func newFlows(d *Dataplane) *flows {
	return &flows{
		d: d, before: map[endKey]bool{}, wake: make(chan struct{}, 1), known: map[endKey]*known{}, denied: map[deniedKey]time.Time{}, over: map[endKey]time.Time{},
		folding: map[kind]*folded{}, judges: judges{first: make(chan struct{})},
	}
}

// existed notes a flow that was open before there was a policy.
func (f *flows) existed(k flowKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.before) < maxKnown {
		for _, dir := range model.Directions {
			f.before[endKey{k, dir}] = true
		}
	}
}

// cut notes a connection that is reset because it is denied now. It is told when what the kernel has said of it before has
// been read.
func (f *flows) cut(p *hostpolicy.Packet, s *tcpSocket, v model.EndVerdict, peer model.IdentityID) {
	f.mu.Lock()
	if len(f.cuts) < maxCut {
		f.cuts = append(f.cuts, cutFlow{*p, *s, v, peer, time.Now()})
	} else {
		f.lost.Add(1)
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// tellCuts tells of the connections that have been reset.
func (f *flows) tellCuts(fn func(*dataplane.Event)) {
	f.mu.Lock()
	cuts := f.cuts
	f.cuts = nil
	f.mu.Unlock()
	for i := range cuts {
		c := &cuts[i]
		local, remote := c.socket.local, c.socket.remote
		k := endKey{flowKey{model.ProtoTCP, local, remote}, c.packet.Dir}
		if c.packet.Dir == model.Ingress {
			k.client, k.server = remote, local
		}
		e := dataplane.Event{
			Kind: dataplane.EventDeny, Time: c.at, Workload: c.packet.Workload, Dir: c.packet.Dir, Proto: model.ProtoTCP, Port: c.packet.Port,
			Local: local, Remote: remote, RemoteWorkload: c.packet.RemoteWorkload, RemoteIdentity: c.peer,
			Verdict: c.verdict.Verdict, Rule: c.verdict.Rule, Count: 1,
		}
		f.decided(k, &e, 0, false, fn)
		// Its socket stays until whoever has it lets go of it, but the connection is over.
		if f.known[k] != nil {
			sent, received := c.socket.carried(false)
			f.end(k, time.Now(), counted{bytes: sent}, counted{bytes: received}, fn)
		}
	}
}

// decided takes in what was decided about a packet. A TCP packet that opens a connection has a sequence number of its own.
func (f *flows) decided(k endKey, e *dataplane.Event, sequence uint32, opens bool, fn func(*dataplane.Event)) {
	before := f.known[k]
	var earlier []dataplane.Event
	if before != nil && opens && before.sequence != sequence { // another connection with the same ports
		if earlier = append(before.earlier, before.Event); len(earlier) > maxEarlier {
			earlier = earlier[1:]
		}
		delete(f.known, k)
		before = nil
	}
	if _, over := f.over[k]; over && before == nil && !opens {
		return
	}
	f.mu.Lock()
	e.Existing = before == nil && f.before[k]
	f.mu.Unlock()
	e.Rejudged = before != nil
	if e.Kind == dataplane.EventOpen {
		if before != nil && before.Verdict == e.Verdict && before.Rule == e.Rule && before.Workload == e.Workload &&
			before.RemoteWorkload == e.RemoteWorkload {
			return
		}
		f.remember(k, e)
		if b := f.known[k]; b != nil && before == nil {
			b.earlier = earlier
			if opens {
				b.sequence = sequence
			}
		}
		fn(e)
		return
	}
	if k.proto == model.ProtoTCP {
		if before != nil && before.Kind == dataplane.EventDeny {
			return // it is known, and what still comes is no attempt of its own
		}
		if before == nil && !opens && sequence != 0 && !e.Existing {
			return // what is still under way of a connection that has been reset
		}
		if opens && before == nil && !e.Existing { // the same attempt again is not another one
			d := deniedKey{k, sequence}
			if _, ok := f.denied[d]; ok {
				return
			}
			if len(f.denied) < maxDenied {
				f.denied[d] = e.Time
			}
		} else {
			f.remember(k, e)
		}
	} else if before != nil {
		if before.Kind == dataplane.EventDeny {
			e.Rejudged = false
		}
		f.remember(k, e)
	}
	f.fold(e, fn)
}

func (f *flows) remember(k endKey, e *dataplane.Event) {
	if b := f.known[k]; b != nil {
		b.Event = *e
		return
	}
	if len(f.known) < maxKnown {
		f.known[k] = &known{Event: *e, since: e.Time}
	}
}

// fold tells of a denial, or adds it to one of its kind that was told less than a second ago.
func (f *flows) fold(e *dataplane.Event, fn func(*dataplane.Event)) {
	k := kind{e.Workload, e.RemoteWorkload, e.Dir, e.Proto, e.Port, e.Remote.Addr(), e.Rule, e.Rejudged}
	now := f.folding[k]
	if now == nil {
		if len(f.folding) < maxDenied {
			f.folding[k] = &folded{*e, e.Time.Add(time.Second)}
			f.folding[k].event.Count = 0
		}
		fn(e)
		return
	}
	now.event.Count++
	now.event.Time = e.Time
}

// flush tells what was folded, and forgets what is not needed any more.
func (f *flows) flush(now time.Time, fn func(*dataplane.Event)) {
	for k, d := range f.folding {
		if now.Before(d.until) {
			continue
		}
		if d.event.Count == 0 {
			delete(f.folding, k)
			continue
		}
		e := d.event
		d.event.Count, d.until = 0, now.Add(time.Second)
		fn(&e)
	}
	f.forget(now)
	waiting := f.pending
	f.pending = nil
	for i := range waiting {
		if now.Sub(waiting[i].at) < 2*time.Second {
			f.endTCP(waiting[i], fn)
		}
	}
}

// forget drops what is not needed any more. There may be much of it, so it is looked at once in a while only.
func (f *flows) forget(now time.Time) {
	if now.Sub(f.forgot) < forgetEvery {
		return
	}
	f.forgot = now
	for k, at := range f.denied {
		if now.Sub(at) > 2*time.Minute { // longer than anybody goes on trying
			delete(f.denied, k)
		}
	}
	for k, at := range f.over {
		if now.Sub(at) > lingers {
			delete(f.over, k)
		}
	}
}

// endTCP tells that a connection has ended. What was never told has no end either.
func (f *flows) endTCP(e ended, fn func(*dataplane.Event)) {
	s := &e.socket
	for _, k := range []endKey{
		{flowKey{model.ProtoTCP, s.local, s.remote}, model.Egress}, {flowKey{model.ProtoTCP, s.remote, s.local}, model.Ingress},
	} {
		if f.known[k] == nil {
			continue
		}
		sent, received := s.carried(e.fin)
		if b := f.known[k]; len(b.earlier) > 0 {
			old := *b
			b.Event, b.earlier = b.earlier[0], nil
			f.end(k, e.at, counted{bytes: sent}, counted{bytes: received}, fn)
			old.earlier = old.earlier[1:]
			f.known[k] = &old
			return
		}
		f.end(k, e.at, counted{bytes: sent}, counted{bytes: received}, fn)
		return
	}
	if len(f.pending) < maxPending {
		f.pending = append(f.pending, e)
	}
}

func (f *flows) end(k endKey, at time.Time, sent, received counted, fn func(*dataplane.Event)) {
	e := f.known[k].Event
	delete(f.known, k)
	if k.proto == model.ProtoTCP && len(f.over) < maxKnown {
		f.over[k] = at
	}
	f.mu.Lock()
	delete(f.before, k)
	f.mu.Unlock()
	e.Kind, e.Time, e.Rejudged, e.Existing, e.Count = dataplane.EventClose, at, false, false, 0
	e.BytesSent, e.PacketsSent, e.BytesReceived, e.PacketsRecv = sent.bytes, sent.packets, received.bytes, received.packets
	fn(&e)
}

// endOther tells that the kernel has forgotten a flow of another protocol, or a TCP connection of which nobody has told
// the end.
func (f *flows) endOther(c *connection, now time.Time, fn func(*dataplane.Event)) {
	flow := c.flow()
	sent, answered := c.sent.payload(&c.original), c.answered.payload(&c.reply)
	for _, dir := range model.Directions {
		k := endKey{flow, dir}
		e := f.known[k]
		switch {
		case e == nil || flow.proto == model.ProtoTCP && now.Sub(e.since) < 5*time.Second:
			// A connection may have been opened again with the ports of one that has just been forgotten.
		case dir == model.Egress:
			f.end(k, now, sent, answered, fn)
		default:
			f.end(k, now, answered, sent, fn)
		}
	}
	f.mu.Lock()
	for _, dir := range model.Directions {
		delete(f.before, endKey{flow, dir})
	}
	f.mu.Unlock()
}

// reconcile tells the end of flows that began before a look and that the kernel did not have any more then. What they have carried
// since it was told last nobody knows.
func (f *flows) reconcile(open map[flowKey]bool, at time.Time, fn func(*dataplane.Event)) {
	for k, known := range f.known {
		if !open[k.flowKey] && known.since.Before(at) {
			f.end(k, at, counted{}, counted{}, fn)
		}
	}
}

// payload takes the headers off.
func (n counted) payload(t *tuple) counted {
	header := uint64(20)
	if t.src.Addr().Is6() {
		header = 40
	}
	switch t.proto {
	case model.ProtoTCP:
		return counted{}
	case model.ProtoUDP, model.ProtoICMP, model.ProtoICMPv6:
		header += 8
	}
	if all := header * n.packets; n.bytes >= all {
		n.bytes -= all
	}
	return n
}

// judges are the evaluators of the latest generations.
type judges struct {
	mu    sync.Mutex
	all   [256]*judging
	order []uint8
	first chan struct{} // closed when there is one
}

type judging struct {
	content *content
	once    sync.Once
	judge   *hostpolicy.Judge
}

func (j *judging) get() *hostpolicy.Judge {
	j.once.Do(func() { j.judge = hostpolicy.NewJudge(j.content.effective()) })
	return j.judge
}

// keptJudges is how many generations the kernel may still tell of.
const keptJudges = 32

func (j *judges) add(gen uint8, c *content) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.order) == 0 {
		close(j.first)
	}
	j.all[gen] = &judging{content: c}
	j.order = append(j.order, gen)
	if len(j.order) > keptJudges {
		if old := j.order[0]; old != gen {
			j.all[old] = nil
		}
		j.order = j.order[1:]
	}
}

func (j *judges) of(gen uint8) *judging {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.all[gen]
}
