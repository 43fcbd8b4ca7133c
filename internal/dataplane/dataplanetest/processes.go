package dataplanetest

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// testProcesses tries rules that are for some processes of a workload only.
func testProcesses(t *testing.T, open Open) {
	whole := newHost(t, open)
	if !whole.d.Capabilities().Processes {
		t.Skip("this dataplane refuses rules for processes; RunPort tests that")
	}
	t.Run("a user", func(t *testing.T) { whole.with(t).users() })
	t.Run("a user that this host does not know", func(t *testing.T) { whole.with(t).unknownUser() })
	t.Run("a user that gets another number", func(t *testing.T) { whole.with(t).renumbered() })
	t.Run("a process that changes its user", func(t *testing.T) { whole.with(t).becomes() })
	t.Run("an executable", func(t *testing.T) { whole.with(t).executable() })
	t.Run("an executable that is replaced", func(t *testing.T) { whole.with(t).replaced() })
	t.Run("an executable that another is mounted over", func(t *testing.T) { whole.with(t).mountedOver() })
	t.Run("processes that were there before the rule", func(t *testing.T) { whole.with(t).before() })
	t.Run("a unit inside the workload", func(t *testing.T) { whole.with(t).inner() })
	t.Run("a denial comes before the rule for everybody", func(t *testing.T) { whole.with(t).denied() })
	t.Run("several constraints of one rule", func(t *testing.T) { whole.with(t).both() })
}

// someone is a user that nobody else in the lab is.
const someone = 54321

// copyOf makes a copy of the test binary that everybody may run, and returns its path.
func (h *host) copyOf(name string) string {
	h.t.Helper()
	dir, err := os.MkdirTemp("", "bulkhead-test-program-")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			h.t.Error(err)
		}
	})
	if dir, err = filepath.EvalSymlinks(dir); err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	h.replace(path)
	return path
}

// replace puts a copy of the test binary at the path, as an upgrade does.
func (h *host) replace(path string) {
	h.t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		h.t.Fatal(err)
	}
	defer self.Close()
	next, err := os.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = io.Copy(next, self)
	if closing := next.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// passes checks in both families, over TCP and UDP and in both directions, whether what the process does is allowed.
func (h *host) passes(p *Process, allowed bool) {
	h.t.Helper()
	out, in := "", ""
	if !allowed {
		out, in = "EPERM", "timeout"
	}
	for _, f := range families {
		for _, network := range []string{f.tcp, f.udp} {
			there := h.farP.Listen(network, at(f.far, 0))
			h.reaches(p, network, there.Addr, out)
			there.Close()
			here := p.Listen(network, at(f.near, 0))
			h.reaches(h.farP, network, here.Addr, in)
			here.Close()
		}
	}
}

// allowOnly are rules that let the processes do everything, and the others nothing.
func allowOnly(p model.Process) []Rule {
	return []Rule{rule(model.Egress, nobody, "any", model.Allow).only(p), rule(model.Ingress, nobody, "any", model.Allow).only(p)}
}

func (h *host) users() {
	other := h.StartAs("one", program{user: someone, args: []string{h.copyOf("worker")}})
	h.apply(policy{one: allowOnly(model.Process{User: "54321"})})
	h.passes(other, true)
	h.passes(h.one, false)
	h.apply(policy{one: allowOnly(model.Process{User: "root"}), users: map[string]uint32{"root": 0}})
	h.passes(other, false)
	h.passes(h.one, true)
}

func (h *host) unknownUser() {
	h.apply(policy{one: allowOnly(model.Process{User: "mallory"})})
	h.passes(h.one, false)
}

func (h *host) renumbered() {
	p := policy{one: allowOnly(model.Process{User: "pay"}), users: map[string]uint32{"pay": 0}}
	h.apply(p)
	l := h.farP.Listen("tcp4", at(Far4, 0))
	defer l.Close()
	s, err := h.one.Dial("tcp4", l.Addr)
	if err != "" {
		h.t.Fatal(err)
	}
	p.users = map[string]uint32{"pay": someone}
	if st := h.apply(p); !st.Changed || st.Reset != 1 {
		h.t.Errorf("%+v", st)
	}
	if err := s.Exchange("x", ""); err == "" {
		h.t.Error("a connection of who was the user goes on")
	}
	if st := h.apply(p); st.Changed {
		h.t.Errorf("again: %+v", st)
	}
}

