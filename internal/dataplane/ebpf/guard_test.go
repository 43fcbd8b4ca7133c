package ebpf

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// guardForms are the ways in which programs are put at interfaces.
var guardForms = []struct {
	name       string
	withoutTCX bool
}{{"tcx", false}, {"clsact", true}}

// guardedBy returns the programs at the interface of near, in either form.
func guardedBy(t *testing.T, bed *dataplanetest.Bed, name string, at ebpf.AttachType) (ids []ebpf.ProgramID) {
	t.Helper()
	bed.On(false, func() {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		there, err := link.QueryPrograms(link.QueryOptions{Target: ifc.Index, Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range there.Programs {
			ids = append(ids, p.ID)
		}
		parent := post{egress: at == ebpf.AttachTCXEgress}.parent()
		for _, f := range filtersOn(t, name, parent) {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Priority == filterPriority {
				ids = append(ids, ebpf.ProgramID(b.Id))
			}
		}
	})
	return ids
}

func filtersOn(t *testing.T, name string, parent uint32) []netlink.Filter {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	there, err := netlink.FilterList(l, parent)
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// hasClsact reports whether the interface of near has a clsact qdisc.
func hasClsact(t *testing.T, bed *dataplanetest.Bed, name string) (has bool) {
	t.Helper()
	bed.On(false, func() {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		all, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		has = slices.ContainsFunc(all, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
	})
	return has
}

func openAgain(t *testing.T, bed *dataplanetest.Bed, guard Guard, withoutTCX bool) *Dataplane {
	t.Helper()
	return bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		return openAt(t, at, func(c *Config) { c.Guard, c.withoutTCX = guard, withoutTCX })
	}).(*Dataplane)
}

// TestGuardsOutliveTheAgent has one agent take over what another has put at interfaces, another one that wants none take it
// away, and one remove it all.
func TestGuardsOutliveTheAgent(t *testing.T) {
	t.Parallel()
	for _, f := range guardForms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			testGuardsOutliveTheAgent(t, f.withoutTCX)
		})
	}
}

func testGuardsOutliveTheAgent(t *testing.T, withoutTCX bool) {
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, withoutTCX })
	first := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress)
	if len(first) != 1 {
		t.Fatalf("programs at eth0: %v", first)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if now := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress); !slices.Equal(now, first) {
		t.Errorf("without an agent: %v instead of %v", now, first)
	}
	d = openAgain(t, bed, GuardAll, withoutTCX)
	if now := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress); len(now) != 1 || now[0] == first[0] {
		t.Errorf("after another agent: %v, before %v", now, first)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openAgain(t, bed, GuardPorts, withoutTCX)
	if now := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress); len(now) != 0 {
		t.Errorf("an uplink is guarded though nobody wants that: %v", now)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openAgain(t, bed, GuardAll, withoutTCX)
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if now := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress); len(now) != 0 {
		t.Errorf("after removal: %v", now)
	}
	if hasClsact(t, bed, "eth0") {
		t.Error("after removal a clsact qdisc is left")
	}
}

// TestGuardsAreRepaired takes programs from an interface, and changes what is known of it.
func TestGuardsAreRepaired(t *testing.T) {
	t.Parallel()
	for _, f := range guardForms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			testGuardsAreRepaired(t, f.withoutTCX)
		})
	}
}

func testGuardsAreRepaired(t *testing.T, withoutTCX bool) {
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, withoutTCX })
	if found, err := d.round(t); len(found) > 0 || err != nil {
		t.Errorf("before anything: %q, %v", found, err)
	}
	post := ""
	for name := range d.guarding.posts {
		post = name
	}
	type tampering struct {
		what, says string
		tamper     func() error
	}
	ways := []tampering{
		{"detached", "had been detached or replaced", func() error { return onPin(d.linkPath(post), detach) }},
		{"unpinned", "pins below", func() error { return os.Remove(d.linkPath(post)) }},
	}
	if withoutTCX {
		f, p := d.guarding.filters, d.guarding.posts[post]
		ways = []tampering{
			{"filter deleted", "had been detached or replaced", func() error { return f.h.FilterDel(f.filter(p, d.demanded[p.program], true)) }},
			{"program replaced", "had been detached or replaced", func() error {
				return f.h.FilterReplace(f.filter(p, d.demanded[programsProgBulkheadEntering], true))
			}},
			{"filter of others in its place", "had been detached or replaced", func() error {
				other := f.filter(p, d.demanded[programsProgBulkheadEntering], true)
				other.Name = "other"
				return f.h.FilterReplace(other)
			}},
			{"qdisc deleted", "had been detached or replaced", func() error { return f.h.QdiscDel(clsact(p.index)) }},
		}
	}
	ways = append(ways, tampering{
		"forgotten", "guarded interfaces", func() error { return d.maps.Guards.Delete(uint32(d.guarding.posts[post].index)) },
	})
	for _, tt := range ways {
		if err := tt.tamper(); err != nil {
			t.Fatalf("%s: %v", tt.what, err)
		}
		found, err := d.round(t)
		if err != nil || !strings.Contains(strings.Join(found, "; "), tt.says) {
			t.Errorf("%s: found %q, %v", tt.what, found, err)
		}
		if now := guardedBy(t, bed, "eth0", ebpf.AttachTCXEgress); len(now) != 1 {
			t.Errorf("%s: programs at eth0: %v", tt.what, now)
		}
		if found, err := d.round(t); len(found) > 0 || err != nil {
			t.Errorf("%s, the next look: %q, %v", tt.what, found, err)
		}
	}
}

