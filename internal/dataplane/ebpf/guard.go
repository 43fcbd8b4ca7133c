package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// guardPrograms are loaded when interfaces are guarded.
var guardPrograms = []string{
	programsProgBulkheadLeaving, programsProgBulkheadEntering, programsProgBulkheadUplink, programsProgBulkheadFlushPassages,
}

const unguarded = "Traffic that this host forwards for others, and frames of packet sockets, are not judged: the kernel refuses " +
	"programs at interfaces (tcx, Linux 6.6)."

// guarding is what is known of guarded interfaces. Dataplane.mu guards it.
type guarding struct {
	posts    map[string]post // where programs are, by name
	entries  map[uint32]guarded
	behind   map[address]uint32
	problems map[string]error // by interface
	stations []station        // as they were found last
	units    map[string][]string

	flush *ebpf.Program // does not change after Open
}

// beginGuarding loads the programs and puts them where they belong, or takes away those that an earlier agent had there.
func (d *Dataplane) beginGuarding() error {
	if d.cfg.Guard != GuardNone {
		if err := d.loadGuards(); err != nil {
			d.log.Warn("the kernel refuses the programs at interfaces", "error", err)
			d.missing = append(d.missing, unguarded)
			d.cfg.Guard, d.guarding.flush = GuardNone, nil
		}
	}
	g := &d.guarding
	g.posts, g.problems = map[string]post{}, map[string]error{}
	if err := errors.Join(d.readGuards(), d.dropStaleGuards()); err != nil {
		return err
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
	for _, name := range guardPrograms {
		p, err := loadOne(spec, name, d.mapsByName())
		if err != nil {
			return unsupported(err, nil)
		}
		d.demanded[name] = p
	}
	d.guarding.flush = d.demanded[programsProgBulkheadFlushPassages]
	return d.tryTCX()
}

// tryTCX finds out whether the kernel (6.6) takes programs at interfaces, by one that lets everything pass, at the loopback interface
// for a moment.
func (d *Dataplane) tryTCX() error {
	if d.cfg.withoutTCX {
		return ebpf.ErrNotSupported
	}
	return d.netns.run(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{
			Interface: lo.Attrs().Index, Program: d.demanded[programsProgBulkheadUplink], Attach: ebpf.AttachTCXEgress,
		})
		if err != nil {
			return err
		}
		return l.Close()
	})
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

// dropStaleGuards removes the links of an earlier agent whose interface is gone, or that this one does not want.
func (d *Dataplane) dropStaleGuards() error {
	pins, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
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
	for _, pin := range pins {
		name, ok := strings.CutPrefix(pin.Name(), linkPin(guardPrefix))
		if !ok || wanted[guardPrefix+name] {
			continue
		}
		l, err := link.LoadPinnedLink(d.linkPath(guardPrefix+name), nil)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, d.unpinLink(guardPrefix+name), detachGuard(l), l.Close())
	}
	return errors.Join(errs...)
}

// detachGuard is detach for links that lose their interface by themselves.
func detachGuard(l link.Link) error {
	if err := detach(l); err != nil && !errors.Is(err, unix.ENOLINK) {
		return err
	}
	return nil
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
	name, prog := p.name(), d.demanded[p.program]
	old := d.links[name]
	if old == nil {
		var err error
		if old, err = link.LoadPinnedLink(d.linkPath(name), nil); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("take over %s: %w", d.linkPath(name), err)
		}
	}
	if old != nil && isPosted(old, p) {
		if err := old.Update(prog); err == nil {
			return d.keepPost(p, old, false)
		}
	}
	if old != nil {
		delete(d.links, name)
		if err := errors.Join(d.unpinLink(name), detachGuard(old), old.Close()); err != nil {
			return err
		}
	}
	var l link.Link
	err := d.netns.run(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: p.index, Program: prog, Attach: p.attachType(), Anchor: link.Head()})
		return err
	})
	if err != nil {
		return fmt.Errorf("guard interface %d: %w", p.index, err)
	}
	return d.keepPost(p, l, true)
}

// keepPost remembers the link of a post, and pins it if it is a new one.
func (d *Dataplane) keepPost(p post, l link.Link, fresh bool) error {
	name := p.name()
	if fresh {
		if err := d.pinLink(l, name); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	d.links[name] = l
	d.guarding.posts[name] = p
	if d.inodes != nil {
		if err := d.rememberPin(linkPin(name)); err != nil {
			return err
		}
	}
	return d.rememberLink(name, l)
}

// leavePost takes out what is at a post that is not wanted any more; the interface may be gone.
func (d *Dataplane) leavePost(name string) error {
	l := d.links[name]
	delete(d.links, name)
	delete(d.linked, name)
	delete(d.inodes, linkPin(name))
	delete(d.guarding.posts, name)
	if l == nil {
		return nil
	}
	return errors.Join(d.unpinLink(name), detachGuard(l), l.Close())
}

// isPosted reports whether the link is at the post: that of an interface which is gone is nowhere.
func isPosted(l link.Link, p post) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	tcx := info.TCX()
	return tcx != nil && int(tcx.Ifindex) == p.index && ebpf.AttachType(tcx.AttachType) == p.attachType()
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
		p, l := g.posts[name], d.links[name]
		if l == nil {
			continue
		}
		info, err := l.Info()
		if err != nil {
			errs = append(errs, fmt.Errorf("look at %s: %w", name, err))
			continue
		}
		there := isPosted(l, p)
		if there && info.Program == d.linked[name] {
			continue
		}
		if !there && !d.isInterface(p.index) {
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
