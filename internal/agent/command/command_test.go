package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/durable"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane"
)

// call runs a command line and returns what it wrote.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandLine(t *testing.T) {
	good, bad := config(t, "controller: 10.0.0.5:7443\n"), config(t, "controler: 10.0.0.5:7443\n")
	cases := []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"version", exitGood, "bulkhead-agent ", ""},
		{"help", exitGood, "Usage:", ""},
		{"--help", exitGood, "Usage:", ""},
		{"status -h", exitGood, "Usage:", ""},
		{"dance", exitUsage, "", `unknown command "dance"`},
		{"config dance", exitUsage, "", `unknown command "config dance"`},
		{"config", exitUsage, "", `unknown command "config"`},
		{"--colour", exitUsage, "", "--help"},
		{"explain a b", exitUsage, "", "missing PROTO/PORT"},
		{"explain a b tcp/1 -o xml", exitUsage, "", "use table or json"},
		{"run --label role", exitUsage, "", "use KEY=VALUE"},
		{"run --standalone relative --confirm 1s --config " + config(t, ""), exitUsage, "", "confirm: 1s is not between"},
		{"run --standalone /x --config " + good, exitUsage, "", "from a controller or from a directory, not from both"},
		{"config check --config " + config(t, "host: a\n"), exitUsage, "", "controller: is missing"},
		{"flows --config " + config(t, "host: a\nsocket: /none/agent.sock\n"), exitCannot, "", "no agent answers at /none/agent.sock"},
		{"status extra", exitUsage, "", `unexpected argument "extra"`},
		{"config check --config " + good, exitGood, "is good", ""},
		{"config check --config " + bad, exitUsage, "", bad + ":1:1: controler: unknown key"},
		{"--config " + bad, exitUsage, "", "unknown key"},
		{"run --config /none/agent.yaml", exitUsage, "", "name another with --config"},
		{"status -o xml --config " + good, exitUsage, "", "use table or json"},
		{"remove --config " + config(t, "controller: 10.0.0.5:7443\nbpffs: "+t.TempDir()+"/none\n"), exitGood, "removed", ""},
	}
	for _, c := range cases {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := call(t, strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("exit %d\nstdout: %s\nstderr: %s\nwant exit %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
			if (c.stdout == "") != (stdout == "") || (c.stderr == "") != (stderr == "") {
				t.Errorf("answers go to stdout and errors to stderr; got %q and %q", stdout, stderr)
			}
		})
	}
}

// told is an agent of which a report is all there is.
type told struct {
	status.Report
	glass []status.Glass
	flows []status.Flow
}

func (a *told) Flows(after uint64, denied bool) *status.Flows {
	list := a.flows[min(int(after), len(a.flows)):]
	if denied {
		list = slices.DeleteFunc(slices.Clone(list), func(f status.Flow) bool { return f.Verdict == "allow" })
	}
	return &status.Flows{Sequence: uint64(len(a.flows)), Flows: list}
}

func (a *told) Documents() (status.Documents, error) { return nil, errors.New("ask the controller") }

func (a *told) Status() *status.Report { return &a.Report }

func (a *told) Isolate(context.Context, string, bool) error { return errors.New("not here") }

func (a *told) BreakGlass(_ context.Context, g status.Glass) error {
	a.glass = append(a.glass, g)
	return nil
}

func TestBreakGlassCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	pins := filepath.Join(t.TempDir(), "none")
	file := config(t, fmt.Sprintf("controller: 10.0.0.5:7443\nsocket: %s\nbpffs: %s\ncgroupRoot: %s\n", socket, pins, t.TempDir()))
	for _, wrong := range [][]string{{}, {"--for", "-1m"}, {"--for", "25h"}, {"--for", "1m", "--end"}} {
		if code, _, stderr := call(t, append([]string{"break-glass", "--config", file}, wrong...)...); code != exitUsage || !strings.Contains(stderr, "--for") {
			t.Errorf("%v: exit %d, %s", wrong, code, stderr)
		}
	}
	if code, _, stderr := call(t, "break-glass", "--for", "1m", "--config", file); code != exitCannot || !strings.Contains(stderr, "no traffic is judged") {
		t.Errorf("without anything in the kernel: exit %d, %s", code, stderr)
	}
	if err := os.MkdirAll(filepath.Join(pins, "layout_1_0badcafe"), 0o700); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := call(t, "break-glass", "--for", "1m", "--config", file); code != exitCannot || !strings.Contains(stderr, "another version") {
		t.Errorf("with another version in the kernel: exit %d, %s", code, stderr)
	}
	a := &told{}
	listener, err := status.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, listener, a)
	code, stdout, stderr := call(t, "break-glass", "--for", "15m", "--reason", "payments are down", "--config", file)
	if code != exitGood || !strings.Contains(stdout, "everything passes until") || stderr != "" {
		t.Errorf("exit %d, %s%s", code, stdout, stderr)
	}
	code, stdout, _ = call(t, "break-glass", "--end", "--config", file)
	if code != exitGood || !strings.Contains(stdout, "in force again") {
		t.Errorf("end: exit %d, %s", code, stdout)
	}
	if len(a.glass) != 2 || a.glass[0].Reason != "payments are down" || time.Until(a.glass[0].Until) < 14*time.Minute || time.Until(a.glass[1].Until) > 0 {
		t.Errorf("the agent was told %+v", a.glass)
	}
}

func TestStatusCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	file := config(t, fmt.Sprintf("controller: 10.0.0.5:7443\nsocket: %s\n", socket))
	if code, _, stderr := call(t, "status", "--config", file); code != exitCannot || !strings.Contains(stderr, "is it running") {
		t.Errorf("without an agent: exit %d, %s", code, stderr)
	}
	a := &told{Report: status.Report{
		Host: "node-1", Controller: "10.0.0.5:7443", Connected: true, Revision: 7, Hash: strings.Repeat("ab", 32),
		Subjects: []status.Subject{
			{Workload: "node-1"},
			{Workload: "db", Unit: "pg.service", Cgroups: []string{"system.slice/pg.service"}, Isolated: true},
			{Workload: "web", Unit: "web.service", Quarantine: "watch"},
		},
		Counters: status.Counters{Allowed: 5, Denied: 1},
	}}
	listener, err := status.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, listener, a)

	if code, _, stderr := call(t, "remove", "--config", file); code != exitCannot || !strings.Contains(stderr, "stop it first") {
		t.Errorf("remove beside a running agent: exit %d, %s", code, stderr)
	}
	code, stdout, stderr := call(t, "status", "--config", file)
	if code != exitGood || stderr != "" {
		t.Errorf("exit %d, %s", code, stderr)
	}
	for _, want := range []string{"connected to 10.0.0.5:7443", "revision 7, abababababab;", "db (system.slice/pg.service), isolated",
		"web (web.service, not running), quarantine watch", "5 allowed"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the table lacks %q:\n%s", want, stdout)
		}
	}
	_, stdout, _ = call(t, "status", "-o", "json", "--config", file)
	var r status.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Revision != 7 || len(r.Subjects) != 3 {
		t.Errorf("JSON: %v\n%s", err, stdout)
	}
	a.Problems, a.Connected, a.Hash = []string{"the disk is full"}, false, ""
	code, stdout, _ = call(t, "status", "--config", file)
	if code != exitNo || !strings.Contains(stdout, "the disk is full") || !strings.Contains(stdout, "none yet") ||
		!strings.Contains(stdout, "stays in force") {
		t.Errorf("with a problem: exit %d\n%s", code, stdout)
	}
}

func serve(t *testing.T, listener net.Listener, a status.Agent) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- status.Serve(ctx, listener, a) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestExitCode is about what the service manager does with an agent that has ended: see its unit.
func TestExitCode(t *testing.T) {
	for name, x := range map[string]struct {
		err  error
		want int
	}{
		"a token is needed": {fmt.Errorf("run: %w", &enroll.RefusedError{Why: "no token", Do: "make one"}), exitCannot},
		"no eBPF":           {fmt.Errorf("open dataplane: %w", dataplane.ErrUnsupported), exitCannot},
		"no cgroups":        {inventory.ErrNoCgroup2, exitCannot},
		"something passing": {errors.New("read events: interrupted"), exitNo},
		"another is there":  {fmt.Errorf("lock: %w", durable.ErrLocked), exitNo},
	} {
		if got := exitCode(x.err); got != x.want {
			t.Errorf("%s: exit code %d, want %d", name, got, x.want)
		}
	}
}

func TestExplain(t *testing.T) {
	refused := &enroll.RefusedError{Why: "no", Do: "ask again"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.Join(errors.New("noise"), refused), "no; ask again"},
		{fmt.Errorf("open: %w: no BTF", dataplane.ErrUnsupported), "the offline commands of bulkhead work here"},
		{inventory.ErrNoCgroup2, "the offline commands of bulkhead work here"},
		{errors.New("plain"), "plain"},
	} {
		if got := explain(c.err).Error(); !strings.Contains(got, c.want) || strings.Contains(got, "noise") {
			t.Errorf("explain(%v) = %s, want %q", c.err, got, c.want)
		}
	}
}
