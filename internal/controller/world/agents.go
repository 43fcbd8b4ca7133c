package world

import (
	"iter"
	"slices"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/hostpolicy"
)

// What agents are sent is drawn when their streams ask for it, from the newest policy. In between, nothing is made for a host but
// a note of what changed in the addresses that it is told of, and that only for hosts which a change concerns: the rest of what an
// agent lacks follows from the outline of the policy that it has and from that of the one that it should have.

// Outline is what the agent of a host should enforce, or has: its policy without addresses, ports and the content of sets. It
// does not change.
type Outline struct {
	*hostpolicy.Policy
	Sum hostpolicy.Hash // of the whole policy

	feed *feed // nil: no stream may start from it
	at   uint64
}

// Draft is what brings an agent from the policy that it has to the one that it should have: one of Step and Whole.
type Draft struct {
	Want  *Outline
	Step  *hostpolicy.Step
	Whole *hostpolicy.Policy
}

// feed is what is known of what the stream of one agent needs.
type feed struct {
	watch   *watch   // nil: there is no stream at present
	seen    uint64   // the batch up to which it is up to date
	outline *Outline // what the agent should have; nil: something else than before, not looked at yet

	// log is what changed in addresses, from a position in the sequence of all that ever did. It grows only while somebody has
	// an outline to start from, and is cut off when it says more than is worth sending.
	from      uint64
	log       []*hostpolicy.AddressDelta
	size      int
	following bool
}

// watch is a stream.
type watch struct {
	poke func() // it should look
}

// Limits on what is kept of the past for one agent. Lists of addresses are shared by hosts that are told the same.
const (
	maxSteps     = 256
	maxAddresses = 1 << 16
)

// end returns the position after the log.
func (d *feed) end() uint64 { return d.from + uint64(len(d.log)) }

// forget cuts the log off: no outline of before can be started from.
func (d *feed) forget() {
	d.from, d.log, d.size, d.following, d.outline = d.end()+1, nil, 0, false, nil
}

// note takes what a change says about the host.
func (d *feed) note(addresses *hostpolicy.AddressDelta) {
	d.outline = nil
	if !d.following {
		d.from++
		return
	}
	d.log = append(d.log, addresses)
	if d.size += addresses.Len(); len(d.log) > maxSteps || d.size > maxAddresses {
		d.forget()
	}
}

// since returns what changed since the outline was made, and lets go of what is older; false if that is not known.
func (d *feed) since(o *Outline) (*hostpolicy.AddressDelta, bool) {
	if o == nil || o.feed != d || o.at < d.from || o.at > d.end() {
		return nil, false
	}
	n := int(o.at - d.from)
	for _, old := range d.log[:n] {
		d.size -= old.Len()
	}
	d.from, d.log = o.at, slices.Delete(d.log, 0, n)
	list := slices.DeleteFunc(slices.Clone(d.log), func(a *hostpolicy.AddressDelta) bool { return a == nil })
	return hostpolicy.JoinAddresses(list), true
}

// agents are the feeds of all agents. They read compile.Changes, and so must have read all of them before the next.
type agents struct {
	compiler *compiler
	feeds    map[string]*feed

	batch uint64
	// expecting are hosts of which streams may wait for the next snapshot, whatever it says.
	expecting map[string]bool
	// changes are the latest; nil if they have been read. next yields the hosts that they concern, stop ends it.
	changes *compile.Changes
	next    func() (string, *hostpolicy.AddressDelta, bool)
	stop    func()

	// sets are policy sets that have been drawn since the latest change: hosts have them in common.
	sets map[hostpolicy.PolicySetID]hostpolicy.PolicySet
	rows int // in sets
}

// maxRows bounds what sets hold: 16 bytes each.
const maxRows = 2 << 20

// expect notes hosts of which the next snapshot has other reports.
func (g *agents) expect(hosts map[string]*host) {
	for host := range hosts {
		g.expecting[host] = true
	}
}

// begin takes new changes, nil if everything was compiled anew. Those before have been read.
func (g *agents) begin(changes *compile.Changes) {
	g.batch++
	clear(g.sets)
	g.rows = 0
	for host := range g.expecting {
		if d := g.feeds[host]; d != nil && d.watch != nil {
			d.watch.poke()
		}
	}
	g.expecting = map[string]bool{}
	if changes == nil {
		return
	}
	for _, list := range [][]string{changes.Joined, changes.Left} {
		for _, host := range list {
			if d := g.feeds[host]; d != nil {
				d.forget()
				d.seen = g.batch
				g.tell(host, d)
			}
		}
	}
	if len(g.feeds) > 0 {
		g.changes = changes
		g.next, g.stop = iter.Pull2(changes.EachTold)
	}
}

