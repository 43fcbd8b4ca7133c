package command

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/agent/status"
	"bulkhead/internal/core/flowline"
	"bulkhead/internal/core/model"
)

func TestFlowsCommand(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	file := config(t, "socket: "+socket+"\n")
	a := &told{}
	listener, err := status.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, listener, a)
	if code, stdout, _ := call(t, "flows", "--config", file); code != exitGood || !strings.Contains(stdout, "No flow was seen") {
		t.Errorf("without any: exit %d, %s", code, stdout)
	}

	last := time.Now().UTC().Truncate(time.Second)
	a.flows = []status.Flow{{
		Direction: "egress", From: "web-1", To: "192.0.2.7", FromAddr: netip.MustParseAddr("10.0.0.1"), ToAddr: netip.MustParseAddr("192.0.2.7"),
		Proto: 6, Port: 443, Verdict: "allow", Rule: "open", Process: "curl", Path: "/usr/bin/curl", UID: 7, Connections: 3,
		BytesSent: 5, BytesReceived: 6, First: last.Add(-time.Minute), Last: last,
	}, {
		Direction: "ingress", From: "10.0.0.9", To: "web-1", FromAddr: netip.MustParseAddr("10.0.0.9"), ToAddr: netip.MustParseAddr("10.0.0.1"),
		Proto: 6, Port: 22, Verdict: "deny", Rule: "default-deny", Process: "evil\x1b[31m\n", Connections: 9, First: last, Last: last,
	}}
	code, stdout, stderr := call(t, "flows", "--config", file)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if code != exitGood || stderr != "" || len(lines) != 3 {
		t.Fatalf("exit %d, %s%s", code, stdout, stderr)
	}
	for i, want := range []string{
		"LAST DIR FROM TO PORT VERDICT CONNS PROCESS RULE",
		last.Local().Format(time.TimeOnly) + " out web-1 192.0.2.7 tcp/443 allow 3 curl open",
		last.Local().Format(time.TimeOnly) + " in 10.0.0.9 web-1 tcp/22 deny 9 evil [31m default-deny",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
	if _, stdout, _ = call(t, "flows", "--denied", "--config", file); strings.Contains(stdout, "curl") || !strings.Contains(stdout, "tcp/22") {
		t.Errorf("denied only:\n%s", stdout)
	}

	// What -o json prints is what bulkhead eval and learn read.
	_, stdout, _ = call(t, "flows", "-o", "json", "--config", file)
	lines = strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != 2 {
		t.Fatalf("%q", lines)
	}
	var r model.RecordedFlow
	if err := flowline.ParseRecord([]byte(lines[0]), &r); err != nil {
		t.Fatal(err)
	}
	if r.From.Workload != "web-1" || r.To.String() != "192.0.2.7" || r.Proto != model.ProtoTCP || r.Port != 443 || r.Connections != 3 ||
		r.FromName != "curl" || r.FromProcess == nil || r.FromProcess.Path != "/usr/bin/curl" || !r.Last.Equal(last) || r.Verdict != model.Allow {
		t.Errorf("read back: %+v", r)
	}
	for _, want := range []string{`"direction":"egress"`, `"rule":"open"`, `"bytes_received":6`} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("%s lacks %s", lines[0], want)
		}
	}

	// Following goes on with what is new until it is interrupted.
	ctx, stop := context.WithCancel(t.Context())
	out := &stopper{stop: stop, at: 2}
	if code := Run(ctx, []string{"flows", "--follow", "--config", file}, out, out); code != exitGood || strings.Count(out.text.String(), "\n") != 2 {
		t.Errorf("following: exit %d, %q", code, out.text.String())
	}
}

// stopper interrupts a command that has written so many lines.
type stopper struct {
	text strings.Builder
	stop func()
	at   int
}

func (s *stopper) Write(p []byte) (int, error) {
	n, err := s.text.Write(p)
	if strings.Count(s.text.String(), "\n") >= s.at {
		s.stop()
	}
	return n, err
}

func TestAloneStatusText(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	r := &status.Report{
		Host: "web-1", Hash: strings.Repeat("ab", 32), Subjects: []status.Subject{
			{Workload: "web-1", Labels: "role=web", Segments: []string{"web (enforce)"}},
			{Workload: "web-1/x.service", Unit: "x.service", Cgroups: []string{"system.slice/x.service"}},
		},
		Alone: &status.Alone{Dir: "/etc/policy", Version: 3, Since: at, Documents: 4,
			Trial:   &status.Trial{Until: at, Closes: []string{"a -> b on tcp/22"}},
			Refused: &status.Refused{At: at, Errors: []string{"a.yaml:1:2: one", "a.yaml:3:4: two"}}, Notes: []string{"look here"}},
		Problems: []string{"mind this"},
	}
	got := statusText(r)
	for _, want := range []string{
		"web-1 (stands alone, by /etc/policy)", "version 3 of 2026-01-02 03:04:05, 4 documents, abababababab;",
		"web-1, role=web, in web (enforce)", "web-1/x.service (system.slice/x.service), in no segment: only observed",
		"mind this", "refused   a.yaml:1:2: one", "refused   a.yaml:3:4: two", "closes    a -> b on tcp/22", "note      look here",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it lacks %q:\n%s", want, got)
		}
	}
	r.Alone.Version = 0
	if got := statusText(r); !strings.Contains(got, "no documents yet; nothing is dropped") {
		t.Errorf("without documents:\n%s", got)
	}
	if got := fmt.Sprint(when(at.AddDate(-1, 0, 0))); got != "2025-01-02" {
		t.Errorf("what is old is of %s", got)
	}
}
