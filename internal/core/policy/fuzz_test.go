package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// FuzzParse checks that any text is either refused with errors that have a place in it, or means documents that can
// be written and read again, and that hygiene has no trouble with.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob(filepath.Join("..", "..", "corpus", "testdata", "*", "*.txtar"))
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range txtar.Parse(data).Files {
			f.Add(file.Data)
		}
	}
	size := policytest.Small
	size.NotYet = true
	for seed := range uint64(5) {
		docs, _, _ := policytest.Generate(seed, size)
		f.Add(policy.Marshal(docs))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := policy.Read([]policy.File{{Name: "fuzz", Data: data}})
		if err != nil {
			var errs policy.Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("an error of type %T: %v", err, err)
			}
			lines := bytes.Count(data, []byte("\n")) + 1
			for i, e := range errs {
				last := i == len(errs)-1 && e.Pos.File == "" // "and n more"
				if e.Msg == "" || !last && (e.Pos.File != "fuzz" || e.Pos.Line < 1 || e.Pos.Column < 1) {
					t.Fatalf("an error without a place or a text: %+v", *e)
				}
				if e.Pos.Line > lines && !bytes.ContainsAny(data, "\r\u0085\u2028\u2029") {
					t.Fatalf("%v is beyond the last line, %d", e, lines)
				}
			}
			return
		}
		text := policy.Marshal(docs)
		again, err := policy.Read([]policy.File{{Name: "again", Data: text}})
		if err != nil {
			t.Fatalf("written form is refused: %v\n%s", err, text)
		}
		if diff := cmp.Diff(docs, again, equalDocuments...); diff != "" {
			t.Fatalf("written form says something else:\n%s\n%s", diff, text)
		}
		if policy.Validate(docs) == nil {
			policy.Hygiene(docs, nil, policytest.Now)
		}
	})
}

// FuzzAddresses gives any text as an address, a CIDR, a domain and a port, the places where documents take text of their own
// grammar: it is refused at its place, or comes back from the written form as what it was read as.
func FuzzAddresses(f *testing.F) {
	for _, s := range []string{
		"10.0.3.7", "fd00::3:7", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "255.255.255.255", "10.0.0.0/8", "fd00::/8", "0.0.0.0/0",
		"10.0.0.1/8", "::ffff:10.0.0.0/104", "*.stripe.com", "api.example.org", "tcp/443", "udp/8000-8100", "icmp/8/0", "icmpv6", "any",
		"", " ", "x", "443", "tcp/1-", "10.0.0.0/33",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fuzzField(t, model.KindWorkload, "addresses", text)
		fuzzField(t, model.KindNetwork, "cidrs", text)
		fuzzField(t, model.KindNetwork, "domains", text)
		fuzzField(t, model.KindService, "ports", text)
	})
}

// fuzzField reads a document of that kind in which the list has the text as its only element.
func fuzzField(t *testing.T, kind model.Kind, field, text string) {
	quoted, err := json.Marshal(text) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("apiVersion: bulkhead/v1\nkind: %s\nmetadata: {name: x}\nspec: {%s: [%s]}\n", kind, field, quoted)
	docs, err := policy.Parse([]policy.File{{Name: "fuzz", Data: []byte(data)}})
	if err != nil {
		for _, m := range messages(t, err) {
			if !strings.HasPrefix(m, "fuzz:4:") {
				t.Fatalf("%s: refused elsewhere than where it stands: %s", data, m)
			}
		}
		return
	}
	written := policy.Marshal(docs)
	again, err := policy.Parse([]policy.File{{Name: "again", Data: written}})
	if err != nil {
		t.Fatalf("%s: the written form is refused: %v\n%s", data, err, written)
	}
	if diff := cmp.Diff(docs, again, equalDocuments...); diff != "" {
		t.Fatalf("%s: the written form says something else:\n%s", data, diff)
	}
}