// tell lets the stream of an agent look. A feed that is of no use any more goes.
func (g *agents) tell(host string, d *feed) {
	if d.watch != nil {
		d.watch.poke()
	} else if !d.following {
		delete(g.feeds, host)
	}
}

// spread tells up to so many of the hosts that the latest changes concern, and reports whether there may be more.
func (g *agents) spread(hosts int) bool {
	for range hosts {
		if g.changes == nil {
			return false
		}
		host, addresses, ok := g.next()
		if !ok {
			g.stop()
			g.changes, g.next, g.stop = nil, nil, nil
			return false
		}
		if d := g.feeds[host]; d != nil && d.seen < g.batch {
			d.seen = g.batch
			d.note(addresses)
			g.tell(host, d)
		}
	}
	return true
}

// finish tells all others. It comes before the next change of the compiler.
func (g *agents) finish() {
	for g.spread(1 << 20) {
	}
}

// catchUp brings one feed up to date ahead of the others.
func (g *agents) catchUp(host string, d *feed) {
	if d.seen == g.batch {
		return
	}
	d.seen = g.batch
	if g.changes == nil {
		return // everybody who is concerned has been told
	}
	if addresses, told := g.changes.Told(host); told {
		d.note(addresses)
		g.tell(host, d) // whoever asks: it may be somebody else
	}
}

// outline returns what the agent of a host should have, nil if there is no such host.
func (g *agents) outline(host string) *Outline {
	d := g.feeds[host]
	if d == nil {
		return g.draw(host)
	}
	g.catchUp(host, d)
	if d.watch != nil {
		d.following = true // from here on, because the stream may start from this outline
	}
	switch revision := g.compiler.docs.given.Revision; {
	case d.outline == nil:
		if d.outline = g.draw(host); d.outline == nil {
			return nil
		}
		d.outline.feed, d.outline.at = d, d.end()
	case d.outline.Revision != revision: // which changed nothing for the host
		p := *d.outline.Policy
		p.Revision = revision
		o := *d.outline
		o.Policy = &p
		d.outline = &o
	}
	return d.outline
}

func (g *agents) draw(host string) *Outline {
	p, sum, ok := g.compiler.live.HostOutline(host)
	if !ok {
		return nil
	}
	p.Revision = g.compiler.docs.given.Revision
	return &Outline{Policy: p, Sum: sum}
}

// whole returns all of a host's policy, nil if there is no such host.
func (g *agents) whole(host string) *hostpolicy.Policy {
	p, ok := g.compiler.live.HostPolicy(host)
	if !ok {
		return nil
	}
	p.Revision = g.compiler.docs.given.Revision
	return p
}

// draft draws what leads from what an agent has to what it should have; nil if there is no such host.
func (g *agents) draft(host string, has *Outline) *Draft {
	want := g.outline(host)
	if want == nil {
		return nil
	}
	d := g.feeds[host]
	if d == nil {
		return &Draft{Want: want, Whole: g.whole(host)}
	}
	addresses, known := d.since(has)
	if !known {
		return &Draft{Want: want, Whole: g.whole(host)}
	}
	s := hostpolicy.Between(has.Policy, want.Policy)
	s.Base, s.Result, s.AddressDelta = has.Sum, want.Sum, *addresses
	for i := range s.Sets {
		s.Sets[i] = g.set(host, s.Sets[i].ID)
	}
	return &Draft{Want: want, Step: s}
}

// set returns a policy set of a host, which has it.
func (g *agents) set(host string, id hostpolicy.PolicySetID) hostpolicy.PolicySet {
	if s, ok := g.sets[id]; ok {
		return s
	}
	s, _ := g.compiler.live.HostSet(host, id)
	if g.rows += len(s.Ingress.Peers) + len(s.Egress.Peers); g.rows > maxRows {
		clear(g.sets)
		g.rows = len(s.Ingress.Peers) + len(s.Egress.Peers)
	}
	g.sets[id] = s
	return s
}
