package ebpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
)

// layoutVersion changes when the meaning of what is in the maps does. Their shapes are part of the layout anyway.
const layoutVersion = 3

// PROCESSORS and FLOW_ROWS of bpf/recent.h.
const connectionRows, flowRows = 1024, 64

const layoutPrefix = "layout_"

func isLayout(name string) bool { return strings.HasPrefix(name, layoutPrefix) }

// layoutOf names a layout: pins of one are never used with another.
func layoutOf(spec *ebpf.CollectionSpec) string {
	var lines []string
	for name, m := range spec.Maps {
		if m.Pinning == ebpf.PinByName {
			lines = append(lines, fmt.Sprintf("%s %s %d %d %d %d", name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags))
		}
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return fmt.Sprintf("%s%d_%x", layoutPrefix, layoutVersion, sum[:4])
}

// testOnly are programs that only tests load.
var testOnly = []string{programsProgBulkheadProbe}

// optional are programs that only add to the others: a kernel that refuses one costs what is said here.
var optional = []struct{ program, without string }{
	{programsProgBulkheadSetState, "The end of TCP connections and what they carried is not recorded."},
	{programsProgBulkheadSweep, "Live TCP connections that are no longer allowed fall silent instead of being reset."},
	{programsProgBulkheadFind, "Changes of policy take longer to reset connections on a host with many network namespaces."},
	{programsProgBulkheadUpdate, "What a TCP connection has carried is recorded only when it ends."},
	{programsProgBulkheadFlush, "Repeated denials and silent UDP flows are not recorded."},
	{programsProgBulkheadSockRelease, "A UDP flow ends in the record only after its timeout."},
	{programsProgBulkheadSendmsg4, "A UDP flow over IPv4 names the process that made the socket, not the one that sends."},
	{programsProgBulkheadSendmsg6, "A UDP flow over IPv6 names the process that made the socket, not the one that sends."},
	{programsProgBulkheadListening, "Of connections made before the agent, who opened them is guessed from the ports."},
	{programsProgBulkheadLearn, "When rules first name executables, those of the processes that run already are not known."},
	{programsProgBulkheadSeed, "Of sockets made before the agent, the process is not known."},
}

// attachment is a program that stays attached.
type attachment struct {
	program string
	typ     ebpf.AttachType
	judges  bool // decides about packets
}

var attachments = []attachment{
	{programsProgBulkheadSockCreate, ebpf.AttachCGroupInetSockCreate, false},
	{programsProgBulkheadSockRelease, ebpf.AttachCgroupInetSockRelease, false},
	{programsProgBulkheadSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, false},
	{programsProgBulkheadSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, false},
	{programsProgBulkheadSetState, ebpf.AttachTraceRawTp, false},
	{programsProgBulkheadConnect4, ebpf.AttachCGroupInet4Connect, true},
	{programsProgBulkheadConnect6, ebpf.AttachCGroupInet6Connect, true},
	{programsProgBulkheadIngress, ebpf.AttachCGroupInetIngress, true},
	{programsProgBulkheadEgress, ebpf.AttachCGroupInetEgress, true},
}

// load brings maps and programs into the kernel, taking over maps that are pinned.
func (d *Dataplane) load() error {
	limited := rlimit.RemoveMemlock() // which matters to kernels before 5.11 only
	spec, err := loadPrograms()
	if err != nil {
		return err
	}
	d.resize(spec)
	d.dir = filepath.Join(d.cfg.BPFFS, layoutOf(spec))
	if err := d.makeDir(d.dir); err != nil {
		return err
	}
	if d.follows = canFollow() && !d.cfg.withoutLoop; !d.follows {
		d.missing = append(d.missing, withoutNames)
	}
	for _, name := range slices.Concat(testOnly, onDemand, guardPrograms) { // not needed, or not yet
		delete(spec.Programs, name)
	}
	d.resets = canReset() && !d.cfg.withoutSockDestroy
	for name, yes := range map[string]bool{"resets": d.resets, "recalls": !d.cfg.withoutRecall} {
		if err := spec.Variables[name].Set(yes); err != nil {
			return err
		}
	}
	c, err := d.loadAll(spec)
	if err != nil {
		return unsupported(err, limited)
	}
	defer c.Close() // what is not taken over below
	d.pinned = maps.Clone(c.Maps)
	maps.DeleteFunc(d.pinned, func(name string, _ *ebpf.Map) bool { return spec.Maps[name].Pinning != ebpf.PinByName })
	d.programs = maps.Clone(c.Programs)
	c.Programs = nil
	return c.Assign(&d.maps)
}

// loadAll loads everything, or, if the kernel refuses something that only adds to the rest, everything else.
func (d *Dataplane) loadAll(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	pins := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: d.dir}}
	c, err := ebpf.NewCollectionWithOptions(spec.Copy(), pins)
	if err == nil {
		return c, nil
	}
	base := spec.Copy()
	for _, o := range optional {
		delete(base.Programs, o.program)
	}
	c, err = ebpf.NewCollectionWithOptions(base, pins)
	if err != nil {
		return nil, err
	}
	for _, o := range optional {
		p, err := loadOne(spec, o.program, c.Maps)
		if err != nil {
			d.log.Warn("the kernel refuses a program", "program", o.program, "error", err)
			d.missing = append(d.missing, o.without)
			continue
		}
		c.Programs[o.program] = p
	}
	return c, nil
}

