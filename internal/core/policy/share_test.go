package policy_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/policytest"
)

// reparsed returns the documents as a controller reads them from its store: nothing is shared, and no position is the same.
func reparsed(t *testing.T, docs *model.Documents, lines int) *model.Documents {
	t.Helper()
	text := append([]byte(strings.Repeat("\n", lines)), policy.Marshal(docs)...)
	out, err := policy.Parse([]policy.File{{Name: fmt.Sprintf("%d.yaml", lines), Data: text}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func shared[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// TestShare: documents that were parsed again are those of before, list by list, but for what was changed.
func TestShare(t *testing.T) {
	for seed := range uint64(50) {
		generated, _, _ := policytest.Generate(seed, policytest.Alternate(seed))
		generated.OneSided = nil // Kubernetes' are not written out
		before := reparsed(t, generated, 0)
		again := policy.Share(before, reparsed(t, generated, 3))
		if !shared(before.Services, again.Services) || !shared(before.Networks, again.Networks) || !shared(before.Workloads, again.Workloads) ||
			!shared(before.Segments, again.Segments) || !shared(before.Policies, again.Policies) ||
			!shared(before.Guardrails, again.Guardrails) || !shared(before.Expectations, again.Expectations) {
			t.Fatalf("seed %d: the same documents share too little", seed)
		}
		if len(before.Policies) < 2 {
			continue
		}
		changed := reparsed(t, generated, 0)
		k := int(seed) % len(changed.Policies)
		rules := changed.Policies[k].Rules
		rules[0].Action = 1 - rules[0].Action
		now := policy.Share(before, reparsed(t, changed, 5))
		for i := range now.Policies {
			if got, want := shared(now.Policies[i].Rules, before.Policies[i].Rules), i != k; got != want {
				t.Errorf("seed %d: policy %d shares its rules: %v, want %v", seed, i, got, want)
			}
		}
		if d := cmp.Diff(changed, now, equalDocuments); d != "" {
			t.Errorf("seed %d: the documents are others: %s", seed, d)
		}
		changed = reparsed(t, generated, 0)
		changed.Policies[k].Owner += "x"
		now = policy.Share(before, changed)
		if !shared(now.Policies[k].Rules, before.Policies[k].Rules) || now.Policies[k].Owner != changed.Policies[k].Owner || shared(now.Policies, before.Policies) {
			t.Errorf("seed %d: another owner", seed)
		}
	}
}

// TestShareTellsDifferencesApart: of two sets of documents, whichever, Share gives what the second says.
func TestShareTellsDifferencesApart(t *testing.T) {
	var last *model.Documents
	for seed := range uint64(100) {
		docs, _, _ := policytest.Generate(seed, policytest.Kubernetes)
		if last != nil {
			got := policy.Share(last, docs)
			if !bytes.Equal(policy.Marshal(got), policy.Marshal(docs)) {
				t.Fatalf("seed %d: the documents are others", seed)
			}
			if d := cmp.Diff(docs, got, equalDocuments); d != "" {
				t.Fatalf("seed %d: the documents are others: %s", seed, d)
			}
		}
		last = docs
	}
}
