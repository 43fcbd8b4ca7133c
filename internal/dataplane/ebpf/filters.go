package ebpf

import (
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filters puts programs at interfaces as filters of cls_bpf, in direct-action mode, at a clsact qdisc. The kernel keeps them without
// pins. A filter is ours by its name, which is that of the program below the directory of the layout's pins, and says by an ending
// whether the qdisc was made for it. Each layout has a handle of its own: what an agent of another version has there judges until
// this one has a policy.
type filters struct {
	d *Dataplane
	h *netlink.Handle // of the namespace of the host; requests through it enter none
}

const (
	filterPriority = 1 // the first; who names none comes after 0xc000 others
	madeQdisc      = "+qdisc"
)

func (f filters) handle() uint32 { return crc32.ChecksumIEEE([]byte(filepath.Clean(f.d.dir))) | 1 }

// filter returns the one that is to be at the post.
func (f filters) filter(p post, prog *ebpf.Program, made bool) *netlink.BpfFilter {
	name := filepath.Join(f.d.dir, p.program)
	if made {
		name += madeQdisc
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: p.index, Parent: p.parent(), Handle: f.handle(), Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: name, DirectAction: true,
	}
}

func (f filters) put(p post, prog *ebpf.Program) error {
	made, err := f.makeQdisc(p)
	if err != nil {
		return err
	}
	if err := f.h.FilterReplace(f.filter(p, prog, made)); err != nil {
		if made {
			err = errors.Join(err, removeQdisc(f.h, p.index))
		}
		return fmt.Errorf("add a filter: %w", err)
	}
	return nil
}

// makeQdisc sees to it that the interface has a clsact qdisc. It reports whether that is of our making.
func (f filters) makeQdisc(p post) (made bool, err error) {
	there, err := filtersAt(f.h, p.index)
	if err != nil {
		return false, err
	}
	for _, have := range there {
		if isFilterBelow(f.d.cfg.BPFFS, have) && strings.HasSuffix(have.Name, madeQdisc) {
			return true, nil
		}
	}
	if err := f.h.QdiscAdd(clsact(p.index)); err == nil {
		return true, nil
	} else if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add a clsact qdisc: %w", err)
	}
	if !p.egress {
		return false, nil // a qdisc of the kind ingress does as well
	}
	all, err := f.h.QdiscList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: p.index}})
	if err != nil {
		return false, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range all {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT && q.Type() != "clsact" {
			return false, fmt.Errorf("its qdisc %q of others takes no filters for what leaves: make that a clsact qdisc", q.Type())
		}
	}
	return false, nil
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

func (f filters) at(p post) (ebpf.ProgramID, error) {
	there, err := filtersOf(f.h, p.index, p.parent())
	if err != nil {
		return 0, err
	}
	for _, have := range there {
		b, ok := have.(*netlink.BpfFilter)
		if ok && b.Handle == f.handle() && b.Priority == filterPriority && b.DirectAction && f.isOurs(b) {
			return ebpf.ProgramID(b.Id), nil
		}
	}
	return 0, nil
}

func (f filters) leave(p post) error {
	return removeFilters(f.h, p.index, func(b *netlink.BpfFilter) bool { return f.isOurs(b) && b.Parent == p.parent() })
}

func (f filters) leaveOthers(wanted map[string]bool) error {
	return removeAllFilters(f.h, func(b *netlink.BpfFilter) bool {
		p := post{index: b.LinkIndex, egress: b.Parent == netlink.HANDLE_MIN_EGRESS}
		return f.isOurs(b) && !wanted[p.name()]
	})
}

// leaveLayouts takes away the filters of agents of other versions.
func (f filters) leaveLayouts() error {
	return removeAllFilters(f.h, func(b *netlink.BpfFilter) bool { return isFilterBelow(f.d.cfg.BPFFS, b) && !f.isOurs(b) })
}

func (f filters) isOurs(b *netlink.BpfFilter) bool {
	return strings.HasPrefix(b.Name, filepath.Clean(f.d.dir)+"/")
}

// isFilterBelow reports whether the filter is of a dataplane that has its pins below dir.
func isFilterBelow(dir string, b *netlink.BpfFilter) bool {
	return strings.HasPrefix(b.Name, filepath.Join(dir, layoutPrefix))
}

// removeFiltersBelow takes away what dataplanes that have, or had, their pins below dir have at the interfaces of the current
// network namespace.
func removeFiltersBelow(dir string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look for filters at interfaces: %w", err)
	}
	defer h.Close()
	return removeAllFilters(h, func(b *netlink.BpfFilter) bool { return isFilterBelow(dir, b) })
}

func removeAllFilters(h *netlink.Handle, unwanted func(*netlink.BpfFilter) bool) error {
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("look for filters at interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if err := removeFilters(h, l.Attrs().Index, unwanted); err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeFilters takes filters of ours from an interface, which may be gone, and the qdisc that was made for them once nothing is at
// it any more.
func removeFilters(h *netlink.Handle, index int, unwanted func(*netlink.BpfFilter) bool) error {
	there, err := filtersAt(h, index)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(there, unwanted) {
		return nil
	}
	made := false
	var errs []error
	for _, b := range there {
		if !unwanted(b) {
			continue
		}
		made = made || strings.HasSuffix(b.Name, madeQdisc)
		b.Fd = -1
		if err := h.FilterDel(b); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("delete a filter: %w", err))
		}
	}
	left, err := filtersAt(h, index)
	if err == nil && slices.ContainsFunc(left, unwanted) {
		err = errors.New("a filter that was deleted is still there")
	}
	if err := errors.Join(append(errs, err)...); err != nil || !made {
		return err
	}
	return removeQdisc(h, index)
}

// removeQdisc takes away the clsact qdisc of an interface if nothing is at it.
func removeQdisc(h *netlink.Handle, index int) error {
	for _, parent := range parents {
		left, err := filtersOf(h, index, parent)
		if err != nil || len(left) > 0 {
			return err
		}
	}
	if err := h.QdiscDel(clsact(index)); err != nil && !isGone(err) {
		return fmt.Errorf("delete the clsact qdisc: %w", err)
	}
	return nil
}

var parents = []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS}

// filtersAt lists the filters of the kind bpf at the interface; at one that is gone there are none.
func filtersAt(h *netlink.Handle, index int) (all []*netlink.BpfFilter, err error) {
	for _, parent := range parents {
		there, err := filtersOf(h, index, parent)
		if err != nil {
			return nil, err
		}
		for _, f := range there {
			if b, ok := f.(*netlink.BpfFilter); ok {
				b.Parent = parent
				all = append(all, b)
			}
		}
	}
	return all, nil
}

func filtersOf(h *netlink.Handle, index int, parent uint32) ([]netlink.Filter, error) {
	for range 8 { // what changes under the listing is listed anew
		there, err := h.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, parent)
		switch {
		case err == nil:
			return there, nil
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP): // the latter: the kernel has no filters at all
			return nil, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return nil, fmt.Errorf("list filters: %w", err)
		}
	}
	return nil, fmt.Errorf("list filters: %w", netlink.ErrDumpInterrupted)
}

// isGone reports whether the kernel has not found what was to go: the interface, its qdisc or the filter.
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EINVAL) // a qdisc that is not there
}
