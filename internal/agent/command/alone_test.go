package command

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"bulkhead/internal/agent/status"
)

// onNode calls f on a thread in the network namespace of the node.
func (b *bench) onNode(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := netns.Set(b.node); err != nil {
		return err
	}
	err = f()
	return errors.Join(err, netns.Set(home))
}

// ask runs the agent's command line as another process on the node and returns what it says.
func (b *bench) ask(code int, args ...string) string {
	b.t.Helper()
	cmd := exec.Command(filepath.Join(b.bin, "bulkhead-agent"), append(args, "--config", b.agentFile)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := b.onNode(cmd.Run)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		b.t.Fatalf("bulkhead-agent %s: exit %d, want %d\n%s\nagent: %s", strings.Join(args, " "), got, code, &out, b.agent.logText())
	}
	return out.String()
}

// says waits until the command line says all of the words.
func (b *bench) says(words []string, args ...string) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%q in %q", words, args), func() error {
		cmd := exec.Command(filepath.Join(b.bin, "bulkhead-agent"), append(args, "--config", b.agentFile)...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // the exit code says what the text says
		for _, w := range words {
			if !strings.Contains(out.String(), w) {
				return fmt.Errorf("%s%s", &out, &errs)
			}
		}
		return nil
	})
}

// ready returns a socket for the messages of sd_notify(3), and what waits for READY=1 there.
func (b *bench) ready() (env string, wait func()) {
	b.t.Helper()
	path := filepath.Join(b.dir, "notify")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return "NOTIFY_SOCKET=" + path, func() {
		b.t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			b.t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				b.t.Fatalf("the agent is not ready: %v\n%s", err, b.agent.logText())
			}
			if strings.Contains(string(buf[:n]), "READY=1") {
				return
			}
		}
	}
}

// first fails the test unless that is what the process says first.
func (b *bench) first(p *process, prefix string) {
	b.t.Helper()
	select {
	case line := <-p.lines:
		if !strings.HasPrefix(line, prefix) {
			b.t.Fatalf("it says %q first, want %q\nagent: %s", line, prefix, b.agent.logText())
		}
	case <-time.After(time.Minute):
		b.t.Fatalf("it says nothing for a minute\nagent: %s", b.agent.logText())
	}
}

const stranger = `---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: stranger}
spec:
  rules:
    - name: may
      allow: {from: {cidr: ` + ctlAddr + `/32}, to: "role=db", on: [tcp/5432]}
`

