package cli

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/controllertest"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// site is what a script runs against: a real controller and agents that enforce in memory.
type site struct {
	t          testing.TB
	controller *controllertest.Controller
	agents     map[string]*controllertest.Agent
	batches    map[string]uint64 // sent by each agent
}

type siteKey struct{}

func newSite(t testscript.T) *site {
	return &site{t: t.(testing.TB), agents: map[string]*controllertest.Agent{}, batches: map[string]uint64{}}
}

func siteOf(ts *testscript.TestScript) *site { return ts.Value(siteKey{}).(*site) }

// startController starts a controller and points the command at its socket. NETWORK, CA and TOKEN say how to reach it
// over the network.
func startController(ts *testscript.TestScript, _ bool, _ []string) {
	r := siteOf(ts)
	r.controller = controllertest.Start(r.t)
	dir := r.controller.Dir
	ts.Setenv("BULKHEAD_CONTROLLER", "unix://"+filepath.Join(filepath.Dir(dir), "api.sock"))
	ts.Setenv("NETWORK", "https://"+r.controller.Addrs.Network.String())
	ts.Setenv("CA", filepath.Join(dir, "ca.crt"))
	ts.Setenv("TOKEN", filepath.Join(dir, "admin.token"))
}

// stopController ends the controller; what it listened on is gone.
func stopController(ts *testscript.TestScript, _ bool, _ []string) { siteOf(ts).controller.Stop() }

// join HOST ADDRESS... enrols and connects agents.
func join(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: join HOST [ADDRESS...]")
	}
	r := siteOf(ts)
	r.agents[args[0]] = r.controller.Join(args[0], nil, args[1:]...)
}

// agent HOST HABIT changes how an agent behaves.
func agent(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: agent HOST refuses|hangs|obeys|leaves|ebpf")
	}
	a := siteOf(ts).agents[args[0]]
	switch args[1] {
	case "refuses":
		a.Change(func(a *controllertest.Agent) {
			a.Refuse = func(*hostpolicy.Policy) string { return "the map of addresses is full" }
		})
	case "hangs":
		a.Change(func(a *controllertest.Agent) { a.Mute, a.Unhearing = true, true })
	case "obeys":
		a.Change(func(a *controllertest.Agent) { a.Refuse, a.Mute, a.Unhearing = nil, false, false })
	case "leaves":
		a.Session().Close()
	case "ebpf": // comes back as one that has eBPF
		controllertest.Eventually(siteOf(ts).t, "it is there", func() bool { return slices.Contains(a.Received(), "welcome") })
		a.Session().Close()
		a.Change(func(a *controllertest.Agent) { a.Dataplane = "ebpf" })
		welcomes := func() (n int) {
			for _, m := range a.Received() {
				if m == "welcome" {
					n++
				}
			}
			return n
		}
		before := welcomes()
		a.Connect()
		controllertest.Eventually(siteOf(ts).t, "the controller has heard it", func() bool { return welcomes() > before })
	default:
		ts.Fatalf("what is %q?", args[1])
	}
}

// record FILE sends what agents saw, one record a line:
//
//	WORKLOAD egress|ingress LOCAL REMOTE PORT VERDICT RULE CONNECTIONS PROCESS
func record(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: record FILE")
	}
	r := siteOf(ts)
	batches := map[string]*pb.FlowBatch{}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		f := strings.Fields(line)
		if len(f) != 9 {
			ts.Fatalf("%q: nine words are needed", line)
		}
		r.batches[f[0]]++
		if batches[f[0]] == nil {
			batches[f[0]] = &pb.FlowBatch{Sequence: r.batches[f[0]]}
		}
		batches[f[0]].Records = append(batches[f[0]].Records, flowRecord(ts, f))
	}
	for host, b := range batches {
		a := r.agents[host]
		r.batches[host] = b.Sequence
		a.Flows(b)
		controllertest.Eventually(r.t, "the flows of "+host+" are taken", func() bool { return len(a.Acked()) >= int(b.Sequence) })
	}
}

func flowRecord(ts *testscript.TestScript, f []string) *pb.FlowRecord {
	port, err := model.ParsePortRange(f[4])
	ts.Check(err)
	verdict, err := model.ParseVerdict(f[5])
	ts.Check(err)
	connections, err := strconv.ParseUint(f[7], 10, 64)
	ts.Check(err)
	direction := model.Ingress
	if f[1] == model.Egress.String() {
		direction = model.Egress
	}
	return &pb.FlowRecord{
		Workload: f[0], Direction: wire.DirectionToProto(direction), LocalAddr: controllertest.Addresses(f[2])[0],
		RemoteAddr: controllertest.Addresses(f[3])[0], Proto: uint32(port.Proto), Port: uint32(port.Lo), Verdict: wire.VerdictToProto(verdict),
		Rule: f[6], Connections: connections, Process: &pb.FlowProcess{Name: strings.TrimPrefix(f[8], "-")},
		FirstMs: before(2 * time.Minute), LastMs: before(time.Minute), BytesSent: 100, BytesReceived: 2000,
	}
}

// before returns a time of the API; it is a little more than d ago, so that it is shown as d for a while.
func before(d time.Duration) int64 { return time.Now().Add(-d - time.Second/2).UnixMilli() }
