package apply_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/apply"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/wire"
)

type host struct {
	*apply.Applier
	dp       *agenttest.Dataplane
	problems status.Problems
}

// start makes an applier as an agent does that starts.
func start(t *testing.T, dir string, dp *agenttest.Dataplane, units map[string][]inventory.Cgroup) (*host, error) {
	t.Helper()
	h := &host{dp: dp}
	h.Applier = apply.New(apply.Config{Host: "node-1", Dir: dir}, dp, slog.New(slog.DiscardHandler), h.problems.Report)
	_, err := h.Load()
	if err == nil {
		err = h.Restore(t.Context(), units)
	}
	t.Cleanup(func() {
		if err := dp.Misuse(); err != nil {
			t.Error(err)
		}
	})
	return h, err
}

func begin(t *testing.T, dir string) *host {
	t.Helper()
	h, err := start(t, dir, agenttest.NewDataplane(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) set(t *testing.T, p *hostpolicy.Policy) {
	t.Helper()
	if _, err := h.Set(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

func nothing() {}

func TestPolicyIsEnforcedAgainAfterARestart(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	if h.Current() != nil || h.dp.Applies() != 0 {
		t.Fatal("something is in force that nobody gave")
	}
	want := agenttest.Policy(3, "db.service")
	h.set(t, want)

	units := map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db.service", ID: 5}}, "other.service": {{Path: "/cg/o", ID: 6}}}
	again, err := start(t, dir, agenttest.NewDataplane(), units)
	if err != nil {
		t.Fatal(err)
	}
	if again.dp.Hash() != want.Hash() || again.Current().Policy.Revision != 3 {
		t.Errorf("restored %v, want revision 3", again.Current())
	}
	if got := again.dp.Units(); len(got) != 1 || !slices.Equal(got["db.service"], []string{"/cg/db.service"}) {
		t.Errorf("units %v, want db.service alone", got)
	}
}

func TestCorruptStateOpensNothing(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"a bit flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut short":     func(b []byte) []byte { return b[:len(b)-7] },
		"empty":         func([]byte) []byte { return nil },
		"another file":  func([]byte) []byte { return []byte("PK\x03\x04 something else entirely, and long enough") },
		"the header":    func(b []byte) []byte { return b[:20] },
	}
	for name, change := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			h := begin(t, dir)
			h.set(t, agenttest.Policy(3))
			path := filepath.Join(dir, "policy.state")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data = change(data)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}

			again, err := start(t, dir, h.dp, nil) // the kernel still holds revision 3
			if err == nil {
				t.Fatal("it was taken")
			}
			if h.dp.Applies() != 1 {
				t.Error("the kernel was touched")
			}
			if p := again.problems.List(); len(p) != 1 || !strings.Contains(p[0], "what the kernel enforces goes on") {
				t.Errorf("problems %v", p)
			}
			aside, err := os.ReadFile(path + ".corrupt")
			if err != nil || string(aside) != string(data) {
				t.Errorf("the file was not kept aside: %v", err)
			}
			again.set(t, agenttest.Policy(4))
			if p := again.problems.List(); len(p) != 0 {
				t.Errorf("problems after a new policy: %v", p)
			}
		})
	}
}

// dying is a dataplane that lets a test look on at the moment in which the kernel has the policy and the agent dies.
type dying struct {
	*agenttest.Dataplane
	then func()
}

func (d *dying) Apply(ctx context.Context, s *dataplane.State) (dataplane.ApplyStats, error) {
	stats, err := d.Dataplane.Apply(ctx, s)
	d.then()
	return stats, err
}