// TestStandalone runs one machine without a controller: with the capabilities of its systemd unit, on real namespaces,
// cgroups and sockets, from an empty directory to enforcement, through a mistake, a crash and a reboot, to its removal.
func TestStandalone(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the programs")
	}
	b := newBench(t)
	b.controller = &process{}
	policy := filepath.Join(b.dir, "policy")
	if err := os.Mkdir(policy, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.Rename(b.write("next.yaml", text), filepath.Join(policy, "shop.yaml")); err != nil {
			t.Fatal(err)
		}
	}
	b.agentFile = b.write("agent.yaml", fmt.Sprintf("standalone: %s\nhost: node-1\ndata: %s\ncgroupRoot: %s\nbpffs: %s\ndataplane: ebpf\nsocket: %s\n",
		policy, filepath.Join(b.dir, "agent"), b.cgroup, filepath.Join(b.dir, "bpf", "bulkhead"), filepath.Join(b.dir, "agent.sock")))

	// See: an empty directory judges nothing and records everything.
	b.startAgent(b.node)
	b.status("an agent with nothing to enforce", func(r *status.Report) bool {
		return r.Alone != nil && r.Alone.Version == 0 && r.Hash != "" && len(r.Problems) == 0
	})
	server := b.workload(b.node, "db.service", "server")
	b.heard(server, "listening")
	web := b.workload(b.node, "web.service", "client")
	other := b.workload(b.ctl, "", "client")
	b.waitLine(web, "up")
	b.waitLine(other, "up")
	b.says([]string{ctlAddr, "node-1/db.service", "tcp/5432", "allow", "open"}, "flows")
	b.says([]string{`"from":"` + ctlAddr + `","to":"node-1/db.service"`, `"to_process_name"`}, "flows", "-o", "json")

	// Decide: what another directory would do here.
	next := filepath.Join(b.dir, "next")
	if err := os.Mkdir(next, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.write("enforced.yaml", enforced), filepath.Join(next, "shop.yaml")); err != nil {
		t.Fatal(err)
	}
	if out := b.ask(exitGood, "plan", next); !strings.Contains(out, "BREAKS 1 recorded flow") || !strings.Contains(out, ctlAddr+" -> db (") {
		t.Errorf("plan:\n%s", out)
	}

	// Enforce: it bites the live connection, and is on trial until somebody confirms it.
	began := time.Now()
	write(enforced)
	b.waitLine(other, "down")
	t.Logf("in force %v after it was written", time.Since(began))
	b.only(web, "up", 300*time.Millisecond)
	if out := b.ask(exitNo, "status"); !strings.Contains(out, "version 1 is on trial") || !strings.Contains(out, "in shop (enforce)") {
		t.Errorf("on trial:\n%s", out)
	}
	b.ask(exitGood, "confirm")
	if out := b.ask(exitGood, "status"); !strings.Contains(out, "stands alone, by "+policy) {
		t.Errorf("confirmed:\n%s", out)
	}
	b.says([]string{ctlAddr, "deny", "default-deny"}, "flows", "--denied")
	if out := b.ask(exitGood, "explain", ctlAddr, "db", "tcp/5432"); !strings.HasPrefix(out, "DENY: "+ctlAddr+" -> db on tcp/5432") ||
		!strings.Contains(out, "segment shop (enforce) drops what is not allowed") {
		t.Errorf("explained:\n%s", out)
	}

	// A mistake changes nothing, and neither do a crash and a restart with it.
	write(enforced + "    - {name: oops, alow: {}}\n")
	b.says([]string{"shop.yaml:", `unknown field "alow"`, "version 1 stays"}, "status")
	b.only(other, "down", 500*time.Millisecond)
	b.agent.kill()
	b.only(web, "up", 300*time.Millisecond)
	b.only(other, "down", 500*time.Millisecond)
	b.startAgent(b.node)
	b.says([]string{`unknown field "alow"`, "version 1 stays"}, "status")
	b.only(web, "up", 300*time.Millisecond)
	b.only(other, "down", 500*time.Millisecond)

	// A reboot takes everything out of the kernel. Once the agent says that it is ready, for which the network waits, what was
	// good last is in force, although the directory still has the mistake.
	b.agent.kill()
	web.kill()
	other.kill()
	b.ask(exitGood, "remove")
	env, wait := b.ready()
	b.startAgent(b.node, env)
	wait()
	b.first(b.workload(b.ctl, "", "client"), "down")
	b.first(b.workload(b.node, "web.service", "client"), "up")

	// What is put right is in force, by itself.
	other = b.workload(b.ctl, "", "client")
	b.waitLine(other, "down")
	write(enforced + stranger)
	b.waitLine(other, "up")
	b.status("a healthy agent", func(r *status.Report) bool {
		t.Logf("resident: %.1f MiB", float64(r.ResidentBytes)/(1<<20))
		return r.Alone.Version == 2 && len(r.Problems) == 0
	})
	b.ask(exitGood, "isolate", "db")
	b.waitLine(other, "down")
	b.ask(exitGood, "isolate", "db", "--end")
	b.waitLine(other, "up")

	// Remove: nothing is left.
	b.ask(exitCannot, "remove")
	b.agent.kill()
	b.ask(exitGood, "remove")
	if left, err := os.ReadDir(filepath.Join(b.dir, "bpf", "bulkhead")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left in the kernel: %v (%v)", left, err)
	}
}

// TestHostReboot is the row "host reboot" of what may fail, for an agent with a controller: that is not there when the host
// comes back, nothing is in the kernel, and once the agent says that it is ready the policy on disk is in force.
func TestHostReboot(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the programs")
	}
	b := newBench(t)
	b.startController()
	token := b.cli("token", "create", "--host", "node-1")
	b.agentFile = b.write("agent.yaml", fmt.Sprintf("controller: %s:7443\ntokenFile: %s\nhost: node-1\ndata: %s\ncgroupRoot: %s\nbpffs: %s\ndataplane: ebpf\nsocket: %s\n",
		ctlAddr, b.write("token", token), filepath.Join(b.dir, "agent"), b.cgroup, filepath.Join(b.dir, "bpf", "bulkhead"), filepath.Join(b.dir, "agent.sock")))
	b.startAgent(b.node)
	b.status("the connection", func(r *status.Report) bool { return r.Connected })
	b.cli("apply", "-f", b.write("enforced.yaml", enforced), "--wait")
	if out := b.ask(exitNo, "explain", "web", "db", "tcp/5432"); !strings.Contains(out, "policy comes from the controller") {
		t.Errorf("explain: %s", out)
	}

	b.agent.kill()
	b.controller.kill()
	b.ask(exitGood, "remove")
	server := b.workload(b.node, "db.service", "server")
	b.heard(server, "listening")
	open := b.workload(b.ctl, "", "client") // a reboot leaves no connections; this one shows what there is to stop
	b.first(open, "up")
	open.kill()
	env, wait := b.ready()
	b.startAgent(b.node, env)
	wait()
	b.first(b.workload(b.ctl, "", "client"), "down")
	b.first(b.workload(b.node, "web.service", "client"), "up")
	b.status("the agent alone", func(r *status.Report) bool { return !r.Connected && r.Revision > 0 })
	b.agent.kill()
	b.ask(exitGood, "remove")
}