func (d *Dataplane) resize(spec *ebpf.CollectionSpec) {
	processors, err := ebpf.PossibleCPU()
	if err != nil {
		processors = 1 // the others have no place for what was allowed lately, and look it up
	}
	for name, n := range map[string]int{
		programsMapRecentConnections: min(processors, connectionRows) * int(spec.Maps[programsMapRecentConnections].MaxEntries), // which is one row
		programsMapRecentFlows:       min(processors, flowRows) * int(spec.Maps[programsMapRecentFlows].MaxEntries),
		programsMapSubjects:          d.cfg.MaxSubjects,
		programsMapSubjectInfo:       d.cfg.MaxSubjects,
		programsMapRows:              d.cfg.MaxRows,
		programsMapRanges:            d.cfg.MaxRanges,
		programsMapAddresses:         d.cfg.MaxAddresses,
		programsMapPrefixes:          d.cfg.MaxPrefixes,
		programsMapLearnt:            d.cfg.MaxNamed,
		programsMapConnections:       d.cfg.MaxConnections,
		programsMapEvents:            d.cfg.EventBuffer,
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
}

// loadOne loads one more program on the maps that are there.
func loadOne(spec *ebpf.CollectionSpec, program string, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	one := spec.Copy()
	for name := range one.Programs {
		if name != program {
			delete(one.Programs, name)
		}
	}
	for name, m := range one.Maps {
		if maps[name] != nil {
			m.Pinning = ebpf.PinNone
		}
	}
	c, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.DetachProgram(program), nil
}

// unsupported turns the kernel's refusal into a sentence about what is missing. Limited says why the limit on locked
// memory is still there, if it is: for older kernels maps are such memory.
func unsupported(err, limited error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM) && limited != nil && kernelBefore(5, 11):
		return fmt.Errorf("%w: the limit on locked memory is too low; run \"ulimit -l unlimited\" or give CAP_SYS_RESOURCE: %w",
			dataplane.ErrUnsupported, limited)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the kernel forbids the bpf system call even with all the capabilities it needs; look at the "+
			"seccomp profile (of a container or a service) and at /sys/kernel/security/lockdown: %w", dataplane.ErrUnsupported, err)
	case errors.As(err, &refused):
		return fmt.Errorf("%w: the kernel %s refuses a program; 5.15 or later is needed: %w",
			dataplane.ErrUnsupported, kernelRelease(), err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: the kernel %s lacks what the programs need (BTF and eBPF as of 5.15): %w",
			dataplane.ErrUnsupported, kernelRelease(), err)
	}
	return fmt.Errorf("load eBPF programs: %w", err)
}

// attach puts a program in place: it replaces the program of a pinned link without a gap, or makes a link and pins it.
func (d *Dataplane) attach(a attachment) error {
	prog := d.program(a.program)
	if prog == nil {
		return nil // optional, and reported
	}
	path := d.linkPath(a.program)
	old, err := link.LoadPinnedLink(path, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("take over %s: %w", path, err)
	}
	if old != nil && a.typ != ebpf.AttachTraceRawTp && d.attachedHere(old) {
		if err := old.Update(prog); err == nil {
			d.links[a.program] = old
			return d.rememberLink(a.program, old)
		}
	}
	var l link.Link
	if a.typ == ebpf.AttachTraceRawTp {
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	} else {
		l, err = link.AttachCgroup(link.CgroupOptions{Path: d.cfg.CgroupRoot, Attach: a.typ, Program: prog})
	}
	if err != nil {
		if old != nil {
			_ = old.Close() // the error that matters is the one below
		}
		return fmt.Errorf("%w: attach %s: %w", dataplane.ErrUnsupported, a.program, err)
	}
	// The new one is in force. Its pin takes the place of the old one's in one step: at no time is there none.
	if err := d.pinLink(l, a.program); err != nil {
		if old != nil {
			_ = old.Close()
		}
		return errors.Join(err, l.Close())
	}
	d.links[a.program] = l
	if old != nil {
		return errors.Join(d.rememberLink(a.program, l), old.Close())
	}
	return d.rememberLink(a.program, l)
}

