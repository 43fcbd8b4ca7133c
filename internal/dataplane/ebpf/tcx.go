package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcx puts programs at interfaces by links (Linux 6.6), before those of others. They are pinned, and known by the names of posts,
// with the other links of the dataplane.
type tcx struct{ d *Dataplane }

func (t tcx) put(p post, prog *ebpf.Program) error {
	d, name := t.d, p.name()
	old := d.links[name]
	if old == nil {
		var err error
		if old, err = link.LoadPinnedLink(d.linkPath(name), nil); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("take over %s: %w", d.linkPath(name), err)
		}
	}
	if old != nil && isPosted(old, p) {
		if err := old.Update(prog); err == nil {
			return t.keep(name, old)
		}
	}
	if old != nil {
		delete(d.links, name)
		if err := errors.Join(d.unpinLink(name), detachGuard(old), old.Close()); err != nil {
			return err
		}
	}
	l, err := t.attach(p, prog)
	if err != nil {
		return err
	}
	if err := d.pinLink(l, name); err != nil {
		return errors.Join(err, l.Close())
	}
	return t.keep(name, l)
}

func (t tcx) attach(p post, prog *ebpf.Program) (l link.Link, err error) {
	err = t.d.netns.run(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: p.index, Program: prog, Attach: p.attachType(), Anchor: link.Head()})
		return err
	})
	return l, err
}

// keep remembers the link, and its pin.
func (t tcx) keep(name string, l link.Link) error {
	t.d.links[name] = l
	if t.d.inodes == nil {
		return nil // Open does that for all of them
	}
	return t.d.rememberPin(linkPin(name))
}

func (t tcx) at(p post) (ebpf.ProgramID, error) {
	l := t.d.links[p.name()]
	if l == nil || !isPosted(l, p) {
		return 0, nil
	}
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	return info.Program, nil
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

func (t tcx) leave(p post) error {
	d, name := t.d, p.name()
	l := d.links[name]
	delete(d.links, name)
	delete(d.inodes, linkPin(name))
	if l == nil {
		return nil
	}
	return errors.Join(d.unpinLink(name), detachGuard(l), l.Close())
}

func (t tcx) leaveOthers(wanted map[string]bool) error {
	d := t.d
	pins, err := os.ReadDir(d.dir)
	if err != nil {
		return err
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
