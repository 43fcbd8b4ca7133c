package verdict

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/compile/compiletest"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/oracle"
)

// TestCorpus reads testdata/*.txtar. Beside what compiletest.ParseCase reads, each has a file "verdicts" with lines
//
//	web-1 -> db-1 tcp/5432: deny | allow open | deny default-deny
//	web-1 -> 10.0.0.7 tcp/80: error shared
//
// the verdict, the one at the source, and the one at the destination; or what the error says. Every line is held
// against the evaluator, the oracle, the explanation and what the agents of both ends would do.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := compiletest.ParseCase(data)
			if err != nil {
				t.Fatal(err)
			}
			w, err := compile.Compile(c.Docs, c.Inventory, c.Options)
			if err != nil {
				t.Fatal(err)
			}
			lines := c.Lines("verdicts")
			if len(lines) == 0 {
				t.Fatal("the case expects no verdict")
			}
			for _, line := range lines {
				checkLine(t, c, New(w), line)
			}
		})
	}
}

func checkLine(t *testing.T, c *compiletest.Case, e *Evaluator, line string) {
	t.Helper()
	flowText, want, ok := strings.Cut(line, ": ")
	f, err := parseFlow(flowText)
	if !ok || err != nil {
		t.Fatalf("cannot read %q: %v", line, err)
	}
	got, err := e.Judge(f)
	slow, slowErr := oracle.Judge(c.Docs, c.Inventory, c.Options, f)
	x, xErr := e.Explain(f)
	if says, isError := strings.CutPrefix(want, "error "); isError {
		for who, err := range map[string]error{"evaluator": err, "oracle": slowErr, "explanation": xErr} {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s\n  %s: error %v", line, who, err)
			}
		}
		return
	}
	if err != nil || slowErr != nil || xErr != nil {
		t.Errorf("%s\n  errors: evaluator %v, oracle %v, explanation %v", line, err, slowErr, xErr)
		return
	}
	for who, v := range map[string]string{
		"evaluator":   verdictText(got),
		"oracle":      verdictText(slow),
		"explanation": fmt.Sprintf("%s | %s %s | %s %s", x.Verdict, x.Egress.Verdict, x.Egress.Rule, x.Ingress.Verdict, x.Ingress.Rule),
	} {
		if v != want {
			t.Errorf("%s\n  %s: %s", line, who, v)
		}
	}
	checkAgents(t, e, f, line)
}

func verdictText(v model.FlowVerdict) string {
	return fmt.Sprintf("%s | %s %s | %s %s", v.Verdict, v.Egress.Verdict, v.Egress.Rule, v.Ingress.Verdict, v.Ingress.Rule)
}

// parseFlow reads "FROM -> TO PROTO/PORT" as package flowline would give it: the text, and the address if it is one.
func parseFlow(text string) (*model.Flow, error) {
	f := strings.Fields(text)
	if len(f) != 4 || f[1] != "->" {
		return nil, fmt.Errorf("want FROM -> TO PROTO/PORT")
	}
	ports, err := model.ParsePortRange(f[3])
	if err != nil {
		return nil, err
	}
	out := &model.Flow{Proto: ports.Proto, Port: ports.Lo}
	for text, end := range map[string]*model.End{f[0]: &out.From, f[2]: &out.To} {
		end.Workload = text
		if a, err := netip.ParseAddr(text); err == nil {
			end.Addr = a
		}
	}
	if f[0] == f[2] {
		out.From = out.To
	}
	return out, nil
}

// checkAgents judges the flow by what the agents of its ends are given. Of a shared destination the port's owner, or
// the most permissive workload, decides at the source; there the agent may only be more permissive.
func checkAgents(t *testing.T, e *Evaluator, f *model.Flow, line string) {
	t.Helper()
	var c connection
	if err := e.resolve(f, &c); err != nil || !e.address(&c.from).IsValid() || !e.address(&c.to).IsValid() {
		return
	}
	for _, d := range model.Directions {
		self, other := &c.to, &c.from
		if d == model.Egress {
			self, other = other, self
		}
		if self.seat == nil || !self.seat.Managed {
			continue
		}
		wl := e.world.Of(self.seat)
		host := wl.Host
		if host == "" {
			host = wl.Name
		}
		p, ok := e.world.HostPolicy(host)
		if !ok {
			t.Errorf("%s\n  no policy for host %q", line, host)
			continue
		}
		if err := p.Check(); err != nil {
			t.Errorf("%s\n  host %q: %v", line, host, err)
		}
		pkt := hostpolicy.Packet{Workload: wl.Name, Dir: d, Local: e.address(self), Remote: e.address(other), Proto: c.proto, Port: c.port}
		if other.seat != nil && (c.sameHost || other.seat.Workload == self.seat.Workload) {
			pkt.RemoteWorkload = e.world.Of(other.seat).Name
		}
		got, _ := hostpolicy.NewJudge(p).Judge(&pkt)
		want := e.end(&c, d)
		ambiguous := d == model.Egress && pkt.RemoteWorkload == "" && other.seat != nil && other.seat.Seen != other.seat.Exact
		if got != want && !(ambiguous && got.Verdict >= want.Verdict) {
			t.Errorf("%s\n  agent of %s at %s: %v", line, host, d, got)
		}
	}
}
