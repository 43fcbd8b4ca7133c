// Package ebpf is the dataplane that judges packets with eBPF programs at a cgroup of version 2.
//
// The programs are in bpf/, their compiled objects beside this file. They are attached to the root of a cgroup
// hierarchy and see every packet that a socket below it sends or receives, whatever network namespace the socket is
// in. A verdict is kept in the socket's storage under a generation; changing policy means writing what is new next to
// what is old and then storing the next generation, one aligned word, which is the moment at which all of it changes.
//
// Links and maps are pinned on a bpffs, so that verdicts outlive the agent. What the kernel holds is the truth: Open
// reads it back, and Apply writes only the difference.
package ebpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/budget"
	"bulkhead/internal/dataplane"
)

// Config says where the dataplane lives and how much it may hold.
type Config struct {
	// CgroupRoot is the directory of a cgroup of version 2. Sockets made in it or below it are judged.
	CgroupRoot string
	// BPFFS is a directory on a bpffs that belongs to this dataplane alone; it is made if it is missing.
	BPFFS string
	// UpdateInterval is the time between two EventUpdate of a live flow.
	UpdateInterval time.Duration

	MaxSubjects    int // the host and its units
	MaxRows        int // policy rows for single ports and whole protocols
	MaxRanges      int // policy rows for ranges of ports
	MaxAddresses   int // single addresses
	MaxPrefixes    int
	MaxNamed       int // addresses of which host names are known
	MaxConnections int // flows of UDP and ICMP that are remembered; the longest unused make room
	EventBuffer    int // bytes, a power of two

	// UDPTimeout ends a flow of UDP or ICMP that was never answered, UDPStreamTimeout one that was, after silence.
	UDPTimeout, UDPStreamTimeout time.Duration

	// NameFloor and NameCeiling bound for how long an address has a host name, whatever the answer says: whole seconds.
	NameFloor, NameCeiling time.Duration

	// Guard says which interfaces have programs too. They are those of the network namespace that Open is called in.
	Guard Guard

	// AgentLoss is the time without a Beat after which the agent is lost.
	AgentLoss time.Duration

	Logger *slog.Logger // nil discards

	withoutSockDestroy, withoutLoop, withoutTCX, withoutClsact, withoutRecall bool // tests do as if the kernel were older
}

// DefaultConfig returns a Config for a host of some hundred units and some ten thousand peers, without directories. It
// holds as much as package budget promises of this target.
func DefaultConfig() Config {
	holds := budget.EBPF().Max
	return Config{
		UpdateInterval:   10 * time.Second,
		MaxSubjects:      holds[budget.Subjects],
		MaxRows:          holds[budget.Rows],
		MaxRanges:        holds[budget.Ranges],
		MaxAddresses:     holds[budget.Addresses],
		MaxPrefixes:      holds[budget.Prefixes],
		MaxNamed:         65536,
		MaxConnections:   65536,
		EventBuffer:      4 << 20,
		UDPTimeout:       30 * time.Second,
		UDPStreamTimeout: 120 * time.Second,
		NameFloor:        time.Minute,
		NameCeiling:      24 * time.Hour,
		AgentLoss:        30 * time.Second,
	}
}

func (c *Config) check() error {
	if c.CgroupRoot == "" || c.BPFFS == "" {
		return errors.New("CgroupRoot and BPFFS must be set")
	}
	if c.MaxSubjects < 1 || c.MaxSubjects > 65535 {
		return fmt.Errorf("MaxSubjects is %d: use 1–65535", c.MaxSubjects)
	}
	if c.UpdateInterval <= 0 || c.UDPTimeout <= 0 || c.UDPStreamTimeout <= 0 || c.AgentLoss <= 0 {
		return errors.New("intervals and timeouts must be greater than zero")
	}
	for _, n := range []int{c.MaxRows, c.MaxRanges, c.MaxAddresses, c.MaxPrefixes, c.MaxNamed, c.MaxConnections} {
		if n < 1 {
			return errors.New("limits must be greater than zero")
		}
	}
	if c.NameFloor < time.Second || c.NameCeiling < c.NameFloor || c.NameCeiling > 1<<30*time.Second {
		return fmt.Errorf("NameFloor is %s and NameCeiling %s: use at least a second and no more than %s", c.NameFloor, c.NameCeiling, 1<<30*time.Second)
	}
	if page := os.Getpagesize(); c.EventBuffer < page || c.EventBuffer&(c.EventBuffer-1) != 0 {
		return fmt.Errorf("EventBuffer is %d: use a power of two, at least %d", c.EventBuffer, page)
	}
	return nil
}