// TestDeathRightAfterApplying is about an agent that dies when the kernel has a policy and the disk has not: the next one
// must not go back to the policy before.
func TestDeathRightAfterApplying(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	h := &host{}
	kernel := &dying{Dataplane: agenttest.NewDataplane(), then: func() {}}
	h.Applier = apply.New(apply.Config{Host: "node-1", Dir: dir}, kernel, slog.New(slog.DiscardHandler), h.problems.Report)
	h.set(t, agenttest.Policy(1))
	kernel.then = func() {
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil { // what the next agent would find
			t.Error(err)
		}
	}
	newest := agenttest.Policy(2)
	h.set(t, newest)
	again, err := start(t, copied, kernel.Dataplane, nil)
	if err != nil || again.Current() == nil || again.Current().Hash != newest.Hash() || len(again.problems.List()) > 0 {
		t.Fatalf("restored %+v, %v, problems %v; want revision 2", again.Current(), err, again.problems.List())
	}
	for _, d := range []string{dir, copied} { // now it is kept, and the only one
		if _, err := os.Stat(filepath.Join(d, "policy.next")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was written ahead is still there: %v", err)
		}
		if again, err := start(t, d, agenttest.NewDataplane(), nil); err != nil || again.Current().Policy.Revision != 2 {
			t.Errorf("restored %+v, %v; want revision 2", again.Current(), err)
		}
	}
}

// TestPolicyWrittenAheadThatIsOfNoUse is about what a loss of power, or a policy that the kernel refuses, leaves.
func TestPolicyWrittenAheadThatIsOfNoUse(t *testing.T) {
	for name, x := range map[string]struct {
		data    []byte
		refused bool
	}{
		"in pieces":       {data: stateWith(t, agenttest.Policy(4), nil)[:50]},
		"empty":           {data: []byte{}},
		"of another host": {data: stateWith(t, func() *hostpolicy.Policy { p := agenttest.Policy(4); p.Host = "node-2"; return p }(), nil)},
		"refused":         {data: stateWith(t, agenttest.Policy(4, "too-much.service"), nil), refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			begin(t, dir).set(t, agenttest.Policy(3))
			if err := os.WriteFile(filepath.Join(dir, "policy.next"), x.data, 0o600); err != nil {
				t.Fatal(err)
			}
			dp := agenttest.NewDataplane()
			if x.refused {
				dp.RefuseIf(func(p *hostpolicy.Policy) error {
					if p.Revision == 4 {
						return fmt.Errorf("%w: too much", dataplane.ErrRefused)
					}
					return nil
				})
			}
			again, err := start(t, dir, dp, nil)
			if err != nil || again.Current() == nil || again.Current().Policy.Revision != 3 || len(again.problems.List()) > 0 {
				t.Fatalf("restored %+v, %v, problems %v; want revision 3", again.Current(), err, again.problems.List())
			}
			if _, err := os.Stat(filepath.Join(dir, "policy.next")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}

// TestRefusalDoesNotCostWhatWasNotKeptYet is about a policy that is refused while the one before waits for the disk.
func TestRefusalDoesNotCostWhatWasNotKeptYet(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	for i := range uint64(20) {
		var group sync.WaitGroup
		group.Go(func() { h.set(t, agenttest.Policy(2*i+1)) })
		group.Go(func() {
			h.dp.RefuseIf(func(p *hostpolicy.Policy) error {
				if p.Revision%2 == 0 {
					return fmt.Errorf("%w: too much", dataplane.ErrRefused)
				}
				return nil
			})
			if _, err := h.Set(t.Context(), agenttest.Policy(2*i+2)); !errors.Is(err, dataplane.ErrRefused) {
				t.Errorf("error %v", err)
			}
		})
		group.Wait()
		again, err := start(t, dir, agenttest.NewDataplane(), nil)
		if err != nil || again.Current() == nil || again.Current().Policy.Revision != 2*i+1 {
			t.Fatalf("restored %+v, %v; want revision %d", again.Current(), err, 2*i+1)
		}
	}
}

// TestStateOfAnotherVersion is about a policy that a newer agent has written: what an older one understands of it is
// not what was meant.
func TestStateOfAnotherVersion(t *testing.T) {
	for name, data := range map[string][]byte{
		"another format":   []byte("bulkhead policy 2\nwhatever that may be"),
		"an unknown field": stateWith(t, agenttest.Policy(3), []byte{0xa2, 0x06, 1, 'x'}), // number 100
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			h := begin(t, dir)
			h.set(t, agenttest.Policy(3))
			path := filepath.Join(dir, "policy.state")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			again, err := start(t, dir, h.dp, nil)
			if err == nil || !strings.Contains(err.Error(), "another version of the agent wrote it") {
				t.Errorf("error %v", err)
			}
			if p := again.problems.List(); len(p) != 1 || !strings.Contains(p[0], "what the kernel enforces goes on") || h.dp.Applies() != 1 {
				t.Errorf("problems %v, applied %d times", p, h.dp.Applies())
			}
			if aside, err := os.ReadFile(path + ".corrupt"); err != nil || string(aside) != string(data) {
				t.Errorf("the file was not kept aside: %v", err)
			}
		})
	}
	// The same without the field is good, so that it is the field that counts.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "policy.state"), stateWith(t, agenttest.Policy(3), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := start(t, dir, agenttest.NewDataplane(), nil); err != nil || h.Current().Policy.Revision != 3 {
		t.Errorf("a good state: %v", err)
	}
}

