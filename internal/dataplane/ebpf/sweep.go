package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
	if it.links == nil {
		it.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", name, os.ErrClosed)
	}
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
	find := d.programs[programsProgBulkheadFind]
	if find == nil || d.programs[programsProgBulkheadSweep] == nil {
		return d.sweepAll()
	}
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	out, err := d.sweepers.run(find, "find", d.maps.Sockets)
	if err != nil {
		return 0, fmt.Errorf("look for connections to reset: %w", err)
	}
	wanted := map[uint64]bool{}
	for inode := range slices.Chunk(out, 4) {
		wanted[uint64(binary.NativeEndian.Uint32(inode))] = true
	}
	return d.sweepNamespaces(wanted)
}

// sweepAll does the same without first looking where it is needed. It also meets sockets that no program has seen yet.
func (d *Dataplane) sweepAll() (int, error) {
	if d.programs[programsProgBulkheadSweep] == nil {
		return 0, nil // Capabilities says so
	}
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	return d.sweepNamespaces(nil)
}

// sweepNamespaces sweeps the network namespaces that are wanted, by inode number; nil is all.
func (d *Dataplane) sweepNamespaces(wanted map[uint64]bool) (total int, err error) {
	here := func() error {
		out, err := d.sweepers.run(d.programs[programsProgBulkheadSweep], "sweep", nil)
		flows := slices.Collect(slices.Chunk(out, flowSize))
		total += len(flows)
		if err != nil || d.resets {
			return err
		}
		return destroy(flows)
	}
	var errs []error
	if wanted == nil || wanted[d.netns.inode] {
		errs = append(errs, d.netns.run(here))
	}
	if !d.confined {
		errs = append(errs, eachNamespace(wanted, d.netns.inode, func(n *namespace) error { return n.run(here) }))
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

// seed remembers the sockets that were there before the programs.
func (d *Dataplane) seed() error {
	if err := clearMap[uint64, programsProcess](d.maps.Listening); err != nil { // of another time
		return fmt.Errorf("forget who listened: %w", err)
	}
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

// flush tells folded denials and ends silent flows of UDP and ICMP, and also tells what live ones have carried (updates).
func (d *Dataplane) flush(updates bool) error {
	var arg uint64
	if updates {
		arg = 1
	}
	for _, p := range []*ebpf.Program{d.programs[programsProgBulkheadFlush], d.guarding.flush} {
		if p == nil {
			continue
		}
		if _, err := p.Run(&ebpf.RunOptions{Context: arg}); err != nil {
			return fmt.Errorf("tell of silent flows: %w", err)
		}
	}
	return nil
}
