// Package nft is the dataplane that judges packets with nftables, for hosts whose kernel does not let us use eBPF.
//
// It owns one table, `inet bulkhead`, in the network namespace in which it is opened, and touches nothing else of what is
// there. The first packet of a connection is judged; the connection's mark then says in which generation that was and
// whose the ends are, so packets that follow cost one look at the mark. A change of policy is one netlink transaction
// that writes what differs and another generation with it: from that moment on every connection is judged again.
//
// Policy sets and prefixes are maps of their own, named after their content, which never change; what a packet under way
// meets is therefore the old or the new, and what is not needed any more is removed by a second transaction. What the
// kernel has decided it tells by nflog, with the verdict; which rule it was the evaluator says (hostpolicy.Judge), of the
// same policy.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// Config says how the dataplane uses what it shares with others.
type Config struct {
	// MarkShift is where in the marks of connections (ct mark) our 24 bits begin, 0–8.
	MarkShift uint
	// LogGroup is the group of nflog by which the kernel tells what it has decided. Nobody else may use it.
	LogGroup uint16
	// LookInterval is the time between two looks for flows that have ended by their silence.
	LookInterval time.Duration
	// AgentLoss is the time without a Beat after which the agent is lost.
	AgentLoss time.Duration

	Logger *slog.Logger // nil discards
}

// DefaultConfig returns a Config with which nothing that is customary on a host collides: the low byte of marks stays free.
func DefaultConfig() Config {
	return Config{MarkShift: 8, LogGroup: 7919, LookInterval: 10 * time.Second, AgentLoss: 30 * time.Second}
}

func (c *Config) check() error {
	if c.MarkShift > 8 {
		return fmt.Errorf("MarkShift is %d: use 0–8", c.MarkShift)
	}
	if c.LookInterval <= 0 || c.AgentLoss <= 0 {
		return errors.New("intervals must be greater than zero")
	}
	return nil
}

// Dataplane implements dataplane.Dataplane.
type Dataplane struct {
	cfg    Config
	log    *slog.Logger
	ns     *namespace
	lock   *net.UnixListener // that there is one of us in the namespace
	layout layout
	can    abilities

	mu         sync.Mutex
	closed     bool
	record     record   // what the kernel keeps
	content    *content // what is in force; nil if this agent has applied nothing yet
	table      *table   // what the kernel has of it; nil if that is not known
	looked     *picture // what the table looked like; nil if nobody has looked since it was changed
	rows       int      // of policy sets in force
	written    int      // those that the last change has written
	unfinished bool     // connections are still to be judged again
	glassUntil time.Time
	reading    *reading

	beat     sync.Mutex
	lastBeat time.Time
	returned atomic.Bool // the agent was lost and has come back while Apply was at work

	told     told
	flows    *flows
	sequence *uint32 // of the last message of the log
}

// How often, and how far apart, it is tried to be the only one.
const (
	lockTries = 20
	lockWait  = 50 * time.Millisecond
)

// Open makes the table in the network namespace of the calling thread, or takes over the one that is there.
func Open(cfg Config) (_ *Dataplane, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ns, err := here()
	if err != nil {
		return nil, err
	}
	d := &Dataplane{cfg: cfg, log: log, ns: ns, layout: layout{cfg.MarkShift}}
	d.flows = newFlows(d)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.release(), ns.file.Close())
		}
	}()
	// An abstract address belongs to the network namespace and goes with the process.
	for try := 0; try < lockTries; try++ { // a process that somebody is just starting may hold what has been closed
		d.lock, err = net.ListenUnix("unix", &net.UnixAddr{Name: "@bulkhead-nft"})
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		time.Sleep(lockWait)
	}
	if err != nil {
		return nil, fmt.Errorf("another agent has the nftables dataplane of this network namespace: %w", err)
	}
	if d.can, err = d.ns.probe(); err != nil {
		return nil, fmt.Errorf("%w: nftables: %w", dataplane.ErrUnsupported, err)
	}
	rec, ok, err := ns.readRecord()
	if err != nil {
		return nil, err
	}
	if err := d.listen(); err != nil {
		return nil, err
	}
	if ok && rec.version == tableVersion {
		d.record = rec
		return d, d.readGlass()
	}
	if ok { // of another version of ours: it judges on until there is a policy
		d.record = record{version: tableVersion, gen: rec.gen, flags: rec.flags &^ flagPolicy, subjects: rec.subjects}
		return d, d.readGlass()
	}
	return d, d.install()
}

