package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// onePort is a policy that lets the host and unit a reach one port, and nothing else; isolated they reach nothing.
func onePort(port uint16) *hostpolicy.Policy {
	deny := hostpolicy.Table{Funcs: []hostpolicy.Func{cells(cell("any", model.Deny, model.RuleDefaultDeny))}}
	allow := hostpolicy.Table{Funcs: []hostpolicy.Func{cells(
		cell("any", model.Deny, model.RuleDefaultDeny),
		cell(fmt.Sprintf("tcp/0-%d", port-1), model.Deny, model.RuleDefaultDeny),
		cell(fmt.Sprintf("tcp/%d", port), model.Allow, "p/port"),
		cell(fmt.Sprintf("tcp/%d-65535", port+1), model.Deny, model.RuleDefaultDeny),
	)}}
	set, isolation := hostpolicy.PolicySet{Ingress: deny, Egress: allow}, hostpolicy.PolicySet{Ingress: deny, Egress: deny}
	set.ID, isolation.ID = set.ContentID(), isolation.ContentID()
	p := &hostpolicy.Policy{
		Host: "h", Sets: []hostpolicy.PolicySet{set, isolation},
		Subjects: []hostpolicy.Subject{
			{Workload: "h", Identity: 1, Set: set.ID, Isolation: isolation.ID},
			{Workload: "h/a", Unit: "a", Identity: 2, Set: set.ID, Isolation: isolation.ID},
		},
	}
	slices.SortFunc(p.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
	return p
}

// lab is two processes at the near host, one of them in a unit, and servers at the far one.
type lab struct {
	bed             *dataplanetest.Bed
	near            *dataplanetest.Process
	allowed, denied *dataplanetest.Socket
}

func newLab(bed *dataplanetest.Bed) *lab {
	far := bed.StartFar()
	addr := dataplanetest.Far4 + ":0"
	return &lab{bed, bed.Start("one"), far.Listen("tcp4", addr), far.Listen("tcp4", addr)}
}

// mustEnforce checks that the one port, and only it, can be reached.
func (l *lab) mustEnforce(t testing.TB, when string) {
	t.Helper()
	if s, err := l.near.Dial("tcp4", l.allowed.Addr); err != "" {
		t.Errorf("%s: what is allowed: %s", when, err)
	} else {
		s.Close()
	}
	if _, err := l.near.Dial("tcp4", l.denied.Addr); err != "EPERM" && err != "timeout" {
		t.Errorf("%s: what is denied: %q", when, err)
	}
}

// TestAgentUpgrade has agents come and go while a program tries what is denied without pause.
func TestAgentUpgrade(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	p := onePort(l.allowed.Port())
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p, Units: units}); err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	tryFor := func(s *dataplanetest.Socket) <-chan dataplanetest.Result {
		c := make(chan dataplanetest.Result)
		go func() {
			sum := dataplanetest.Result{Errors: map[string]int{}}
			for !over.Load() {
				sum.Add(l.near.Burst("tcp4", s.Addr, 500, 2))
			}
			c <- sum
		}()
		return c
	}
	denied, allowed := tryFor(l.denied), tryFor(l.allowed)
	for range 4 {
		d = reopen(t, d, bed)
		if st, err := d.Apply(t.Context(), &dataplane.State{Policy: p, Units: units}); err != nil || st.Changed {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	over.Store(true)
	no, yes := <-denied, <-allowed
	t.Logf("denied: %v; allowed: %v", no, yes)
	if no.Good > 0 || no.Bad == 0 || no.Errors["EPERM"] != no.Bad {
		t.Errorf("denied: %v", no)
	}
	if yes.Bad > 0 || yes.Good == 0 {
		t.Errorf("allowed: %v", yes)
	}
	if _, accepted := l.denied.Seen(); accepted != 0 {
		t.Errorf("%d denied connections were made", accepted)
	}
	if _, accepted := l.allowed.Seen(); accepted != yes.Good {
		t.Errorf("%d connections were accepted of %d", accepted, yes.Good)
	}
}

// TestAnotherLayout upgrades to an agent whose maps have other shapes: the old one's policy is enforced until the new
// one has its own.
func TestAnotherLayout(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	p := onePort(l.allowed.Port())
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	old := d.dir
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane {
		return openAt(t, at, func(c *Config) { c.MaxRows *= 2 })
	}).(*Dataplane)
	if d.dir == old {
		t.Fatalf("both layouts are %s", old)
	}
	l.mustEnforce(t, "new programs, old policy")
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	l.mustEnforce(t, "new programs, new policy")
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old layout is still there: %v", err)
	}
	entries, err := os.ReadDir(bed.Place.BPFFS)
	if err != nil || len(entries) != 1 {
		t.Errorf("pinned: %v, %v", entries, err)
	}
}

