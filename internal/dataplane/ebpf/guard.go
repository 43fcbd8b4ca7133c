package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// guardPrograms are loaded when interfaces are guarded.
var guardPrograms = []string{
	programsProgBulkheadLeaving, programsProgBulkheadEntering, programsProgBulkheadUplink, programsProgBulkheadFlushPassages,
}

const unguarded = "Traffic that this host forwards for others, and frames of packet sockets, are not judged: the kernel refuses " +
	"programs at interfaces (tcx, or clsact with cls_bpf)."

// posting is how programs are put at interfaces.
type posting interface {
	// put places the program at the post, in one step instead of what is ours there.
	put(p post, prog *ebpf.Program) error
	// at returns the program that we have there, 0 for none.
	at(p post) (ebpf.ProgramID, error)
	// leave takes away what is ours at the post. The interface may be gone.
	leave(p post) error
	// leaveOthers takes away what an agent with this layout has left elsewhere than at the posts of these names.
	leaveOthers(wanted map[string]bool) error
}

// guarding is what is known of guarded interfaces. Dataplane.mu guards it.
type guarding struct {
	posts    map[string]post // where programs are, by name
	entries  map[uint32]guarded
	behind   map[address]uint32
	problems map[string]error // by interface
	stations []station        // as they were found last
	units    map[string][]string

	// What follows does not change after Open.
	flush   *ebpf.Program
	ids     map[string]ebpf.ProgramID // of the programs, by name
	filters filters                   // of this agent or another one
	posting posting                   // nil: nothing is guarded
}