// Dataplane implements dataplane.Dataplane.
type Dataplane struct {
	cfg   Config
	log   *slog.Logger
	dir   string   // of this layout's pins
	made  []string // directories that were made for it, the outermost first
	lock  *os.File // held by whoever has the dataplane open
	root  uint64   // id of the cgroup
	depth int      // level of the cgroup in the hierarchy
	netns *namespace

	maps     programsMaps
	pinned   map[string]*ebpf.Map // those of them that are
	programs map[string]*ebpf.Program
	links    map[string]link.Link
	linked   map[string]ebpf.ProgramID // what they were made for
	sweepers *iterators
	resets   bool     // the sweeper resets by itself
	follows  bool     // rules may name hosts
	confined bool     // to the network namespace of the host
	missing  []string // sentences about what this kernel does not let us do

	// active, settings and subjects are the kernel's own memory. They are read by programs on every packet; stores to
	// them must be single aligned words.
	active   *atomic.Uint64
	settings memory
	subjects []subjectState
	unmap    []func() error

	// names is what events are decoded with.
	names atomic.Pointer[names]
	// sweeping keeps Apply and Events from sweeping at once.
	sweeping sync.Mutex

	mu   sync.Mutex // guards what follows
	held *held
	// demanded are the programs that are loaded while rules name hosts.
	demanded map[string]*ebpf.Program
	gen      uint32 // in force
	closed   bool
	reading  *reading // Events, while it runs
	// unfinished is set while connections that are no longer allowed may not have been reset, or another layout may
	// still be in place: the next call tries again.
	unfinished bool

	guarding   guarding
	inspection inspection
	inodes     map[string]uint64 // of what is pinned

	// overdue is set when a Beat found something to do that it could not do at once.
	overdue atomic.Bool

	// open is held for reading by what may be called at any time, so that nothing is closed under it.
	open sync.RWMutex
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// subjectState is struct subject.
type subjectState struct{ State, Sets [2]atomic.Uint64 }

// Open takes over the dataplane that is pinned under cfg.BPFFS, or installs it. A new one lets everything pass until the
// first Apply, and tells nothing until then. It must be called in the network namespace of the host. Errors that wrap
// dataplane.ErrUnsupported say what this machine lacks.
func Open(cfg Config) (*Dataplane, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	d := &Dataplane{
		cfg: cfg, log: cfg.Logger, links: map[string]link.Link{}, demanded: map[string]*ebpf.Program{}, sweepers: &iterators{links: map[string]*link.Iter{}},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("open dataplane: %w", err), d.abandon(), d.release())
	}
	d.made = nil
	return d, nil
}

func (d *Dataplane) begin() error {
	err := checkPrivileges()
	if err != nil {
		return err
	}
	if d.root, d.depth, err = findCgroup(d.cfg.CgroupRoot); err != nil {
		return err
	}
	if err := d.takePlace(); err != nil {
		return err
	}
	if d.netns, err = currentNamespace(); err != nil {
		return err
	}
	if d.confined = !d.netns.canEnter(); d.confined {
		d.missing = append(d.missing, confined)
	}
	if err := d.load(); err != nil {
		return err
	}
	if err := d.mapMemory(); err != nil {
		return err
	}
	if err := d.install(); err != nil {
		return err
	}
	if d.held, err = d.readHeld(); err != nil {
		return fmt.Errorf("read what the kernel holds: %w", err)
	}
	if err := d.resumeNames(); err != nil {
		return err
	}
	if err := d.beginGuarding(); err != nil {
		return err
	}
	d.publishNames(nil)
	return d.rememberPins()
}

// install brings everything into place that is not there already. The order matters: first what learns about new
// sockets, then what is known about old ones, then what judges.
func (d *Dataplane) install() error {
	s := &d.settings
	fresh := s.Installed.Load() == 0
	d.unfinished = !fresh // nobody knows how the agent before has ended
	if fresh && d.active.Load() == 0 {
		open := state(1, 0, 0)
		d.subjects[hostSubject].State[0].Store(open)
		d.subjects[hostSubject].State[1].Store(open)
		d.active.Store(1)
	}
	if fresh {
		d.newKeys()
	}
	level := uint32(noLevel)
	if d.depth != anyLevel {
		level = uint32(d.depth)
	}
	s.put64(&s.own.OwnNetns, d.netns.cookie)
	s.put64(&s.own.OwnInode, d.netns.inode)
	s.put64(&s.own.RootCgroup, d.root)
	s.put32(&s.own.RootLevel, level)
	s.put64(&s.own.Unreplied, uint64(d.cfg.UDPTimeout))
	s.put64(&s.own.Replied, uint64(d.cfg.UDPStreamTimeout))
	s.put64(&s.own.Patience, uint64(d.cfg.AgentLoss))
	s.put32(&s.own.TTLFloor, uint32(d.cfg.NameFloor/time.Second))
	s.put32(&s.own.TTLCeiling, uint32(d.cfg.NameCeiling/time.Second))
	if err := d.refreshOwn(); err != nil {
		return err
	}
	for _, a := range attachments {
		if a.judges && fresh {
			continue
		}
		if err := d.attach(a); err != nil {
			return err
		}
	}
	if !fresh {
		return nil
	}
	if err := d.seed(); err != nil {
		return err
	}
	for _, a := range attachments {
		if a.judges {
			if err := d.attach(a); err != nil {
				return err
			}
		}
	}
	if _, err := d.sweepAll(); err != nil {
		return err
	}
	s.put64(&s.own.Installed, now())
	return nil
}