// stateWith is a policy as it is on disk, with more bytes at its end.
func stateWith(t *testing.T, p *hostpolicy.Policy, more []byte) []byte {
	t.Helper()
	body, err := proto.Marshal(wire.PolicyToProto(p))
	if err != nil {
		t.Fatal(err)
	}
	body = append(body, more...)
	sum := sha256.Sum256(body)
	return append(append([]byte("bulkhead policy 1\n"), sum[:]...), body...)
}

func TestStateOfAnotherHostIsNotEnforced(t *testing.T) {
	dir := t.TempDir()
	begin(t, dir).set(t, agenttest.Policy(3))
	dp := agenttest.NewDataplane()
	other := apply.New(apply.Config{Host: "node-2", Dir: dir}, dp, slog.New(slog.DiscardHandler), func(string, string) {})
	if _, err := other.Load(); err == nil || !strings.Contains(err.Error(), `for host "node-1"`) {
		t.Errorf("error %v", err)
	}
	if _, err := other.Set(t.Context(), agenttest.Policy(4)); !errors.Is(err, dataplane.ErrRefused) || dp.Applies() != 0 {
		t.Errorf("a policy of another host: %v", err)
	}
}

func TestRefusedPolicyLeavesTheOldOne(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	old := agenttest.Policy(3)
	h.set(t, old)
	h.dp.Refuse(fmt.Errorf("%w: too many rows", dataplane.ErrRefused))
	if _, err := h.Set(t.Context(), agenttest.Policy(4)); !errors.Is(err, dataplane.ErrRefused) {
		t.Errorf("error %v", err)
	}
	if h.Current().Hash != old.Hash() || len(h.problems.List()) != 1 {
		t.Errorf("in force %v, problems %v", h.Current().Policy.Revision, h.problems.List())
	}
	again, err := start(t, dir, agenttest.NewDataplane(), nil)
	if err != nil || again.dp.Hash() != old.Hash() {
		t.Errorf("after a restart %v (%v), want the old policy", again.dp.Hash().Short(), err)
	}
}

func TestPolicyInForceThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "policy.state"), 0o700); err != nil { // the rename fails
		t.Fatal(err)
	}
	h.set(t, agenttest.Policy(3))
	if h.dp.Policy() == nil || h.Current() == nil {
		t.Error("a disk that fails kept the policy out of force")
	}
	if p := h.problems.List(); len(p) != 1 || !strings.Contains(p[0], "could not be kept on disk") {
		t.Errorf("problems %v", p)
	}
}

