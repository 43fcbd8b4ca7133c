package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type agent struct {
	report   Report
	isolated []Isolation
	glass    []Glass
	flows    Flows
	docs     *documents // nil: a controller has the policy
}

func (a *agent) Flows(after uint64, denied bool) *Flows {
	out := &Flows{Sequence: a.flows.Sequence}
	for _, f := range a.flows.Flows[min(int(after), len(a.flows.Flows)):] {
		if !denied || f.Verdict == "deny" {
			out.Flows = append(out.Flows, f)
		}
	}
	return out
}

func (a *agent) Documents() (Documents, error) {
	if a.docs == nil {
		return nil, errors.New("ask the controller")
	}
	return a.docs, nil
}

func (a *agent) Status() *Report { return &a.report }

func (a *agent) Isolate(_ context.Context, workload string, on bool) error {
	if workload == "stranger" {
		return errors.New("no such workload on this host")
	}
	a.isolated = append(a.isolated, Isolation{workload, on})
	return nil
}

func (a *agent) BreakGlass(_ context.Context, g Glass) error {
	if g.Reason == "never" {
		return errors.New("the kernel refuses")
	}
	a.glass = append(a.glass, g)
	return nil
}

// serve starts a server for the agent and returns its socket.
func serve(t *testing.T, a Agent) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, listener, a) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func do(t *testing.T, path, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://agent"+url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := NewClient(path).http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestStatusOverTheSocket(t *testing.T) {
	a := &agent{report: Report{
		Host: "node-1", Started: time.Unix(100, 0).UTC(), Connected: true, Revision: 7, Hash: "abc",
		Subjects: []Subject{{Workload: "node-1"}, {Workload: "db", Unit: "pg.service", Cgroups: []string{"/x"}, Isolated: true}},
		Isolated: []string{"db"}, Problems: []string{"it is cold"},
		Counters: Counters{Judged: 3, Denied: 1},
	}}
	path := serve(t, a)
	got, err := NewClient(path).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&a.report, got); diff != "" {
		t.Errorf("report changed on the way (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v (%v), want 0600", info.Mode(), err)
	}
}

func TestMetrics(t *testing.T) {
	a := &agent{report: Report{Host: "no\"de\n", Connected: true, Revision: 7, Counters: Counters{Denied: 12}, Certificate: time.Unix(99, 0)}}
	code, text := do(t, serve(t, a), http.MethodGet, "/metrics", "")
	if code != http.StatusOK {
		t.Fatalf("code %d", code)
	}
	for _, want := range []string{
		`bulkhead_agent_info{host="no\"de\n",version="",dataplane="",kernel=""} 1`,
		"bulkhead_agent_connected 1", "bulkhead_agent_policy_revision 7", "bulkhead_agent_flows_denied_total 12",
		"# TYPE bulkhead_agent_flows_denied_total counter", "bulkhead_agent_certificate_expiry_seconds 99",
	} {
		if !slices.Contains(strings.Split(text, "\n"), want) {
			t.Errorf("the metrics lack the line %s:\n%s", want, text)
		}
	}
}

func TestIsolate(t *testing.T) {
	a := &agent{}
	path := serve(t, a)
	cases := []struct {
		body string
		code int
		want string
	}{
		{`{"workload":"db","on":true}`, http.StatusOK, `"on": true`},
		{`{"workload":"db","on":false}`, http.StatusOK, `"on": false`},
		{`{"workload":"stranger","on":true}`, http.StatusConflict, "no such workload"},
		{`{"on":true}`, http.StatusBadRequest, "send {"},
		{`{"workload":"db","of":true}`, http.StatusBadRequest, "send {"},
		{`nonsense`, http.StatusBadRequest, "send {"},
		{`{"workload":"` + strings.Repeat("x", 8<<10) + `"}`, http.StatusBadRequest, "send {"},
	}
	for _, c := range cases {
		code, text := do(t, path, http.MethodPost, "/isolate", c.body)
		if code != c.code || !strings.Contains(strings.ReplaceAll(text, `\"`, `"`), c.want) {
			t.Errorf("POST %.40s: %d %s, want %d with %q", c.body, code, text, c.code, c.want)
		}
	}
	if want := []Isolation{{"db", true}, {"db", false}}; !slices.Equal(a.isolated, want) {
		t.Errorf("isolated %v, want %v", a.isolated, want)
	}
	if code, _ := do(t, path, http.MethodGet, "/isolate", ""); code != http.StatusMethodNotAllowed {
		t.Errorf("GET /isolate: %d", code)
	}
}

func TestListenReplacesADeadSocketOnly(t *testing.T) {
	path := serve(t, &agent{})
	if l, err := Listen(path); !errors.Is(err, ErrTaken) {
		t.Errorf("beside a live agent: %v, %v; want ErrTaken", l, err)
	}

	dead := filepath.Join(t.TempDir(), "agent.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dead)
	if err != nil {
		t.Fatalf("in place of a dead agent: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(file); err == nil {
		t.Errorf("a file was replaced by %v", l)
	}
}

func TestNobodyAnswers(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock")).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("error %v, want one that says what to check", err)
	}
}

func TestProblems(t *testing.T) {
	var p Problems
	if got := p.List(); len(got) != 0 {
		t.Errorf("problems at first: %v", got)
	}
	p.Report("b", "second")
	p.Report("a", "first")
	p.Report("b", "second, changed")
	if got := p.List(); !slices.Equal(got, []string{"first", "second, changed"}) {
		t.Errorf("problems %v", got)
	}
	p.Report("a", "")
	p.Report("c", "")
	if got := p.List(); !slices.Equal(got, []string{"second, changed"}) {
		t.Errorf("problems %v", got)
	}
}

func TestBreakGlass(t *testing.T) {
	a := &agent{}
	client := NewClient(serve(t, a))
	until := time.Now().Add(time.Hour).Round(time.Second)
	if err := client.BreakGlass(t.Context(), Glass{until, "payments are down"}); err != nil {
		t.Fatal(err)
	}
	if len(a.glass) != 1 || !a.glass[0].Until.Equal(until) || a.glass[0].Reason != "payments are down" {
		t.Errorf("the agent was told %+v", a.glass)
	}
	if err := client.BreakGlass(t.Context(), Glass{until, "never"}); err == nil || !strings.Contains(err.Error(), "the kernel refuses") {
		t.Errorf("refused: %v", err)
	}
	if err := client.BreakGlass(t.Context(), Glass{}); err == nil || !strings.Contains(err.Error(), "RFC 3339") {
		t.Errorf("without a time: %v", err)
	}
	if err := NewClient(t.TempDir()+"/none").BreakGlass(t.Context(), Glass{Until: until}); !errors.Is(err, ErrNoAgent) {
		t.Errorf("without an agent: %v", err)
	}
}
