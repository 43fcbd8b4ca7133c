package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane/nft"
)

// tableThere reports whether the node has Bulkhead's table of nftables.
func (b *bench) tableThere() (there bool) {
	b.t.Helper()
	err := b.onNode(func() (err error) {
		there, err = nft.Installed()
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return there
}

// TestDataplaneMoves has a host judged by eBPF, then by nftables, then by eBPF again, and at last by what can be had: what is
// denied is denied all the while, each leaves nothing of the one before, and breaking the glass and removing work on both.
func TestDataplaneMoves(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the programs")
	}
	b := newBench(t)
	b.controller = &process{}
	policy, pins := filepath.Join(b.dir, "policy"), filepath.Join(b.dir, "bpf", "bulkhead")
	if err := os.Mkdir(policy, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.write("next.yaml", enforced), filepath.Join(policy, "shop.yaml")); err != nil {
		t.Fatal(err)
	}
	agentOn := func(dataplane string) {
		t.Helper()
		b.agentFile = b.write("agent.yaml", fmt.Sprintf(
			"standalone: %s\nconfirm: 0s\nhost: node-1\ndata: %s\ncgroupRoot: %s\nbpffs: %s\ndataplane: %s\nsocket: %s\n",
			policy, filepath.Join(b.dir, "agent"), b.cgroup, pins, dataplane, filepath.Join(b.dir, "agent.sock")))
		b.startAgent(b.node)
	}
	judgedBy := func(kind string) {
		t.Helper()
		b.status("an agent on "+kind, func(r *status.Report) bool {
			return r.Dataplane.Kind == kind && r.Alone != nil && r.Alone.Version > 0 && len(r.Problems) == 0
		})
		pinned, err := filepath.Glob(filepath.Join(pins, "*"))
		if there := len(pinned) > 0; err != nil || there != (kind == "ebpf") {
			t.Errorf("on %s: eBPF pins %v, %v", kind, pinned, err)
		}
		if there := b.tableThere(); there != (kind == "nftables") {
			t.Errorf("on %s: the table of nftables is there: %v", kind, there)
		}
	}

	agentOn("ebpf")
	judgedBy("ebpf")
	server := b.workload(b.node, "db.service", "server")
	b.heard(server, "listening")
	web := b.workload(b.node, "web.service", "client")
	other := b.workload(b.ctl, "", "client")
	b.waitLine(web, "up")
	b.first(other, "down")
	for _, dataplane := range []string{"nftables", "ebpf", "nftables"} {
		b.agent.kill()
		agentOn(dataplane)
		judgedBy(dataplane)
		b.only(web, "up", 300*time.Millisecond)
	}
	for len(other.lines) > 0 { // of all the time
		if line := <-other.lines; !strings.HasPrefix(line, "down") {
			t.Fatalf("what is denied says %q in between\nagent: %s", line, b.agent.logText())
		}
	}

	b.ask(exitGood, "break-glass", "--for", "1m", "--reason", "test")
	b.waitLine(other, "up")
	b.ask(exitGood, "break-glass", "--end")
	b.waitLine(other, "down")
	b.agent.kill()
	b.only(other, "down", 300*time.Millisecond)
	b.ask(exitGood, "break-glass", "--for", "1m", "--reason", "without an agent")
	b.waitLine(other, "up")
	b.ask(exitGood, "remove")
	if b.tableThere() {
		t.Error("the table is left")
	}

	// Where bpf() cannot be used, auto takes what can.
	b.lose = forbidBPF
	agentOn("auto")
	judgedBy("nftables")
	b.waitLine(other, "down")
	b.agent.kill()
	b.ask(exitGood, "remove")
}