func TestUnitsThatMatterAreAppliedAgain(t *testing.T) {
	h := begin(t, t.TempDir())
	h.set(t, agenttest.Policy(3, "db.service"))
	steps := []struct {
		what  string
		units map[string][]inventory.Cgroup
		again bool
	}{
		{"it starts", map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db", ID: 5}}}, true},
		{"nothing", map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db", ID: 5}}}, false},
		{"another unit", map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db", ID: 5}}, "x": {{Path: "/x", ID: 1}}}, false},
		{"it was made again", map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db", ID: 9}}}, true},
		{"it stops", nil, true},
	}
	for _, s := range steps {
		before := h.dp.Applies()
		if err := h.SetUnits(t.Context(), s.units); err != nil {
			t.Fatal(err)
		}
		if again := h.dp.Applies() > before; again != s.again {
			t.Errorf("%s: applied again is %t, want %t", s.what, again, s.again)
		}
	}
}

func TestUnitsThatCouldNotBeAppliedAreTriedAgain(t *testing.T) {
	h := begin(t, t.TempDir())
	h.set(t, agenttest.Policy(3, "db.service"))
	units := map[string][]inventory.Cgroup{"db.service": {{Path: "/cg/db", ID: 5}}}
	h.dp.Refuse(errors.New("busy"))
	if err := h.SetUnits(t.Context(), units); err == nil {
		t.Fatal("no error")
	}
	h.dp.Refuse(nil)
	if err := h.SetUnits(t.Context(), units); err != nil {
		t.Fatal(err)
	}
	if got := h.dp.Units()["db.service"]; len(got) != 1 {
		t.Errorf("units %v", h.dp.Units())
	}
	if p := h.problems.List(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

func TestIsolationSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	h.set(t, agenttest.Policy(3, "db.service"))
	if err := h.Isolate(t.Context(), "node-1/db.service", true, apply.ByHost, nothing); err != nil {
		t.Fatal(err)
	}
	// A kernel that has forgotten, as after a reboot.
	again, err := start(t, dir, agenttest.NewDataplane(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !again.dp.IsIsolated("node-1/db.service") || !slices.Equal(again.Isolated(), []string{"node-1/db.service"}) {
		t.Errorf("isolated after a restart: %v", again.Isolated())
	}
	if err := again.Isolate(t.Context(), "node-1/db.service", false, apply.ByController, nothing); err != nil {
		t.Fatal(err)
	}
	if got := again.Isolated(); len(got) != 0 || again.dp.IsIsolated("node-1/db.service") {
		t.Errorf("isolated after it was lifted: %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "isolated.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the wish is still on disk (%v)", err)
	}
}

func TestIsolationIsWrittenDownBeforeTheKernelHearsOfIt(t *testing.T) {
	dir := t.TempDir()
	h := begin(t, dir)
	h.set(t, agenttest.Policy(3))
	onDisk := func() string {
		data, err := os.ReadFile(filepath.Join(dir, "isolated.json"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(data)
	}
	h.dp.OnIsolate(func() error {
		if !strings.Contains(onDisk(), "node-1") {
			t.Error("an agent that dies now leaves an isolation that nobody knows of")
		}
		return nil
	})
	if err := h.Isolate(t.Context(), "node-1", true, apply.ByHost, nothing); err != nil {
		t.Fatal(err)
	}
	// What is lifted is lifted also for the agent that comes after one that dies now.
	h.dp.OnIsolate(nil)
	lifted := func() {
		if got := onDisk(); got != "" {
			t.Errorf("on disk %q after the isolation was lifted", got)
		}
	}
	if err := h.Isolate(t.Context(), "node-1", false, apply.ByHost, lifted); err != nil {
		t.Fatal(err)
	}
	if err := h.Isolate(t.Context(), "node-1", true, apply.ByHost, nothing); err != nil {
		t.Fatal(err)
	}
	// Half a failure: it is in force, and something beside it went wrong.
	failures := 1
	h.dp.OnIsolate(func() error {
		if failures--; failures >= 0 {
			return errors.New("connections could not be cut")
		}
		return nil
	})
	if err := h.Isolate(t.Context(), "node-1", false, apply.ByHost, nothing); err != nil || onDisk() != "" {
		t.Errorf("error %v, on disk %q", err, onDisk())
	}
	// A whole one.
	failures = 2
	if err := h.Isolate(t.Context(), "node-1", true, apply.ByHost, nothing); err == nil || len(h.Isolated()) != 0 || onDisk() != "" {
		t.Errorf("error %v, isolated %v, on disk %q; want a failure and nothing isolated", err, h.Isolated(), onDisk())
	}
}

func TestIsolationOfAStranger(t *testing.T) {
	h := begin(t, t.TempDir())
	h.set(t, agenttest.Policy(3))
	called := false
	err := h.Isolate(t.Context(), "node-9", true, apply.ByController, func() { called = true })
	if err == nil || called || len(h.Isolated()) != 0 {
		t.Errorf("error %v, called %t, isolated %v", err, called, h.Isolated())
	}
}

func TestIsolationOfAWorkloadThatLeftCanBeEnded(t *testing.T) {
	h := begin(t, t.TempDir())
	const w = "node-1/db.service"
	h.set(t, agenttest.Policy(3, "db.service"))
	if err := h.Isolate(t.Context(), w, true, apply.ByHost, nothing); err != nil {
		t.Fatal(err)
	}
	h.set(t, agenttest.Policy(4))
	if err := h.Isolate(t.Context(), w, false, apply.ByController, nothing); err != nil {
		t.Errorf("ending it: %v", err)
	}
	if err := h.dp.Remove(); err != nil {
		t.Fatal(err)
	}
	h.set(t, agenttest.Policy(5, "db.service"))
	if h.dp.IsIsolated(w) {
		t.Error("it is isolated when it comes back")
	}
}

func TestControllersIsolationIsHandedOverToPolicy(t *testing.T) {
	h := begin(t, t.TempDir())
	p := agenttest.Policy(3, "db.service")
	h.set(t, p)
	const w = "node-1/db.service"
	if err := h.Isolate(t.Context(), w, true, apply.ByController, nothing); err != nil {
		t.Fatal(err)
	}
	// A policy that was compiled before the quarantine does not end it.
	next := agenttest.Policy(4, "db.service")
	h.set(t, next)
	if !h.dp.IsIsolated(w) {
		t.Fatal("an older policy ended the isolation")
	}
	h.set(t, agenttest.Quarantined(next, w))
	if h.dp.IsIsolated(w) || !slices.Equal(h.Isolated(), []string{w}) {
		t.Errorf("with the policy here: by call %t, isolated %v; want by policy alone", h.dp.IsIsolated(w), h.Isolated())
	}
	h.set(t, agenttest.Policy(6, "db.service"))
	if got := h.Isolated(); len(got) != 0 {
		t.Errorf("isolated after the quarantine was lifted: %v", got)
	}
}

func TestHostsIsolationOutlastsTheQuarantine(t *testing.T) {
	h := begin(t, t.TempDir())
	p := agenttest.Policy(3)
	h.set(t, p)
	for _, by := range []apply.Origin{apply.ByHost, apply.ByController} {
		if err := h.Isolate(t.Context(), "node-1", true, by, nothing); err != nil {
			t.Fatal(err)
		}
	}
	h.set(t, agenttest.Quarantined(p, "node-1"))
	h.set(t, agenttest.Policy(6))
	if !h.dp.IsIsolated("node-1") {
		t.Error("what was asked for on the host ended with the controller's quarantine")
	}
}

func TestWorkloadThatComesBackIsIsolatedAgain(t *testing.T) {
	h := begin(t, t.TempDir())
	const w = "node-1/db.service"
	h.set(t, agenttest.Policy(3, "db.service"))
	if err := h.Isolate(t.Context(), w, true, apply.ByHost, nothing); err != nil {
		t.Fatal(err)
	}
	h.set(t, agenttest.Policy(4))
	if got := h.Isolated(); len(got) != 0 {
		t.Errorf("isolated while it is not here: %v", got)
	}
	if err := h.dp.Remove(); err != nil { // the dataplane has forgotten it, too
		t.Fatal(err)
	}
	h.set(t, agenttest.Policy(5, "db.service"))
	if !h.dp.IsIsolated(w) {
		t.Error("it came back and is not isolated")
	}
}

func TestUnreadableIsolationIsReported(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"{", "[]", "null"} {
		if err := os.WriteFile(filepath.Join(dir, "isolated.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h := begin(t, dir)
		if wrong := text != "null"; wrong != (len(h.problems.List()) == 1) {
			t.Errorf("%q: problems %v", text, h.problems.List())
		}
		h.set(t, agenttest.Policy(3))
		if err := h.Isolate(t.Context(), "node-1", true, apply.ByHost, nothing); err != nil {
			t.Error(err)
		}
	}
}

func TestCallsDoNotOverlap(t *testing.T) {
	h := begin(t, t.TempDir())
	h.dp.Slow(time.Millisecond)
	ctx := context.Background()
	var group sync.WaitGroup
	for i := range uint64(20) {
		group.Go(func() {
			if _, err := h.Set(ctx, agenttest.Policy(i, "db.service")); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			if err := h.SetUnits(ctx, map[string][]inventory.Cgroup{"db.service": {{Path: "/cg", ID: i}}}); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() { _ = h.Isolate(ctx, "node-1", i%2 == 0, apply.ByController, nothing) }) // unknown before the first policy
		group.Go(func() { h.Isolated() })
	}
	group.Wait()
}
