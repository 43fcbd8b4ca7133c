package command

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// The budget of the agent with ten thousand peers.
const (
	peers       = 10_000
	maxResident = 40 << 20
)

// TestBudget runs the real agent with a policy of ten thousand peers, looks at what it records, and holds it to its budget
// of memory. It prints what the agent does when nothing happens.
func TestBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the programs")
	}
	b := newBench(t)
	c := agenttest.New(t).Start()
	b.controller = &process{}
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	b.agentFile = b.write("agent.yaml", fmt.Sprintf("controller: %s\ntoken: %s\nhost: node-1\ndata: %s\ncgroupRoot: %s\nbpffs: %s\ndataplane: ebpf\nsocket: %s\n",
		c.Addr, c.Token("one", "node-1", 1, time.Hour), filepath.Join(b.dir, "agent"), b.cgroup,
		filepath.Join(b.dir, "bpf", "bulkhead"), filepath.Join(b.dir, "agent.sock")))
	b.startAgent(home)
	b.status("the connection", func(r *status.Report) bool { return r.Connected })
	empty := memory(t, b.agent.cmd.Process.Pid)

	// Once from nothing, and then the deltas of a busy hour.
	p := crowd(1)
	began := time.Now()
	c.SetPolicy(p)
	b.status("the policy", func(r *status.Report) bool { return r.Revision == 1 })
	t.Logf("%d peers in force after %v", peers, time.Since(began))
	for revision := uint64(2); revision < 60; revision++ {
		c.SetPolicy(crowd(revision))
		want := c.Policy().Hash()
		c.WaitFor("the acknowledgement", func() bool {
			acks := c.Last().Acks
			return len(acks) > 0 && string(acks[len(acks)-1].Hash) == string(want[:])
		})
	}
	b.status("the last policy", func(r *status.Report) bool { return r.Revision == 59 && len(r.Problems) == 0 })

	// Flows name the executables of both ends.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	speaker := func(role string) *process {
		return b.start(home, "web.service", []string{"BULKHEAD_SMOKE_ROLE=" + role, "BULKHEAD_SMOKE_ADDR=127.0.0.1:45321"}, self)
	}
	server := speaker("server")
	b.heard(server, "listening") // it says so once
	client := speaker("client")
	b.waitLine(client, "up")
	c.WaitFor("records of both ends with their executables", func() bool {
		records, _, _ := c.Records()
		ends := map[pb.Direction]bool{}
		for _, r := range records {
			if r.Port == 45321 && r.Process.GetPath() == self && r.Connections > 0 {
				ends[r.Direction] = true
			}
		}
		return len(ends) == 2
	})
	client.kill() // not before: nobody can name the executable of a process that is gone
	server.kill()

	before, start := processorTime(t, b.agent.cmd.Process.Pid), time.Now()
	time.Sleep(10 * time.Second)
	idle := (processorTime(t, b.agent.cmd.Process.Pid) - before).Seconds() / time.Since(start).Seconds()
	full := memory(t, b.agent.cmd.Process.Pid)
	t.Logf("resident: %s empty, %s with %d peers; idle: %.2f %% of a core", empty, full, peers, 100*idle)
	if full.resident > maxResident {
		t.Errorf("%s resident, want at most %d MiB", full, maxResident>>20)
	}
	b.agent.kill()
	if code, _, stderr := call(t, "remove", "--config", b.agentFile); code != exitGood {
		t.Error(stderr)
	}
}

// crowd returns a policy that tells ten thousand peers apart: half of them may come in, on a port each.
func crowd(revision uint64) *hostpolicy.Policy {
	p := agenttest.Policy(revision)
	p.Addresses = nil
	s := hostpolicy.PolicySet{Egress: p.Sets[0].Egress, Ingress: hostpolicy.Table{Funcs: []hostpolicy.Func{
		{{Ports: model.AnyPort, Verdict: model.Deny, Rule: model.RuleDefaultDeny}},
		{
			{Ports: model.AnyPort, Verdict: model.Deny, Rule: model.RuleDefaultDeny},
			{Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 0, Hi: 442}, Verdict: model.Deny, Rule: model.RuleDefaultDeny},
			{Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 443, Hi: 443}, Verdict: model.Allow, Rule: "p/r"},
			{Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 444, Hi: 65535}, Verdict: model.Deny, Rule: model.RuleDefaultDeny},
		},
	}}}
	for i := range uint32(peers) {
		id := model.IdentityID(1000 + uint64(i))
		if i == 0 {
			id = model.IdentityID(1_000_000 + revision)
		}
		addr := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		p.Addresses = append(p.Addresses, hostpolicy.Address{Prefix: netip.PrefixFrom(addr, 32), Identity: id})
		if i%2 == 1 {
			s.Ingress.Peers = append(s.Ingress.Peers, hostpolicy.PeerFunc{Peer: id, Func: 1})
		}
	}
	s.ID = s.ContentID()
	isolation := p.Subjects[0].Isolation
	p.Sets = []hostpolicy.PolicySet{*p.Set(isolation), s}
	if s.ID < isolation {
		p.Sets[0], p.Sets[1] = p.Sets[1], p.Sets[0]
	}
	p.Subjects[0].Set = s.ID
	return p
}

type held struct{ resident, anonymous, file uint64 }

func (h held) String() string {
	return fmt.Sprintf("%.1f MiB (%.1f anonymous, %.1f of files)", mib(h.resident), mib(h.anonymous), mib(h.file))
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

func memory(t *testing.T, pid int) (h held) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "VmRSS:":
			h.resident = n << 10
		case "RssAnon:":
			h.anonymous = n << 10
		case "RssFile:":
			h.file = n << 10
		}
	}
	return h
}

// processorTime is what the process has used of the processors.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks uint64
	for _, s := range f[11:13] { // utime and stime
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
