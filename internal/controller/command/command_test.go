package command_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/controller/command"
)

// role makes this program the controller.
const role = "BULKHEAD_TEST_CONTROLLER"

func TestMain(m *testing.M) {
	if config := os.Getenv(role); config != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(command.Run(ctx, []string{"--config", config}, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	if err := errors.Join(os.WriteFile(good, []byte("logLevel: warn\n"), 0o600), os.WriteFile(bad, []byte("colour: blue\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"help":           {[]string{"--help"}, 0, "config check", ""},
		"version":        {[]string{"version"}, 0, "bulkhead-controller ", ""},
		"good":           {[]string{"config", "check", "--config", good}, 0, "is good", ""},
		"bad":            {[]string{"config", "check", "--config", bad}, 2, "", "bad.yaml:1:1: colour: unknown key"},
		"run bad":        {[]string{"--config", bad}, 2, "", "unknown key"},
		"missing":        {[]string{"--config", filepath.Join(dir, "none.yaml")}, 2, "", "name another with --config"},
		"unknown verb":   {[]string{"dance"}, 2, "", `unknown command "dance"`},
		"unknown flag":   {[]string{"--dance"}, 2, "", "--help"},
		"too much":       {[]string{"run", "now"}, 2, "", "unexpected argument"},
		"unknown config": {[]string{"config", "dance"}, 2, "", "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := command.Run(t.Context(), x.args, &stdout, &stderr)
			if code != x.code || !strings.Contains(stdout.String(), x.stdout) || !strings.Contains(stderr.String(), x.stderr) {
				t.Errorf("code %d, stdout %q, stderr %q", code, &stdout, &stderr)
			}
			if (x.stdout == "") != (stdout.Len() == 0) || (x.stderr == "") != (stderr.Len() == 0) {
				t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
			}
		})
	}
}

// process is a controller in a process of its own.
type process struct {
	cmd *exec.Cmd
	log bytes.Buffer
	api bulkheadv1connect.ControllerServiceClient
}

func start(t *testing.T, config, socket string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), role+"="+config)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it may have ended meanwhile
			_ = p.cmd.Wait()
		}
	})
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	p.api = bulkheadv1connect.NewControllerServiceClient(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, "http://x")))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := p.api.GetStatus(t.Context(), &pb.GetStatusRequest{}); err == nil {
			return p
		} else if time.Now().After(deadline) {
			t.Fatalf("the controller does not answer: %v\n%s", err, &p.log)
		}
	}
}

// TestKilledAtAnyTime kills the controller while revisions are applied, again and again. Every revision that was
// accepted is there afterwards, whole, and so is the audit log.
func TestKilledAtAnyTime(t *testing.T) {
	dir, err := os.MkdirTemp("", "bulkhead-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	config, socket := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "api.sock")
	if err := os.WriteFile(config, []byte(fmt.Sprintf("data: %s/data\nlisten: 127.0.0.1:0\nsocket: %s\nmetrics: unix:%s/m.sock\n", dir, socket, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	accepted := map[uint64]string{}
	var newest uint64
	for round := range 4 {
		p := start(t, config, socket)
		begun, killed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(killed)
			<-begun
			time.Sleep(time.Duration(10+37*round) * time.Millisecond) // somewhere in the middle
			if err := p.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}()
		for n := 0; ; n++ {
			resp, err := p.api.Apply(t.Context(), &pb.ApplyRequest{Files: []*pb.File{{Name: "a.yaml", Content: fmt.Sprintf(
				"apiVersion: bulkhead/v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [tcp/%d]}\n", round*10_000+n+1)}}})
			if err != nil {
				if n <= 3 {
					t.Fatalf("before it was killed: %v\n%s", err, &p.log)
				}
				break
			}
			if resp.Revision <= newest {
				t.Fatalf("revision %d after %d", resp.Revision, newest)
			}
			newest = resp.Revision
			accepted[newest] = resp.Hash
			if n == 3 {
				close(begun)
			}
		}
		<-killed
		_ = p.cmd.Wait() // "signal: killed"
	}
	if len(accepted) < 10 {
		t.Fatalf("only %d revisions were accepted", len(accepted))
	}
	p := start(t, config, socket)
	list, err := p.api.ListRevisions(t.Context(), &pb.ListRevisionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stored := map[uint64]string{}
	for _, r := range list.Revisions {
		stored[r.Number] = r.Hash
	}
	for n, hash := range accepted {
		if stored[n] != hash {
			t.Errorf("revision %d: stored %q, accepted %q", n, stored[n], hash)
		}
	}
	audit, err := p.api.ListAudit(t.Context(), &pb.ListAuditRequest{})
	if err != nil || !audit.Intact {
		t.Errorf("audit log: intact %v, %v", audit.GetIntact(), err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v\n%s", err, &p.log)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
