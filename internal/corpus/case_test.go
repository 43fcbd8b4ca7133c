package corpus_test

import (
	"os"
	"strings"
	"testing"

	"bulkhead/internal/corpus"
)

// simple is a case that passes; tests break it.
const simple = `A case.

-- policy.yaml --
apiVersion: bulkhead/v1
kind: Segment
metadata: {name: all}
spec: {selector: "", mode: enforce}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: p, owner: o}
spec:
  rules:
    - {name: r, allow: {from: app=a, to: app=b, on: [tcp/1]}}
-- agents --
host a 10.0.0.1 app=a
host b 10.0.0.2 app=b
-- flows --
a -> b on tcp/1: allow by p/r
# a comment
b -> a on tcp/1: deny # and another
`

func runCase(t *testing.T, text string) *corpus.Result {
	t.Helper()
	c, err := corpus.Parse("x.txtar", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c.Run()
}

func TestCasePasses(t *testing.T) {
	r := runCase(t, simple)
	if len(r.Problems) > 0 || r.Checks != 2 || string(r.Updated) != simple {
		t.Errorf("%d checks, problems %v, updated:\n%s", r.Checks, r.Problems, r.Updated)
	}
}

// TestCaseFails shows what is said about every kind of mistake, on which line, and what an update makes of it.
func TestCaseFails(t *testing.T) {
	for name, x := range map[string]struct{ old, new, want, updated string }{
		"verdict":      {"allow by p/r", "deny", "x.txtar:19: a -> b on tcp/1: expected deny, is allow by p/r", "a -> b on tcp/1: allow\n"},
		"rule":         {"allow by p/r", "allow by p/q", "x.txtar:19: a -> b on tcp/1: expected allow by p/q, is allow by p/r", "allow by p/r\n"},
		"ends":         {"deny # and", "deny egress=deny:open ingress=deny:open # and", "is deny by default-deny", "deny egress=deny:default-deny ingress=deny:default-deny # and another\n"},
		"nothing":      {"on tcp/1: allow by p/r", "on tcp/2", "x.txtar:19: a -> b on tcp/2: nothing is expected; it is deny by default-deny", "on tcp/2: deny by default-deny\n"},
		"no error":     {"allow by p/r", "error shared", "expected error shared, is allow by p/r", ": allow by p/r\n"},
		"an error":     {"a -> b on", "c -> b on", `expected allow by p/r, is error no workload is named "c"`, "error no workload is named"},
		"line":         {"a -> b on", "a b on", `x.txtar:19: "b" stands where -> is expected`, ""},
		"documents":    {"mode: enforce", "mode: enforc", "x.txtar: the documents are refused:\npolicy.yaml:4:28: unknown mode", ""},
		"agents":       {"host b", "host c/ ! ", `x.txtar:17: "!" is neither an address nor key=value`, ""},
		"good":         {"-- flows", "-- errors --\n-- flows", "x.txtar:19: the documents are good, but errors are expected", ""},
		"text":         {"-- flows", "-- hygiene --\nx\n-- flows", "x.txtar:19: hygiene is not as expected (- expected, + is):\n- x", "-- hygiene --\n-- flows"},
		"unknown host": {"-- flows", "-- compiled c --\n-- flows", `x.txtar:19: no workload "c" is judged as a host`, ""},
	} {
		text := strings.Replace(simple, x.old, x.new, 1)
		r := runCase(t, text)
		if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), x.want) {
			t.Errorf("%s: problems %v, want %q", name, r.Problems, x.want)
		}
		if !strings.Contains(string(r.Updated), x.updated) || (r.Updated == nil) != (x.updated == "") {
			t.Errorf("%s: updated to\n%s", name, r.Updated)
		}
		if r.Updated != nil {
			if again := runCase(t, string(r.Updated)); len(again.Problems) > 0 {
				t.Errorf("%s: after the update: %v", name, again.Problems)
			}
		}
	}
}

func TestParseCase(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "x.txtar: nothing is expected",
		"-- policy.yaml --\n-- agents --\n":   "x.txtar: nothing is expected",
		"c\n\n-- verdicts --\n":               `x.txtar:3: unknown section "verdicts"; there are`,
		"-- flows --\na\n-- flows --\n":       `x.txtar:3: the section "flows" is there twice`,
		"-- flows x --\n":                     `x.txtar:1: the section "flows" takes nothing after its name`,
		"-- compiled --\n":                    `x.txtar:1: the section "compiled" says nothing of what; write -- compiled HOST --`,
		"-- a.yaml --\nx: y\n-- explain --\n": `x.txtar:3: the section "explain" says nothing of what; write -- explain FROM`,
	} {
		_, err := corpus.Parse("x.txtar", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

func TestDiff(t *testing.T) {
	for _, x := range []struct{ want, got, diff string }{
		{"a\nb\nc\n", "a\nx\nc\n", "  a\n- b\n+ x\n  c"},
		{"", "a\n", "+ a"},
		{"a\n", "", "- a"},
		{"1\n2\n3\n4\n5\n", "1\n2\n3\nx\n4\n5\n", "  2\n  3\n+ x\n  4\n  5"},
		{"a\nb\nc\nd\n", "b\nx\nd\ne\n", "- a\n  b\n- c\n+ x\n  d\n+ e"},
		{strings.Repeat("a\nb\n", 600), strings.Repeat("b\na\n", 600), strings.TrimSuffix(strings.Repeat("- a\n- b\n", 600)+strings.Repeat("+ b\n+ a\n", 600), "\n")},
	} {
		if got := corpus.Diff(x.want, x.got); got != x.diff {
			t.Errorf("got\n%s\nwant\n%s", got, x.diff)
		}
	}
}

// FuzzArchive checks that any file is refused or runs to an end, and that what an update writes passes.
func FuzzArchive(f *testing.F) {
	f.Add([]byte(simple))
	for i, path := range caseFiles(f) {
		if i%10 == 0 {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<14 {
			return // a large world takes long and shows nothing more
		}
		c, err := corpus.Parse("x.txtar", data)
		if err != nil {
			return
		}
		r := c.Run()
		for _, p := range r.Problems {
			if strings.Contains(p.Msg, "a mistake in Bulkhead") {
				t.Fatal(p)
			}
		}
		if r.Updated == nil {
			return
		}
		again, err := corpus.Parse("x.txtar", r.Updated)
		if err != nil {
			t.Fatalf("an update writes what is refused: %v\n%s", err, r.Updated)
		}
		if r := again.Run(); len(r.Problems) > 0 {
			t.Fatalf("an update does not make it pass: %v", r.Problems)
		}
	})
}