// now returns the time as the programs' bpf_ktime_get_ns does; it is never 0.
func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 1
	}
	return uint64(ts.Nano())
}

// Close lets go of the dataplane; what is pinned goes on judging. It ends Events and waits for it, so the function that
// Events calls must not call it.
func (d *Dataplane) Close() error {
	if !d.end() {
		return nil
	}
	return d.release()
}

// Remove takes the programs out of the kernel and unpins everything. Like Close, it ends Events.
func (d *Dataplane) Remove() error {
	if !d.end() {
		return Uninstall(d.cfg.BPFFS)
	}
	err := d.netns.run(func() error { return Uninstall(d.cfg.BPFFS) })
	return errors.Join(err, d.release())
}

// end makes the dataplane unusable and waits until nothing uses it. It reports false if it was so already.
func (d *Dataplane) end() bool {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return false
	}
	d.closed = true
	r := d.reading
	d.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
	return true
}

// release closes what this process holds.
func (d *Dataplane) release() error {
	d.open.Lock()
	defer d.open.Unlock()
	var errs []error
	for _, f := range d.unmap {
		errs = append(errs, f())
	}
	d.unmap, d.active, d.settings.settings, d.subjects = nil, nil, nil, nil
	errs = append(errs, d.sweepers.Close())
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	for _, p := range d.programs {
		errs = append(errs, p.Close())
	}
	for _, p := range d.demanded {
		errs = append(errs, p.Close())
	}
	errs = append(errs, d.maps.Close())
	if h := d.guarding.filters.h; h != nil {
		h.Close()
	}
	if d.netns != nil {
		errs = append(errs, d.netns.Close())
	}
	if d.lock != nil {
		// Closing alone would not do: a process that is being started may have the file too, for a moment.
		errs = append(errs, unix.Flock(int(d.lock.Fd()), unix.LOCK_UN), d.lock.Close())
	}
	return errors.Join(errs...)
}

// abandon removes what an Open that failed has put into place, unless it was there before.
func (d *Dataplane) abandon() error {
	var errs []error
	for _, dir := range slices.Backward(d.made) {
		if dir == d.dir {
			if f := d.guarding.filters; f.h != nil {
				errs = append(errs, f.leaveOthers(nil))
			}
			errs = append(errs, removeLayout(dir))
		} else {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}

// Installed reports whether a dataplane with this version's layout is pinned under cfg.BPFFS, and whether one with
// another is. Only Open with the same configuration takes over the former.
func Installed(cfg Config) (this, other bool, err error) {
	spec, err := loadPrograms()
	if err != nil {
		return false, false, err
	}
	(&Dataplane{cfg: cfg}).resize(spec)
	layout := layoutOf(spec)
	entries, err := os.ReadDir(cfg.BPFFS)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, false, fmt.Errorf("look for a dataplane: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && isLayout(e.Name()) {
			this, other = this || e.Name() == layout, other || e.Name() != layout
		}
	}
	return this, other, nil
}

// Uninstall detaches and removes every dataplane that is pinned under dir, whether or not an agent has it open. A dir
// that does not exist holds none, but what such dataplanes had at the interfaces of the current network namespace, which must be that of
// the host, may be left and is removed.
func Uninstall(dir string) error {
	entries, err := os.ReadDir(dir)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("uninstall dataplane: %w", err)
	}
	errs := []error{removeFiltersBelow(dir)} // their maps are still there
	for _, e := range entries {
		if e.IsDir() && isLayout(e.Name()) {
			errs = append(errs, removeLayout(filepath.Join(dir, e.Name())))
		}
	}
	if !missing {
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall dataplane: %w", err)
	}
	return nil
}
