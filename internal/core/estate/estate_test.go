package estate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// TestMake shows that an estate is as large as asked for, always the same, and of documents that the language takes.
func TestMake(t *testing.T) {
	size := estate.Size{Workloads: 1000, LabelSets: 100, Rules: 250}
	docs, inv := estate.Make(size)
	rules := 0
	for _, p := range docs.Policies {
		rules += len(p.Rules)
	}
	if len(inv.Instances) != size.Workloads || rules != size.Rules {
		t.Errorf("%d workloads and %d rules, want %v", len(inv.Instances), rules, size)
	}
	sets := map[string]bool{}
	units, devices := 0, 0
	for i := range inv.Instances {
		inst := &inv.Instances[i]
		sets[inst.Labels.String()] = true
		if inst.IsUnit() {
			units++
		}
		if !inst.Managed {
			devices++
		}
	}
	if len(sets) != size.LabelSets || units < 100 || devices < 5 {
		t.Errorf("%d label sets, %d units and %d devices", len(sets), units, devices)
	}
	if !slices.IsSortedFunc(inv.Instances, func(a, b model.Instance) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the inventory is not sorted")
	}
	text := policy.Marshal(docs)
	parsed, err := policy.Parse([]policy.File{{Name: "estate.yaml", Data: text}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(policy.Marshal(parsed))); diff != "" {
		t.Error(diff)
	}
	again, _ := estate.Make(size)
	if string(policy.Marshal(again)) != string(text) {
		t.Error("the same size makes another estate")
	}
}
