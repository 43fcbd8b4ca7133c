package ebpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/dataplanetest"
)

// forget takes away the verdicts that the programs remember: who only changes rows does not change those.
func forget(t *testing.T, d *Dataplane) {
	t.Helper()
	m := d.maps.Memories
	nothing := make([][]byte, ebpf.MustPossibleCPU())
	for i := range nothing {
		nothing[i] = make([]byte, m.ValueSize())
	}
	if err := m.Put(uint32(0), nothing); err != nil {
		t.Fatal(err)
	}
}

// TestRulesTamperedWith does to the dataplane, while an agent has it open, what root can do, and looks whether a denied connection
// that has come through is cut, whether policy is enforced again after one round of looking, and what is said of it.
func TestRulesTamperedWith(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	p := onePort(l.allowed.Port())
	units := map[string][]string{"a": {bed.Unit("one")}}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p, Units: units}); err != nil {
		t.Fatal(err)
	}
	mustFindNothing := func(when string) {
		t.Helper()
		if found, err := d.round(t); len(found) > 0 || err != nil {
			t.Errorf("%s: found %q, %v", when, found, err)
		}
	}
	mustFindNothing("before anything")

	unit := slices.IndexFunc(d.held.subjects, func(s heldSubject) bool { return s.name == "h/a" })
	for _, tt := range []struct {
		what   string
		opens  bool // what is denied passes then
		tamper func(t *testing.T)
		says   string
	}{
		{"detach what judges", true, func(t *testing.T) {
			for _, name := range []string{programsProgBulkheadConnect4, programsProgBulkheadEgress, programsProgBulkheadIngress} {
				if err := onPin(d.linkPath(name), detach); err != nil {
					t.Fatal(err)
				}
			}
		}, "bulkhead_egress had been detached"},
		{"put other programs in place", true, func(t *testing.T) {
			for name, typ := range map[string]ebpf.AttachType{
				programsProgBulkheadConnect4: ebpf.AttachCGroupInet4Connect, programsProgBulkheadEgress: ebpf.AttachCGroupInetEgress,
				programsProgBulkheadIngress: ebpf.AttachCGroupInetIngress,
			} {
				kind := ebpf.CGroupSockAddr
				if typ != ebpf.AttachCGroupInet4Connect {
					kind = ebpf.CGroupSKB
				}
				yes, err := ebpf.NewProgram(&ebpf.ProgramSpec{
					Type: kind, AttachType: typ, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
				})
				if err != nil {
					t.Fatal(err)
				}
				defer yes.Close()
				if err := onPin(d.linkPath(name), func(l link.Link) error { return l.Update(yes) }); err != nil {
					t.Fatal(err)
				}
			}
		}, "bulkhead_connect4 had been replaced by another program"},
		{"take pins away", false, func(t *testing.T) {
			for _, name := range []string{"rows", "active", "link_" + programsProgBulkheadIngress, "link_" + programsProgBulkheadSetState} {
				if err := os.Remove(filepath.Join(d.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}, "had been taken away or replaced"},
		{"take all pins away", false, func(t *testing.T) {
			if err := os.RemoveAll(d.dir); err != nil {
				t.Fatal(err)
			}
		}, "had been taken away or replaced"},
		{"pin another map", false, func(t *testing.T) {
			path := filepath.Join(d.dir, "rows")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			clone, err := d.maps.Ports.Clone()
			if err != nil {
				t.Fatal(err)
			}
			defer clone.Close()
			if err := clone.Pin(path); err != nil {
				t.Fatal(err)
			}
		}, ": rows"},
		{"change the verdict of rows", true, func(t *testing.T) {
			changeAll(t, d.maps.Rows, func(_ *rowKey, v *row) { v.Verdict = uint8(model.Allow) })
			forget(t, d)
		}, "policy rows: 4 entries had been changed"},
		{"add a row", false, func(t *testing.T) {
			changeAll(t, d.maps.Rows, func(k *rowKey, _ *row) { k.Peer, k.Kind = 1<<40, rowAny })
		}, "added"},
		{"add rows of no policy set", false, func(t *testing.T) {
			changeAll(t, d.maps.Rows, func(k *rowKey, _ *row) { k.Pset = 1 << 20 })
		}, "added"},
		{"take rows away", false, func(t *testing.T) { emptyMap[rowKey, row](t, d.maps.Rows) }, "taken away"},
		{"take cgroups away", false, func(t *testing.T) { emptyMap[uint64, versioned](t, d.maps.Cgroups) }, "cgroups: 0 entries had been changed, 1 taken away"},
		{"change whose a cgroup is", false, func(t *testing.T) {
			changeAll(t, d.maps.Cgroups, func(_ *uint64, v *versioned) { v.Cur++ })
		}, "cgroups: 1 entries had been changed"},
		{"claim an address", false, func(t *testing.T) {
			if err := d.maps.Addresses.Put(address{1, 2, 3, 4}, version(value{}, value{id: 7}, d.gen)); err != nil {
				t.Fatal(err)
			}
		}, "addresses: 0 entries had been changed, 0 taken away and 1 added"},
		{"claim a prefix", false, func(t *testing.T) {
			if err := d.maps.Prefixes.Put(netKey{}, version(value{}, value{id: 7}, d.gen)); err != nil {
				t.Fatal(err)
			}
		}, "prefixes: 0 entries had been changed, 0 taken away and 1 added"},
		{"change the identity of a workload", false, func(t *testing.T) {
			changeAll(t, d.maps.SubjectInfo, func(_ *uint32, v *subjectInfo) { v.Identity.Cur, v.Identity.Prev = 99, 99 })
		}, "workloads: 2 entries had been changed"},
		{"change the name of a rule", false, func(t *testing.T) {
			changeAll(t, d.maps.Rules, func(_ *uint64, v *ruleName) { setText(v[:], "p/other") })
		}, "names of rules: 2 entries had been changed"},
		{"have a workload judged by nothing", true, func(t *testing.T) {
			d.subjects[unit].State[d.gen&1].Store(state(d.gen+5, 0, 0))
		}, "which policy 1 workloads are judged by"},
		{"break the glass in the kernel only", false, func(t *testing.T) {
			d.settings.GlassUntil.Store(1 << 62)
			d.settings.Patience.Store(1)
		}, "settings of the programs"},
		{"turn the generation", false, func(t *testing.T) { d.active.Store(uint64(d.gen) + 1) }, "the generation in force had been changed"},
	} {
		t.Run(strings.ReplaceAll(tt.what, " ", "_"), func(t *testing.T) {
			tt.tamper(t)
			var through *dataplanetest.Socket
			if tt.opens {
				s, err := l.near.Dial("tcp4", l.denied.Addr)
				if err != "" {
					t.Fatalf("the test shows nothing: what is denied: %s", err)
				}
				through = s
			}
			found, err := d.round(t)
			if err != nil || !strings.Contains(strings.Join(found, "\n"), tt.says) {
				t.Errorf("found %q, %v", found, err)
			}
			if through != nil {
				if _, err := through.Read(time.Minute); err != "ECONNABORTED" {
					t.Errorf("a connection that came through meanwhile goes on: %q", err)
				}
			}
			l.mustEnforce(t, tt.what)
			mustFindNothing("after it")
		})
	}
	d = reopen(t, d, bed)
	if st, err := d.Apply(t.Context(), &dataplane.State{Policy: p, Units: units}); err != nil || st.Changed {
		t.Errorf("the next agent finds something else: %+v, %v", st, err)
	}
	l.mustEnforce(t, "with the next agent")
}

// TestTamperedBetweenAgents changes rows while no agent is there: the next one puts them right once it has the policy.
func TestTamperedBetweenAgents(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, nil)
	l := newLab(bed)
	p := onePort(l.allowed.Port())
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	changeAll(t, d.maps.Rows, func(_ *rowKey, v *row) { v.Verdict = uint8(model.Allow) })
	d = reopen(t, d, bed)
	if found, err := d.round(t); len(found) > 0 || err != nil {
		t.Errorf("nobody can know without a policy: found %q, %v", found, err)
	}
	if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p}); err != nil {
		t.Fatal(err)
	}
	if found, err := d.round(t); len(found) != 1 || err != nil {
		t.Errorf("found %q, %v", found, err)
	}
	l.mustEnforce(t, "put right")
}