func linkPin(program string) string { return "link_" + program }

func (d *Dataplane) linkPath(program string) string { return filepath.Join(d.dir, linkPin(program)) }

func (d *Dataplane) pinLink(l link.Link, program string) error {
	return pinOver(l, d.linkPath(program))
}

// unpinLink takes the link's pin away, if it is there. A link that was pinned by pinOver does not know where that is.
func (d *Dataplane) unpinLink(program string) error {
	if err := os.Remove(d.linkPath(program)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", program, err)
	}
	return nil
}

// pinMap pins the map where it should be pinned already.
func (d *Dataplane) pinMap(m *ebpf.Map, name string) error {
	fresh, err := m.Clone() // which does not believe that it is pinned
	if err != nil {
		return err
	}
	defer fresh.Close()
	return pinOver(fresh, filepath.Join(d.dir, name))
}

// pinOver pins it at path, where something else may be pinned.
func pinOver(l interface{ Pin(string) error }, path string) error {
	next := path + "_new" // a bpffs takes no dots
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := l.Pin(next); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", path, err), os.Remove(next))
	}
	return nil
}

// attachedHere reports whether the link still is at our cgroup: one whose cgroup is gone is at none.
func (d *Dataplane) attachedHere(l link.Link) bool {
	info, err := l.Info()
	return err == nil && d.isHere(info)
}

func (d *Dataplane) isHere(info *link.Info) bool {
	cg := info.Cgroup()
	return cg != nil && cg.CgroupId == d.root
}

func (d *Dataplane) mapMemory() error {
	active, err := d.mapArray(d.maps.Active, 8)
	if err != nil {
		return err
	}
	config, err := d.mapArray(d.maps.Config, int(unsafe.Sizeof(settings{})))
	if err != nil {
		return err
	}
	subjects, err := d.mapArray(d.maps.Subjects, int(unsafe.Sizeof(subjectState{})))
	if err != nil {
		return err
	}
	d.settings.settings = (*settings)(unsafe.Pointer(&config[0]))
	d.settings.believe()
	d.active = (*atomic.Uint64)(unsafe.Pointer(&active[0]))
	d.subjects = unsafe.Slice((*subjectState)(unsafe.Pointer(&subjects[0])), d.cfg.MaxSubjects)
	return nil
}

func (d *Dataplane) mapArray(m *ebpf.Map, size int) ([]byte, error) {
	page := os.Getpagesize()
	length := (int(m.MaxEntries())*size + page - 1) / page * page
	b, err := unix.Mmap(m.FD(), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%w: map the memory of %s: %w", dataplane.ErrUnsupported, m, err)
	}
	d.unmap = append(d.unmap, func() error { return unix.Munmap(b) })
	return b, nil
}

// removeLayout detaches the links and unpins the maps of one layout. A link is detached when its last reference goes,
// so this returns only when nothing of it judges any more, unless another process has it open.
func removeLayout(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), "link_") {
			l, err := link.LoadPinnedLink(path, nil)
			if err == nil {
				errs = append(errs, l.Unpin(), detach(l), l.Close())
				continue
			}
			errs = append(errs, err)
		}
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

// detach takes the link's program out even if somebody else has the link open. Links of tracing programs cannot; they
// do not judge.
func detach(l link.Link) error {
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// removeOtherLayouts removes what an agent of another version has left, once this one judges by a policy.
func (d *Dataplane) removeOtherLayouts() error {
	entries, err := os.ReadDir(d.cfg.BPFFS)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() && isLayout(e.Name()) && e.Name() != filepath.Base(d.dir) {
			errs = append(errs, removeLayout(filepath.Join(d.cfg.BPFFS, e.Name())))
		}
	}
	errs = append(errs, d.guarding.filters.leaveLayouts())
	return errors.Join(errs...)
}
