package status

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// documents says what it was asked.
type documents struct {
	confirmed, reloaded int
	refuse              error
}

func (d *documents) Explain(from, to, on string) (*verdict.Explanation, error) {
	return &verdict.Explanation{From: from, To: to, On: on, Verdict: "deny", Egress: verdict.EndExplanation{
		Rule: "default-deny", Steps: []verdict.Step{{Rule: "p/r", Outcome: verdict.NoMatch, Misses: []string{"to"}}},
	}}, d.refuse
}

func (d *documents) Plan(_ context.Context, files []policy.File) (*plan.Plan, error) {
	p := &plan.Plan{OK: true}
	for _, f := range files {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s=%s", f.Name, f.Data))
	}
	return p, d.refuse
}

func (d *documents) Confirm(context.Context) error { d.confirmed++; return d.refuse }
func (d *documents) Reload(context.Context) error  { d.reloaded++; return d.refuse }

func TestFlows(t *testing.T) {
	at := time.Unix(100, 0).UTC()
	allowed := Flow{Direction: "egress", From: "web", To: "10.0.0.9", ToAddr: netip.MustParseAddr("10.0.0.9"), Proto: 6, Port: 443,
		Verdict: "allow", Rule: "open", Process: "curl", Connections: 3, First: at, Last: at}
	denied := allowed
	denied.Verdict, denied.Proto, denied.Port = "deny", 1, 8<<8
	a := &agent{flows: Flows{Sequence: 2, Flows: []Flow{allowed, denied}}}
	path := serve(t, a)
	for _, c := range []struct {
		after  uint64
		denied bool
		want   []Flow
	}{{0, false, []Flow{allowed, denied}}, {0, true, []Flow{denied}}, {1, false, []Flow{denied}}, {2, false, nil}} {
		got, err := NewClient(path).Flows(t.Context(), c.after, c.denied)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&Flows{2, c.want}, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("after %d, denied %v (-want +got):\n%s", c.after, c.denied, diff)
		}
	}
	if allowed.On() != "tcp/443" || denied.On() != "icmp/8/0" {
		t.Errorf("ports are written %s and %s", allowed.On(), denied.On())
	}
	if code, _ := do(t, path, http.MethodGet, "/flows?after=x", ""); code != http.StatusBadRequest {
		t.Errorf("nonsense: %d", code)
	}
}

func TestDocuments(t *testing.T) {
	d := &documents{}
	client := NewClient(serve(t, &agent{docs: d}))
	x, err := client.Explain(t.Context(), Question{"web", "db", "tcp/1"})
	want, _ := d.Explain("web", "db", "tcp/1")
	if diff := cmp.Diff(want, x); err != nil || diff != "" {
		t.Errorf("explain: %v (-want +got):\n%s", err, diff)
	}
	p, err := client.Plan(t.Context(), []policy.File{{Name: "a.yaml", Data: []byte("é\x00\xff")}})
	if err != nil || !p.OK || len(p.Warnings) != 1 || !strings.HasPrefix(p.Warnings[0], "a.yaml=é") {
		t.Errorf("plan: %+v, %v", p, err)
	}
	if err := errors.Join(client.Confirm(t.Context()), client.Reload(t.Context())); err != nil || d.confirmed != 1 || d.reloaded != 1 {
		t.Errorf("confirmed %d, reloaded %d: %v", d.confirmed, d.reloaded, err)
	}
	d.refuse = errors.New("a.yaml:1:2: no\na.yaml:3:4: never")
	for name, err := range map[string]error{
		"confirm": client.Confirm(t.Context()), "reload": client.Reload(t.Context()),
	} {
		if no := (*AnswerError)(nil); !errors.As(err, &no) || no.Text != d.refuse.Error() {
			t.Errorf("%s: %v, want what the agent says, line for line", name, err)
		}
	}
	managed := NewClient(serve(t, &agent{}))
	if _, err := managed.Explain(t.Context(), Question{}); err == nil || err.Error() != "ask the controller" {
		t.Errorf("with a controller: %v", err)
	}
}
