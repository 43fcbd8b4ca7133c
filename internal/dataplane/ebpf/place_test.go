package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// TestOneAtATime opens a dataplane that somebody has open.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	p := bigPolicy(0, 20)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	tr, err := d.plan(&dataplane.State{Policy: bigPolicy(1, 20)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.write(tr); err != nil {
		t.Fatal(err)
	}
	// A second agent that cleaned up now would take away what the first is about to put in force.
	cfg := d.cfg
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "another agent has the dataplane") {
		t.Errorf("%v", err)
	}
	d.switchTo(tr)
	if err := d.finish(tr); err != nil {
		t.Fatal(err)
	}
	d.publishNames(nil)
	newProber(t, d).mustJudgeAs("the first agent's", bigPolicy(1, 20))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) })
}

// TestOpenFails has no room at the cgroup for one of the programs: what was in place already goes away again.
func TestOpenFails(t *testing.T) {
	t.Parallel()
	bed := dataplanetest.NewBed(t)
	var others []link.Link
	for range 64 { // as many as a cgroup takes
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "Dual BSD/GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			dataplanetest.Cannot(t, "bpf", err)
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: bed.Place.CgroupRoot, Attach: ebpf.AttachCGroupInetEgress, Program: p})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		others = append(others, l)
	}
	cfg := DefaultConfig()
	cfg.CgroupRoot, cfg.BPFFS = bed.Place.CgroupRoot, bed.Place.BPFFS
	if _, err := Open(cfg); !errors.Is(err, dataplane.ErrUnsupported) || !strings.Contains(err.Error(), programsProgBulkheadEgress) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(bed.Place.BPFFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left behind: %v", err)
	}
	for _, typ := range []ebpf.AttachType{
		ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupUDP6Sendmsg,
	} {
		cg, err := os.Open(bed.Place.CgroupRoot)
		if err != nil {
			t.Fatal(err)
		}
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(cg.Fd()), Attach: typ})
		if err != nil || len(attached.Programs) > 0 {
			t.Errorf("%v: %d programs are attached, %v", typ, len(attached.Programs), err)
		}
		if err := cg.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, l := range others {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) })
}

// TestEachNamespace finds network namespaces that only a thread is in, and ones that only a mount keeps.
func TestEachNamespace(t *testing.T) {
	t.Parallel()
	dataplanetest.NewBed(t) // or the machine cannot
	mounted := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(mounted, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	type made struct {
		inode uint64
		err   error
	}
	newNamespace := func(c chan<- made, mount string, stay <-chan struct{}) {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil && mount != "" {
			err = unix.Mount(threadNamespace, mount, "", unix.MS_BIND, "")
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(threadNamespace, &st)
		}
		c <- made{st.Ino, err}
		<-stay
	}
	c, stay, over := make(chan made), make(chan struct{}), make(chan struct{})
	defer close(stay)
	close(over)
	var want []uint64
	for _, tt := range []struct {
		mount string
		stay  <-chan struct{}
	}{{"", stay}, {mounted, over}} {
		go newNamespace(c, tt.mount, tt.stay)
		m := <-c
		if m.err != nil {
			t.Fatal(m.err)
		}
		want = append(want, m.inode)
	}
	defer func() {
		if err := unix.Unmount(mounted, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	own, err := currentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	wanted := map[uint64]bool{own.inode: true, want[0]: true, want[1]: true, 1: true} // the last is nowhere
	var found []uint64
	err = eachNamespace(wanted, own.inode, func(n *namespace) error {
		found = append(found, n.inode)
		return n.run(func() error {
			var st unix.Stat_t
			if err := unix.Stat(threadNamespace, &st); err != nil || st.Ino != n.inode {
				t.Errorf("in namespace %d instead of %d, %v", st.Ino, n.inode, err)
			}
			return nil
		})
	})
	slices.Sort(want)
	slices.Sort(found)
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("found %v instead of %v, %v", found, want, err)
	}
	here := 0
	if err := eachNamespace(nil, own.inode, func(*namespace) error { here++; return nil }); err != nil || here < 2 {
		t.Errorf("%d namespaces in all, %v", here, err)
	}
}

// TestNamespaceOfAMountThatIsGone: what a namespace was mounted on is a plain file again, and no namespace.
func TestNamespaceOfAMountThatIsGone(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := openNamespace(plain); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("opened %v, %v", n, err)
	}
	n, err := openNamespace(threadNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