// TestDetachedLinks takes over a dataplane of which some programs have been detached behind its back.
func TestDetachedLinks(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		programsProgBulkheadIngress, programsProgBulkheadEgress, programsProgBulkheadConnect4, programsProgBulkheadSetState,
	} {
		path := filepath.Join(d.dir, "link_"+name)
		pinned, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if name == programsProgBulkheadConnect4 { // gone altogether
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := detach(pinned); err != nil {
			t.Fatal(err)
		}
		if err := pinned.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := l.near.Dial("tcp4", l.denied.Addr); err != "" {
		t.Fatalf("the test shows nothing: %s", err)
	} else {
		s.Close()
	}
	d = reopen(t, d, bed)
	l.mustEnforce(t, "taken over")
	if pins, err := filepath.Glob(filepath.Join(d.dir, "link_*")); err != nil || len(pins) != len(attachments) || len(d.links) != len(attachments) {
		t.Errorf("%d links, pinned %v, %v", len(d.links), pins, err)
	}
}

// TestRemovedByHand takes away the pins of a dataplane that nobody has open.
func TestRemovedByHand(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	l.mustEnforce(t, "without an agent")
	if err := os.RemoveAll(bed.Place.BPFFS); err != nil {
		t.Fatal(err)
	}
	for _, to := range []*dataplanetest.Socket{l.allowed, l.denied} {
		s, err := l.near.Dial("tcp4", to.Addr)
		for end := time.Now().Add(time.Minute); err != "" && time.Now().Before(end); { // the kernel takes a moment
			s, err = l.near.Dial("tcp4", to.Addr)
		}
		if err != "" {
			t.Errorf("%s: %s", to.Addr, err)
			continue
		}
		s.Close()
	}
	d = bed.Open(func(t testing.TB, at dataplanetest.Place) dataplane.Dataplane { return openAt(t, at, nil) }).(*Dataplane)
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(l.allowed.Port())}); err != nil {
		t.Fatal(err)
	}
	l.mustEnforce(t, "installed again")
}

// TestKernelWithoutOptionalPrograms runs without a program that this kernel would load.
func TestKernelWithoutOptionalPrograms(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	d.resize(spec)
	for _, name := range []string{programsProgBulkheadSweep, programsProgBulkheadSetState} {
		spec.Programs[name].AttachTo = "nothing_of_that_name"
	}
	other := &Dataplane{cfg: d.cfg, log: d.log, dir: filepath.Join(bed.Place.BPFFS, layoutPrefix+"other")}
	if err := os.Mkdir(other.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := other.loadAll(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other.programs = c.Programs
	refused := refusedHere(t)
	if n := len(c.Programs); n != len(spec.Programs)-2-len(refused) {
		t.Errorf("%d programs of %d are loaded", n, len(spec.Programs))
	}
	caps := other.Capabilities()
	if caps.ResetTCP || len(caps.Limits) != len(limits)+len(guardLimits[GuardNone])+2+len(refused) {
		t.Errorf("%+v", caps)
	}
	if full := d.Capabilities(); !full.ResetTCP || !full.ConnectErr || !full.ProcessInfo || full.LiveBytes != (len(refused) == 0) ||
		len(full.Limits) != len(limits)+len(guardLimits[GuardNone])+len(refused) {
		t.Errorf("%+v", full)
	}
}

// refusedHere returns what this host lacks because its kernel lets nobody iterate over maps, not even with a program that
// does nothing, as some kernels do that are made to keep root out of themselves. On any other kernel nothing may be missing.
func refusedHere(t *testing.T) (without []string) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "bpf_sk_storage_map", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err == nil {
		p.Close()
		return nil
	}
	if !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	for _, o := range optional {
		if o.program == programsProgBulkheadFind || o.program == programsProgBulkheadUpdate {
			without = append(without, o.without)
		}
	}
	t.Logf("this kernel refuses iterators over maps: %q", without)
	return without
}

// TestResetWithoutTheKernelsHelp resets as on kernels before 6.5.
func TestResetWithoutTheKernelsHelp(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.withoutSockDestroy = true })
	l := newLab(bed)
	p := onePort(l.allowed.Port())
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	const n = 20
	var open []*dataplanetest.Socket
	for range n {
		open = append(open, l.near.MustDial("tcp4", l.allowed.Addr))
	}
	st, err := d.Apply(t.Context(), &dataplane.State{Policy: onePort(1)})
	if err != nil || st.Reset != n {
		t.Errorf("%+v, %v", st, err)
	}
	for _, s := range open {
		if _, err := s.Read(time.Minute); err != "ECONNABORTED" {
			t.Errorf("the client sees %q", err)
		}
	}
}

// TestUnsupported opens where it cannot be: the error says what is missing.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	_, bed := openForTest(t, nil)
	for name, tt := range map[string]struct {
		cgroup, bpffs, says string
	}{
		"not a cgroup":        {t.TempDir(), bed.Place.BPFFS + "-other", "is not a cgroup of version 2"},
		"no such cgroup":      {bed.Place.CgroupRoot + "/nothing", bed.Place.BPFFS + "-other", "no such file"},
		"pins not on a bpffs": {bed.Place.CgroupRoot, filepath.Join(t.TempDir(), "pins"), "is not on a bpffs; mount one"},
	} {
		cfg := DefaultConfig()
		cfg.CgroupRoot, cfg.BPFFS = tt.cgroup, tt.bpffs
		_, err := Open(cfg)
		if !errors.Is(err, dataplane.ErrUnsupported) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