// beginGuarding loads the programs and puts them where they belong, or takes away those that an earlier agent had there.
func (d *Dataplane) beginGuarding() error {
	g := &d.guarding
	if err := d.netns.run(func() (err error) {
		g.filters.d = d
		g.filters.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		return fmt.Errorf("look at interfaces: %w", err)
	}
	if d.cfg.Guard != GuardNone {
		if err := d.loadGuards(); err != nil {
			d.log.Warn("the kernel refuses the programs at interfaces", "error", err)
			d.missing = append(d.missing, unguarded)
			d.cfg.Guard, g.flush = GuardNone, nil
		}
	}
	g.posts, g.problems = map[string]post{}, map[string]error{}
	if err := d.readGuards(); err != nil {
		return err
	}
	if err := d.dropStaleGuards(); err != nil { // no reason to leave everything else unjudged
		d.log.Error("taking away what an earlier agent had at interfaces", "error", err)
	}
	return d.refreshGuards()
}

// loadGuards loads the programs on the maps that are there.
func (d *Dataplane) loadGuards() error {
	spec, err := loadPrograms()
	if err != nil {
		return err
	}
	d.resize(spec)
	d.guarding.ids = map[string]ebpf.ProgramID{}
	for _, name := range guardPrograms {
		p, err := loadOne(spec, name, d.mapsByName())
		if err != nil {
			return unsupported(err, nil)
		}
		d.demanded[name] = p
		info, err := p.Info()
		if err != nil {
			return fmt.Errorf("look at %s: %w", name, err)
		}
		d.guarding.ids[name], _ = info.ID() // every kernel that has such programs numbers them
	}
	d.guarding.flush = d.demanded[programsProgBulkheadFlushPassages]
	d.guarding.posting, err = d.findPosting()
	return err
}

// findPosting finds out how the kernel takes programs at interfaces, by one that lets everything pass, at the loopback interface
// for a moment.
func (d *Dataplane) findPosting() (posting, error) {
	lo, err := d.guarding.filters.h.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	p := post{lo.Attrs().Index, programsProgBulkheadUplink, true}
	prog := d.demanded[p.program]
	refused := ebpf.ErrNotSupported
	if !d.cfg.withoutTCX {
		l, err := tcx{d}.attach(p, prog)
		if err == nil {
			return tcx{d}, l.Close()
		}
		refused = err
	}
	f := d.guarding.filters
	if d.cfg.withoutClsact {
		return nil, refused
	}
	if err := f.put(p, prog); err != nil {
		return nil, errors.Join(fmt.Errorf("tcx: %w", refused), fmt.Errorf("clsact: %w", err))
	}
	return f, f.leave(p)
}

// readGuards reads what the maps of guarded interfaces hold.
func (d *Dataplane) readGuards() error {
	g := &d.guarding
	g.entries, g.behind = map[uint32]guarded{}, map[address]uint32{}
	var index, at uint32
	var entry guarded
	var addr address
	it := d.maps.Guards.Iterate()
	for it.Next(&index, &entry) {
		g.entries[index] = entry
	}
	owners := d.maps.Behind.Iterate()
	for owners.Next(&addr, &at) {
		g.behind[addr] = at
	}
	if err := errors.Join(it.Err(), owners.Err()); err != nil {
		return fmt.Errorf("read guarded interfaces: %w", err)
	}
	return nil
}

// dropStaleGuards removes what an earlier agent has left at interfaces that this one does not guard.
func (d *Dataplane) dropStaleGuards() error {
	wanted := map[string]bool{}
	if d.cfg.Guard != GuardNone {
		stations, err := d.stations()
		if err != nil {
			return err
		}
		for _, s := range stations {
			for _, p := range s.posts {
				wanted[p.name()] = true
			}
		}
	}
	var errs []error
	for _, by := range []posting{tcx{d}, d.guarding.filters} {
		if by == d.guarding.posting {
			errs = append(errs, by.leaveOthers(wanted))
		} else {
			errs = append(errs, by.leaveOthers(nil))
		}
	}
	return errors.Join(errs...)
}

// refreshGuards compares the interfaces there are with those that are guarded. An interface that cannot be guarded is a problem
// of that one only. The caller holds mu, or nobody else has d yet.
func (d *Dataplane) refreshGuards() error {
	if d.cfg.Guard == GuardNone {
		return nil
	}
	stations, err := d.stations()
	if err != nil {
		return err
	}
	g := &d.guarding
	g.stations = stations
	if err := d.writeGuards(nil); err != nil { // before there are programs that look
		return err
	}
	problems, wanted := map[string]error{}, map[string]bool{}
	for _, s := range stations {
		for _, p := range s.posts {
			wanted[p.name()] = true
			if have, ok := g.posts[p.name()]; ok && have == p {
				continue
			}
			if err := d.guardPost(p); err != nil && d.isInterface(s.index) { // many do not live long
				problems[s.name] = err
			}
		}
	}
	for name := range maps.Clone(g.posts) {
		if !wanted[name] {
			if err := d.leavePost(name); err != nil {
				problems[name] = err
			}
		}
	}
	for name, err := range problems {
		if g.problems[name] == nil {
			d.log.Error("an interface is not guarded", "interface", name, "error", err)
		}
	}
	g.problems = problems
	return d.clearGuards()
}

// refreshOwners looks whose units' stacks are behind ports. The caller holds mu, or nobody else has d yet.
func (d *Dataplane) refreshOwners() error {
	owners, err := d.ownersOf(d.guarding.stations, d.guarding.units)
	if err != nil {
		d.log.Warn("looking whose network stacks are behind interfaces", "error", err) // what was found is true
	}
	return d.writeGuards(owners)
}

// isInterface reports whether the interface still is.
func (d *Dataplane) isInterface(index int) bool {
	err := d.netns.run(func() error {
		_, err := netlink.LinkByIndex(index)
		return err
	})
	return err == nil || !errors.As(err, new(netlink.LinkNotFoundError))
}

// guardPost puts the program of the post into place, or takes over what an earlier agent had there.
func (d *Dataplane) guardPost(p post) error {
	if err := d.guarding.posting.put(p, d.demanded[p.program]); err != nil {
		return fmt.Errorf("guard interface %d: %w", p.index, err)
	}
	d.guarding.posts[p.name()] = p
	return nil
}

// leavePost takes out what is at a post that is not wanted any more; the interface may be gone.
func (d *Dataplane) leavePost(name string) error {
	p := d.guarding.posts[name]
	delete(d.guarding.posts, name)
	return d.guarding.posting.leave(p)
}

// writeGuards tells the programs of the interfaces there are, and whose they are, unless owners is nil.
func (d *Dataplane) writeGuards(owners map[int]uint64) error {
	g := &d.guarding
	for _, s := range g.stations {
		have, ok := g.entries[uint32(s.index)]
		entry := guarded{Netns: noNamespace, Cgroup: have.Cgroup}
		if owners != nil {
			entry.Cgroup = owners[s.index]
		}
		if s.raw {
			entry.Raw = 1
		}
		if s.netns >= 0 {
			entry.Netns = uint32(s.netns)
		}
		if ok && have == entry {
			continue
		}
		if err := d.maps.Guards.Put(uint32(s.index), entry); err != nil {
			return fmt.Errorf("write guarded interfaces: %w", err)
		}
		g.entries[uint32(s.index)] = entry
	}
	return nil
}

// clearGuards removes what is said of interfaces that are gone.
func (d *Dataplane) clearGuards() error {
	g := &d.guarding
	var errs []error
	for index := range g.entries {
		if slices.ContainsFunc(g.stations, func(s station) bool { return uint32(s.index) == index }) {
			continue
		}
		if err := d.maps.Guards.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("write guarded interfaces: %w", err))
			continue
		}
		delete(g.entries, index)
	}
	return errors.Join(errs...)
}

