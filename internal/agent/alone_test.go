package agent_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/dataplane"
)

// newLoner is a host whose agent stands alone.
func newLoner(t *testing.T) *node {
	t.Helper()
	n := newHost(t)
	n.cfg.Standalone = filepath.Join(t.TempDir(), "policy")
	n.cfg.Confirm, n.cfg.Labels = 0, model.Labels{"role": "web"}
	if err := os.Mkdir(n.cfg.Standalone, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// write replaces a document as an editor does.
func (n *node) write(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.cfg.Standalone, name)
	if err := errors.Join(os.WriteFile(path+".tmp", []byte(text), 0o600), os.Rename(path+".tmp", path)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) client() *status.Client { return status.NewClient(n.cfg.Socket) }

// version waits until that version is in force.
func (n *node) version(v uint64) *status.Report {
	n.t.Helper()
	return n.status(fmt.Sprintf("version %d", v), func(r *status.Report) bool { return r.Alone != nil && r.Hash != "" && r.Alone.Version == v })
}

// refused waits until the directory is refused with a text in the reason.
func (n *node) refused(text string) *status.Report {
	n.t.Helper()
	return n.status("a refusal with "+text, func(r *status.Report) bool {
		return r.Alone.Refused != nil && strings.Contains(strings.Join(r.Alone.Refused.Errors, "\n"), text)
	})
}

// good waits until what is in the directory is in force.
func (n *node) good() {
	n.t.Helper()
	n.status("no problem", func(r *status.Report) bool { return r.Alone.Refused == nil && len(r.Problems) == 0 })
}

// judge is what the dataplane would make of a connection to the host.
func (n *node) judge(from string, port uint16) string {
	n.t.Helper()
	p := n.dp.Policy()
	if p == nil {
		return "nothing is judged"
	}
	v, _ := hostpolicy.NewJudge(p).Judge(&hostpolicy.Packet{
		Workload: p.Host, Dir: model.Ingress, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr(from),
		Proto: model.ProtoTCP, Port: port,
	})
	return fmt.Sprintf("%s by %s", v.Verdict, v.Rule)
}

const webSegment = `apiVersion: bulkhead/v1
kind: Segment
metadata: {name: web}
spec: {selector: role=web, mode: %s, directions: [ingress]}
---
`

const webPolicy = `apiVersion: bulkhead/v1
kind: Policy
metadata: {name: web, owner: me}
spec:
  rules:
    - {name: https, allow: {from: {any: true}, to: "role=web", on: [tcp/443]}}
`

// enforced is a directory's worth of documents in one file.
func enforced(mode, rest string) string { return fmt.Sprintf(webSegment, mode) + webPolicy + rest }

// TestAlone takes a host from nothing to enforcement, through mistakes, and over a restart.
func TestAlone(t *testing.T) {
	n := newLoner(t)
	n.start()
	r := n.version(0)
	if r.Controller != "" || len(r.Problems) > 0 || len(r.Subjects) != 1 || r.Subjects[0].Labels != "role=web" || len(r.Subjects[0].Segments) > 0 {
		t.Errorf("with an empty directory: %+v", r)
	}
	if got := n.judge("10.0.0.9", 22); got != "allow by open" {
		t.Errorf("with an empty directory: %s", got)
	}

	n.write("web.yaml", enforced("observe", ""))
	n.version(1)
	if got := n.judge("10.0.0.9", 22); got != "would-deny by default-deny" {
		t.Errorf("observed: %s", got)
	}
	n.write("web.yaml", enforced("enforce", ""))
	r = n.version(2)
	if got := n.judge("10.0.0.9", 22); got != "deny by default-deny" {
		t.Errorf("enforced: %s", got)
	}
	if got := n.judge("10.0.0.9", 443); got != "allow by web/https" {
		t.Errorf("enforced: %s", got)
	}
	if !slices.Equal(r.Subjects[0].Segments, []string{"web (enforce)"}) || r.Alone.Documents != 2 {
		t.Errorf("status: %+v %+v", r.Subjects, r.Alone)
	}

	// Whatever is wrong changes nothing and is told with its place.
	hash := n.dp.Hash()
	for _, wrong := range []struct{ text, want string }{
		{"kind: [", "web.yaml:1:"},
		{enforced("enforced", ""), `web.yaml:4:34: unknown mode "enforced"`},
		{enforced("enforce", "---\napiVersion: bulkhead/v1\nkind: Guardrail\nmetadata: {name: no-web}\nspec: {never: {from: {any: true}, to: role=web, on: [tcp/443]}}\n"),
			"web.yaml:15:18: guardrail no-web does not hold"},
		{enforced("enforce", "---\napiVersion: bulkhead/v1\nkind: Expectation\nmetadata: {name: ssh}\nspec: {cases: [{from: 10.0.0.9, to: node-1, on: tcp/22, expect: allow}]}\n"),
			"expectation ssh is not met"},
		{enforced("enforce", "---\napiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: node-1}\nspec: {unit: {host: other, name: x.service}}\n"),
			`host "node-1" has an agent, but the workload of that name is unit`},
	} {
		n.write("web.yaml", wrong.text)
		r := n.refused(wrong.want)
		if r.Alone.Version != 2 || n.dp.Hash() != hash || !strings.Contains(strings.Join(r.Problems, "\n"), "is not in force, version 2 stays: ") {
			t.Errorf("with %s: %+v, %q", wrong.want, r.Alone, r.Problems)
		}
	}
	n.dp.Refuse(fmt.Errorf("%w: no room", dataplane.ErrRefused))
	n.write("web.yaml", enforced("enforce", "# more\n"))
	n.refused("no room")
	n.dp.Refuse(nil)
	// One that fails in the middle may be in force: what was good last is put there again.
	failed, before := false, n.dp.Applies()
	n.dp.RefuseIf(func(p *hostpolicy.Policy) error {
		if p.Revision == 3 && !failed {
			failed = true
			return errors.New("interrupted")
		}
		return nil
	})
	n.write("web.yaml", enforced("enforce", "# more and more\n"))
	n.refused("interrupted")
	n.status("version 2 again", func(r *status.Report) bool {
		return n.dp.Applies() >= before+2 && r.Alone.Version == 2 && n.dp.Hash() == hash
	})

	// Not even an empty or a missing directory opens the host.
	if err := os.Remove(filepath.Join(n.cfg.Standalone, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	n.refused("holds no documents")
	if err := os.RemoveAll(n.cfg.Standalone); err != nil {
		t.Fatal(err)
	}
	n.refused("no such file or directory")

	// Over a reboot the documents that were good last are in force, before anybody could ask.
	n.stop()
	n.dp = agenttest.NewDataplane()
	n.start()
	r = n.version(2)
	if n.dp.Hash() != hash || r.Alone.Refused == nil {
		t.Errorf("after a reboot: %+v", r.Alone)
	}
	// They are compiled for what the host is now, which the policy on disk was not.
	n.stop()
	n.cfg.Labels = model.Labels{"role": "other"}
	n.start()
	n.status("the new labels", func(r *status.Report) bool { return r.Alone.Version == 2 && r.Subjects[0].Labels == "role=other" })
	if got := n.judge("10.0.0.9", 22); got != "allow by open" {
		t.Errorf("with other labels: %s", got)
	}
	if err := os.Mkdir(n.cfg.Standalone, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("web.yaml", enforced("selective", ""))
	n.refused("services")
	n.write("web.yaml", enforced("observe", ""))
	n.version(3)
	n.good()
}

// TestAloneHasItsOwnWord is about a document that names the host, and one for a unit of it.
func TestAloneHasItsOwnWord(t *testing.T) {
	n := newLoner(t)
	n.cfg.Units = nil
	n.cgroup("system.slice/pg")
	n.write("host.yaml", `apiVersion: bulkhead/v1
kind: Workload
metadata: {name: node-1, labels: {role: db}}
spec: {}
---
apiVersion: bulkhead/v1
kind: Workload
metadata: {name: pg, labels: {app: pg}}
spec: {unit: {host: node-1, name: pg}}
`)
	n.start()
	r := n.version(1)
	if len(r.Subjects) != 2 || r.Subjects[0].Labels != "role=db" || r.Subjects[1].Labels != "app=pg,role=db" || !slices.Equal(r.Subjects[1].Cgroups, []string{"system.slice/pg"}) {
		t.Errorf("subjects %+v", r.Subjects)
	}
	// From the first moment: nobody has looked before.
	if got := n.dp.Units()["pg"]; len(got) != 1 {
		t.Errorf("cgroups of pg: %v", got)
	}
	if notes := strings.Join(r.Alone.Notes, "\n"); !strings.Contains(notes, "no segment selects node-1") {
		t.Errorf("notes %q", notes)
	}
}

func TestAloneTrial(t *testing.T) {
	n := newLoner(t)
	n.cfg.Confirm = time.Minute
	n.write("web.yaml", enforced("observe", ""))
	n.start()
	if r := n.version(1); r.Alone.Trial != nil {
		t.Fatalf("on trial, but closes nothing: %+v", r.Alone)
	}
	if err := n.client().Confirm(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing is on trial") {
		t.Errorf("confirm what is not on trial: %v", err)
	}

	n.write("web.yaml", enforced("enforce", ""))
	r := n.version(2)
	if r.Alone.Trial == nil || !strings.Contains(strings.Join(r.Alone.Trial.Closes, "\n"), "on any but tcp/443") ||
		!strings.Contains(strings.Join(r.Problems, "\n"), "on trial: `bulkhead-agent confirm`") {
		t.Fatalf("on trial: %+v %q", r.Alone, r.Problems)
	}
	if got := n.judge("10.0.0.9", 22); got != "deny by default-deny" {
		t.Errorf("on trial: %s", got)
	}
	if err := n.client().Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.good()
	if r := n.version(2); r.Alone.Trial != nil {
		t.Errorf("confirmed: %+v", r.Alone)
	}

	// What opens needs no confirmation; an agent that ends during a trial comes back to what was confirmed.
	n.write("ssh.yaml", strings.ReplaceAll(strings.ReplaceAll(webPolicy, "443", "22"), "web,", "ssh,"))
	if r := n.version(3); r.Alone.Trial != nil {
		t.Errorf("opens: %+v", r.Alone)
	}
	if err := os.Remove(filepath.Join(n.cfg.Standalone, "ssh.yaml")); err != nil {
		t.Fatal(err)
	}
	if r := n.version(4); r.Alone.Trial == nil {
		t.Errorf("closes: %+v", r.Alone)
	}
	n.stop()
	if got := n.judge("10.0.0.9", 22); got != "allow by ssh/https" {
		t.Errorf("after its end, when nobody can roll back any more: %s", got)
	}
	n.start()
	n.refused("was not confirmed")
	if got := n.judge("10.0.0.9", 22); got != "allow by ssh/https" {
		t.Errorf("after a restart: %s", got)
	}
	// It is not tried again by itself, but when somebody says so, or thinks about it again.
	if err := n.client().Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := n.version(4); r.Alone.Trial == nil {
		t.Errorf("reloaded: %+v", r.Alone)
	}
	n.write("more.yaml", "# nothing\n")
	if r := n.version(5); r.Alone.Trial == nil {
		t.Errorf("changed: %+v", r.Alone)
	}
	// And a directory that is as it was ends the trial.
	if err := os.Remove(filepath.Join(n.cfg.Standalone, "more.yaml")); err != nil {
		t.Fatal(err)
	}
	n.write("ssh.yaml", strings.ReplaceAll(strings.ReplaceAll(webPolicy, "443", "22"), "web,", "ssh,"))
	n.good()
	if r := n.version(3); r.Alone.Trial != nil || n.judge("10.0.0.9", 22) != "allow by ssh/https" {
		t.Errorf("as it was: %+v", r.Alone)
	}
}

// TestAloneDiesOnTrial is about an agent that had no time to roll back: the next one does.
func TestAloneDiesOnTrial(t *testing.T) {
	n := newLoner(t)
	n.cfg.Confirm = time.Minute
	n.write("web.yaml", enforced("enforce", ""))
	n.start()
	n.version(1)
	saved := map[string][]byte{}
	for _, name := range []string{"standalone.json", "policy.state"} {
		n.status(name, func(*status.Report) bool {
			data, err := os.ReadFile(filepath.Join(n.cfg.Data, name))
			saved[name] = data
			return err == nil
		})
	}
	n.stop()
	// As a power cut would have left it.
	for name, data := range saved {
		if err := os.WriteFile(filepath.Join(n.cfg.Data, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.dp = agenttest.NewDataplane()
	n.start()
	n.refused("was not confirmed")
	if got := n.judge("10.0.0.9", 22); got != "allow by open" {
		t.Errorf("after a restart: %s", got)
	}
}

// TestAloneSees is what the socket says of flows, and plans and explains.
func TestAloneSees(t *testing.T) {
	n := newLoner(t)
	n.write("web.yaml", enforced("observe", "---\napiVersion: bulkhead/v1\nkind: Workload\nmetadata: {name: bastion}\nspec: {managed: false, addresses: [10.0.0.9]}\n"))
	n.start()
	n.version(1)
	denied := &dataplane.Event{
		Kind: dataplane.EventOpen, Time: time.Now(), Workload: "node-1", Dir: model.Ingress, Proto: model.ProtoTCP, Port: 22,
		Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:40000"),
		Verdict: model.WouldDeny, Rule: model.RuleDefaultDeny, Process: dataplane.Process{Name: "sshd"},
	}
	n.dp.Emit(denied)
	allowed := *denied
	allowed.Dir, allowed.Remote, allowed.Port, allowed.Verdict, allowed.Rule = model.Egress, netip.MustParseAddrPort("192.0.2.7:443"), 443, model.Allow, model.RuleOpen
	n.dp.Emit(&allowed)
	var all *status.Flows
	n.status("both flows", func(*status.Report) bool {
		var err error
		all, err = n.client().Flows(t.Context(), 0, false)
		return err == nil && len(all.Flows) == 2
	})
	if f := all.Flows[0]; f.From != "bastion" || f.To != "node-1" || f.On() != "tcp/22" || f.Verdict != "would-deny" || f.Process != "sshd" {
		t.Errorf("the first is %+v", f)
	}
	if f := all.Flows[1]; f.From != "node-1" || f.To != "192.0.2.7" || f.FromAddr.String() != "10.0.0.1" {
		t.Errorf("the second is %+v", f)
	}
	if only, err := n.client().Flows(t.Context(), 0, true); err != nil || len(only.Flows) != 1 || only.Flows[0].On() != "tcp/22" {
		t.Errorf("denied only: %+v %v", only, err)
	}
	if more, err := n.client().Flows(t.Context(), all.Sequence, false); err != nil || len(more.Flows) != 0 || more.Sequence != all.Sequence {
		t.Errorf("nothing is new: %+v %v", more, err)
	}

	x, err := n.client().Explain(t.Context(), status.Question{From: "bastion", To: "node-1", On: "tcp/22"})
	if err != nil || x.Verdict != "would-deny" || x.Ingress.Rule != model.RuleDefaultDeny || !strings.Contains(x.Text(), "segment web denies by default") {
		t.Errorf("explained: %+v %v", x, err)
	}
	if _, err := n.client().Explain(t.Context(), status.Question{From: "bastoin", To: "node-1", On: "tcp/22"}); err == nil || !strings.Contains(err.Error(), `did you mean "bastion"?`) {
		t.Errorf("unknown: %v", err)
	}

	next := []policy.File{{Name: "next.yaml", Data: []byte(enforced("enforce", ""))}}
	p, err := n.client().Plan(t.Context(), next)
	if err != nil || !p.OK || p.Broken != 1 || len(p.Closed) == 0 || p.Flows.Changed[0].On != "tcp/22" {
		t.Errorf("plan: %+v %v", p, err)
	}
	if _, err := n.client().Plan(t.Context(), []policy.File{{Name: "next.yaml", Data: []byte("kind: Nothing\n")}}); err == nil || !strings.Contains(err.Error(), "next.yaml:1:") {
		t.Errorf("plan of nonsense: %v", err)
	}
	if n.version(1).Alone.Refused != nil || n.judge("10.0.0.9", 22) != "would-deny by default-deny" {
		t.Error("a plan has changed something")
	}
}

// TestManagedAgentAnswersForFlowsOnly is about an agent with a controller: that has the policy.
func TestManagedAgentAnswersForFlowsOnly(t *testing.T) {
	c := agenttest.New(t).Start()
	n := newNode(t, c)
	n.start()
	connected(c, 1)
	n.dp.Emit(flow(1))
	n.status("the flow", func(*status.Report) bool {
		all, err := n.client().Flows(t.Context(), 0, false)
		return err == nil && len(all.Flows) == 1
	})
	_, err := n.client().Explain(t.Context(), status.Question{From: "a", To: "b", On: "tcp/1"})
	if err == nil || !strings.Contains(err.Error(), "policy comes from the controller at "+c.Addr) {
		t.Errorf("explain: %v", err)
	}
}

// TestAloneRollsBack leaves a change that closes something without a confirmation, while the dataplane at first cannot go back.
func TestAloneRollsBack(t *testing.T) {
	n := newLoner(t)
	n.cfg.Confirm = 200 * time.Millisecond
	n.write("web.yaml", enforced("enforce", ""))
	n.dp.RefuseIf(func(p *hostpolicy.Policy) error {
		if p.Revision == 0 { // which only the rollback asks for
			return errors.New("not now")
		}
		return nil
	})
	n.start()
	n.status("a rollback that failed", func(r *status.Report) bool {
		return hasProblem("could not be rolled back: not now; open the host with `bulkhead-agent break-glass`")(r)
	})
	n.dp.Refuse(nil)
	r := n.refused("it was not confirmed within 200ms and was rolled back")
	if r.Alone.Version != 0 || r.Alone.Trial != nil || len(r.Problems) != 1 || n.judge("10.0.0.9", 22) != "allow by open" {
		t.Errorf("rolled back: %+v, %q, %s", r.Alone, r.Problems, n.judge("10.0.0.9", 22))
	}
	// What opens nothing and closes nothing is not tried, and what is good is in force, whatever was before.
	n.write("web.yaml", enforced("observe", ""))
	n.version(1)
	n.good()
}
