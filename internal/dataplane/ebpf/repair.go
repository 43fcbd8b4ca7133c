package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// lookEntries is about how many entries of maps one call of Repair looks at: some 1 ms.
const lookEntries = 4096

// inspection is how far the maps have been looked through.
type inspection struct {
	maps []inspected
	next int
}

// Repair looks at the programs' links, what is pinned and the words that all verdicts depend on, and at a part of the
// maps. While somebody else holds the dataplane it does nothing: who is called again soon need not wait.
func (d *Dataplane) Repair(ctx context.Context) ([]string, error) {
	if !d.mu.TryLock() {
		return nil, nil
	}
	defer d.mu.Unlock()
	if err := d.usable(ctx); err != nil {
		return nil, err
	}
	found, err := d.repairAll()
	if len(found) == 0 {
		return nil, err
	}
	// What was judged meanwhile may have been judged wrongly.
	if err1 := d.judgeAnew(func(*heldSubject) {}); err1 != nil {
		return found, errors.Join(err, err1)
	}
	if _, err1 := d.settle(); err1 != nil {
		err = errors.Join(err, fmt.Errorf("judge connections again: %w", err1))
	}
	return found, err
}

// repairAll returns what it found, in words.
func (d *Dataplane) repairAll() (found []string, err error) {
	found = d.repairWords()
	more, err := d.repairLinks()
	found = append(found, more...)
	more, err3 := d.repairGuards()
	found = append(found, more...)
	more, err1 := d.repairPins()
	found = append(found, more...)
	more, err2 := d.repairMaps()
	return append(found, more...), errors.Join(err, err1, err2, err3)
}

// repairWords puts right what is mapped into memory.
func (d *Dataplane) repairWords() (found []string) {
	if have := d.active.Load(); have != uint64(d.gen) {
		d.active.Store(uint64(d.gen))
		found = append(found, fmt.Sprintf("the generation in force had been changed from %d to %d", d.gen, have))
	}
	if d.settings.repair() {
		found = append(found, "settings of the programs had been changed")
	}
	changed := 0
	for i := range d.subjects {
		now, s := d.gen&1, &d.subjects[i]
		word, sets := d.held.words[i], d.held.subjects[i].sets()
		if s.State[now].Load() != word || s.Sets[now].Load() != sets {
			s.State[now].Store(word)
			s.Sets[now].Store(sets)
			changed++
		}
	}
	if changed > 0 {
		found = append(found, fmt.Sprintf("which policy %d workloads are judged by had been changed", changed))
	}
	return found
}

// repairLinks attaches again what was detached or replaced.
func (d *Dataplane) repairLinks() (found []string, err error) {
	var errs []error
	for _, a := range slices.Concat(attachments, following) {
		l := d.links[a.program]
		if l == nil || a.typ == ebpf.AttachTraceRawTp { // the kernel does not let go of the latter as long as we hold it
			continue
		}
		what := ""
		info, err := l.Info()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("look at %s: %w", a.program, err))
			continue
		case !d.isHere(info):
			what = "had been detached"
		case info.Program != d.linked[a.program]:
			what = "had been replaced by another program"
		default:
			continue
		}
		if err := d.attachAgain(a, l); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", a.program, what, err))
			continue
		}
		found = append(found, fmt.Sprintf("%s %s%s", a.program, what, d.others(a)))
	}
	if len(found) > 0 { // of sockets made meanwhile nobody knows
		errs = append(errs, d.seed())
	}
	return found, errors.Join(errs...)
}

// attachAgain puts the program in place of what its link has become.
func (d *Dataplane) attachAgain(a attachment, old link.Link) error {
	if d.attachedHere(old) {
		return errors.Join(old.Update(d.program(a.program)), d.rememberLink(a.program, old))
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: d.cfg.CgroupRoot, Attach: a.typ, Program: d.program(a.program)})
	if err != nil {
		return fmt.Errorf("attach it again: %w", err)
	}
	if err := errors.Join(d.pinLink(l, a.program), d.rememberPin(linkPin(a.program)), d.rememberLink(a.program, l)); err != nil {
		return errors.Join(err, l.Close())
	}
	d.links[a.program] = l
	return old.Close()
}