// install makes the table for the first time: everything passes, and connections are tracked from here on.
func (d *Dataplane) install() error {
	there, err := d.ns.isThere()
	if err != nil {
		return err
	}
	var b batch
	if there { // nobody knows what is in it
		b.table(unix.NFT_MSG_DELTABLE)
	}
	d.record = record{version: tableVersion, gen: 1, subjects: numbers{}}
	next := d.build(nil, &d.record)
	b.table(unix.NFT_MSG_NEWTABLE)
	newTable().change(next, &b)
	if err := d.ns.commit(&b); err != nil {
		return unsupported(err)
	}
	d.table = next
	if err := d.seed(); err != nil {
		return errors.Join(err, d.ns.remove())
	}
	return nil
}

// seed takes in the connections that are open already. Their direction only the sockets tell.
func (d *Dataplane) seed() error {
	all, err := d.ns.tcpSockets()
	if err != nil {
		return err
	}
	for _, t := range existing(all) {
		if err := d.ns.track(t); err != nil {
			d.log.Warn("a connection that was open before", "from", t.src, "to", t.dst, "error", err)
		}
	}
	return d.ns.connections(func(c *connection) { d.flows.existed(c.flow()) })
}

// unsupported says what an error of the first transaction means.
func unsupported(err error) error {
	for _, no := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EPERM, unix.EINVAL} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: nftables: %w", dataplane.ErrUnsupported, err)
		}
	}
	return err
}

// build makes the table for the content.
func (d *Dataplane) build(c *content, r *record) *table {
	t := newTable()
	t.chain(stateChain).rules = r.rules()
	w := writer{table: t, content: c, layout: d.layout, gen: r.gen, group: d.cfg.LogGroup, reopens: d.can.reopen}
	w.write()
	return t
}

func (d *Dataplane) usable(ctx context.Context) error {
	if d.closed {
		return fmt.Errorf("dataplane: %w", os.ErrClosed)
	}
	return ctx.Err()
}

// Close lets go of the table and leaves it in force.
func (d *Dataplane) Close() error {
	if !d.end() {
		return nil
	}
	return d.release()
}

// end ends Events. It reports whether the dataplane was open.
func (d *Dataplane) end() bool {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return false
	}
	d.closed = true
	reading := d.reading
	d.mu.Unlock()
	if reading != nil {
		reading.cancel()
		<-reading.done
	}
	return true
}

// release lets another one of us in. The namespace stays known: Remove may follow.
func (d *Dataplane) release() error {
	var errs []error
	for _, c := range d.told.all() {
		errs = append(errs, c.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

// Remove takes the table away, and our bits out of the marks of connections. Like Close, it ends Events.
func (d *Dataplane) Remove() error {
	open := d.end()
	err := errors.Join(d.ns.remove(), d.ns.forget(d.layout.all(), func(m uint32) bool { return m&d.layout.all() != 0 }))
	if open {
		err = errors.Join(err, d.release())
	}
	return err
}

// remove takes the table away, if it is there.
func (n *namespace) remove() error {
	there, err := n.isThere()
	if err != nil || !there {
		return err
	}
	var b batch
	b.table(unix.NFT_MSG_DELTABLE)
	return n.commit(&b)
}

// Uninstall takes the table out of the network namespace of the calling thread.
func Uninstall() (err error) {
	n, err := here()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.file.Close()) }()
	there, err := n.isThere()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the kernel has no nftables
	}
	if err != nil || !there {
		return err
	}
	if err := n.remove(); err != nil {
		return err
	}
	l := layout{DefaultConfig().MarkShift}
	return n.forget(l.all(), func(m uint32) bool { return m&l.all() != 0 })
}

// Installed reports whether the table is there, in the network namespace of the calling thread.
func Installed() (there bool, err error) {
	n, err := here()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, n.file.Close()) }()
	return n.isThere()
}
