package policy_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

const someDocuments = `apiVersion: bulkhead/v1
kind: Service
metadata: {name: postgres}
spec: {ports: [tcp/5432]}
---
apiVersion: bulkhead/v1
kind: Policy
metadata: {name: p}
spec:
  rules:
    - {name: a, allow: {from: app=a, to: {network: lan}, on: [postgres]}}
`

func parse(t *testing.T, text string) *model.Documents {
	t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "test.yaml", Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// messages returns the errors one by one.
func messages(t *testing.T, err error) []string {
	t.Helper()
	var errs policy.Errors
	if !errors.As(err, &errs) {
		t.Fatalf("%v is of type %T, not policy.Errors", err, err)
	}
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

// TestReadValidate shows the way of documents that are laid over others: what they name may stand there.
func TestReadValidate(t *testing.T) {
	over, err := policy.Read([]policy.File{{Name: "over.yaml", Data: []byte(someDocuments)}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := policy.Validate(over).Error(), `over.yaml:11:42: no Network is named "lan"; declare it, or write the range as {cidr: …}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	base := parse(t, "apiVersion: bulkhead/v1\nkind: Network\nmetadata: {name: lan}\nspec: {cidrs: [10.0.0.0/8]}\n")
	if errs := policy.Validate(policy.Merge(base, over)); len(errs) > 0 {
		t.Error(errs)
	}
	_, err = policy.Read([]policy.File{{Name: "a", Data: []byte(someDocuments)}, {Name: "b", Data: []byte(someDocuments)}})
	if got := messages(t, err); len(got) != 2 || !strings.Contains(got[0], `b:3:18: the Service "postgres" is declared already at a:3:18`) {
		t.Errorf("two of a name: %q", got)
	}
}

func TestParseNothing(t *testing.T) {
	for _, text := range []string{"", "\n\n", "# only a comment\n", "---\n---\n...\n", "\ufeff", "~\n", "null"} {
		if diff := cmp.Diff(&model.Documents{}, parse(t, text)); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
	if docs, err := policy.Parse(nil); err != nil || docs == nil {
		t.Errorf("no files: %v, %v", docs, err)
	}
}

// TestLineEnds shows that positions are right whatever editor wrote the file.
func TestLineEnds(t *testing.T) {
	text := strings.Replace(someDocuments, "tcp/5432", "tcp/99999", 1)
	want := []string{
		`x:4:16: port "tcp/99999": 99999 is out of range 0–65535`,
		`x:11:42: no Network is named "lan"; declare it, or write the range as {cidr: …}`,
	}
	for name, data := range map[string]string{
		"unix": text, "windows": strings.ReplaceAll(text, "\n", "\r\n"), "byte order mark": "\ufeff" + text,
		"no line feed at the end": strings.TrimSuffix(text, "\n"),
	} {
		_, err := policy.Parse([]policy.File{{Name: "x", Data: []byte(data)}})
		if diff := cmp.Diff(want, messages(t, err)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// TestErrorsAreSorted shows that errors of several files and documents come in the order of their places, each once.
func TestErrorsAreSorted(t *testing.T) {
	bad := "apiVersion: bulkhead/v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [tcp/x, tcp/y]}\n"
	_, err := policy.Parse([]policy.File{
		{Name: "b.yaml", Data: fmt.Appendf(nil, bad+"---\n"+bad, "one", "two")},
		{Name: "a.yaml", Data: fmt.Appendf(nil, bad, "three")},
	})
	var places []string
	for _, m := range messages(t, err) {
		place, _, _ := strings.Cut(m, ": ")
		places = append(places, place)
	}
	want := []string{"a.yaml:4:16", "a.yaml:4:23", "b.yaml:4:16", "b.yaml:4:23", "b.yaml:9:16", "b.yaml:9:23"}
	if diff := cmp.Diff(want, places); diff != "" {
		t.Error(diff)
	}
}

// TestLimits shows that hostile files cost neither memory nor time, and say why they are refused.
func TestLimits(t *testing.T) {
	head := "apiVersion: bulkhead/v1\nkind: Service\nmetadata: {name: a}\n"
	for _, c := range []struct {
		name, text, want string
		count            int
	}{
		{"huge document", head + "# " + strings.Repeat("x", policy.MaxDocument), "x:1:1: the document has 4194364 bytes, more than 4194304; split it", 1},
		{"deep flow", head + "spec: " + strings.Repeat("[", 100_000), "x:4:", 1},
		{"deep and closed", head + "spec: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "x:4:71: lists and mappings are nested too deeply", 1},
		{"deep block", head + "spec:\n" + strings.Repeat("- ", 5000) + "a", "x:5:", 1},
		{"many errors", strings.Repeat("x: y\n---\n", 100_000), "x:1:1: unknown field", 1001},
		{"many broken", strings.Repeat("]\n---\n", 100_000), "x:1:1: ", 1001},
		{"long line", head + "spec: {ports: [" + strings.Repeat("tcp/1, ", 50_000) + "]\n", "x:4:", 1},
	} {
		_, err := policy.Parse([]policy.File{{Name: "x", Data: []byte(c.text)}})
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		got := messages(t, err)
		if len(got) != c.count {
			t.Errorf("%s: %d errors, want %d; the first: %s", c.name, len(got), c.count, got[0])
		}
		if !strings.HasPrefix(got[0], c.want) {
			t.Errorf("%s: first %s, want %s", c.name, got[0], c.want)
		}
		if last := got[len(got)-1]; c.count > 1000 && last != "mend these 1000 problems first; the rest was not looked at" {
			t.Errorf("%s: last %s", c.name, last)
		}
	}
	_, err := policy.Parse([]policy.File{{Name: "x", Data: bytes.Repeat([]byte{'\n'}, policy.MaxFile+1)}})
	if got := messages(t, err); len(got) != 1 || got[0] != "x:1:1: the file has 67108865 bytes, more than 67108864; split it" {
		t.Errorf("huge file: %q", got)
	}
}

func TestMerge(t *testing.T) {
	service := func(name, ports string) string {
		return "---\napiVersion: bulkhead/v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {ports: [" + ports + "]}\n"
	}
	base := parse(t, service("b", "tcp/1")+service("d", "tcp/1")+service("a", "tcp/1"))
	over := parse(t, service("c", "tcp/2")+service("b", "tcp/2")+service("e", "tcp/2"))
	baseText, overText := policy.Marshal(base), policy.Marshal(over)
	got := policy.Merge(base, over)
	want := service("a", "tcp/1") + service("b", "tcp/2") + service("c", "tcp/2") + service("d", "tcp/1") + service("e", "tcp/2")
	if diff := cmp.Diff(parse(t, want), got, equalDocuments...); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	got.Services[0].Name = "changed"
	if !bytes.Equal(policy.Marshal(base), baseText) || !bytes.Equal(policy.Marshal(over), overText) {
		t.Error("an argument changed")
	}
	if diff := cmp.Diff(base, policy.Merge(base, nil), equalDocuments...); diff != "" {
		t.Errorf("over nothing: %s", diff)
	}
	if diff := cmp.Diff(base, policy.Merge(nil, base), equalDocuments...); diff != "" {
		t.Errorf("onto nothing: %s", diff)
	}
}

// TestMergeAndRemoveProperties takes generated worlds apart and puts them together again.
func TestMergeAndRemoveProperties(t *testing.T) {
	for seed := range uint64(50) {
		a, _, _ := policytest.Generate(seed, policytest.Small)
		b, _, _ := policytest.Generate(seed+1000, policytest.Small)
		text := policy.Marshal(a)
		if m := policy.Merge(a, a); !bytes.Equal(policy.Marshal(m), text) {
			t.Fatalf("seed %d: merging with itself changes documents", seed)
		}
		if m := policy.Merge(policy.Merge(b, a), a); !bytes.Equal(policy.Marshal(m), policy.Marshal(policy.Merge(b, a))) {
			t.Fatalf("seed %d: merging twice differs from once", seed)
		}
		rest := a
		for _, kind := range model.Kinds {
			for _, name := range documentNames(a, kind) {
				var found bool
				before := policy.Marshal(rest)
				less, found := policy.Remove(rest, kind, name)
				if !found || !bytes.Equal(policy.Marshal(rest), before) || bytes.Equal(policy.Marshal(less), before) {
					t.Fatalf("seed %d: remove %s %s: found %v, or the argument changed, or nothing did", seed, kind, name, found)
				}
				if _, found := policy.Remove(less, kind, name); found {
					t.Fatalf("seed %d: %s %s is there after it was removed", seed, kind, name)
				}
				rest = less
			}
		}
		if diff := cmp.Diff(&model.Documents{}, rest); diff != "" {
			t.Fatalf("seed %d: something is left:\n%s", seed, diff)
		}
		if !bytes.Equal(policy.Marshal(a), text) {
			t.Fatalf("seed %d: the documents changed", seed)
		}
	}
	if d, found := policy.Remove(nil, model.KindPolicy, "x"); found || d == nil {
		t.Error("something was found in nothing")
	}
	if _, found := policy.Remove(&model.Documents{}, "Nonsense", "x"); found {
		t.Error("an unknown kind was found")
	}
}

func documentNames(d *model.Documents, kind model.Kind) []string {
	var out []string
	add := func(m *model.Meta) { out = append(out, m.Name) }
	switch kind {
	case model.KindService:
		for i := range d.Services {
			add(&d.Services[i].Meta)
		}
	case model.KindNetwork:
		for i := range d.Networks {
			add(&d.Networks[i].Meta)
		}
	case model.KindWorkload:
		for i := range d.Workloads {
			add(&d.Workloads[i].Meta)
		}
	case model.KindSegment:
		for i := range d.Segments {
			add(&d.Segments[i].Meta)
		}
	case model.KindPolicy:
		for i := range d.Policies {
			add(&d.Policies[i].Meta)
		}
	case model.KindGuardrail:
		for i := range d.Guardrails {
			add(&d.Guardrails[i].Meta)
		}
	case model.KindExpectation:
		for i := range d.Expectations {
			add(&d.Expectations[i].Meta)
		}
	}
	return out
}
