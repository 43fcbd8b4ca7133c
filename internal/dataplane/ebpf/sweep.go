package ebpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// iterators are the programs that walk over sockets, ready to be run.
type iterators struct {
	mu    sync.Mutex
	links map[string]*link.Iter
}

// run runs the program over everything it walks, in the network namespace of the calling thread, and returns what it
// wrote.
func (it *iterators) run(p *ebpf.Program, name string, m *ebpf.Map) ([]byte, error) {
	it.mu.Lock()
	l := it.links[name]
	if l == nil {
		var err error
		if l, err = link.AttachIter(link.IterOptions{Program: p, Map: m}); err != nil {
			it.mu.Unlock()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		it.links[name] = l
	}
	it.mu.Unlock()
	r, err := l.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	out, err := io.ReadAll(r)
	return out, errors.Join(err, r.Close())
}

func (it *iterators) Close() error {
	it.mu.Lock()
	defer it.mu.Unlock()
	var errs []error
	for _, l := range it.links {
		errs = append(errs, l.Close())
	}
	it.links = nil
	return errors.Join(errs...)
}

// canReset reports whether this kernel (6.5 or later) lets iterators reset sockets.
func canReset() bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var f *btf.Func
	return kernel.TypeByName("bpf_sock_destroy", &f) == nil
}

// sweep judges every TCP connection of the host again and resets those that are denied. It returns how many.
func (d *Dataplane) sweep() (int, error) {
	p := d.programs[programsProgBulkheadSweep]
	if p == nil {
		return 0, nil // Capabilities says so
	}
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	var total int
	here := func() error {
		out, err := d.sweepers.run(p, "sweep", nil)
		flows := slices.Collect(slices.Chunk(out, flowSize))
		total += len(flows)
		if err != nil || d.resets {
			return err
		}
		return destroy(flows)
	}
	if err := d.netns.run(here); err != nil {
		return total, fmt.Errorf("reset connections: %w", err)
	}
	others, err := d.otherNamespaces()
	if err != nil {
		return total, fmt.Errorf("reset connections: %w", err)
	}
	var errs []error
	for _, n := range others {
		errs = append(errs, n.run(here), n.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return total, fmt.Errorf("reset connections: %w", err)
	}
	return total, nil
}

const flowSize = int(unsafe.Sizeof(programsProbe{}.Flow))

// destroy resets TCP connections of the calling thread's network namespace, one by one. One that has ended meanwhile
// is no error.
func destroy(flows [][]byte) error {
	var errs []error
	for _, b := range flows {
		if len(b) != flowSize {
			return fmt.Errorf("a flow of %d bytes", len(b))
		}
		f := programsProbe{}.Flow
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&f)), flowSize), b)
		local := &net.TCPAddr{IP: addrOf(f.Laddr).AsSlice(), Port: int(f.Lport)}
		remote := &net.TCPAddr{IP: addrOf(f.Raddr).AsSlice(), Port: int(f.Rport)}
		if err := netlink.SocketDestroy(local, remote); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("reset %s to %s: %w", local, remote, err))
		}
	}
	return errors.Join(errs...)
}

// otherNamespaces opens the network namespaces, besides the host's, in which sockets of the host have been made.
func (d *Dataplane) otherNamespaces() ([]*namespace, error) {
	wanted := map[uint64]bool{}
	var cookie uint64
	var is uint8
	for it := d.maps.Namespaces.Iterate(); it.Next(&cookie, &is); {
		if cookie != d.netns.cookie {
			wanted[cookie] = true
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var found []*namespace
	seen := map[uint64]bool{d.netns.inode: true}
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || seen[st.Ino] {
			continue // the process has ended, or is in one we know
		}
		seen[st.Ino] = true
		n, err := openNamespace(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return found, err
		}
		if !wanted[n.cookie] {
			if err := n.Close(); err != nil {
				return found, err
			}
			continue
		}
		delete(wanted, n.cookie)
		found = append(found, n)
	}
	for cookie := range wanted { // nobody is in it any more
		if err := d.maps.Namespaces.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return found, err
		}
	}
	return found, nil
}

// seed remembers the sockets that were there before the dataplane.
func (d *Dataplane) seed() error {
	for _, name := range []string{programsProgBulkheadListening, programsProgBulkheadSeed} {
		if p := d.programs[name]; p != nil {
			if _, err := d.sweepers.run(p, name, nil); err != nil {
				return fmt.Errorf("look at sockets that are open already: %w", err)
			}
		}
	}
	return nil
}

// update tells what live TCP connections have carried.
func (d *Dataplane) update() error {
	p := d.programs[programsProgBulkheadUpdate]
	if p == nil {
		return nil
	}
	if _, err := d.sweepers.run(p, "update", d.maps.Sockets); err != nil {
		return fmt.Errorf("count what connections have carried: %w", err)
	}
	return nil
}

// flush tells folded denials and what UDP flows have carried, and ends silent ones.
func (d *Dataplane) flush() error {
	p := d.programs[programsProgBulkheadFlush]
	if p == nil {
		return nil
	}
	if _, err := p.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("tell of silent flows: %w", err)
	}
	return nil
}