// TestRepairFindsNothing has policies of all kinds come and go while Repair looks on: what the agent itself does is not
// taken for somebody else's work, and the policies stay what they are.
func TestRepairFindsNothing(t *testing.T) {
	t.Parallel()
	d, bed := openForTest(t, func(c *Config) { c.MaxRows = 1 << 18 })
	units := map[string][]string{"a": {bed.Unit("one")}, "b": {bed.Unit("two")}}
	look := func(when string) {
		t.Helper()
		if found, err := d.Repair(t.Context()); len(found) > 0 || err != nil {
			t.Fatalf("%s: found %q, %v", when, found, err)
		}
	}
	for i := range 12 {
		for _, p := range []*hostpolicy.Policy{onePort(uint16(80 + i)), bigPolicy(i, 2*scanBatch)} {
			if _, err := d.Apply(t.Context(), &dataplane.State{Policy: p, Units: units}); err != nil {
				t.Fatal(err)
			}
			look("after Apply")
			look("and again")
		}
		for _, on := range []bool{true, false} {
			if err := d.Isolate(t.Context(), "h", on); err != nil {
				t.Fatal(err)
			}
			look("after Isolate")
		}
	}
	if found, err := d.round(t); len(found) > 0 || err != nil {
		t.Errorf("found %q, %v", found, err)
	}
}

// round has Repair look through everything.
func (d *Dataplane) round(t testing.TB) (found []string, err error) {
	t.Helper()
	d.inspection = inspection{}
	for started := false; !started || d.inspection.next != 0; started = true {
		more, err := d.Repair(t.Context())
		found = append(found, more...)
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

// onPin does something to a pinned link as anybody may who finds the pin.
func onPin(path string, do func(link.Link) error) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	return errors.Join(do(l), l.Close())
}

// entriesIn returns what a map holds.
func entriesIn[K, V any](t testing.TB, m *ebpf.Map) (keys []K, values []V) {
	t.Helper()
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		keys, values = append(keys, k), append(values, v)
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return keys, values
}

// changeAll writes every entry of a map again as change leaves it.
func changeAll[K, V any](t testing.TB, m *ebpf.Map, change func(*K, *V)) {
	t.Helper()
	keys, values := entriesIn[K, V](t, m)
	for i := range keys {
		change(&keys[i], &values[i])
		if err := m.Put(&keys[i], &values[i]); err != nil {
			t.Fatal(err)
		}
	}
}

func emptyMap[K, V any](t testing.TB, m *ebpf.Map) {
	t.Helper()
	keys, _ := entriesIn[K, V](t, m)
	if len(keys) == 0 {
		t.Fatal("the test shows nothing: the map is empty")
	}
	if err := deleteAll(m, keys); err != nil {
		t.Fatal(err)
	}
}