// others names the programs of others at the same place: one of them may have brought what took ours away.
func (d *Dataplane) others(a attachment) string {
	dir, err := os.Open(d.cfg.CgroupRoot)
	if err != nil {
		return ""
	}
	defer dir.Close()
	there, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: a.typ})
	if err != nil {
		return "" // older kernels do not tell
	}
	var names []string
	for _, p := range there.Programs {
		if p.ID == d.linked[a.program] {
			continue
		}
		name := fmt.Sprintf("program %d", p.ID)
		if prog, err := ebpf.NewProgramFromID(p.ID); err == nil {
			if info, err := prog.Info(); err == nil && info.Name != "" {
				name += " (" + info.Name + ")"
			}
			_ = prog.Close() // nothing depends on it
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	return "; attached there besides: " + strings.Join(names, ", ")
}

// rememberLink notes which program the link has, as the kernel numbers it.
func (d *Dataplane) rememberLink(program string, l link.Link) error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("look at %s: %w", program, err)
	}
	if d.linked == nil {
		d.linked = map[string]ebpf.ProgramID{}
	}
	d.linked[program] = info.Program
	return nil
}

// repairPins pins again what is not pinned any more: without it, verdicts would end with this process.
func (d *Dataplane) repairPins() (found []string, err error) {
	var errs []error
	var gone []string
	look := func(name string, pin func() error) {
		if inode, err := inodeOf(filepath.Join(d.dir, name)); err == nil && inode == d.inodes[name] {
			return
		}
		if err := errors.Join(d.makeDir(d.dir), pin(), d.rememberPin(name)); err != nil {
			errs = append(errs, err)
			return
		}
		gone = append(gone, name)
	}
	for name, l := range d.links {
		look(linkPin(name), func() error {
			return errors.Join(l.Unpin(), d.pinLink(l, name)) // it would believe that it still is
		})
	}
	for name, m := range d.pinned {
		look(name, func() error { return d.pinMap(m, name) })
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		found = append(found, fmt.Sprintf("pins below %s had been taken away or replaced: %s", d.dir, strings.Join(gone, ", ")))
	}
	return found, errors.Join(errs...)
}

// rememberPin notes what is pinned under the name.
func (d *Dataplane) rememberPin(name string) error {
	inode, err := inodeOf(filepath.Join(d.dir, name))
	d.inodes[name] = inode
	return err
}

// rememberPins notes what is pinned. Every pin has an inode of its own.
func (d *Dataplane) rememberPins() error {
	d.inodes = map[string]uint64{}
	var errs []error
	for name := range d.links {
		errs = append(errs, d.rememberPin(linkPin(name)))
	}
	for name := range d.pinned {
		errs = append(errs, d.rememberPin(name))
	}
	return errors.Join(errs...)
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", path, err)
	}
	return st.Ino, nil
}

// repairMaps looks through the next part of the maps.
func (d *Dataplane) repairMaps() (found []string, err error) {
	if d.inspection.maps == nil {
		d.inspection.maps = d.inspectedMaps()
	}
	var errs []error
	for left := lookEntries; left > 0; {
		m := d.inspection.maps[d.inspection.next]
		seen, done, odd, err := m.look(left)
		left -= seen
		if err != nil {
			errs = append(errs, err)
		}
		if odd {
			what, err := m.mend()
			if what != "" {
				found = append(found, what)
			}
			errs = append(errs, err)
			done = true
		}
		if !done {
			continue
		}
		if d.inspection.next++; d.inspection.next == len(d.inspection.maps) {
			d.inspection.next = 0
			break
		}
	}
	return found, errors.Join(errs...)
}