// becomes changes the user under an open socket: what it does next is judged anew.
func (h *host) becomes() {
	p := h.Start("one")
	h.apply(policy{one: allowOnly(model.Process{User: "54321"})})
	l := h.farP.Listen("udp4", at(Far4, 0))
	defer l.Close()
	s := p.Bind("udp4", at(Near4, 0))
	if err := s.Exchange("x", l.Addr); err != "EPERM" {
		h.t.Errorf("as root: %q", err)
	}
	p.Become(someone)
	if err := s.Exchange("x", l.Addr); err != "" {
		h.t.Errorf("as the user: %q", err)
	}
	h.passes(p, true)
	p.Become(0)
	if err := s.Exchange("x", l.Addr); err != "EPERM" {
		h.t.Errorf("as root again: %q", err)
	}
	h.passes(p, false)
}

func (h *host) executable() {
	path := h.copyOf("payments")
	pay, other := h.StartAs("one", program{args: []string{path}}), h.StartAs("one", program{args: []string{h.copyOf("payments")}})
	h.apply(policy{one: allowOnly(model.Process{Path: path})})
	h.passes(pay, true)
	h.passes(other, false)
	h.passes(h.one, false)
}

// replaced upgrades a program that runs: the old process and the new one both count as the program.
func (h *host) replaced() {
	path := h.copyOf("payments")
	old := h.StartAs("one", program{args: []string{path}})
	h.apply(policy{one: allowOnly(model.Process{Path: path})})
	h.replace(path)
	h.passes(old, true)
	h.passes(h.StartAs("one", program{args: []string{path}}), true)
	if err := os.Remove(path); err != nil {
		h.t.Fatal(err)
	}
	h.passes(old, true)
}

// mountedOver does what an attacker may where anybody may make user namespaces: it runs its own program at the path of
// another.
func (h *host) mountedOver() {
	path, evil := h.copyOf("payments"), h.copyOf("evil")
	h.apply(policy{one: allowOnly(model.Process{Path: path})})
	p := h.StartAs("one", program{user: someone, args: []string{
		"unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "mount --bind " + evil + " " + path + " && exec " + path,
	}})
	h.passes(p, false)
}

// before has connections of two programs when the first rule for one of them comes.
func (h *host) before() {
	path := h.copyOf("payments")
	pay := h.StartAs("one", program{args: []string{path}})
	h.apply(policy{one: everything(model.Allow)})
	l := h.farP.Listen("tcp4", at(Far4, 0))
	defer l.Close()
	var open []*Socket
	for _, p := range []*Process{pay, h.one} {
		s, err := p.Dial("tcp4", l.Addr)
		if err == "" {
			err = s.Exchange("x", "")
		}
		if err != "" {
			h.t.Fatal(err)
		}
		open = append(open, s)
	}
	here := pay.Listen("tcp4", at(Near4, 0))
	if st := h.apply(policy{one: allowOnly(model.Process{Path: path})}); st.Reset != 1 {
		h.t.Errorf("%+v", st)
	}
	if err := open[0].Exchange("x", ""); err != "" {
		h.t.Errorf("the connection of the program: %s", err)
	}
	if err := open[1].Exchange("x", ""); err == "" {
		h.t.Error("the connection of the other program goes on")
	}
	h.reaches(h.farP, "tcp4", here.Addr, "")
	h.passes(pay, true)
}

func (h *host) inner() {
	p := h.Start("two")
	h.apply(policy{two: allowOnly(model.Process{Unit: "inner"}), inner: "inner"})
	h.passes(h.two, true)
	h.passes(p, false)
	h.apply(policy{two: allowOnly(model.Process{Unit: "inner"})}) // nothing is that unit any more
	h.passes(h.two, false)
}

func (h *host) denied() {
	p := h.StartAs("one", program{user: someone, args: []string{h.copyOf("worker")}})
	var rules []Rule
	for _, d := range model.Directions {
		no := rule(d, nobody, "any", model.Deny).only(model.Process{User: "54321"})
		no.Name = "lab/not-for-someone"
		rules = append(rules, no)
	}
	h.apply(policy{one: append(rules, everything(model.Allow)...)})
	h.events.clear()
	h.passes(p, false)
	for _, e := range h.events.find(kind(dataplane.EventDeny)) {
		if e.Rule != "lab/not-for-someone" {
			h.t.Errorf("%s", describe(&e))
		}
	}
	h.passes(h.one, true)
}

func (h *host) both() {
	path := h.copyOf("payments")
	right := h.StartAs("one", program{user: someone, args: []string{path}})
	wrong := h.StartAs("one", program{args: []string{path}})
	h.apply(policy{one: allowOnly(model.Process{Path: path, User: "54321"})})
	h.passes(right, true)
	h.passes(wrong, false)
}