// writeBehind tells the programs which addresses stacks behind ports have.
func (d *Dataplane) writeBehind(addresses map[address]uint32) error {
	g := &d.guarding
	var errs []error
	for addr, at := range addresses {
		if have, ok := g.behind[addr]; ok && have == at {
			continue
		}
		if err := d.maps.Behind.Put(addr, at); err != nil {
			errs = append(errs, fmt.Errorf("write addresses behind interfaces: %w", err))
			continue
		}
		g.behind[addr] = at
	}
	for addr := range g.behind {
		if _, ok := addresses[addr]; ok {
			continue
		}
		if err := d.maps.Behind.Delete(addr); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("write addresses behind interfaces: %w", err))
			continue
		}
		delete(g.behind, addr)
	}
	return errors.Join(errs...)
}

// repairGuards puts back programs that were taken from their interfaces, and says what it found. An interface that has gone took
// them with it.
func (d *Dataplane) repairGuards() (found []string, err error) {
	g := &d.guarding
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(g.posts)) {
		p := g.posts[name]
		have, err := g.posting.at(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("look at %s: %w", name, err))
			continue
		}
		if have == g.ids[p.program] {
			continue
		}
		if have == 0 && !d.isInterface(p.index) {
			continue // the next refresh forgets it
		}
		delete(g.posts, name)
		if err := d.guardPost(p); err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, fmt.Sprintf("the program at interface %d (%s) had been detached or replaced", p.index, p.program))
	}
	for _, name := range slices.Sorted(maps.Keys(g.problems)) {
		errs = append(errs, fmt.Errorf("interface %s is not guarded: %w", name, g.problems[name]))
	}
	return found, errors.Join(errs...)
}

// findUnits notes where units are, and looks which ports are theirs if that has changed.
func (d *Dataplane) findUnits(units map[string][]string) error {
	g := &d.guarding
	if d.cfg.Guard == GuardNone || maps.EqualFunc(g.units, units, slices.Equal) {
		return nil
	}
	g.units = maps.Clone(units)
	return d.refreshOwners()
}

// lookAtLinks refreshes what is known of interfaces. What takes long does not keep others from the dataplane.
func (d *Dataplane) lookAtLinks() error {
	stations, units, err := d.beginLook()
	if err != nil || !slices.ContainsFunc(stations, func(s station) bool { return s.side == port }) {
		return err
	}
	owners, err := d.ownersOf(stations, units)
	addresses, err1 := d.addressesBehind(stations)
	if err := errors.Join(err, err1); err != nil {
		d.log.Warn("looking whose network stacks are behind interfaces", "error", err) // what was found is true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	if !maps.EqualFunc(units, d.guarding.units, slices.Equal) { // Apply has looked meanwhile
		return d.writeBehind(addresses)
	}
	return errors.Join(d.writeGuards(owners), d.writeBehind(addresses))
}

func (d *Dataplane) beginLook() ([]station, map[string][]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, nil
	}
	err := d.refreshGuards()
	return d.guarding.stations, d.guarding.units, err
}

// watchLinks asks for a refresh, by links, when an interface comes, goes or changes, until ctx ends; see watchOwn.
func (d *Dataplane) watchLinks(ctx context.Context, links chan<- struct{}) error {
	return watch(ctx, d, "interfaces", links, func() (<-chan netlink.LinkUpdate, error) {
		updates := make(chan netlink.LinkUpdate, 64)
		return updates, netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback: func(err error) {
				if ctx.Err() == nil {
					d.log.Warn("watching this host's interfaces", "error", err)
				}
			},
		})
	})
}

// byDepth orders units so that one comes before those within it.
func byDepth(a, b backUnit) int {
	return cmp.Or(cmp.Compare(a.depth, b.depth), strings.Compare(a.dir, b.dir))
}