// TestGuardsFollowInterfaces has interfaces come and go: they are guarded by what they are to the host, and forgotten.
func TestGuardsFollowInterfaces(t *testing.T) {
	t.Parallel()
	for _, f := range guardForms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			testGuardsFollowInterfaces(t, f.withoutTCX)
		})
	}
}

func testGuardsFollowInterfaces(t *testing.T, withoutTCX bool) {
	d, bed := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX = GuardPorts, withoutTCX })
	index := 0
	bed.On(false, func() {
		for _, l := range []netlink.Link{
			&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap9"}, Mode: netlink.TUNTAP_MODE_TAP},
			&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br9"}},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here9"}, PeerName: "there9"}, // leads nowhere
		} {
			if err := netlink.LinkAdd(l); err != nil {
				t.Fatal(err)
			}
		}
		l, err := netlink.LinkByName("tap9")
		if err != nil {
			t.Fatal(err)
		}
		index = l.Attrs().Index
	})
	if err := d.lookAtLinks(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"tap9": 1, "br9": 0, "here9": 0, "eth0": 0} {
		in, out := guardedBy(t, bed, name, ebpf.AttachTCXIngress), guardedBy(t, bed, name, ebpf.AttachTCXEgress)
		if len(in) != want || len(out) != want {
			t.Errorf("%s is guarded by %v and %v", name, in, out)
		}
	}
	bed.On(false, func() {
		l, err := netlink.LinkByName("tap9")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(l); err != nil {
			t.Fatal(err)
		}
	})
	if found, err := d.round(t); len(found) > 0 || err != nil {
		t.Errorf("an interface has gone: %q, %v", found, err)
	}
	if err := d.lookAtLinks(); err != nil {
		t.Fatal(err)
	}
	if len(d.guarding.posts) != 0 || len(d.guarding.entries) != 0 {
		t.Errorf("not forgotten: %v, %v", d.guarding.posts, d.guarding.entries)
	}
	if _, err := os.Stat(filepath.Join(d.dir, linkPin(post{index: index}.name()))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its pin is left: %v", err)
	}
}

// TestKernelWithoutGuards does as if the kernel took no programs at interfaces: the rest works, and it is said.
func TestKernelWithoutGuards(t *testing.T) {
	t.Parallel()
	d, _ := openForTest(t, func(c *Config) { c.Guard, c.withoutTCX, c.withoutClsact = GuardAll, true, true })
	if caps := d.Capabilities(); caps.Frames || !slices.Contains(caps.Limits, unguarded) {
		t.Errorf("%+v", caps)
	}
}

// BenchmarkUplink times what a program at an interface that leads away costs a packet that is not of a packet socket; that it runs
// at all comes on top.
func BenchmarkUplink(b *testing.B) {
	d, _ := openForTest(b, func(c *Config) { c.Guard = GuardAll })
	b.ResetTimer()
	if _, err := d.demanded[programsProgBulkheadUplink].Run(&ebpf.RunOptions{Data: packet, Repeat: uint32(b.N)}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLookAtGuards times a look of the watchdog at one program at an interface.
func BenchmarkLookAtGuards(b *testing.B) {
	for _, f := range guardForms {
		b.Run(f.name, func(b *testing.B) {
			d, _ := openForTest(b, func(c *Config) { c.Guard, c.withoutTCX = GuardAll, f.withoutTCX })
			p := onlyPost(b, d)
			for b.Loop() {
				if have, err := d.guarding.posting.at(p); have == 0 || err != nil {
					b.Fatal(have, err)
				}
			}
		})
	}
}
