package ebpf

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// TestConformanceWithoutTCX has the situations at interfaces judged by filters at a clsact qdisc.
func TestConformanceWithoutTCX(t *testing.T) {
	t.Parallel()
	dataplanetest.RunInterfaces(t, func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		return openAt(t, at, func(c *Config) {
			c.Guard, c.withoutTCX = GuardAll, true
			c.UpdateInterval, c.UDPTimeout, c.UDPStreamTimeout = time.Second, time.Second, time.Second
			c.AgentLoss, c.NameFloor = 2*time.Second, time.Second
		})
	})
}

// TestFiltersOfOthersStay guards an interface that has a clsact qdisc and filters of others, through a whole life: theirs are as they
// were at each step, and after it.
func TestFiltersOfOthersStay(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardNone, true })
	prog := passesAll(t)
	bed.On(false, func() {
		l := linkOf(t, "eth0")
		if err := netlink.QdiscAdd(clsact(l.Attrs().Index)); err != nil {
			t.Fatal(err)
		}
		for _, parent := range parents {
			for _, a := range []netlink.FilterAttrs{
				{Priority: filterPriority, Handle: 1, Protocol: unix.ETH_P_ALL}, {Priority: 7, Handle: 2, Protocol: unix.ETH_P_IP},
			} {
				a.LinkIndex, a.Parent = l.Attrs().Index, parent
				if err := netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: a, Fd: prog.FD(), Name: "other", DirectAction: true}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	theirs := func() (all []netlink.Filter) {
		bed.On(false, func() {
			for _, parent := range parents {
				for _, f := range filtersOn(t, "eth0", parent) {
					if b := f.(*netlink.BpfFilter); b.Name == "other" {
						all = append(all, f)
					}
				}
			}
		})
		return all
	}
	before := theirs()
	if len(before) != 4 {
		t.Fatalf("filters of others: %v", before)
	}
	check := func(when string, ours int) {
		t.Helper()
		if diff := cmp.Diff(before, theirs()); diff != "" {
			t.Errorf("%s, filters of others:\n%s", when, diff)
		}
		if have := ourFilters(t, bed, d.cfg.BPFFS); have != ours {
			t.Errorf("%s: %d filters of ours, want %d", when, have, ours)
		}
		if !hasClsact(t, bed, "eth0") {
			t.Errorf("%s: the qdisc of others is gone", when)
		}
	}
	again := func(guard Guard) {
		t.Helper()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = openAgain(t, bed, guard, true)
	}
	check("before", 0)
	again(GuardAll)
	check("guarded", 1)
	again(GuardAll)
	check("taken over", 1)
	if err := d.guarding.filters.leave(onlyPost(t, d)); err != nil {
		t.Fatal(err)
	}
	check("filter deleted", 0)
	if _, err := d.round(t); err != nil {
		t.Fatal(err)
	}
	check("repaired", 1)
	again(GuardPorts)
	check("not guarded any more", 0)
	again(GuardAll)
	bed.On(false, func() { // the others leave, but the qdisc is theirs
		for _, f := range before {
			f.(*netlink.BpfFilter).Fd = -1
			if err := netlink.FilterDel(f); err != nil {
				t.Fatal(err)
			}
		}
	})
	before = nil
	check("the others' filters are gone", 1)
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	check("removed", 0)
}

// TestFiltersOfOthersKeepTheQdisc has others add a filter at the qdisc that was made for ours.
func TestFiltersOfOthersKeepTheQdisc(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, true })
	prog := passesAll(t)
	bed.On(false, func() {
		if err := netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: linkOf(t, "eth0").Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Handle: 1, Protocol: unix.ETH_P_ALL,
		}, Fd: prog.FD(), Name: "other", DirectAction: true}); err != nil {
			t.Fatal(err)
		}
	})
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 0 {
		t.Errorf("%d filters of ours are left", n)
	}
	bed.On(false, func() {
		if n := len(filtersOn(t, "eth0", netlink.HANDLE_MIN_INGRESS)); n != 1 {
			t.Errorf("%d filters of others are left", n)
		}
	})
}

// TestFiltersOutliveTheirPins has the pins taken away by hand: removal still leaves nothing at interfaces.
func TestFiltersOutliveTheirPins(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, true })
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.cfg.BPFFS); err != nil {
		t.Fatal(err)
	}
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 1 {
		t.Fatalf("without pins: %d filters", n)
	}
	bed.On(false, func() {
		if err := Uninstall(d.cfg.BPFFS + "-other"); err != nil {
			t.Error(err)
		}
	})
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 1 {
		t.Errorf("another dataplane was removed: %d filters", n)
	}
	bed.On(false, func() {
		if err := Uninstall(d.cfg.BPFFS); err != nil {
			t.Error(err)
		}
	})
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 0 || hasClsact(t, bed, "eth0") {
		t.Errorf("%d filters are left; the qdisc: %v", n, hasClsact(t, bed, "eth0"))
	}
}

// TestFiltersOfAnotherLayout has an agent of another version leave its filter: it stays until this one's policy is in force, and then
// goes without what this one has there.
func TestFiltersOfAnotherLayout(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, true })
	f := filters{&Dataplane{cfg: d.cfg, dir: filepath.Join(d.cfg.BPFFS, layoutPrefix+"other")}, d.guarding.filters.h}
	p := onlyPost(t, d)
	if err := f.put(p, d.demanded[p.program]); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openAgain(t, bed, GuardAll, true)
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 2 {
		t.Errorf("before there is a policy: %d filters", n)
	}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(1)}); err != nil {
		t.Fatal(err)
	}
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 1 {
		t.Errorf("with a policy: %d filters", n)
	}
	if have, err := d.guarding.filters.at(p); have == 0 || err != nil {
		t.Errorf("this layout's: program %d, %v", have, err)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if hasClsact(t, bed, "eth0") {
		t.Error("the qdisc is left")
	}
}

// TestQdiscThatCannot guards an interface whose qdisc takes no filters for what leaves: that is a problem of this interface.
func TestQdiscThatCannot(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardNone, true })
	bed.On(false, func() {
		if err := netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: linkOf(t, "eth0").Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
		}}); err != nil {
			t.Fatal(err)
		}
	})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openAgain(t, bed, GuardAll, true)
	if _, err := d.Repair(t.Context()); err == nil {
		t.Error("nothing is said of an interface that is not guarded")
	}
	if n := ourFilters(t, bed, d.cfg.BPFFS); n != 0 {
		t.Errorf("%d filters", n)
	}
}

func onlyPost(t testing.TB, d *Dataplane) (p post) {
	t.Helper()
	if len(d.guarding.posts) != 1 {
		t.Fatalf("posts: %v", d.guarding.posts)
	}
	for _, p = range d.guarding.posts {
	}
	return p
}

// passesAll is a program of others that lets the next one decide.
func passesAll(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ourFilters counts the filters of dataplanes below dir at eth0 of near.
func ourFilters(t *testing.T, bed *dataplanetest.Bed, dir string) (n int) {
	t.Helper()
	bed.On(false, func() {
		for _, parent := range parents {
			for _, f := range filtersOn(t, "eth0", parent) {
				if b, ok := f.(*netlink.BpfFilter); ok && isFilterBelow(dir, b) {
					n++
				}
			}
		}
	})
	return n
}
